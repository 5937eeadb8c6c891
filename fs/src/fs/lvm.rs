//! What is in `lvm`: volume groups, which are on any of the disks, and their logical volumes.
//!
//! As with partitions (see [`super::partitions`]), listing takes no point in time, and naming a group does. What is below a
//! logical volume's name is found as on a partition.

use std::ffi::OsStr;
use std::sync::Arc;

use inside::lvm::is_name;

use super::handle::OpenFile;
use super::open::Measure;
use super::partitions::{MAX_TOLD, known, no_name, of_table};
use super::{Entry, Fs, Lasts, modified};
use crate::error::Result;
use crate::guest::lvm::{self, Logical, Lvm, text};
use crate::guest::volumes::has_files;
use crate::point::PointInTime;
use crate::tree::Node;
use crate::tree::inode::{Generation, Told};
use crate::tree::partitions::{Inside, Medium};

impl Fs {
    async fn lvm(&self, point: &PointInTime) -> Result<Arc<Lvm>> {
        lvm::read(self.readers()?, point).await
    }

    /// Finds a volume group. Desktops ask each directory for names that begin with a dot: they take no point in time.
    pub(super) async fn lookup_group(&self, name: &OsStr) -> Result<Entry> {
        let found = async {
            let hidden = name.as_encoded_bytes().starts_with(b".") && self.points.view().held.is_none();
            let group = name.to_str().filter(|name| is_name(name.as_bytes()) && !hidden);
            let group = group.ok_or_else(|| no_name(name))?;
            let point = self.named().await?;
            let lvm = self.lvm(&point).await?;
            let group = lvm.group(group).ok_or_else(|| no_name(name))?;
            self.tell_group(&point, &Node::LvmGroup(group.name.clone()))
        };
        self.sought(found.await)
    }

    /// Tells of a volume group at a point in time.
    pub(super) fn tell_group(&self, point: &Arc<PointInTime>, node: &Node) -> Result<Entry> {
        point.check()?;
        let generation = Generation::held(node, point.number(), &point.inventory());
        let attr = self.shown(node, &Measure { size: 0, data: 0, settled: true }, modified(node, point));
        let ino = self.inodes.tell(node, generation, attr.size);
        debug_assert_eq!(ino, attr.ino);
        Ok(Entry { attr, generation: self.epoch.told(node, generation), lasts: Lasts::Not })
    }

    /// Finds a logical volume, or the file of its bytes.
    pub(super) async fn lookup_volume(&self, told: &Told, group: &Arc<str>, name: &OsStr) -> Result<Entry> {
        let found = async {
            let point = self.instant(told)?;
            let lvm = self.lvm(&point).await?;
            let (volume, what) = named(&lvm, group, name).ok_or_else(|| no_name(name))?;
            self.tell_inside(&point, &medium(group, &volume), what).await
        };
        self.sought(found.await)
    }

    /// The volume groups, while a point in time is held.
    pub(super) async fn children_lvm(&self) -> Result<Vec<(Arc<str>, Node)>> {
        let Some(point) = self.points.view().held else { return Ok(Vec::new()) };
        let lvm = self.lvm(&point).await?;
        let shown = lvm.groups.iter().filter(|group| group.is_shown());
        Ok(shown.map(|group| (group.name.clone(), Node::LvmGroup(group.name.clone()))).collect())
    }

    /// The logical volumes of a group.
    pub(super) async fn children_group(&self, told: &Told, group: &Arc<str>) -> Result<Vec<(Arc<str>, Node)>> {
        let lvm = self.lvm(&*self.instant(told)?).await?;
        let mut children = Vec::new();
        for volume in lvm.group(group).iter().flat_map(|group| &group.volumes) {
            let child = |what| Node::Inside { medium: medium(group, &volume.name), what };
            if volume.spread.is_some() {
                children.push((format!("{}{}", volume.name, Inside::RAW).into(), child(Inside::Raw(0))));
            }
            if has_files(&volume.partition) {
                children.push((volume.name.clone(), child(Inside::Partition(0))));
            }
        }
        Ok(children)
    }

    pub(super) async fn open_lvm_table(&self, told: &Told) -> Result<OpenFile> {
        let lease = self.lease(told).await?;
        let made = self.lvm_table(&lease.point()).await.map(known);
        self.opened_file(lease, made).await
    }

    /// The size of `lvm/table.json`: exact at a point in time, if the disks can be read.
    pub(super) async fn measure_lvm_table(&self, point: Option<&Arc<PointInTime>>) -> Measure {
        of_table(match point {
            Some(point) => self.lvm_table(point).await.ok(),
            None => None,
        })
    }

    async fn lvm_table(&self, point: &PointInTime) -> Result<String> {
        let lvm = self.lvm(point).await?;
        let mut opened = Vec::new();
        for medium in with_files(&lvm) {
            let outcome = self.opened(point, &medium, 0).await;
            opened.push((medium, outcome));
        }
        point.check()?;
        let find =
            |wanted: &Medium| opened.iter().find(|(known, _)| known == wanted).map(|(_, outcome)| outcome.clone());
        Ok(text::table(&lvm, find))
    }
}

/// The logical volume that a name in its group's directory is of.
fn named(lvm: &Lvm, group: &str, name: &OsStr) -> Option<(Arc<str>, Inside)> {
    let name = name.to_str()?;
    let find = |wanted: &str| lvm.volume(group, wanted);
    if let Some(volume) = name.strip_suffix(Inside::RAW).and_then(find) {
        return Some((volume.name.clone(), Inside::Raw(0)));
    }
    let volume = find(name).filter(|volume| has_files(&volume.partition))?;
    Some((volume.name.clone(), Inside::Partition(0)))
}

/// The first of those whose files can be read.
fn with_files(lvm: &Lvm) -> Vec<Medium> {
    let of = |group: &Arc<str>, volume: &Logical| has_files(&volume.partition).then(|| medium(group, &volume.name));
    let all = lvm.groups.iter().flat_map(|group| group.volumes.iter().filter_map(|volume| of(&group.name, volume)));
    all.take(MAX_TOLD).collect()
}

fn medium(group: &Arc<str>, name: &Arc<str>) -> Medium {
    Medium::Logical { group: group.clone(), name: name.clone() }
}
