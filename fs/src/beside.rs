//! What processes of ours that stand beside the daemon have in common: it starts them, and they outlast it.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{Error, Kind, Result};

/// The socket that such a process was given as its standard input. Its end is that of the daemon.
///
/// # Errors
/// [`Kind::Invalid`] for anything else: `subcommand` is not for people to type.
pub(crate) fn socket_at_stdin(subcommand: &str) -> Result<UnixStream> {
    let socket = io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from);
    let usable = |socket: &UnixStream| socket.peer_addr().and_then(|_| socket.set_nonblocking(true));
    socket.and_then(|socket| usable(&socket).map(|()| socket)).map_err(|error| {
        Error::with_source(Kind::Invalid, format!("{subcommand} is for pullfs itself to start"), error)
    })
}

/// Leaves the daemon's session and directory: what ends or needs those is not to end or need this.
///
/// # Errors
/// When there is no other directory.
pub(crate) fn leave() -> Result<()> {
    // It fails where it is not needed.
    rustix::process::setsid().ok();
    let unable = |error| Error::with_source(Kind::Io, "cannot leave the current directory", error);
    std::env::set_current_dir("/").map_err(unable)
}

/// Signals by which others end a process, for as long as the value lives: listened to. Who hears none of them ends when the
/// daemon has, not before. Within a runtime.
///
/// # Errors
/// When they cannot be listened to.
pub(crate) fn signals() -> Result<[Signal; 3]> {
    let listen = |kind| signal(kind).map_err(|error| Error::with_source(Kind::Io, "cannot listen to signals", error));
    Ok([listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?, listen(SignalKind::hangup())?])
}
