//! One connection to a QMP socket: the greeting, lines in, lines and descriptors out.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::{Value, json};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{COMMAND_LIMIT, GREETING_LIMIT};
use crate::error::{Error, Kind, Result};

/// Longest line taken from QEMU, in bytes. The schema has 240 KB; a machine with many disks and bitmaps has more.
const MAX_LINE: usize = 64 << 20;

/// A connection after negotiation.
pub(super) struct Connection {
    stream: Arc<UnixStream>,
    lines: mpsc::Receiver<io::Result<Vec<u8>>>,
}

impl Connection {
    /// Connects, waits for the greeting and leaves negotiation mode.
    pub(super) async fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let stream = timeout(GREETING_LIMIT, UnixStream::connect(path))
            .await
            .map_err(|_| busy(path))?
            .map_err(|error| unreachable_socket(path, error))?;
        let stream = Arc::new(stream);
        let (give, lines) = mpsc::channel(16);
        tokio::spawn(cut_lines(stream.clone(), give));
        let mut connection = Self { stream, lines };
        timeout(GREETING_LIMIT, connection.negotiate())
            .await
            .map_err(|_| busy(path))?
            .map_err(|error| error.context(format!("{shown} does not speak QMP")))?;
        Ok(connection)
    }

    async fn negotiate(&mut self) -> Result<()> {
        let greeting = self.next().await.map_err(|why| Error::new(Kind::Gone, why))?;
        if greeting.get("QMP").is_none() {
            return Err(Error::new(Kind::Invalid, "no QMP greeting; is this a QMP socket?"));
        }
        self.write(&json!({"execute": "qmp_capabilities"}), None).await?;
        loop {
            let answer = self.next().await.map_err(|why| Error::new(Kind::Gone, why))?;
            if answer.get("return").is_some() {
                return Ok(());
            }
            if answer.get("event").is_none() {
                return Err(Error::new(Kind::Invalid, "capabilities negotiation failed"));
            }
        }
    }

    /// The next message, or why there is none. Giving up on it loses nothing.
    pub(super) async fn next(&mut self) -> std::result::Result<Value, String> {
        let line = match self.lines.recv().await {
            Some(Ok(line)) => line,
            Some(Err(error)) => return Err(format!("the QMP connection broke: {error}")),
            None => return Err("QEMU closed the QMP connection".to_owned()),
        };
        serde_json::from_slice(&line).map_err(|error| format!("QEMU sent a line that is not JSON: {error}"))
    }

    /// Sends a command, and a descriptor beside it.
    pub(super) async fn write(&self, command: &Value, descriptor: Option<OwnedFd>) -> Result<()> {
        let mut line = command.to_string().into_bytes();
        line.push(b'\n');
        let sent = timeout(COMMAND_LIMIT, send_all(&self.stream, &line, descriptor)).await;
        sent.map_err(|_| Error::new(Kind::Timeout, "QEMU does not read its QMP socket"))?
            .map_err(|error| Error::with_source(Kind::Gone, "cannot write to the QMP socket", error))
    }
}

fn busy(path: &Path) -> Error {
    Error::new(
        Kind::Busy,
        format!(
            "no greeting from {} within {} s: QEMU serves one client per QMP socket, and another one has this; \
             give the machine a QMP socket for pullfs alone",
            path.display(),
            GREETING_LIMIT.as_secs()
        ),
    )
}

fn unreachable_socket(path: &Path, error: io::Error) -> Error {
    let what = match error.kind() {
        io::ErrorKind::NotFound => "there is no such socket",
        io::ErrorKind::ConnectionRefused => "nobody listens there; does the machine run?",
        io::ErrorKind::PermissionDenied => "this user may not connect to it",
        _ => "connecting failed",
    };
    Error::with_source(Kind::Gone, format!("cannot reach the QMP socket {}: {what}", path.display()), error)
}

async fn send_all(stream: &UnixStream, mut bytes: &[u8], descriptor: Option<OwnedFd>) -> io::Result<()> {
    while !bytes.is_empty() {
        let sent = stream
            .async_io(Interest::WRITABLE, || {
                let fds = descriptor.as_ref().map(AsFd::as_fd);
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if let Some(fd) = &fds {
                    control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(fd)));
                }
                let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                Ok(rustix::net::sendmsg(stream, &[IoSlice::new(bytes)], &mut control, flags)?)
            })
            .await?;
        bytes = &bytes[sent..];
        if sent > 0 && descriptor.is_some() {
            // The descriptor travelled with the first byte; it must not travel twice.
            return Box::pin(send_all(stream, bytes, None)).await;
        }
    }
    Ok(())
}

async fn cut_lines(stream: Arc<UnixStream>, give: mpsc::Sender<io::Result<Vec<u8>>>) {
    let mut line = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    loop {
        let ready = tokio::select! {
            ready = stream.readable() => ready,
            () = give.closed() => return,
        };
        let got = match ready.and_then(|()| stream.try_read(&mut chunk)) {
            Ok(0) => return,
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => {
                // The driver may be gone already; then nobody needs to know.
                give.send(Err(error)).await.ok();
                return;
            }
        };
        for part in chunk[..got].split_inclusive(|&byte| byte == b'\n') {
            line.extend_from_slice(part);
            if line.len() > MAX_LINE {
                give.send(Err(io::Error::other("QEMU sent a line longer than any answer is"))).await.ok();
                return;
            }
            if line.ends_with(b"\n") {
                let whole = std::mem::take(&mut line);
                if !whole.trim_ascii().is_empty() && give.send(Ok(whole)).await.is_err() {
                    return;
                }
            }
        }
    }
}
