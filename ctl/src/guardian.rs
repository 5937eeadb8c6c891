//! `pullfs guardian`, which pullfs starts for itself beside each daemon: see `pullfs_fs::guardian`.

use std::path::Path;
use std::process::ExitCode;

use pullfs_fs::guardian::process;
use tracing_subscriber::EnvFilter;

pub(crate) fn run(dir: &Path) -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
    process::run(dir)
}
