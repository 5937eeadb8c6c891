//! `changed-files.txt`: which of the guest's files lie in what changed since a checkpoint.

use std::sync::Arc;

use inside::{Extent, Place};
use tokio::time::timeout;

use super::Fs;
use crate::block::changes::Changes;
use crate::error::{Error, Kind, Result};
use crate::guest::changed::{Limits, List, touched, window};
use crate::guest::volumes::{self, has_files};
use crate::image::pieces::{Gathering, Pieces};
use crate::point::{FrozenDisk, PointInTime};

impl Fs {
    /// The list below a header, whose lines each have their `#`.
    pub(super) async fn changed_files(
        &self,
        point: &PointInTime,
        disk: &FrozenDisk,
        header: &str,
        changes: &Changes,
    ) -> Result<Pieces> {
        let limits = Limits::default();
        let name = &disk.disk.name;
        let late = || {
            let limit = humantime::format_duration(limits.time);
            Error::new(Kind::Timeout, format!("the list of changed files of disk {name} was not made within {limit}"))
        };
        let walk = async {
            let gone = |_| Error::new(Kind::Gone, "the mount ends");
            let _alone = self.walks.acquire().await.map_err(gone)?;
            self.walk(point, disk, List::new(header, limits), changes).await
        };
        let text = timeout(limits.time, walk).await.unwrap_or_else(|_| Err(late()))?;
        let length = u64::try_from(text.len()).unwrap_or(u64::MAX);
        // It counts as a file of the guest's that is within its inode.
        let mut gathering = Gathering::new(length, 0..0, Arc::clone(&self.pieces));
        gathering.add(vec![Extent { offset: 0, length, place: Place::Inline(text) }])?;
        gathering.finish()
    }

    async fn walk(&self, point: &PointInTime, disk: &FrozenDisk, mut list: List, changes: &Changes) -> Result<Vec<u8>> {
        let readers = self.readers()?;
        let table = volumes::table(readers, point, disk).await?;
        list.table(&table)?;
        for partition in &table.partitions {
            if partition.is_container() {
                continue;
            }
            if partition.problem.is_none() && !touched(changes, &window(partition)) {
                list.unchanged(partition.number)?;
            } else if !has_files(partition) {
                list.refused(partition)?;
            } else {
                match volumes::volume(readers, point, disk, partition.number).await {
                    Ok(volume) => {
                        list.volume(&*volume.reader, &volume.partition, changes, &|| point.check()).await?;
                    }
                    Err(error) => {
                        point.check()?;
                        list.closed(partition.number, &error)?;
                    }
                }
            }
        }
        list.finish()
    }
}
