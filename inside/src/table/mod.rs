//! What a disk is divided into.
//!
//! ```text
//! first sector: protective ─▶ gpt (primary, else backup)
//!               partitions ─▶ mbr ─▶ chain of logical partitions
//!               else       ─▶ a file system on the whole disk, or nothing
//! ```
//! Linux is who made the table and who reads it in the machine, so where two readings are possible its is taken. A partition
//! that cannot be all that the table says is listed with a [`Partition::problem`], and nobody opens it.

mod gpt;
mod mbr;
mod types;

#[cfg(test)]
mod tests;

use self::mbr::Record;
use crate::probe::probe;
use crate::raw::read as piece;
use crate::{Disk, Error, Part, Result, raid};

/// How a disk is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// A GUID partition table (UEFI specification 2.10, chapter 5).
    Gpt,
    /// The PC's master boot record, with logical partitions.
    Mbr,
    /// Not at all: a file system is on the whole disk, or nothing that is known here.
    Whole,
}

/// The partitions of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// How it is divided.
    pub scheme: Scheme,
    /// The sector size that the table counts in, in bytes: 512 or 4096.
    pub sector_size: u32,
    /// The disk's own GUID, or the MBR's signature in eight hexadecimal digits.
    pub id: Option<String>,
    /// What is wrong with it and was got round: a sentence each.
    pub problems: Vec<String>,
    /// The partitions, by number; at most [`Table::MAX_PARTITIONS`].
    pub partitions: Vec<Partition>,
}

impl Table {
    /// Most partitions that a table may have.
    pub const MAX_PARTITIONS: usize = 256;
}

/// What a disk is divided into, and what is in each part.
///
/// # Errors
/// [`crate::Kind::Corrupt`] if there is a GUID partition table of which no copy can be used, so that the disk cannot be taken for an
/// empty one; what the disk fails with.
pub fn read<D: Disk>(disk: &D) -> Result<Table> {
    let whole = probe(disk)?;
    let member = whole.as_ref().map(|content| content.kind).filter(|kind| MEMBERS.contains(kind));
    let mut table = divided(disk, whole)?;
    if let Some(kind) = member
        && table.scheme != Scheme::Whole
        && (tells_its_place(disk, kind)? || !table.has(kind))
    {
        table.doubt(kind);
    }
    Ok(table)
}

/// Arrays whose members may begin with the first bytes of the array, and so with its table of partitions.
const MEMBERS: [&str; 5] = ["adaptec_raid_member", "ddf_raid_member", "drbd", "isw_raid_member", "linux_raid_member"];

/// Whether what makes the disk a member says that it is of the whole disk: it might be that of the last partition.
fn tells_its_place<D: Disk>(disk: &D, kind: &str) -> Result<bool> {
    Ok(kind == "linux_raid_member" && raid::member(disk)?.is_some_and(|member| member.version != "0.90"))
}

fn divided<D: Disk>(disk: &D, whole: Option<Content>) -> Result<Table> {
    let record = piece(disk, 0, 512)?.and_then(|sector| Record::parse(&sector));
    if let Some(record) = record.filter(Record::is_protective) {
        let mut table = gpt::table(disk)?.map_err(|why| {
            Error::corrupt(format!(
                "the first sector says that the disk has a GUID partition table, and neither copy of that can be used: {why}; \
                 repair it in the machine (gdisk)"
            ))
        })?;
        if record.is_hybrid() {
            table.problems.push(
                "the master boot record is a hybrid one, with partitions of its own: the GUID partition table was taken"
                    .to_owned(),
            );
        }
        return table.filled(disk);
    }
    if let Some(record) = record.filter(|record| !record.is_code() && !record.is_empty()) {
        let mut table = Table::of(&record, disk)?;
        // mkfs.vfat writes a table of one partition into its boot sector, which begins where the disk does.
        let boot_sector = whole.as_ref().filter(|content| BOOT_SECTORS.contains(&content.kind));
        let real = table.partitions.iter().all(|partition| partition.offset > 0 && partition.cannot_be().is_none());
        if boot_sector.is_none() || real {
            if let Some(content) = boot_sector {
                table.problems.push(format!(
                    "the first sector is also that of a file system, {}, which is not shown",
                    content.kind
                ));
            }
            if gpt::is_there(disk)? {
                table.problems.push(
                    "there is a GUID partition table too, of which the master boot record knows nothing: Linux takes no notice of it"
                        .to_owned(),
                );
            }
            return Ok(table);
        }
    }
    if whole.is_none()
        && let Ok(mut table) = gpt::table(disk)?
    {
        table.problems.push(
            "the first sector does not say that there is a GUID partition table (no protective master boot record): Linux takes \
             no notice of it"
                .to_owned(),
        );
        return table.filled(disk);
    }
    let empty = record.filter(|record| !record.is_code() && whole.is_none());
    let partitions = whole.map(|content| Partition::whole(disk.size(), content)).into_iter().collect();
    let scheme = if empty.is_some() { Scheme::Mbr } else { Scheme::Whole };
    Ok(Table { scheme, sector_size: 512, id: empty.and_then(|record| record.id()), problems: Vec::new(), partitions })
}

/// File systems whose first sector can be taken for a master boot record.
const BOOT_SECTORS: [&str; 5] = ["vfat", "ntfs", "exfat", "ReFS", "BitLocker"];

impl Table {
    /// Whether this is in one of the partitions.
    fn has(&self, kind: &str) -> bool {
        self.partitions.iter().filter_map(|partition| partition.content.as_ref()).any(|content| content.kind == kind)
    }

    /// The table is that of an array, of which the disk is a member: it may lack what another one has.
    fn doubt(&mut self, kind: &str) {
        let why = format!(
            "the disk as a whole is a member of an array ({kind}), whose partitions these are: it may lack what was written to \
             another member"
        );
        for content in self.partitions.iter_mut().filter_map(|partition| partition.content.as_mut()) {
            content.refused.get_or_insert_with(|| why.clone());
        }
        self.problems.push(why);
    }
}

fn past_the_end(first: u64, last: u64, sectors: u64) -> String {
    format!(
        "it reaches past the end of the disk: it goes from sector {first} to {last}, and the disk has {sectors} sectors"
    )
}

impl Table {
    /// That of a master boot record, which does not say how large its sectors are: 512 bytes, as nearly always, unless nothing that
    /// is known is found so, and something is where sectors of 4096 bytes have it.
    fn of<D: Disk>(record: &Record, disk: &D) -> Result<Self> {
        let with = |sector_size| {
            let (partitions, problems) = record.partitions(disk, sector_size)?;
            Self { scheme: Scheme::Mbr, sector_size, id: record.id(), problems, partitions }.filled(disk)
        };
        let known = |table: &Self| {
            let logical = table.partitions.iter().filter(|partition| partition.number > 4);
            table.partitions.iter().filter(|partition| partition.content.is_some()).count() + logical.count()
        };
        let small = with(512)?;
        if !disk.size().is_multiple_of(4096) {
            return Ok(small);
        }
        let large = with(4096)?;
        let whole = large.partitions.iter().all(|partition| partition.cannot_be().is_none());
        Ok(if whole && known(&small) == 0 && known(&large) > 0 { large } else { small })
    }

    /// With what overlaps marked and what is in the others.
    fn filled<D: Disk>(mut self, disk: &D) -> Result<Self> {
        // One that reaches past the end has a wrong size, which is nothing that others can help.
        let sound = self.partitions.iter().filter(|one| one.cannot_be().is_none());
        let ranges: Vec<_> = sound.map(|one| (one.number, one.offset, one.size, mbr::is_extended(one))).collect();
        for partition in &mut self.partitions {
            let extended = mbr::is_extended(partition);
            let other = ranges.iter().find(|&&(number, offset, size, container)| {
                let holds = (container && partition.number > 4) || (extended && number > 4);
                number != partition.number
                    && !holds
                    && offset < partition.offset.saturating_add(partition.size)
                    && partition.offset < offset.saturating_add(size)
            });
            if let Some((number, ..)) = other
                && partition.cannot_be().is_none()
            {
                partition.problem = Some(format!("it overlaps partition {number}"));
            }
            if partition.problem.is_none() {
                partition.content = probe(&Part::new(disk, partition.offset, partition.size))?;
            }
        }
        Ok(self)
    }
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// As Linux numbers it, from 1 on, logical partitions of an MBR from 5 on; 0 for the whole disk.
    pub number: u32,
    /// Where it begins on the disk, in bytes.
    pub offset: u64,
    /// Its size, in bytes, all of it on the disk; see `problem`.
    pub size: u64,
    /// Its type: a GUID in lower case, or `0x83`; none for the whole disk.
    pub type_id: Option<String>,
    /// Its own GUID.
    pub id: Option<String>,
    /// Its name in the table.
    pub name: Option<String>,
    /// What is in it.
    pub content: Option<Content>,
    /// Why it cannot be read as the table says: it reaches past the end of the disk, it overlaps another, it is an extended one,
    /// which only holds others. A sentence. Its size is then what of it is on the disk, which may be nothing.
    pub problem: Option<String>,
}

impl Partition {
    /// What its type is called; none if it is not known here.
    pub fn type_name(&self) -> Option<&'static str> {
        types::name(self.type_id.as_deref()?)
    }

    fn whole(size: u64, content: Content) -> Self {
        let (type_id, id, name, problem) = (None, None, None, None);
        Self { number: 0, offset: 0, size, type_id, id, name, content: Some(content), problem }
    }

    /// Whether it only holds others, which are shown by themselves.
    pub fn is_container(&self) -> bool {
        self.problem.is_some() && self.cannot_be().is_none()
    }

    /// Its problem, unless it is that it is an extended partition, which is nothing that is wrong.
    fn cannot_be(&self) -> Option<&str> {
        self.problem.as_deref().filter(|_| self.size == 0 || !mbr::is_extended(self))
    }
}

/// What a partition holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// As blkid(8) calls it: `ext4`, `xfs`, `vfat`, `ntfs`, `btrfs`, `swap`, `LVM2_member`, `linux_raid_member`, `crypto_LUKS`,
    /// `BitLocker`.
    pub kind: &'static str,
    /// Its label: bytes, without padding.
    pub label: Option<Vec<u8>>,
    /// Its UUID, as blkid(8) writes it.
    pub uuid: Option<String>,
    /// Why its files cannot be shown; none for a file system that is read here. A sentence.
    pub refused: Option<String>,
}
