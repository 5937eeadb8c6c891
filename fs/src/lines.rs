//! A stream cut into lines of bounded length. Giving up on any of it loses nothing.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// How much is read at once, in bytes; an agent's answers are mostly shorter.
const CHUNK: usize = 4096;

/// Both ends of a conversation in lines.
pub(crate) struct Lines {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl Lines {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// The next line, without its end; `None` where the stream ends.
    pub(crate) async fn next(&mut self, longest: usize) -> io::Result<Option<Vec<u8>>> {
        let mut searched = 0;
        loop {
            if let Some(at) = position(&self.buffer[searched..], b'\n') {
                let rest = self.buffer.split_off(searched + at + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                line.pop();
                return Ok(Some(line));
            }
            searched = self.buffer.len();
            if searched > longest {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the line is too long"));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// Drops everything up to the next `byte`, and it; `false` where the stream ends before.
    pub(crate) async fn skip_past(&mut self, byte: u8) -> io::Result<bool> {
        loop {
            if let Some(at) = position(&self.buffer, byte) {
                self.buffer.drain(..=at);
                return Ok(true);
            }
            self.buffer.clear();
            if !self.fill().await? {
                return Ok(false);
            }
        }
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Tells the other end that no more lines come.
    pub(crate) async fn finish(&mut self) {
        // Who is gone knows already.
        self.stream.shutdown().await.ok();
    }

    async fn fill(&mut self) -> io::Result<bool> {
        self.buffer.reserve(CHUNK);
        Ok(self.stream.read_buf(&mut self.buffer).await? > 0)
    }
}

fn position(bytes: &[u8], byte: u8) -> Option<usize> {
    bytes.iter().position(|&each| each == byte)
}
