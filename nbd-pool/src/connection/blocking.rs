//! A connection over a plain socket: whoever asks sends, and a thread reads.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown, sockopt};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::oneshot;

use super::tasks::{self, Ending};
use super::{Shared, reader};
use crate::error::ErrorKind;
use crate::proto::{Command, Headers, Request};

/// How often the age of the oldest request is looked at, at least.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// The same, as a part of how old a request may get.
const WAITS: u32 = 8;

/// A connected socket that blocks who reads, and nobody who writes.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: OwnedFd,
    wait: Duration,
}

impl Socket {
    /// # Errors
    /// When the system refuses the options.
    pub(crate) fn new(stream: OwnedFd, request_timeout: Duration) -> io::Result<Self> {
        let wait = (request_timeout / WAITS).clamp(Duration::from_millis(1), LONGEST_WAIT);
        rustix::io::ioctl_fionbio(&stream, false)?;
        sockopt::set_socket_timeout(&stream, sockopt::Timeout::Recv, Some(wait))?;
        Ok(Self { stream, wait })
    }

    /// Sends a request; false if the socket does not take all of it at once, after which it takes no other.
    pub(super) fn send(&self, bytes: &[u8]) -> bool {
        // The pool's bounds allow for some kilobytes of requests on their way: a full socket is a server that reads none.
        send(&self.stream, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) == Ok(bytes.len())
    }

    /// Ends both directions, so that the reader wakes up; with `goodbye` the server is told so, if it listens.
    pub(super) fn end(&self, goodbye: Option<Headers>) {
        if let Some(headers) = goodbye {
            let mut bytes = BytesMut::new();
            Request { command: Command::Disconnect, cookie: 0, offset: 0, length: 0 }.encode(headers, &mut bytes);
            self.send(&bytes);
        }
        // Fails where the server was faster.
        shutdown(&self.stream, Shutdown::Both).ok();
    }
}

/// Starts the thread that reads; the receiver ends with it.
///
/// # Errors
/// When the system has no thread for it.
pub(super) fn start(socket: Arc<Socket>, shared: Arc<Shared>) -> io::Result<oneshot::Receiver<()>> {
    let (end, ended) = oneshot::channel();
    thread::Builder::new().name("nbd".to_owned()).spawn(move || {
        let _end = end;
        serve(socket, &shared);
    })?;
    Ok(ended)
}

fn serve(socket: Arc<Socket>, shared: &Shared) {
    let mut current = None;
    let incoming = Incoming { socket, shared, looked: Instant::now() };
    let ending =
        match pin!(reader::receive(incoming, &mut current, shared)).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(ending) => ending,
            Poll::Pending => unreachable!("it waits for nothing but the socket, which blocks"),
        };
    let (soft, cause) = match ending {
        Ending::Soft(cause) => (true, cause),
        Ending::Hard(cause) => (false, cause),
    };
    let cause = if cause.kind() == ErrorKind::Disconnected { shared.overdue().unwrap_or(cause) } else { cause };
    tasks::end(shared, current, cause, soft);
}

/// The receiving end, as the reader wants it; it is always ready, after it has blocked the thread.
struct Incoming<'a> {
    socket: Arc<Socket>,
    shared: &'a Shared,
    /// When the age of the oldest request was looked at.
    looked: Instant,
}

impl AsyncRead for Incoming<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // More than is read ahead is payload, all of which is on its way; headers are read as they come.
        let flags = if buf.remaining() > reader::READ_AHEAD { RecvFlags::WAITALL } else { RecvFlags::empty() };
        loop {
            // Looked at while data comes in as well: a reply may also never end.
            if self.looked.elapsed() >= self.socket.wait {
                if self.shared.overdue().is_some() {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                self.looked = Instant::now();
            }
            match recv(&self.socket.stream, buf.initialize_unfilled(), flags) {
                Ok((length, _)) => {
                    buf.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}
