//! Opening files that show a disk, and telling their sizes.

use std::sync::{Arc, Mutex};

use super::Fs;
use super::handle::OpenFile;
use crate::block::changes::Changes;
use crate::block::extents::Extents;
use crate::block::spread::Store;
use crate::error::{Error, Kind, Result};
use crate::image::Image;
use crate::image::delta::Delta;
use crate::image::qcow2::{Backing, Qcow2};
use crate::image::raw::Raw;
use crate::image::text::{self, Text};
use crate::point::policy::Wish;
use crate::point::{FrozenDisk, PointInTime};
use crate::tree::inode::Generation;
use crate::tree::{Content, Form, Node};
use crate::vm::{Bitmap, Inventory, Unusable};

/// Length that a line of a map is taken to have until it is known.
const LINE: u64 = 40;

/// Size that a list of changed files is taken to have until it was made, in bytes.
const LIST: u64 = 4096;

/// How large a file is.
pub(super) struct Measure {
    /// Size, in bytes.
    pub(super) size: u64,
    /// Bytes of it that are data.
    pub(super) data: u64,
    /// Whether both stay as they are for as long as the point in time does.
    pub(super) settled: bool,
}

impl Measure {
    /// That of a text, which stays as it is.
    pub(super) fn of_text(text: &str) -> Self {
        let size = u64::try_from(text.len()).unwrap_or(u64::MAX);
        Self { size, data: size, settled: false }
    }
}

impl Fs {
    pub(super) async fn open_file(
        &self,
        told: Generation,
        node: &Node,
        disk: &Arc<str>,
        checkpoint: Option<&Arc<str>>,
        content: Content,
    ) -> Result<OpenFile> {
        self.handles.settle(|| self.points.waits_for_closes(Wish::Open, checkpoint)).await;
        let lease = self.points.open(checkpoint).await?;
        if Generation::held(node, lease.number(), &lease.inventory()) != told {
            return Err(Error::new(Kind::Stale, "the file was looked up for another point in time"));
        }
        let image = match self.image(&lease, disk, checkpoint, content).await {
            Ok(image) => image,
            Err(error) => {
                // As with reads: the end of the point in time explains the failure better.
                lease.check()?;
                return Err(error);
            }
        };
        // What the image knows of the disk is not asked for again.
        lease.confirm().await?;
        let disk = Store::Disk(frozen(&lease, disk)?.cached.clone());
        Ok(OpenFile { checkpoint: checkpoint.cloned(), lease, image, disk, ahead: Mutex::default(), neighbours: None })
    }

    async fn image(
        &self,
        point: &PointInTime,
        disk: &Arc<str>,
        checkpoint: Option<&Arc<str>>,
        content: Content,
    ) -> Result<Arc<dyn Image>> {
        let frozen = frozen(point, disk)?;
        let size = frozen.disk.size;
        let header = || self.header(point, frozen, checkpoint);
        Ok(match content {
            Content::DiskRaw => Arc::new(Raw::new(size, frozen.disk.allocated, frozen.allocation.clone())),
            Content::AllocatedMap => {
                Arc::new(Text::allocation(text::Form::Map, header(), frozen.allocation.complete().await?))
            }
            Content::DirtyMap => {
                Arc::new(Text::changes(text::Form::Map, header(), changes(point, frozen, checkpoint).await?))
            }
            Content::DirtyJson => {
                Arc::new(Text::changes(text::Form::Json, header(), changes(point, frozen, checkpoint).await?))
            }
            Content::DiskQcow2 => {
                let data = frozen.allocation.complete().await?;
                Arc::new(Qcow2::new(size, self.options.cluster_size, &data, &Extents::default(), None)?)
            }
            Content::DeltaQcow2 => {
                let changes = changes(point, frozen, checkpoint).await?;
                let backing = self.backing(&frozen.disk.name, checkpoint);
                Arc::new(Qcow2::new(size, self.options.cluster_size, &changes.data, &changes.zero, Some(&backing))?)
            }
            Content::DeltaRaw => Arc::new(Delta::new(size, changes(point, frozen, checkpoint).await?)),
            Content::ChangedFiles => {
                let changes = changes(point, frozen, checkpoint).await?;
                let list = self.changed_files(point, frozen, &header(), &changes).await?;
                if let Some(checkpoint) = checkpoint {
                    point.maps().note_size(checkpoint, disk, content.name(), list.size());
                }
                Arc::new(list)
            }
        })
    }

    /// What a delta of a disk is written down to stand on: the backup that was taken at the checkpoint.
    fn backing(&self, disk: &str, checkpoint: Option<&Arc<str>>) -> Backing {
        let checkpoint = checkpoint.map_or("", |checkpoint| checkpoint);
        let file = self.options.backing.replace("{disk}", disk).replace("{checkpoint}", checkpoint);
        // QEMU takes what stands before a colon for a protocol, unless a slash comes first.
        let protocol = file.find(':').is_some_and(|colon| !file[..colon].contains('/'));
        Backing { file: if protocol { format!("./{file}") } else { file }, format: "qcow2" }
    }

    /// What stands above the lines of a map.
    fn header(&self, point: &PointInTime, frozen: &FrozenDisk, checkpoint: Option<&Arc<str>>) -> String {
        use std::fmt::Write as _;
        let machine = self.vm.machine();
        let mut header = String::new();
        let mut line = |name: &str, value: &dyn std::fmt::Display| {
            let value = value.to_string().replace(|c: char| c.is_control(), "?");
            writeln!(header, "# {name}: {value}").ok();
        };
        line("machine", machine.name.as_ref().unwrap_or(&machine.source));
        line("disk", &frozen.disk.name);
        if let Some(checkpoint) = checkpoint {
            line("checkpoint", checkpoint);
        }
        line("point in time", &humantime::format_rfc3339_millis(point.time()));
        line("virtual size", &frozen.disk.size);
        if let Some(bitmap) = checkpoint.and_then(|checkpoint| frozen.disk.bitmaps.get(checkpoint)) {
            line("granularity", &bitmap.granularity);
            if let Some(why) = &bitmap.whole {
                line("note", why);
            }
            if let Some(grown) = bitmap.also(frozen.disk.size).filter(|_| bitmap.whole.is_none()) {
                line(
                    "note",
                    &format!("the disk grew since, from {} bytes; its new end counts as changed", grown.start),
                );
            }
            if let Some(older) = checkpoint.and_then(|checkpoint| point.maps().rough(checkpoint, &frozen.disk.name)) {
                line("note", &format!("all that changed since the older checkpoint {older} counts as changed"));
            }
        }
        header
    }

    /// The size of a file: exact at a point in time, an estimate without one.
    pub(super) async fn measure(
        &self,
        point: Option<&Arc<PointInTime>>,
        inventory: &Inventory,
        disk: &Arc<str>,
        checkpoint: Option<&Arc<str>>,
        content: Content,
    ) -> Result<Measure> {
        let known = inventory.disk(disk).ok_or_else(|| no_disk(disk))?;
        let bitmap = checkpoint.and_then(|checkpoint| known.bitmaps.get(checkpoint));
        let unusable = bitmap.is_some_and(|bitmap| bitmap.unusable.is_some());
        // What it does not have cannot be opened on it, so an estimate is never read by.
        // A list of changed files takes a walk of the guest's, which is not for whoever only looks.
        let made = |point: &Arc<PointInTime>| {
            checkpoint.is_some_and(|checkpoint| point.maps().size(checkpoint, disk, content.name()).is_some())
        };
        let known_well =
            |point: &&Arc<PointInTime>| point.serves(checkpoint) && (content != Content::ChangedFiles || made(point));
        if let Some(point) = point.filter(|point| !unusable && known_well(point)) {
            match self.exact(point, disk, checkpoint, content).await {
                // It ended meanwhile: what is known without it is told.
                Err(_) if point.check().is_err() => {}
                told => return told,
            }
        }
        let dirty = bitmap.map_or(0, |bitmap| bitmap.dirty_bytes.min(known.size));
        let text = bitmap.map_or(LINE, |bitmap| lines(bitmap, dirty).saturating_mul(LINE));
        let (size, data) = match content {
            Content::DiskRaw => (known.size, known.allocated.min(known.size)),
            Content::DeltaRaw => (known.size, dirty),
            // An image without its metadata: what that takes is known when the extents are.
            Content::DiskQcow2 => (known.allocated.min(known.size), known.allocated.min(known.size)),
            Content::DeltaQcow2 => (dirty, dirty),
            Content::AllocatedMap | Content::DirtyMap | Content::DirtyJson => (text, text),
            Content::ChangedFiles => (LIST, LIST),
        };
        Ok(Measure { size, data, settled: false })
    }

    async fn exact(
        &self,
        point: &Arc<PointInTime>,
        disk: &Arc<str>,
        checkpoint: Option<&Arc<str>>,
        content: Content,
    ) -> Result<Measure> {
        let frozen = frozen(point, disk)?;
        // Only raw files keep their size when the point in time ends.
        let raw = content.form() == Form::Raw;
        let settled = raw && (checkpoint.is_some() || frozen.allocation.bytes_if_known().is_some());
        // A map is not fetched again only to be measured.
        if let Some(data) = checkpoint.and_then(|checkpoint| point.maps().size(checkpoint, disk, content.name())) {
            return Ok(Measure { size: if raw { frozen.disk.size } else { data }, data, settled });
        }
        let image = self.image(point, disk, checkpoint, content).await?;
        let (size, data) = (image.size(), image.data_bytes());
        if let Some(checkpoint) = checkpoint {
            point.maps().note_size(checkpoint, disk, content.name(), data);
        }
        Ok(Measure { size, data, settled })
    }
}

/// The finest granularity that QEMU has, in bytes.
const FINEST: u32 = 512;

/// At most so many lines does a map of so many dirty bytes have.
fn lines(bitmap: &Bitmap, dirty: u64) -> u64 {
    dirty.div_ceil(u64::from(bitmap.granularity.max(FINEST))) + 6
}

fn no_disk(disk: &str) -> Error {
    Error::new(Kind::NotFound, format!("the machine has no disk {disk}"))
}

pub(super) fn frozen<'a>(point: &'a PointInTime, disk: &str) -> Result<&'a FrozenDisk> {
    point.disk(disk).ok_or_else(|| no_disk(disk))
}

async fn changes(point: &PointInTime, frozen: &FrozenDisk, checkpoint: Option<&Arc<str>>) -> Result<Arc<Changes>> {
    let name = &frozen.disk.name;
    let checkpoint = checkpoint.ok_or_else(|| Error::new(Kind::NotFound, "this file belongs to a checkpoint"))?;
    let bitmap = frozen.disk.bitmaps.get(checkpoint);
    if let Some(reason) = bitmap.and_then(|bitmap| bitmap.unusable.as_ref()).map(Unusable::why) {
        return Err(Error::new(Kind::Io, format!("checkpoint {checkpoint} of disk {name} cannot be read: {reason}")));
    }
    point.maps().get(checkpoint, name).await
}
