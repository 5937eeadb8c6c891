//! A stream whose writing end breaks off after a number of bytes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

/// The stream, and how much of it is left.
#[derive(Debug)]
pub(crate) struct Cut {
    stream: UnixStream,
    left: Option<usize>,
    sent: usize,
}

impl Cut {
    /// Breaks off after `left` bytes, or never.
    pub(crate) fn new(stream: UnixStream, left: Option<usize>) -> Self {
        Self { stream, left, sent: 0 }
    }

    /// Bytes that went through.
    pub(crate) fn sent(&self) -> usize {
        self.sent
    }
}

impl AsyncRead for Cut {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Cut {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let room = self.left.map_or(bytes.len(), |left| left.min(bytes.len()));
        if room == 0 && !bytes.is_empty() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let sent = ready!(Pin::new(&mut self.stream).poll_write(cx, &bytes[..room]))?;
        self.left = self.left.map(|left| left - sent);
        self.sent += sent;
        Poll::Ready(Ok(sent))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
