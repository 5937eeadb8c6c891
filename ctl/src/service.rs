//! What a service manager is told (`sd_notify(3)`), so that what it starts after a mount finds the mount.

use std::ffi::OsStr;
use std::os::unix::net::UnixDatagram;

use anyhow::Context;

/// The variable that names the manager's socket.
pub(crate) const SOCKET: &str = "NOTIFY_SOCKET";

/// Tells a manager at `socket`, if there is one, that the mount answers.
///
/// # Errors
/// When it cannot be told: it would wait, and end the mount.
pub(crate) fn ready(socket: Option<&OsStr>) -> anyhow::Result<()> {
    let Some(socket) = socket else { return Ok(()) };
    let unable = || format!("cannot tell the service manager at {} that the mount answers", socket.display());
    UnixDatagram::unbound().and_then(|own| own.send_to(b"READY=1\n", socket)).with_context(unable)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_that_waits_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        ready(Some(path.as_os_str())).unwrap();
        let mut said = [0; 64];
        let length = manager.recv(&mut said).unwrap();
        assert_eq!(&said[..length], b"READY=1\n");
        drop(manager);
        let error = ready(Some(path.as_os_str())).unwrap_err();
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        ready(None).unwrap();
    }
}
