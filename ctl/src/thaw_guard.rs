//! `pullfs thaw-guard`, which pullfs starts for itself while a guest is frozen: see `pullfs_fs::quiesce`.

use std::path::Path;
use std::process::ExitCode;

use pullfs_fs::quiesce::guard;

use crate::log::{self, Fields};

pub(crate) fn run(agent: &Path) -> ExitCode {
    log::start("warn", false, &Fields::of("thaw-guard").with("PULLFS_AGENT", &agent.display().to_string()));
    guard::run(agent)
}
