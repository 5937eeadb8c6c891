//! `delta.raw`: the changed extents at their place on the disk, holes everywhere else and where they became zeroes.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;

use super::raw::on_disk;
use super::{Image, Seek, Segment, no_such_data};
use crate::block::changes::Changes;
use crate::error::Result;

/// What changed on a disk since a checkpoint.
pub struct Delta {
    size: u64,
    changes: Arc<Changes>,
}

impl Delta {
    /// A delta of a disk of `size` bytes.
    pub fn new(size: u64, changes: Arc<Changes>) -> Self {
        Self { size, changes }
    }
}

#[async_trait]
impl Image for Delta {
    fn size(&self) -> u64 {
        self.size
    }

    fn data_bytes(&self) -> u64 {
        self.changes.data.bytes()
    }

    fn map(&self, range: Range<u64>) -> Vec<Segment> {
        on_disk(range.clone(), self.changes.data.within(range))
    }

    async fn seek(&self, offset: u64, what: Seek) -> Result<u64> {
        if offset >= self.size {
            return Err(no_such_data(offset));
        }
        match what {
            Seek::Data => self.changes.data.next_inside(offset).ok_or_else(|| no_such_data(offset)),
            Seek::Hole => Ok(self.changes.data.next_outside(offset).min(self.size)),
        }
    }
}
