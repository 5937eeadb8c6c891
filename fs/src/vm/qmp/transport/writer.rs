//! The sending half of a connection: bytes, and over a unix socket descriptors beside them.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use nbd_pool::tls::TlsStream;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use tokio::io::{AsyncWriteExt, Interest, WriteHalf};
use tokio::net::{TcpStream, tcp, unix};

pub(super) enum Writer {
    Unix(unix::OwnedWriteHalf),
    Tcp(tcp::OwnedWriteHalf),
    Tls(WriteHalf<TlsStream<TcpStream>>),
}

impl Writer {
    /// Sends a line. Giving up half way leaves half of it behind.
    pub(super) async fn send(&mut self, bytes: &[u8], descriptor: Option<OwnedFd>) -> io::Result<()> {
        match self {
            Self::Unix(half) => send_all(half, bytes, descriptor).await,
            Self::Tcp(_) | Self::Tls(_) if descriptor.is_some() => {
                Err(io::Error::new(io::ErrorKind::Unsupported, "no descriptor travels over TCP"))
            }
            Self::Tcp(half) => half.write_all(bytes).await,
            Self::Tls(half) => {
                half.write_all(bytes).await?;
                // An empty line, in a record of its own. QEMU before 8.0 reads byte by byte and waits at the socket for
                // more, not minding what TLS has taken from there already: without this it does not see a command
                // before the next one comes.
                half.write_all(b"\n").await?;
                half.flush().await
            }
        }
    }
}

async fn send_all(half: &unix::OwnedWriteHalf, mut bytes: &[u8], descriptor: Option<OwnedFd>) -> io::Result<()> {
    let stream = half.as_ref();
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
            return Box::pin(send_all(half, bytes, None)).await;
        }
    }
    Ok(())
}
