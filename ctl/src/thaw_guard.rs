//! `pullfs thaw-guard`, which pullfs starts for itself while a guest is frozen: see `pullfs_fs::quiesce`.

use std::path::Path;
use std::process::ExitCode;

use pullfs_fs::quiesce::guard;
use tracing_subscriber::EnvFilter;

pub(crate) fn run(agent: &Path) -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
    guard::run(agent)
}
