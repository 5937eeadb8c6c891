//! What QEMU has to find by its path, because its monitor takes no descriptors: QMP over TCP, and qemu-storage-daemon.

use std::path::Path;

use super::transport::refused;
use crate::error::{Error, Kind};

/// Explains why QEMU did not get at `path`, which is in a directory of ours alone.
pub(super) fn explain(error: Error, path: &Path) -> Error {
    if refused(&error).is_none() || error.kind() == Kind::Busy {
        return error;
    }
    let uid = rustix::process::geteuid().as_raw();
    let who = if uid == 0 { "as root".to_owned() } else { format!("as root or as user {uid}") };
    error.context(format!(
        "QEMU does not get at {}: over TCP, and in qemu-storage-daemon, it is not handed files, so it has to see the \
         directories of this host, and to run {who}",
        path.display()
    ))
}
