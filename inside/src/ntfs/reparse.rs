//! Reparse points: symbolic links, junctions, and files whose data some filter of Windows has.

use super::file::{File, Stream, flag};
use super::record::kind;
use super::volume::Volume;
use crate::numbers::{le16, le32, le64, slice};
use crate::{Disk, Error, FileKind, Result, utf16};

/// Most bytes of a reparse point, as Windows has it.
const MAX_SIZE: u64 = 16 << 10;

/// Longest target of a symbolic link, in bytes.
const MAX_TARGET: usize = 4096;

const JUNCTION: u32 = 0xA000_0003;
const SYMLINK: u32 = 0xA000_000C;
/// A symbolic link of the Windows Subsystem for Linux.
const LINUX_SYMLINK: u32 = 0xA000_001D;
/// A file that some cloud has as well: any tag of this form.
const CLOUD: u32 = 0x9000_001A;
const CLOUD_MASK: u32 = 0xFFFF_0FFF;

/// What begins a symbolic link or a device of Interix, which ntfs-3g makes: a system file.
const INTERIX_SYMLINK: &[u8; 8] = b"IntxLNK\x01";
const INTERIX_CHAR: &[u8; 8] = b"IntxCHR\0";
const INTERIX_BLOCK: &[u8; 8] = b"IntxBLK\0";

/// What a file is besides what its record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Special {
    Symlink(Vec<u8>),
    /// Major and minor number.
    Device(FileKind, (u32, u32)),
    /// Its data is not on the disk as it reads.
    Elsewhere(u32),
}

fn wrong() -> Error {
    Error::corrupt("a reparse point is not right")
}

fn contents<D: Disk>(volume: &Volume<D>, stream: &Stream, most: u64) -> Result<Vec<u8>> {
    let size = stream.size();
    if size > most {
        return Err(wrong());
    }
    let mut bytes = vec![0; usize::try_from(size).map_err(|_| wrong())?];
    volume.read(stream, 0, &mut bytes)?;
    Ok(bytes)
}

/// What is special about a file, if anything.
///
/// # Errors
/// If that cannot be read or cannot be right.
pub(super) fn special<D: Disk>(volume: &Volume<D>, file: &File) -> Result<Option<Special>> {
    if let Some(point) = file.stream(kind::REPARSE_POINT) {
        return reparse_point(volume, file, point);
    }
    if file.directory || file.flags & flag::SYSTEM == 0 {
        return Ok(None);
    }
    match file.stream(kind::DATA) {
        Some(data) if (8..=8 + 2 * MAX_TARGET as u64).contains(&data.size()) && data.plain().is_ok() => {
            interix(volume, data)
        }
        _ => Ok(None),
    }
}

fn interix<D: Disk>(volume: &Volume<D>, data: &Stream) -> Result<Option<Special>> {
    let bytes = contents(volume, data, data.size())?;
    let Some((mark, rest)) = bytes.split_first_chunk::<8>() else { return Ok(None) };
    let device = |kind| {
        let number = |at| le64(rest, at).and_then(|number| u32::try_from(number).map_err(|_| wrong()));
        Ok(Some(Special::Device(kind, (number(0)?, number(8)?))))
    };
    match mark {
        INTERIX_SYMLINK => target(utf16::to_bytes(&utf16::units(rest))).map(Some),
        INTERIX_CHAR if rest.len() == 16 => device(FileKind::CharDevice),
        INTERIX_BLOCK if rest.len() == 16 => device(FileKind::BlockDevice),
        _ => Ok(None),
    }
}

fn reparse_point<D: Disk>(volume: &Volume<D>, file: &File, point: &Stream) -> Result<Option<Special>> {
    let bytes = contents(volume, point, MAX_SIZE)?;
    let tag = le32(&bytes, 0)?;
    let data = slice(&bytes, 8, usize::from(le16(&bytes, 4)?));
    match tag {
        SYMLINK => windows_target(data?, 12).map(Some),
        JUNCTION => windows_target(data?, 8).map(Some),
        // A version of four bytes, and the target.
        LINUX_SYMLINK => target(data?.get(4..).ok_or_else(wrong)?.to_vec()).map(Some),
        _ if tag & CLOUD_MASK == CLOUD && !is_away(file) => Ok(None),
        // A directory's names are its own all the same.
        _ if file.directory => Ok(None),
        _ => Ok(Some(Special::Elsewhere(tag))),
    }
}

/// Whether some of the data of a file of a cloud is not here.
fn is_away(file: &File) -> bool {
    file.flags & flag::AWAY != 0 || file.stream(kind::DATA).is_some_and(Stream::is_sparse)
}

/// The target of a link of Windows: the name that is shown, else the one that is used; names begin at `names`.
fn windows_target(data: &[u8], names: usize) -> Result<Special> {
    let name = |at| {
        let (offset, length) = (usize::from(le16(data, at)?), usize::from(le16(data, at + 2)?));
        slice(data, names + offset, length).map(utf16::units)
    };
    let shown = name(4)?;
    let mut units = if shown.is_empty() { name(0)? } else { shown };
    let prefix: Vec<u16> = r"\??\".encode_utf16().collect();
    if units.starts_with(&prefix) {
        units.drain(..prefix.len());
    }
    for unit in &mut units {
        if *unit == u16::from(b'\\') {
            *unit = u16::from(b'/');
        }
    }
    target(utf16::to_bytes(&units))
}

fn target(bytes: Vec<u8>) -> Result<Special> {
    if bytes.is_empty() || bytes.len() > MAX_TARGET || bytes.contains(&0) {
        return Err(Error::corrupt("a symbolic link's target is none"));
    }
    Ok(Special::Symlink(bytes))
}

/// What stands for a file whose data is elsewhere.
pub(super) fn elsewhere(tag: u32) -> Error {
    Error::unsupported(format!(
        "the file's data is not on the disk as it reads: a filter of Windows has it (reparse tag {tag:#010x})"
    ))
}
