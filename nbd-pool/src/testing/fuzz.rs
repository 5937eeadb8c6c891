//! What a fuzzer feeds with the bytes of a server: each function takes any input and panics where a promise is broken.

use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;

use super::Framing;
use crate::connection::{Connection, Limits, Outcome, Permits};
use crate::handshake::{Negotiated, negotiate};
use crate::info::{BlockSize, ExportInfo};
use crate::proto::{self, Headers};

/// The contexts that are asked for, with the ids that QEMU gives them.
const CONTEXTS: [(u32, &str); 2] = [(0, "base:allocation"), (2, "qemu:dirty-bitmap:c0")];

/// Size of the export of [`replies`], in bytes.
const SIZE: u64 = 64 << 10;

/// The reads of [`replies`], offset and length; their cookies are 1, 2 …
const READS: [(u64, usize); 2] = [(0, 1024), (32 << 10, 512)];

/// The block-status requests of [`replies`], context, offset and length; their cookies follow.
const STATUSES: [(usize, u64, u64); 2] = [(0, 0, SIZE), (1, 4096, 8192)];

/// A server's side of the handshake, from its greeting on.
pub fn handshake(input: &[u8]) {
    let contexts = CONTEXTS.map(|(_, name)| name.to_owned());
    let mut stream = tokio::io::join(input, tokio::io::sink());
    let Ok(negotiated) = block_on(negotiate(&mut stream, "disk", &contexts)) else { return };
    let ExportInfo { size, block_size, contexts: granted, .. } = negotiated.info;
    assert!(i64::try_from(size).is_ok(), "offsets of a file are signed");
    assert!(block_size.minimum.is_power_of_two() && block_size.maximum >= block_size.minimum, "{block_size:?}");
    assert!(granted.len() == negotiated.context_ids.len() && granted.iter().all(|name| contexts.contains(name)));
}

/// A server's replies to two reads and two block-status requests, in any order. Bit 0 of the first byte chooses extended
/// headers, bit 1 that a block-status request names its context.
pub fn replies(input: &[u8]) {
    let Some((&choice, stream)) = input.split_first() else { return };
    let framing = if choice & 1 == 0 { Framing::Structured } else { Framing::Extended };
    block_on(answered(framing, choice & 2 != 0, stream));
}

async fn answered(framing: Framing, status_filter: bool, stream: &[u8]) {
    let limits = Limits { requests: 8, request_timeout: Duration::from_secs(60) };
    let reader = Cursor::new(stream.to_vec());
    let negotiated = negotiated(framing, status_filter);
    let connection = Connection::start(reader, tokio::io::sink(), negotiated, limits, Arc::default());
    let permits = Arc::new(Semaphore::new(8));
    let permit = || {
        let request = Arc::clone(&permits).try_acquire_owned().expect("more permits than requests");
        Permits { _request: request, _bytes: None }
    };
    // What the buffers held before must not shine through.
    let reads = READS.map(|(offset, length)| {
        connection.read(offset, BytesMut::from(&vec![0xa5; length][..]), permit()).expect("nothing ended yet")
    });
    let statuses = STATUSES.map(|(context, offset, length)| {
        connection.block_status(context, offset, length, permit()).expect("nothing ended yet")
    });
    for ((outcome, (offset, length)), cookie) in reads.into_iter().zip(READS).zip(1..) {
        match outcome.await.expect("every request gets its outcome") {
            Outcome::Done(data) => {
                assert_eq!(Some(data.to_vec()), plainly_read(framing, stream, cookie, offset, length), "a wrong byte");
            }
            Outcome::Lost(buf, _) => assert_eq!(buf.len(), length, "the buffer comes back"),
            Outcome::Server(_) => {}
        }
    }
    for (outcome, (_, offset, _)) in statuses.into_iter().zip(STATUSES) {
        if let Outcome::Done(extents) = outcome.await.expect("every request gets its outcome") {
            let mut at = offset;
            for extent in &extents {
                assert!(extent.offset == at && extent.length > 0, "no gap and no overlap: {extents:?}");
                at = extent.end();
            }
            assert!(at > offset && at <= SIZE, "within the export: {extents:?}");
        }
    }
    connection.hang_up();
    connection.gone().await;
    assert_eq!(permits.available_permits(), 8, "every permit came back");
}

fn negotiated(framing: Framing, status_filter: bool) -> Negotiated {
    Negotiated {
        info: ExportInfo {
            size: SIZE,
            read_only: true,
            can_trim: false,
            multi_conn: false,
            block_size: BlockSize::default(),
            extended_headers: framing == Framing::Extended,
            contexts: CONTEXTS.map(|(_, name)| name.to_owned()).to_vec(),
        },
        headers: framing.into(),
        context_ids: CONTEXTS.map(|(id, _)| id).to_vec(),
        status_filter: status_filter && framing == Framing::Extended,
    }
}

/// What the replies to a read say, put together in the plainest way: a byte is what it was said to be, once.
fn plainly_read(framing: Framing, mut stream: &[u8], cookie: u64, offset: u64, length: usize) -> Option<Vec<u8>> {
    let mut bytes: Vec<Option<u8>> = vec![None; length];
    loop {
        let magic = stream.try_get_u32().ok()?;
        if magic == proto::SIMPLE_REPLY_MAGIC {
            stream = stream.get(12..)?;
            continue;
        }
        let (flags, kind, of) = (stream.try_get_u16().ok()?, stream.try_get_u16().ok()?, stream.try_get_u64().ok()?);
        let payload = match Headers::from(framing) {
            Headers::Compact => u64::from(stream.try_get_u32().ok()?),
            Headers::Extended => {
                stream = stream.get(8..)?;
                stream.try_get_u64().ok()?
            }
        };
        let (mut payload, rest) = stream.split_at_checked(usize::try_from(payload).ok()?)?;
        stream = rest;
        if of != cookie {
            continue;
        }
        let said = match kind {
            proto::REPLY_OFFSET_DATA => (payload.try_get_u64().ok()?, payload.to_vec()),
            proto::REPLY_OFFSET_HOLE => {
                let at = payload.try_get_u64().ok()?;
                (at, vec![0; usize::try_from(payload.try_get_u32().ok()?).ok()?.min(length + 1)])
            }
            proto::REPLY_NONE => (offset, Vec::new()),
            _ => return None,
        };
        let start = usize::try_from(said.0.checked_sub(offset)?).ok()?;
        for (place, byte) in bytes.get_mut(start..start.checked_add(said.1.len())?)?.iter_mut().zip(said.1) {
            if place.replace(byte).is_some() {
                return None;
            }
        }
        if flags & proto::REPLY_FLAG_DONE != 0 {
            return bytes.into_iter().collect();
        }
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    thread_local! {
        // Making one costs more than most inputs.
        static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}
