//! QEMU's NBD server on a socket of ours.
//!
//! QEMU has one server and no command that tells where it listens. Whether it is ours the kernel knows: somebody listens on
//! the socket, and that can only be QEMU. It is not asked by connecting, as a rule: QEMU 7.2 stands still for half a minute
//! when its server is stopped while a client shakes hands.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::by_path;
use super::session::Session;
use super::transport::refused;
use super::undo::remove_socket;
use crate::error::{Error, Kind, Result};

/// How long QEMU may take to greet; it does at once, unless its main loop is busy.
const GREETING_LIMIT: Duration = Duration::from_secs(10);

/// What an NBD server says first (NBD protocol, "Handshake").
const GREETING: &[u8; 8] = b"NBDMAGIC";

/// Starts the server on `socket`; `name` is what the socket is called in QEMU, if its monitor takes descriptors.
pub(super) async fn start(session: &Session, descriptors: bool, socket: &Path, name: &str) -> Result<()> {
    let failed = |error| Error::with_source(Kind::Io, format!("cannot listen on {}", socket.display()), error);
    let started = if descriptors {
        let listener = UnixListener::bind(socket).map_err(failed)?;
        session.start_server_on(OwnedFd::from(listener), name).await
    } else {
        let path = socket
            .to_str()
            .ok_or_else(|| Error::new(Kind::Invalid, format!("{} is not UTF-8, which QEMU needs", socket.display())))?;
        let started = session.start_server(json!({"type": "unix", "data": {"path": path}})).await;
        started.map_err(|error| by_path::explain(error, socket))
    };
    // A server that QEMU refused to start is somebody else's.
    if started.as_ref().is_err_and(|error| refused(error).is_some()) {
        remove_socket(socket)?;
    }
    started
}

/// Whether an NBD server listens on `socket`.
///
/// # Errors
/// [`Kind::Timeout`] when somebody can be connected to but says nothing.
pub(super) async fn is_served(socket: &Path) -> Result<bool> {
    let sockets = std::fs::read("/proc/net/unix").unwrap_or_default();
    if !socket.exists() || is_listening(&sockets, socket) {
        return Ok(socket.exists());
    }
    // The kernel tells of the sockets of this network namespace alone.
    let greet = async {
        let Ok(mut stream) = UnixStream::connect(socket).await else { return false };
        let mut greeting = [0; GREETING.len()];
        stream.read_exact(&mut greeting).await.is_ok() && greeting == *GREETING
    };
    let late = |_| Error::new(Kind::Timeout, format!("no greeting from the NBD server on {}", socket.display()));
    timeout(GREETING_LIMIT, greet).await.map_err(late)
}

/// Whether a line of `/proc/net/unix` is of a socket at this path that accepts connections: its fourth field has the flag
/// `__SO_ACCEPTCON` of include/net/sock.h, its eighth is the path (`proc_net_unix(5)`).
fn is_listening(sockets: &[u8], path: &Path) -> bool {
    const ACCEPTS: u32 = 1 << 16;
    sockets.split(|byte| *byte == b'\n').any(|line| {
        let mut fields = line.splitn(8, |byte| *byte == b' ').filter(|field| !field.is_empty());
        let flags = fields.nth(3).and_then(|flags| u32::from_str_radix(std::str::from_utf8(flags).ok()?, 16).ok());
        let named = line.strip_suffix(path.as_os_str().as_bytes()).is_some_and(|before| before.ends_with(b" "));
        named && flags.is_some_and(|flags| flags & ACCEPTS != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_is_known_without_a_connection() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd sock");
        assert!(!is_served(&path).await.unwrap(), "there is no socket");
        let listener = UnixListener::bind(&path).unwrap();
        assert!(is_served(&path).await.unwrap());
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "nobody came");
        assert!(!is_served(&dir.path().join("sock")).await.unwrap(), "a path that another one ends in");
        drop(listener);
        assert!(!is_served(&path).await.unwrap(), "a socket that nobody has any more");
    }
}
