//! The blocks of a frozen disk, for whoever reads what is inside.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Blocks, MAX_BLOCKS};
use crate::block::spread::Store;
use crate::error::{Error, Kind, Result};

/// A range of a disk or of a volume, through the cache; what comes out of it is confirmed, as all that comes out of the cache.
pub(super) struct Window {
    name: String,
    disk: Store,
    range: Range<u64>,
}

impl Window {
    /// `name` is what messages call it; `range` lies within the disk, in bytes.
    pub(super) fn new(name: String, disk: Store, range: Range<u64>) -> Self {
        Self { name, disk, range }
    }
}

#[async_trait]
impl Blocks for Window {
    fn size(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn name(&self) -> &str {
        &self.name
    }

    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        // Who asks has parsed a disk that anybody may have written.
        if range.start > range.end || range.end > self.size() || range.end - range.start > MAX_BLOCKS {
            let Range { start, end } = range;
            return Err(Error::new(
                Kind::Invalid,
                format!("blocks {start} to {end} were asked for of {}", self.size()),
            ));
        }
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        self.disk.read(self.range.start + range.start..self.range.start + range.end).await
    }
}
