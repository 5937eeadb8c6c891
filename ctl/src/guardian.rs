//! `pullfs guardian`, which pullfs starts for itself beside each daemon: see `pullfs_fs::guardian`.

use std::path::Path;
use std::process::ExitCode;

use pullfs_fs::guardian::process;
use pullfs_fs::point::journal::Journal;

use crate::log::{self, Fields};

pub(crate) fn run(dir: &Path) -> ExitCode {
    let fields = Fields::of("guardian");
    let fields = match Journal::header_in(dir) {
        Some(header) => fields.of_mount(&header.source, &header.mount_point).with("PULLFS_MOUNT_ID", &header.mount),
        None => fields,
    };
    log::start("warn", false, &fields);
    process::run(dir)
}
