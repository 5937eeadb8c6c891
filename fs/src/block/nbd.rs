//! A frozen disk behind an export of QEMU's NBD server.
//!
//! Connections are made at the first need; one that is lost before the server has told of the export is made again, as
//! the pool does with those that are lost later. Data and allocation share one pool; each dirty map is fetched once over a
//! short-lived connection of its own that negotiates just that bitmap, so a machine with a thousand checkpoints costs
//! nothing until one is read.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::BytesMut;
use nbd_pool::{Address, Config, ErrorKind, Pool, context};
use tokio::sync::{OnceCell, watch};
use tokio::time::{Instant, sleep, timeout_at};

use super::{Begun, Map, Sink, Source, Traffic};
use crate::error::{Error, Kind, Result};

/// How much of a disk one question about its allocation covers: QEMU walks its tables before it answers, and those who
/// wait for the first part must not wait for the last.
const ALLOCATION_WINDOW: u64 = 4 << 30;

/// The same for a dirty bitmap, which is in QEMU's memory.
const DIRTY_WINDOW: u64 = 1 << 40;

/// The first question covers so much; how many extents it is answered with says how much the next one may.
const FIRST_WINDOW: u64 = 64 << 20;

/// More extents than this in one answer (24 bytes each) take memory that is needed for a moment only: ask for less.
const DENSE: usize = 32 << 10;

/// Fewer than this are hardly worth a question: ask for more.
const SPARSE: usize = 4 << 10;

/// What a snapshot-access node answers once its filter gave the snapshot up (`on-cbw-error=break-snapshot`): the NBD value of
/// `EINVAL`. Requests of ours are valid otherwise, so it means nothing else.
const BROKEN: u32 = 22;

/// Where an export is found.
#[derive(Debug, Clone)]
pub struct Export {
    /// The NBD server.
    pub address: Address,
    /// The export's name.
    pub name: String,
    /// Bounds and time limits of the connections.
    pub config: Config,
}

impl Export {
    fn unread(&self, offset: u64, error: nbd_pool::Error) -> Error {
        self.failed(&format!("cannot read at {offset} from"), error)
    }

    fn failed(&self, what: &str, error: nbd_pool::Error) -> Error {
        let kind = match error.kind() {
            ErrorKind::Timeout => Kind::Timeout,
            ErrorKind::Server(BROKEN) => Kind::Broken,
            _ => Kind::Io,
        };
        Error::with_source(kind, format!("{what} export {} at {}", self.name, self.address), error)
    }
}

/// A disk read over NBD.
pub struct NbdSource {
    export: Arc<Export>,
    size: u64,
    pool: OnceCell<Pool>,
    closed: watch::Sender<bool>,
    reads: AtomicU64,
    bytes: AtomicU64,
    maps: AtomicU64,
}

impl NbdSource {
    /// Nothing is connected yet; `size` (bytes) is what the export must have.
    pub fn new(export: Export, size: u64) -> Self {
        Self {
            export: Arc::new(export),
            size,
            pool: OnceCell::new(),
            closed: watch::Sender::new(false),
            reads: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            maps: AtomicU64::new(0),
        }
    }

    /// Those who need it at the same time wait for one of them to connect, and none of them for longer than a request.
    async fn pool(&self) -> Result<&Pool> {
        let contexts = [context::BASE_ALLOCATION.to_owned()];
        let deadline = self.deadline();
        let connected = timeout_at(deadline, self.pool.get_or_try_init(|| self.connect(&contexts, deadline))).await;
        connected.unwrap_or_else(|_| {
            let Export { address, name, config } = &*self.export;
            let limit = config.request_timeout;
            Err(Error::new(Kind::Timeout, format!("no connection to export {name} at {address} within {limit:?}")))
        })
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.export.config.request_timeout
    }

    async fn connect(&self, contexts: &[String], deadline: Instant) -> Result<Pool> {
        let Export { address, name, config } = &*self.export;
        let mut closed = self.closed.subscribe();
        let mut pause = config.backoff_min;
        let pool = loop {
            let attempt = Pool::connect(address.clone(), name, contexts, config.clone());
            let error = tokio::select! {
                biased;
                _ = closed.wait_for(|closed| *closed) => {
                    return Err(Error::new(Kind::Io, format!("export {name} is needed no more")));
                }
                connected = attempt => match connected {
                    Ok(pool) => break pool,
                    Err(error) => error,
                },
            };
            // Nobody there, and a server that says no, are answers.
            if error.kind() != ErrorKind::Disconnected || Instant::now() + pause >= deadline {
                return Err(self.export.failed("cannot connect to", error));
            }
            sleep(pause).await;
            pause = (pause * 2).min(config.backoff_max);
        };
        let info = pool.info();
        if info.size != self.size || info.contexts != contexts {
            let (size, contexts) = (info.size, info.contexts.clone());
            pool.close().await;
            return Err(Error::new(
                Kind::Io,
                format!("export {name} has {size} bytes and maps {contexts:?}; expected {} bytes", self.size),
            ));
        }
        Ok(pool)
    }

    async fn walk(
        &self,
        pool: &Pool,
        context: &str,
        window: Range<u64>,
        most: u64,
        inside: impl Fn(u64) -> bool + Send + Sync,
        sink: &mut Sink<'_>,
    ) -> Result<()> {
        let mut at = window.start;
        let mut piece = FIRST_WINDOW;
        while at < window.end {
            let end = window.end.min(at.saturating_add(piece));
            let mut flow = ControlFlow::Continue(());
            let mut extents = 0;
            self.maps.fetch_add(1, Ordering::Relaxed);
            pool.block_status(context, at..end, |extent| {
                extents += 1;
                flow = sink(extent.offset..extent.offset + extent.length, inside(extent.flags));
                flow
            })
            .await
            .map_err(|error| self.export.failed("cannot read the map of", error))?;
            if flow.is_break() {
                break;
            }
            at = end;
            piece = match extents {
                0..SPARSE => piece.saturating_mul(4).min(most),
                SPARSE..=DENSE => piece,
                _ => (piece / 2).max(1 << 20),
            };
        }
        Ok(())
    }
}

#[async_trait]
impl Source for NbdSource {
    async fn read(&self, offset: u64, buf: BytesMut) -> Result<BytesMut> {
        let pool = self.pool().await?;
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(u64::try_from(buf.len()).unwrap_or(u64::MAX), Ordering::Relaxed);
        pool.read(offset, buf).await.map_err(|error| self.export.unread(offset, error))
    }

    fn begin(&self, offset: u64, buf: BytesMut, begun: Begun) -> Option<(BytesMut, Begun)> {
        let Some(pool) = self.pool.get() else { return Some((buf, begun)) };
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(u64::try_from(buf.len()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let export = self.export.clone();
        pool.begin_read(
            offset,
            buf,
            Box::new(move |outcome| begun(outcome.map_err(|error| export.unread(offset, error)))),
        );
        None
    }

    async fn map(&self, map: &Map, window: Range<u64>, sink: &mut Sink<'_>) -> Result<()> {
        match map {
            Map::Allocation => {
                let pool = self.pool().await?;
                let data = |flags| flags & context::STATE_ZERO == 0;
                self.walk(pool, context::BASE_ALLOCATION, window, ALLOCATION_WINDOW, data, sink).await
            }
            Map::Dirty(bitmap) => {
                let name = context::dirty_bitmap(bitmap);
                let pool = self.connect(std::slice::from_ref(&name), self.deadline()).await?;
                let walked = self
                    .walk(&pool, &name, window, DIRTY_WINDOW, |flags| flags & context::STATE_DIRTY != 0, sink)
                    .await;
                pool.close().await;
                walked
            }
        }
    }

    async fn give_back(&self, range: Range<u64>) -> Result<()> {
        let pool = self.pool().await?;
        pool.trim(range).await.map_err(|error| self.export.failed("cannot give back a part of", error))
    }

    fn traffic(&self) -> Traffic {
        Traffic {
            reads: self.reads.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            maps: self.maps.load(Ordering::Relaxed),
        }
    }

    async fn close(&self) {
        self.closed.send_replace(true);
        if let Some(pool) = self.pool.get() {
            pool.close().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use nbd_pool::testing::{Disk, Listener, Offer};

    use super::*;
    use crate::block::allocation::Allocation;

    const SIZE: u64 = 1 << 16;

    fn offer() -> Offer {
        Offer { size: SIZE, contexts: vec![(1, context::BASE_ALLOCATION.to_owned())], ..Offer::default() }
    }

    fn source(listener: &Listener) -> Arc<NbdSource> {
        let config = Config { connections: 1, ..Config::default() };
        Arc::new(NbdSource::new(Export { address: listener.address(), name: "x".to_owned(), config }, SIZE))
    }

    #[tokio::test]
    async fn a_connection_lost_in_its_handshake_is_made_again() {
        let listener = Listener::bind().unwrap();
        let source = source(&listener);
        let server = async {
            for _ in 0..3 {
                drop(listener.accept_silent().await.unwrap());
            }
            let mut peer = listener.accept(&offer()).await.unwrap();
            peer.serve(&Disk { content: vec![7; 1 << 16], status: Vec::new() }).await.ok();
        };
        let client = async {
            let read = source.read(512, BytesMut::zeroed(512)).await.unwrap();
            assert_eq!(read[..], [7; 512]);
            source.close().await;
        };
        tokio::join!(server, client);
    }

    #[tokio::test]
    async fn a_disk_that_is_closed_is_not_connected_to() {
        let listener = Listener::bind().unwrap();
        let source = source(&listener);
        let read = tokio::spawn({
            let source = source.clone();
            async move { source.read(0, BytesMut::zeroed(512)).await }
        });
        // It waits for a greeting.
        let silent = listener.accept_silent().await.unwrap();
        source.close().await;
        let refused = tokio::time::timeout(Duration::from_secs(5), read).await.unwrap().unwrap();
        assert_eq!(refused.unwrap_err().kind(), Kind::Io);
        drop(silent);
    }

    #[tokio::test]
    async fn an_allocation_that_could_not_be_learnt_is_asked_for_again() {
        let listener = Listener::bind().unwrap();
        let allocation = Allocation::new(source(&listener), SIZE, None);
        let refused = Offer { refuse: Some((1 << 31) | 6), ..offer() };
        let server = async {
            assert!(listener.accept(&refused).await.is_err());
            let mut peer = listener.accept(&offer()).await.unwrap();
            let status = vec![(context::BASE_ALLOCATION.to_owned(), vec![(SIZE / 2, 0), (SIZE / 2, 3)])];
            peer.serve(&Disk { content: vec![0; 1 << 16], status }).await.expect("served");
        };
        let client = async {
            assert!(allocation.complete().await.is_err());
            assert_eq!(allocation.next_hole(0).await.unwrap(), SIZE / 2);
        };
        tokio::select! { () = server => panic!("the client has left"), () = client => {} }
    }
}
