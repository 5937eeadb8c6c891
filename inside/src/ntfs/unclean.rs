//! Whether the file system was unmounted, and by whom it may be wanted back.

use super::file::File;
use super::record::{Body, kind, restore};
use super::volume::Volume;
use crate::numbers::{le16, le32, le64};
use crate::{Disk, Id, Result};

/// The files with the log and with what is known of the volume.
const LOG_RECORD: u64 = 2;
const VOLUME_RECORD: u64 = 3;

/// What of the log is looked at, in bytes: its two restart pages, the second one page after the first.
const LOG_HEAD: u64 = 128 << 10;

const MEANING: &str = "its log ($LogFile) is not replayed here, so what was created, renamed, resized or deleted shortly \
                       before may be missing or half done";

/// The sentence for [`crate::Summary::unclean`]. What cannot be read says nothing good.
pub(super) fn sentence<D: Disk>(volume: &Volume<D>, hibernated: Result<Option<Id>>) -> Option<String> {
    let hibernated = hibernated.and_then(|file| is_hibernated(volume, file));
    let why = if hibernated.is_err() {
        "It cannot be read whether Windows is hibernated"
    } else if hibernated.is_ok_and(|hibernated| hibernated) {
        "Windows is hibernated, or was shut down for a fast start, and keeps some of the state in memory"
    } else if is_dirty(volume).unwrap_or(true) {
        "It was mounted and its mark of being in use is set"
    } else if !log_is_clean(volume).unwrap_or(false) {
        "It was mounted, and its log was not brought to an end"
    } else {
        return None;
    };
    Some(format!("{why}; {MEANING}."))
}

fn is_dirty<D: Disk>(volume: &Volume<D>) -> Result<bool> {
    let record = volume.record(VOLUME_RECORD)?;
    for attribute in record.attributes()? {
        if let (kind::VOLUME_INFORMATION, Body::Resident(bytes)) = (attribute.kind, attribute.body) {
            return Ok(le16(bytes, 10)? & 1 != 0);
        }
    }
    Ok(false)
}

/// Whether the file with the memory of a hibernated Windows is in use.
fn is_hibernated<D: Disk>(volume: &Volume<D>, file: Option<Id>) -> Result<bool> {
    let Some(file) = file else { return Ok(false) };
    let file = File::read(volume, file.0)?;
    let Some(data) = file.stream(kind::DATA).filter(|data| data.size() >= 4 && data.plain().is_ok()) else {
        return Ok(false);
    };
    let mut mark = [0; 4];
    volume.read(data, 0, &mut mark)?;
    Ok(mark.eq_ignore_ascii_case(b"hibr"))
}

/// Whether the restart page that was written last says so, or both, or the log is empty.
fn log_is_clean<D: Disk>(volume: &Volume<D>) -> Result<bool> {
    let file = File::read(volume, volume.reference(LOG_RECORD)?)?;
    let Some(data) = file.stream(kind::DATA) else { return Ok(false) };
    let mut head = vec![0; usize::try_from(data.size().min(LOG_HEAD)).unwrap_or_default()];
    volume.read(data, 0, &mut head)?;
    if !head.is_empty() && head.iter().all(|&byte| byte == 0xFF) {
        return Ok(true);
    }
    let page_size = le32(&head, 16).ok().and_then(|size| usize::try_from(size).ok()).unwrap_or_default();
    let pages = [0, page_size].map(|at| restart_page(head.get(at..).unwrap_or_default()).ok());
    let pages = || pages.iter().flatten();
    let last = pages().map(|(written, _)| *written).max();
    // Of two that were written at once, either may be the older one.
    Ok(last.is_some() && pages().filter(|(written, _)| Some(*written) == last).all(|(_, clean)| *clean))
}

/// When a restart page was written, and whether all was done by then.
fn restart_page(bytes: &[u8]) -> Result<(u64, bool)> {
    let size = usize::try_from(le32(bytes, 16)?).unwrap_or(usize::MAX);
    let mut page = crate::numbers::slice(bytes, 0, size)?.to_vec();
    restore(&mut page, *b"RSTR", "a restart page of the log")?;
    let area = usize::from(le16(&page, 24)?);
    let (written, in_use, flags) = (le64(&page, area)?, le16(&page, area + 12)?, le16(&page, area + 14)?);
    Ok((written, in_use == u16::MAX || flags & 2 != 0))
}
