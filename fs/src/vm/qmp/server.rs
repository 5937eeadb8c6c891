//! QEMU's NBD server on a socket of ours.
//!
//! QEMU has one server and no command that tells where it listens. Whether it is ours is asked from the socket itself:
//! only a server that has our socket greets there.

use std::os::fd::OwnedFd;
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

/// Whether an NBD server greets on `socket`.
///
/// # Errors
/// [`Kind::Timeout`] when somebody listens but says nothing.
pub(super) async fn is_served(socket: &Path) -> Result<bool> {
    let greet = async {
        let Ok(mut stream) = UnixStream::connect(socket).await else { return false };
        let mut greeting = [0; GREETING.len()];
        stream.read_exact(&mut greeting).await.is_ok() && greeting == *GREETING
    };
    let late = |_| Error::new(Kind::Timeout, format!("no greeting from the NBD server on {}", socket.display()));
    timeout(GREETING_LIMIT, greet).await.map_err(late)
}
