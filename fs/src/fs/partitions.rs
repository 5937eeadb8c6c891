//! What is below `current/DISK/partitions`, and the same of a logical volume (see [`super::lvm`]).
//!
//! Which partitions there are is read from the disk, at a point in time. Listing and `stat` take none: without one, only
//! `table.json` is there. Who *names* a partition wants what is in it, so a look-up of a name that may be one takes the point in
//! time, as an open does. All that is found below is of that point in time, and stale when it ends: the kernel asks for
//! each partition's name anew with each path, and finds another node then, with nothing below it.

use std::ffi::OsStr;
use std::sync::Arc;

use inside::table::Table;

use super::handle::OpenFile;
use super::open::{Measure, frozen};
use super::{Attr, Entry, Fs, Lasts, modified};
use crate::block::spread::Store;
use crate::error::{Error, Kind, Result, chain};
use crate::guest::volumes::{self, Volume, has_bytes, has_files};
use crate::guest::{Readers, lvm, text};
use crate::image::Image;
use crate::image::pieces::Pieces;
use crate::image::raw::Raw;
use crate::image::volume::Volume as Logical;
use crate::point::{Lease, PointInTime};
use crate::tree::Node;
use crate::tree::inode::{Generation, Told};
use crate::tree::partitions::{Inside, Medium, Named, TABLE};

use super::generation::leased;

/// Most file systems that are opened only to be told of in `table.json`.
pub(super) const MAX_TOLD: usize = 16;

/// Size that `table.json` is taken to have until it is known, in bytes.
const ESTIMATE: u64 = 1024;

/// A guest's file that the kernel reads at once, in bytes: by itself it tells nothing of where its reader goes on.
const SMALL: u64 = 128 << 10;

pub(super) fn no_name(name: &OsStr) -> Error {
    Error::new(Kind::NotFound, format!("there is no {}", name.display()))
}

pub(super) fn of_another_instant() -> Error {
    Error::new(Kind::Stale, "the file was looked up for another point in time")
}

impl Fs {
    pub(super) fn readers(&self) -> Result<&dyn Readers> {
        self.readers.as_deref().ok_or_else(|| Error::new(Kind::NotFound, "nothing is read inside of disks"))
    }

    /// The point in time that a node was told for, if it is held.
    ///
    /// # Errors
    /// [`Kind::Stale`] if it is not.
    pub(super) fn instant(&self, told: &Told) -> Result<Arc<PointInTime>> {
        let held = self.points.view().held.filter(|point| leased(point.number()) == told.generation.lease);
        let point = held.ok_or_else(of_another_instant)?;
        point.touch();
        Ok(point)
    }

    async fn table(&self, point: &PointInTime, disk: &Arc<str>) -> Result<Arc<Table>> {
        volumes::table(self.readers()?, point, frozen(point, disk)?).await
    }

    pub(super) async fn volume(&self, point: &PointInTime, medium: &Medium, partition: u32) -> Result<Volume> {
        match medium {
            Medium::Disk(disk) => volumes::volume(self.readers()?, point, frozen(point, disk)?, partition).await,
            Medium::Logical { group, name } => lvm::volume(self.readers()?, point, group, name).await,
        }
    }

    /// Finds a name in a directory that is `partitions` or below it.
    pub(super) async fn lookup_inside(
        &self,
        told: &Told,
        medium: &Medium,
        what: Inside,
        name: &OsStr,
    ) -> Result<Entry> {
        let found = match (what, medium) {
            (Inside::Partitions, Medium::Disk(_)) if name == TABLE => {
                let node = Node::Inside { medium: medium.clone(), what: Inside::Table };
                let inventory = self.inventory().await?;
                if !node.exists(&inventory) {
                    return Err(no_name(name));
                }
                return self.tell(&node, &inventory).await;
            }
            (Inside::Partitions, Medium::Disk(disk)) => self.lookup_partition(disk, name).await,
            (Inside::Partition(number), _) => self.lookup_in_partition(told, medium, number, name).await,
            (Inside::Guest { partition, file }, _) => self.lookup_guest(told, medium, partition, file, name).await,
            (Inside::Partitions | Inside::Table | Inside::Raw(_) | Inside::Unclean(_), _) => Err(no_name(name)),
        };
        self.sought(found)
    }

    /// What became of looking for a name: that there is none is no failure, as somebody asked.
    pub(super) fn sought<T>(&self, found: Result<T>) -> Result<T> {
        match found {
            Err(error) if error.kind() == Kind::NotFound => Err(error),
            found => self.noted(found),
        }
    }

    /// The point in time for whoever names something that is at one only: taken, if none is held.
    pub(super) async fn named(&self) -> Result<Arc<PointInTime>> {
        match self.points.view().held {
            Some(point) => {
                point.touch();
                Ok(point)
            }
            None => Ok(self.points.open(None).await?.point()),
        }
    }

    async fn lookup_partition(&self, disk: &Arc<str>, name: &OsStr) -> Result<Entry> {
        let named = Named::by(name).ok_or_else(|| no_name(name))?;
        let point = self.named().await?;
        let table = self.table(&point, disk).await?;
        let (number, what) = match named {
            Named::Raw(number) => (number, Inside::Raw(number)),
            Named::Partition(number) => (number, Inside::Partition(number)),
        };
        let partition = table.partitions.iter().find(|partition| partition.number == number);
        let there = partition.is_some_and(|partition| match named {
            Named::Raw(_) => has_bytes(partition),
            Named::Partition(_) => has_files(partition),
        });
        if !there {
            return Err(no_name(name));
        }
        self.tell_inside(&point, &Medium::Disk(disk.clone()), what).await
    }

    async fn lookup_in_partition(&self, told: &Told, medium: &Medium, number: u32, name: &OsStr) -> Result<Entry> {
        let point = self.instant(told)?;
        if name == Inside::FILES {
            let volume = self.volume(&point, medium, number).await?;
            let (file, partition) = (volume.reader.root(), number);
            return self.tell_inside(&point, medium, Inside::Guest { partition, file }).await;
        }
        if name == Inside::UNCLEAN && self.unclean(&point, medium, number).await?.is_some() {
            return self.tell_inside(&point, medium, Inside::Unclean(number)).await;
        }
        Err(no_name(name))
    }

    /// Finds the node itself, or what it stands in, of who comes by its number.
    pub(super) async fn again_inside(&self, told: &Told, medium: &Medium, what: Inside, above: bool) -> Result<Entry> {
        let point = self.instant(told)?;
        let what = match what {
            what if !above => what,
            Inside::Guest { partition, file } => {
                let reader = self.volume(&point, medium, partition).await?.reader;
                if file == reader.root() {
                    Inside::Partition(partition)
                } else {
                    Inside::Guest { partition, file: reader.parent(file).await? }
                }
            }
            _ => return self.tell(&told.node.parent(), &*self.inventory().await?).await,
        };
        self.tell_inside(&point, medium, what).await
    }

    /// Tells of a node below `partitions` at a point in time.
    pub(super) async fn tell_inside(&self, point: &Arc<PointInTime>, medium: &Medium, what: Inside) -> Result<Entry> {
        let attr = self.attr_inside(point, medium, what).await?;
        self.told_inside(point, medium, what, attr)
    }

    /// The same, where its attributes are known; all but their inode number, which is of the node.
    pub(super) fn told_inside(
        &self,
        point: &Arc<PointInTime>,
        medium: &Medium,
        what: Inside,
        attr: Attr,
    ) -> Result<Entry> {
        point.check()?;
        let node = Node::Inside { medium: medium.clone(), what };
        let generation = Generation::held(&node, point.number(), &point.inventory());
        let ino = self.inodes.tell(&node, generation, attr.size);
        let lasts = match what {
            Inside::Guest { .. } | Inside::Unclean(_) => Lasts::Held,
            _ => Lasts::Not,
        };
        Ok(Entry { attr: Attr { ino, ..attr }, generation: self.epoch.told(&node, generation), lasts })
    }

    /// The attributes of a node below `partitions` at a point in time.
    pub(super) async fn attr_inside(&self, point: &Arc<PointInTime>, medium: &Medium, what: Inside) -> Result<Attr> {
        let node = Node::Inside { medium: medium.clone(), what };
        let plain = |measure| self.shown(&node, &measure, modified(&node, point));
        Ok(match what {
            Inside::Guest { partition, file } => {
                let volume = self.volume(point, medium, partition).await?;
                let attributes = volumes::told(point, volume.attributes(file).await, || about(medium, partition))?;
                self.owner.of_guest(self.inodes.number(&node), &attributes)
            }
            Inside::Raw(number) => {
                let (image, _) = self.raw(point, medium, number).await?;
                let settled = image.is_known();
                plain(Measure { size: image.size(), data: image.data_bytes(), settled })
            }
            Inside::Unclean(number) => {
                let text = self.unclean(point, medium, number).await?;
                plain(Measure::of_text(&text.unwrap_or_default()))
            }
            Inside::Table | Inside::Partitions | Inside::Partition(_) => {
                plain(Measure { size: 0, data: 0, settled: true })
            }
        })
    }

    /// The size of `table.json`: exact at a point in time, if the disk can be read.
    pub(super) async fn measure_table(&self, point: Option<&Arc<PointInTime>>, disk: &Arc<str>) -> Measure {
        of_table(match point {
            Some(point) => self.table_text(point, disk).await.ok(),
            None => None,
        })
    }

    /// What is in a directory beside what is always there.
    pub(super) async fn children_inside(
        &self,
        told: &Told,
        medium: &Medium,
        what: Inside,
    ) -> Result<Vec<(Arc<str>, Node)>> {
        let child = |name: &str, what| (Arc::from(name), Node::Inside { medium: medium.clone(), what });
        match what {
            Inside::Partitions => {
                let (Some(point), Medium::Disk(disk)) = (self.points.view().held, medium) else {
                    return Ok(Vec::new());
                };
                let table = self.table(&point, disk).await?;
                let mut children = Vec::new();
                for partition in &table.partitions {
                    let number = partition.number;
                    if has_bytes(partition) {
                        children.push(child(&format!("{number}{}", Inside::RAW), Inside::Raw(number)));
                    }
                    if has_files(partition) {
                        children.push(child(&number.to_string(), Inside::Partition(number)));
                    }
                }
                Ok(children)
            }
            Inside::Partition(partition) => {
                let point = self.instant(told)?;
                let reader = self.volume(&point, medium, partition).await?.reader;
                let mut children = vec![child(Inside::FILES, Inside::Guest { partition, file: reader.root() })];
                if reader.summary().unclean.is_some() {
                    children.push(child(Inside::UNCLEAN, Inside::Unclean(partition)));
                }
                Ok(children)
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Opens a file below `partitions`. Only `table.json` takes a point in time: the way to all else did.
    pub(super) async fn open_inside(&self, told: &Told, medium: &Medium, what: Inside) -> Result<OpenFile> {
        if what != Inside::Table {
            self.instant(told)?;
        }
        let lease = self.lease(told).await?;
        let point = lease.point();
        let made = self.image_inside(&point, medium, what).await;
        let file = self.opened_file(lease, made).await?;
        let neighbours = match what {
            Inside::Guest { partition, .. } if file.image.size() <= SMALL => {
                Some(self.volume(&point, medium, partition).await?.neighbours)
            }
            _ => None,
        };
        Ok(OpenFile { neighbours, ..file })
    }

    /// A share in the point in time that a node was told for.
    pub(super) async fn lease(&self, told: &Told) -> Result<Lease> {
        let lease = self.points.open(None).await?;
        if Generation::held(&told.node, lease.number(), &lease.inventory()) != told.generation {
            return Err(of_another_instant());
        }
        Ok(lease)
    }

    /// The open file, if its image could be made.
    pub(super) async fn opened_file(&self, lease: Lease, made: Result<(Arc<dyn Image>, Store)>) -> Result<OpenFile> {
        let (image, disk) = match made {
            Ok(made) => made,
            Err(error) => {
                // The end of the point in time explains the failure better.
                lease.check()?;
                return Err(error);
            }
        };
        lease.confirm().await?;
        Ok(OpenFile { checkpoint: None, lease, image, disk, ahead: std::sync::Mutex::default(), neighbours: None })
    }

    async fn image_inside(
        &self,
        point: &Arc<PointInTime>,
        medium: &Medium,
        what: Inside,
    ) -> Result<(Arc<dyn Image>, Store)> {
        match (what, medium) {
            (Inside::Table, Medium::Disk(disk)) => Ok(known(self.table_text(point, disk).await?)),
            (Inside::Raw(number), _) => self.raw(point, medium, number).await,
            (Inside::Unclean(number), _) => Ok(known(self.unclean(point, medium, number).await?.unwrap_or_default())),
            (Inside::Guest { partition, file }, _) => {
                let (pieces, store) = self.pieces(point, medium, partition, file).await?;
                Ok((Arc::new(pieces), store))
            }
            (Inside::Table | Inside::Partitions | Inside::Partition(_), _) => {
                Err(Error::new(Kind::Invalid, "a directory is not opened as a file"))
            }
        }
    }

    async fn raw(&self, point: &PointInTime, medium: &Medium, number: u32) -> Result<(Arc<dyn Image>, Store)> {
        let none = || Error::new(Kind::NotFound, format!("there is no {}", medium.partition(number)));
        match medium {
            Medium::Disk(disk) => {
                let frozen = frozen(point, disk)?;
                let table = self.table(point, disk).await?;
                let mut partitions = table.partitions.iter();
                let partition = partitions.find(|partition| partition.number == number && has_bytes(partition));
                let partition = partition.ok_or_else(none)?;
                let window = partition.offset..partition.offset + partition.size;
                let image = Raw::part(window, frozen.disk.allocated, frozen.allocation.clone());
                Ok((Arc::new(image), Store::Disk(frozen.cached.clone())))
            }
            Medium::Logical { group, name } => {
                let lvm = lvm::read(self.readers()?, point).await?;
                let spread = lvm.volume(group, name).and_then(|volume| volume.spread.clone()).ok_or_else(none)?;
                Ok((Arc::new(Logical::new(spread.clone())), Store::Spread(spread)))
            }
        }
    }

    /// `UNCLEAN.txt`, if there is reason for it.
    async fn unclean(&self, point: &Arc<PointInTime>, medium: &Medium, number: u32) -> Result<Option<String>> {
        let volume = self.volume(point, medium, number).await?;
        Ok(volume.reader.summary().unclean.as_deref().map(text::unclean))
    }

    /// `table.json`.
    async fn table_text(&self, point: &Arc<PointInTime>, disk: &Arc<str>) -> Result<String> {
        let table = self.table(point, disk).await?;
        let medium = Medium::Disk(disk.clone());
        let mut opened = Vec::new();
        for partition in table.partitions.iter().filter(|partition| has_files(partition)).take(MAX_TOLD) {
            opened.push((partition.number, self.opened(point, &medium, partition.number).await));
        }
        point.check()?;
        let find = |number| opened.iter().find(|(of, _)| *of == number).map(|(_, outcome)| outcome.clone());
        Ok(text::table(&table, find))
    }

    /// What became of opening a file system, for a table.
    pub(super) async fn opened(&self, point: &PointInTime, medium: &Medium, partition: u32) -> text::Opened {
        match self.volume(point, medium, partition).await {
            Ok(volume) => text::Opened::Fine(volume.reader.summary().unclean.clone()),
            Err(error) => text::Opened::Failed(chain(&error)),
        }
    }
}

/// The size of a table, or what it is taken for where it cannot be had.
pub(super) fn of_table(text: Option<String>) -> Measure {
    text.map_or(Measure { size: ESTIMATE, data: ESTIMATE, settled: false }, |text| Measure::of_text(&text))
}

/// A text as an image, which reads nothing.
pub(super) fn known(text: String) -> (Arc<dyn Image>, Store) {
    (Arc::new(Pieces::text(text)), Store::nothing())
}

/// Where something failed.
pub(super) fn about(medium: &Medium, partition: u32) -> String {
    format!("{} cannot be read", medium.partition(partition))
}
