//! Tables of partitions.

use super::super::Invalid;
use super::super::bytes::{Input, Output};
use super::MAX_TEXT;
use crate::table::{Content, Partition, Scheme, Table};

/// Longest identifier, in bytes: a GUID is 36.
pub(super) const MAX_WORD: usize = 64;

/// Longest name or label, in bytes.
const MAX_LABEL: usize = 512;

/// Most problems that are told.
pub(super) const MAX_PROBLEMS: usize = 64;

/// All contents that have a name here, as blkid(8) calls them.
const KNOWN: [&str; 55] = [
    "BitLocker",
    "DM_integrity",
    "DM_snapshot_cow",
    "DM_verity_hash",
    "LVM1_member",
    "LVM2_member",
    "ReFS",
    "VMFS",
    "VMFS_volume_member",
    "adaptec_raid_member",
    "apfs",
    "bcache",
    "bcachefs",
    "befs",
    "btrfs",
    "ceph_bluestore",
    "cramfs",
    "crypto_LUKS",
    "ddf_raid_member",
    "drbd",
    "erofs",
    "exfat",
    "ext2",
    "ext3",
    "ext4",
    "ext4dev",
    "f2fs",
    "gfs2",
    "hfs",
    "hfsplus",
    "hpfs",
    "iso9660",
    "isw_raid_member",
    "jbd",
    "jfs",
    "linux_raid_member",
    "minix",
    "nilfs2",
    "ntfs",
    "ocfs2",
    "oracleasm",
    "reiserfs",
    "romfs",
    "squashfs",
    "squashfs3",
    "stratis",
    "swap",
    "swsuspend",
    "udf",
    "ufs",
    "vdo",
    "vfat",
    "xfs",
    "xfs_external_log",
    "zfs_member",
];

const SCHEMES: [Scheme; 3] = [Scheme::Gpt, Scheme::Mbr, Scheme::Whole];

/// Whether the other end knows a content by this name: else it takes the answer for nonsense.
pub(crate) fn is_known(kind: &str) -> bool {
    KNOWN.contains(&kind)
}

/// One of the names of contents.
pub(super) fn known(input: &mut Input<'_>) -> Result<&'static str, Invalid> {
    let name = input.bytes(MAX_WORD)?;
    KNOWN.iter().find(|known| known.as_bytes() == name).copied().ok_or(Invalid("kind"))
}

pub(super) fn word(input: &mut Input<'_>) -> Result<String, Invalid> {
    let word = input.text(MAX_WORD)?;
    if word.bytes().all(|byte| byte.is_ascii_graphic()) { Ok(word) } else { Err(Invalid("identifier")) }
}

pub(super) fn encode(table: &Table, mut out: Output) -> Vec<u8> {
    out.u8(super::number_of(&SCHEMES, &table.scheme));
    out.u32(table.sector_size);
    out.option(table.id.as_deref(), |out, id| out.text(id, MAX_WORD));
    let told = table.problems.len().min(MAX_PROBLEMS);
    out.list(&table.problems[..told], |out, problem| out.text(problem, MAX_TEXT));
    out.list(&table.partitions, put_partition);
    out.0
}

pub(super) fn decode(input: &mut Input<'_>, size: u64) -> Result<Table, Invalid> {
    let scheme = super::of_number(&SCHEMES, input.u8()?)?;
    let sector_size = input.u32()?;
    if !matches!(sector_size, 512 | 4096) {
        return Err(Invalid("size"));
    }
    let id = input.option(word)?;
    let problems = input.list(MAX_PROBLEMS, |input| input.text(MAX_TEXT))?;
    let partitions = input.list(Table::MAX_PARTITIONS, |input| partition(input, size))?;
    if !partitions.is_sorted_by(|one, other| one.number < other.number) {
        return Err(Invalid("number"));
    }
    Ok(Table { scheme, sector_size, id, problems, partitions })
}

fn put_partition(out: &mut Output, partition: &Partition) {
    out.u32(partition.number);
    out.u64(partition.offset);
    out.u64(partition.size);
    for id in [&partition.type_id, &partition.id] {
        out.option(id.as_deref(), |out, id| out.text(id, MAX_WORD));
    }
    out.option(partition.name.as_deref(), |out, name| out.text(name, MAX_LABEL));
    out.option(partition.content.as_ref(), put_content);
    out.option(partition.problem.as_deref(), |out, problem| out.text(problem, MAX_TEXT));
}

pub(super) fn put_content(out: &mut Output, content: &Content) {
    out.text(content.kind, MAX_WORD);
    out.option(content.label.as_deref(), |out, label| out.bytes(&label[..label.len().min(MAX_LABEL)]));
    out.option(content.uuid.as_deref(), |out, uuid| out.text(uuid, MAX_WORD));
    out.option(content.refused.as_deref(), |out, refused| out.text(refused, MAX_TEXT));
}

pub(super) fn content(input: &mut Input<'_>) -> Result<Content, Invalid> {
    Ok(Content {
        kind: known(input)?,
        label: input.option(|input| input.bytes(MAX_LABEL).map(<[u8]>::to_vec))?,
        uuid: input.option(word)?,
        refused: input.option(|input| input.text(MAX_TEXT))?,
    })
}

fn partition(input: &mut Input<'_>, disk: u64) -> Result<Partition, Invalid> {
    let number = input.u32()?;
    let (offset, size) = (input.u64()?, input.u64()?);
    let (type_id, id) = (input.option(word)?, input.option(word)?);
    let name = input.option(|input| input.text(MAX_LABEL))?;
    let content = input.option(content)?;
    let problem = input.option(|input| input.text(MAX_TEXT))?;
    // A table may say so of a partition, and then that is its problem.
    if problem.is_none() && offset.checked_add(size).is_none_or(|end| end > disk) {
        return Err(Invalid("size"));
    }
    Ok(Partition { number, offset, size, type_id, id, name, content, problem })
}
