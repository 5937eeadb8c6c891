//! LVM2: volume groups over all disks of a point in time, and their logical volumes.
//!
//! ```text
//! tables of all disks ─▶ physical volumes, one after the other ─▶ a child ─▶ groups ─▶ each logical volume: a Spread over the disks
//! ```
//! All disks are of one instant, so a group is what the machine would find if it started from them.

pub mod text;

use std::sync::Arc;

use inside::table::Partition;

use super::Readers;
use super::together::{Place, Together};
use super::volumes::{self, Volume, has_files, told};
use crate::block::spread::{Part, Spread, Store};
use crate::error::{Error, Kind, Result};
use crate::point::PointInTime;
use crate::tree::partitions::{Inside, TABLE};

/// What a partition holds that is a physical volume, as blkid(8) calls it.
const PHYSICAL: &str = "LVM2_member";

/// What LVM2 says of the disks of a point in time.
#[derive(Default)]
pub struct Lvm {
    /// The volume groups, by name.
    pub groups: Vec<Group>,
    /// What is wrong: a sentence each.
    pub problems: Vec<String>,
}

/// A volume group.
pub struct Group {
    /// Its name, which can be a file's.
    pub name: Arc<str>,
    /// Its UUID.
    pub id: String,
    /// How often it was changed.
    pub sequence: u64,
    /// The UUIDs of its physical volumes, and where each is: the disk, and the partition of that, 0 for the whole; none if it is on no
    /// disk that is shown.
    pub physical: Vec<(String, Option<Place>)>,
    /// Its logical volumes, by name.
    pub volumes: Vec<Logical>,
}

/// A logical volume.
pub struct Logical {
    /// Its name, which can be a file's.
    pub name: Arc<str>,
    /// Its UUID.
    pub id: String,
    /// It is as a disk that is not divided: partition 0 of itself. With a problem if it cannot be read.
    pub partition: Partition,
    /// Whether a part of it is in stripes.
    pub striped: bool,
    /// Where its bytes are, if it can be read.
    pub spread: Option<Arc<Spread>>,
}

impl Lvm {
    /// A group by name, if anything of it can be read.
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|group| *group.name == *name && group.is_shown())
    }

    /// A logical volume that can be read.
    pub fn volume(&self, group: &str, name: &str) -> Option<&Logical> {
        self.group(group)?.volumes.iter().find(|volume| *volume.name == *name && volume.spread.is_some())
    }
}

impl Group {
    /// Whether anything of it can be read.
    pub fn is_shown(&self) -> bool {
        self.volumes.iter().any(|volume| volume.spread.is_some())
    }
}

/// What LVM2 says of the disks of a point in time.
///
/// # Errors
/// As [`Readers::volumes`].
pub async fn read(readers: &dyn Readers, point: &PointInTime) -> Result<Arc<Lvm>> {
    let lvm = point.volumes().lvm()?.get(make(readers, point)).await;
    told(point, lvm, || "cannot read the volume groups of LVM2".to_owned())
}

async fn make(readers: &dyn Readers, point: &PointInTime) -> Result<Arc<Lvm>> {
    // One on an array is not among them: its members have one each, and it is the array's.
    let mut together = Together::gather(readers, point, PHYSICAL).await?;
    let mut problems = std::mem::take(&mut together.problems);
    if together.parts.is_empty() {
        return Ok(Arc::new(Lvm { groups: Vec::new(), problems }));
    }
    let (blocks, sizes) = together.blocks("physical volumes of LVM2")?;
    let found = readers.volumes(blocks, sizes).await?;
    problems.extend(found.problems);
    let groups = found.groups.into_iter().map(|one| group(one, &together.parts, &together.places)).collect();
    Ok(Arc::new(Lvm { groups, problems }))
}

fn group(group: inside::lvm::Group, parts: &[Part], places: &[Place]) -> Group {
    let place = |disk: Option<usize>| disk.and_then(|disk| places.get(disk)).cloned();
    let names: Vec<String> = group.volumes.iter().map(|volume| volume.name.clone()).collect();
    let volumes = group.volumes.into_iter().map(|volume| {
        let clash = clash(&group.name, &volume.name, &names);
        logical(volume, clash, parts)
    });
    Group {
        name: group.name.as_str().into(),
        volumes: volumes.collect(),
        id: group.id,
        sequence: group.sequence,
        physical: group.physical.into_iter().map(|(id, disk)| (id, place(disk))).collect(),
    }
}

/// Why the files of a logical volume cannot be called by its name.
fn clash(group: &str, name: &str, others: &[String]) -> Option<String> {
    if group == TABLE {
        return Some(format!("its group has the name of a file here, {TABLE}: rename it (vgrename)"));
    }
    let other = name.strip_suffix(Inside::RAW)?;
    let clash = others.iter().any(|known| known == other);
    clash.then(|| format!("its directory would have the name of the file of {other}: rename one of them (lvrename)"))
}

fn logical(volume: inside::lvm::Volume, clash: Option<String>, parts: &[Part]) -> Logical {
    let spread = Spread::of(&volume, parts).filter(|_| clash.is_none()).map(Arc::new);
    let striped = volume.segments.iter().flatten().any(|segment| segment.stripes.len() > 1);
    let wrong = || (spread.is_none()).then(|| "where its bytes are cannot be right".to_owned());
    Logical {
        name: volume.name.as_str().into(),
        id: volume.id,
        striped,
        partition: Partition {
            number: 0,
            offset: 0,
            size: volume.size,
            type_id: None,
            id: None,
            name: None,
            content: volume.content,
            problem: clash.or(volume.segments.err()).or_else(wrong),
        },
        spread,
    }
}

/// The file system on a logical volume at a point in time, opened if it is not.
///
/// # Errors
/// [`Kind::NotFound`] if there is none that can be read; as [`Readers::open`].
pub async fn volume(readers: &dyn Readers, point: &PointInTime, group: &Arc<str>, name: &Arc<str>) -> Result<Volume> {
    let lvm = read(readers, point).await?;
    let what = format!("logical volume {group}/{name}");
    let known = lvm.volume(group, name).filter(|known| has_files(&known.partition));
    let Some((known, spread)) = known.and_then(|known| Some((known, known.spread.clone()?))) else {
        return Err(Error::new(Kind::NotFound, format!("no file system is read on {what}; see lvm/table.json")));
    };
    let open = volumes::open(readers, point, &what, Store::Spread(spread), &known.partition);
    let volume = point.volumes().logical(group, name)?.get(open).await;
    told(point, volume, || format!("cannot open the file system on {what}"))
}
