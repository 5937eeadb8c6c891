//! Where the bytes of a frozen disk come from, and what is known about them.
//!
//! A [`Source`] reads one disk at one point in time. Two implementations: [`nbd`], over an export of QEMU's, and the
//! one in memory that the tests of the file system use. [`extents`] holds lists of ranges, [`changes`] what changed
//! since a checkpoint, [`once`] gives back what was read, [`throttle`] leaves the guest's disk alone, [`allocation`] learns in
//! the background which ranges hold data, [`spread`] makes one volume of several disks.

pub mod ahead;
pub mod allocation;
pub(crate) mod assembly;
pub mod cache;
pub mod changes;
pub mod extents;
pub mod nbd;
pub mod once;
pub mod spread;
pub mod throttle;

use std::ops::{ControlFlow, Range};

use async_trait::async_trait;
use bytes::BytesMut;
use serde::Serialize;

use crate::error::Result;

/// What a map of a disk tells apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Map {
    /// Ranges that hold data, against ranges that read as zeroes.
    Allocation,
    /// Ranges that changed since a checkpoint; the name is the source's own for the frozen bitmap.
    Dirty(String),
}

/// Receives the ranges of a map in order: the range, and whether it is in the map (holds data; is dirty).
pub type Sink<'a> = dyn FnMut(Range<u64>, bool) -> ControlFlow<()> + Send + 'a;

/// What was asked of a source so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Reads, as they were asked; each may have taken several requests.
    pub reads: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Questions about allocation and dirty bitmaps.
    pub maps: u64,
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.reads += other.reads;
        self.bytes += other.bytes;
        self.maps += other.maps;
    }
}

/// Is told how a read ended, on whatever thread finds out: it must not wait.
pub type Begun = Box<dyn FnOnce(Result<BytesMut>) + Send>;

/// One disk at one point in time.
#[async_trait]
pub trait Source: Send + Sync {
    /// Fills `buf`, whose length is the length of the read, from `offset` (bytes); the same allocation comes back.
    ///
    /// # Errors
    /// Any failure; no byte of a failed read is given out.
    async fn read(&self, offset: u64, buf: BytesMut) -> Result<BytesMut>;

    /// Begins what [`Source::read`] does, without waiting; any thread may. Everything comes back where that cannot be done.
    fn begin(&self, _offset: u64, buf: BytesMut, begun: Begun) -> Option<(BytesMut, Begun)> {
        Some((buf, begun))
    }

    /// Tells `sink` all ranges of `window` in order, without gaps, until it breaks off.
    ///
    /// # Errors
    /// Any failure; what the sink was told until then is right.
    async fn map(&self, map: &Map, window: Range<u64>, sink: &mut Sink<'_>) -> Result<()>;

    /// Says that a range will not be read again, so that nothing needs to be kept for it. It cannot be, from then on.
    ///
    /// # Errors
    /// Any failure; the range can still be read, or not.
    async fn give_back(&self, range: Range<u64>) -> Result<()>;

    /// What was asked of it so far.
    fn traffic(&self) -> Traffic;

    /// Gives up connections; later reads fail.
    async fn close(&self);
}
