//! One read: cut into pieces, in flight together, joined again.

use std::sync::Arc;

use bytes::BytesMut;
use tokio::sync::oneshot;

use super::{Inner, MAX_FAULTS};
use crate::connection::{Outcome, ReadOutcome};
use crate::error::{Error, ErrorKind};
use crate::wide;

/// A part of the caller's buffer, and the request that fills it.
pub(super) struct Piece {
    /// Its place among the pieces.
    pub(super) index: usize,
    /// Where the request begins.
    pub(super) offset: u64,
    /// What the request fills: the piece itself, or a block-aligned stand-in for it.
    pub(super) buf: BytesMut,
    /// With a stand-in, the piece itself and where it begins in the stand-in.
    unaligned: Option<(BytesMut, usize)>,
    pub(super) faults: u32,
}

impl Inner {
    pub(super) async fn read_pieces(self: &Arc<Self>, offset: u64, buf: BytesMut) -> Result<BytesMut, Error> {
        let mut pieces = self.cut(offset, buf);
        let mut filled: Vec<Option<BytesMut>> = Vec::new();
        filled.resize_with(pieces.len(), || None);
        while !pieces.is_empty() {
            let mut waiting = Vec::with_capacity(pieces.len());
            for piece in pieces.drain(..) {
                waiting.push(self.send(piece).await?);
            }
            for (mut piece, outcome) in waiting {
                match outcome.await {
                    Ok(Outcome::Done(buf)) => filled[piece.index] = Some(piece.complete(buf)),
                    Ok(Outcome::Server(error)) => return Err(error),
                    Ok(Outcome::Lost(buf, cause)) => {
                        piece.buf = buf;
                        again(&mut piece.faults, cause)?;
                        pieces.push(piece);
                    }
                    Err(_) => return Err(Error::new(ErrorKind::Disconnected, "runtime ending")),
                }
            }
        }
        let mut whole = BytesMut::new();
        for buf in filled {
            whole.unsplit(buf.expect("each piece was filled or the loop goes on"));
        }
        Ok(whole)
    }

    /// Cuts a read at multiples of the request size, which the server can serve best.
    pub(super) fn cut(&self, mut offset: u64, mut buf: BytesMut) -> Vec<Piece> {
        let minimum = u64::from(self.info.block_size.minimum);
        let mut pieces = Vec::new();
        while !buf.is_empty() {
            let room = self.request_size - offset % self.request_size;
            let length = usize::try_from(room).map_or(buf.len(), |room| room.min(buf.len()));
            let part = buf.split_to(length);
            let end = offset + wide(length);
            let start = offset - offset % minimum;
            let aligned_end = end.next_multiple_of(minimum).min(self.info.size).max(end);
            let index = pieces.len();
            pieces.push(if (start, aligned_end) == (offset, end) {
                Piece { index, offset, buf: part, unaligned: None, faults: 0 }
            } else {
                let stand_in = memory_length(aligned_end - start);
                let skip = memory_length(offset - start);
                Piece {
                    index,
                    offset: start,
                    buf: BytesMut::zeroed(stand_in),
                    unaligned: Some((part, skip)),
                    faults: 0,
                }
            });
            offset = end;
        }
        pieces
    }

    /// Sends the request of a piece; the buffer comes back with the outcome.
    pub(super) async fn send(
        self: &Arc<Self>,
        mut piece: Piece,
    ) -> Result<(Piece, oneshot::Receiver<ReadOutcome>), Error> {
        let mut buf = std::mem::take(&mut piece.buf);
        let mut permits = self.permits(wide(buf.len())).await?;
        loop {
            let connection = self.connection().await?;
            match connection.read(piece.offset, buf, permits) {
                Ok(outcome) => return Ok((piece, outcome)),
                // It ended just now; the next pick will know.
                Err(returned) => (buf, permits) = returned,
            }
        }
    }
}

impl Piece {
    /// The caller's part of the buffer, now that its request is answered.
    pub(super) fn complete(&mut self, buf: BytesMut) -> BytesMut {
        match self.unaligned.take() {
            None => buf,
            Some((mut part, skip)) => {
                let length = part.len();
                part.copy_from_slice(&buf[skip..skip + length]);
                part
            }
        }
    }
}

/// Whether a request lost for `cause` may be issued again.
pub(super) fn again(faults: &mut u32, cause: Arc<Error>) -> Result<(), Error> {
    match cause.kind() {
        ErrorKind::Protocol => {
            *faults += 1;
            if *faults == MAX_FAULTS {
                let context = format!("{MAX_FAULTS} times in answer to one request");
                return Err(Error::protocol(context).with_source(cause));
            }
        }
        // Everything else that ends a connection may pass; the caller's time limit is the bound.
        ErrorKind::Connect
        | ErrorKind::Refused
        | ErrorKind::Handshake
        | ErrorKind::Untrusted
        | ErrorKind::Credentials
        | ErrorKind::Timeout
        | ErrorKind::Disconnected
        | ErrorKind::Server(_)
        | ErrorKind::OutOfRange
        | ErrorKind::Closed
        | ErrorKind::Changed
        | ErrorKind::Unsupported => {}
    }
    Ok(())
}

/// A length that is known to be at most a request's.
fn memory_length(length: u64) -> usize {
    usize::try_from(length).expect("a request fits the address space")
}
