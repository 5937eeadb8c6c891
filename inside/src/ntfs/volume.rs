//! File records and values, wherever their clusters are.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::boot::Geometry;
use super::file::{Piece, Stream, Value};
use super::record::{Attribute, Body, Record, kind};
use super::runs::{self, Run};
use crate::numbers::{byte, le16, le64};
use crate::{Disk, Error, Kind, Result};

/// Most runs of the file records themselves, which are kept.
const MAX_RECORD_RUNS: usize = 1 << 18;

/// Most bytes of an attribute list, as Windows has it.
const MAX_LIST: u64 = 256 << 10;

/// How many decoded pieces of values are kept, each of at most a record's size.
const KEPT: usize = 16;

/// The runs of pieces that were read last, the latest first.
type Kept = VecDeque<((u64, usize), Arc<Vec<Run>>)>;

/// The disk, and the file records on it.
#[derive(Debug)]
pub(super) struct Volume<D> {
    disk: D,
    geometry: Geometry,
    /// Where the file records are, and how many bytes.
    records: Vec<Run>,
    records_size: u64,
    kept: Mutex<Kept>,
}

/// A number of a file record, as in a directory: 48 bits, and 16 of its sequence.
pub(super) fn record_number(reference: u64) -> u64 {
    reference & ((1 << 48) - 1)
}

/// An entry of an attribute list.
pub(super) struct Listed {
    kind: u32,
    named: bool,
    lowest: u64,
    /// The number of the record in which the attribute is.
    pub(super) record: u64,
}

/// The entries of an attribute list.
///
/// # Errors
/// If it is not right.
pub(super) fn listed(list: &[u8]) -> Result<Vec<Listed>> {
    let mut entries = Vec::new();
    let mut rest = list;
    while rest.len() >= 26 {
        let length = usize::from(le16(rest, 4)?);
        if length < 26 || length % 8 != 0 {
            return Err(Error::corrupt("a list of attributes has an entry that cannot be right"));
        }
        entries.push(Listed {
            kind: crate::numbers::le32(rest, 0)?,
            named: byte(rest, 6)? != 0,
            lowest: le64(rest, 8)?,
            record: record_number(le64(rest, 16)?),
        });
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(entries)
}

impl<D: Disk> Volume<D> {
    /// Finds the file records.
    ///
    /// # Errors
    /// If they are not right.
    pub(super) fn open(disk: D, geometry: Geometry) -> Result<Self> {
        let mut bytes = vec![0; geometry.record_size];
        disk.read_at(geometry.first_record, &mut bytes)?;
        let first = Record::new(bytes, 0)?;
        let mut volume = Self { disk, geometry, records: Vec::new(), records_size: 0, kept: Mutex::default() };
        let mut list = None;
        for attribute in first.attributes()? {
            match (attribute.kind, attribute.body) {
                (kind::ATTRIBUTE_LIST, _) => list = Some(volume.list(&attribute)?),
                (kind::DATA, Body::Elsewhere(piece)) if attribute.name.is_empty() && piece.lowest == 0 => {
                    volume.records = runs::decode(piece.runs, 0, piece.end, &volume.geometry)?;
                    volume.records_size = piece.initialized;
                }
                _ => {}
            }
        }
        // A piece's record is in the pieces before it.
        for entry in listed(&list.unwrap_or_default())? {
            if entry.kind == kind::DATA && !entry.named && entry.lowest != 0 {
                volume.take_records(&entry)?;
            }
        }
        Ok(volume)
    }

    fn take_records(&mut self, entry: &Listed) -> Result<()> {
        let record = self.record(entry.record)?;
        for attribute in record.attributes()? {
            let Body::Elsewhere(piece) = attribute.body else { continue };
            if attribute.kind != kind::DATA || !attribute.name.is_empty() || piece.lowest != entry.lowest {
                continue;
            }
            if self.records.last().map(|run| run.start + run.length) != Some(piece.lowest) {
                return Err(Error::corrupt("the file records have a gap"));
            }
            self.records.extend(runs::decode(piece.runs, piece.lowest, piece.end, &self.geometry)?);
            if self.records.len() > MAX_RECORD_RUNS {
                return Err(Error::new(Kind::TooLarge, "the file records are in too many pieces"));
            }
            return Ok(());
        }
        Err(Error::corrupt("a piece of the file records is not where it should be"))
    }

    pub(super) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// A file record, in use or not.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is none of that number; if it is not right.
    pub(super) fn record(&self, number: u64) -> Result<Record> {
        let size = self.geometry.record_size as u64;
        let gone = || Error::new(Kind::NotFound, format!("there is no file record {number}"));
        let offset = number.checked_mul(size).ok_or_else(gone)?;
        if offset.checked_add(size).is_none_or(|end| end > self.records_size) {
            return Err(gone());
        }
        let mut bytes = vec![0; self.geometry.record_size];
        let run_at = |cluster| runs::find(&self.records, cluster).ok_or_else(gone);
        runs::read(&self.disk, &self.geometry, run_at, offset, &mut bytes)?;
        Record::new(bytes, number)
    }

    /// The reference of the file that has a record now.
    ///
    /// # Errors
    /// If that cannot be read.
    pub(super) fn reference(&self, number: u64) -> Result<u64> {
        Ok(number | u64::from(self.record(number)?.sequence()?) << 48)
    }

    /// The bytes of an attribute list, which has one piece.
    ///
    /// # Errors
    /// If it is not right.
    pub(super) fn list(&self, attribute: &Attribute<'_>) -> Result<Vec<u8>> {
        let piece = match attribute.body {
            Body::Resident(bytes) => return Ok(bytes.to_vec()),
            Body::Elsewhere(piece) => piece,
        };
        if piece.size > MAX_LIST || piece.size > piece.initialized {
            return Err(Error::corrupt("a list of attributes has a size that cannot be right"));
        }
        let found = runs::decode(piece.runs, piece.lowest, piece.end, &self.geometry)?;
        let mut bytes = vec![0; usize::try_from(piece.size).unwrap_or_default()];
        let gap = || Error::corrupt("a list of attributes has a gap");
        runs::read(&self.disk, &self.geometry, |at| runs::find(&found, at).ok_or_else(gap), 0, &mut bytes)?;
        Ok(bytes)
    }

    fn piece(&self, piece: &Piece) -> Result<Arc<Vec<Run>>> {
        let key = (piece.record, piece.at);
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, found)) = kept().iter().find(|(at, _)| *at == key) {
            return Ok(Arc::clone(found));
        }
        let record = self.record(piece.record)?;
        for attribute in record.attributes()? {
            let Body::Elsewhere(found) = attribute.body else { continue };
            if attribute.at == piece.at && found.lowest == piece.lowest {
                let found = Arc::new(runs::decode(found.runs, found.lowest, found.end, &self.geometry)?);
                let mut kept = kept();
                kept.truncate(KEPT - 1);
                kept.push_front((key, Arc::clone(&found)));
                return Ok(found);
            }
        }
        Err(Error::corrupt(format!("file record {} has lost an attribute", piece.record)))
    }

    /// The run with a cluster of a value.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn run_at(&self, pieces: &[Piece], cluster: u64) -> Result<Run> {
        let gap = || Error::corrupt("a file has a gap in its clusters");
        let index = pieces.partition_point(|piece| piece.lowest <= cluster).checked_sub(1).ok_or_else(gap)?;
        let runs = self.piece(pieces.get(index).ok_or_else(gap)?)?;
        runs::find(&runs, cluster).ok_or_else(gap)
    }

    /// Fills `buffer` with a value, from `offset` on.
    ///
    /// # Errors
    /// If it has not so many bytes, is compressed or encrypted, or cannot be read.
    pub(super) fn read(&self, stream: &Stream, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let short = || Error::corrupt("a value ends too early");
        let end = offset.checked_add(buffer.len() as u64).ok_or_else(short)?;
        match &stream.value {
            Value::Resident(bytes) => {
                let range = usize::try_from(offset).map_err(|_| short())?..usize::try_from(end).map_err(|_| short())?;
                buffer.copy_from_slice(bytes.get(range).ok_or_else(short)?);
                Ok(())
            }
            Value::Elsewhere { size, initialized, pieces, .. } => {
                stream.plain()?;
                if end > *size {
                    return Err(short());
                }
                let written =
                    usize::try_from(initialized.saturating_sub(offset)).unwrap_or(usize::MAX).min(buffer.len());
                let (written, never) = buffer.split_at_mut(written);
                never.fill(0);
                runs::read(&self.disk, &self.geometry, |cluster| self.run_at(pieces, cluster), offset, written)
            }
        }
    }
}
