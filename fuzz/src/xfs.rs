//! An XFS file system, of which an input has the pieces that are not zeroes.

use std::cell::RefCell;
use std::collections::HashSet;
use std::io;

use inside::Disk;
use inside::xfs::open_unchecked;

use crate::walk::walk;

/// Size of the disk, in bytes: the smallest that mkfs.xfs makes has to fit.
const SIZE: u64 = 512 << 20;

/// What a piece begins at a multiple of, and has a multiple of, in bytes.
const UNIT: u64 = 64;

/// The same, of a buffer.
const LINE: usize = 64;

/// Pieces of a disk; all between them is zeroes.
pub(crate) struct Pieces(Vec<(u64, Vec<u8>)>);

impl Pieces {
    /// For each piece where it begins (32 bits) and its length (16 bits), in units, the low byte first; then its bytes.
    pub(crate) fn parse(mut input: &[u8]) -> Self {
        let mut pieces = Vec::new();
        while let Some(([a, b, c, d, e, f], rest)) = input.split_first_chunk() {
            let start = u64::from(u32::from_le_bytes([*a, *b, *c, *d])) * UNIT;
            let length = usize::from(u16::from_le_bytes([*e, *f])) * LINE;
            let (piece, rest) = rest.split_at(length.min(rest.len()));
            pieces.push((start, piece.to_vec()));
            input = rest;
        }
        pieces.sort_by_key(|(start, _)| *start);
        Self(pieces)
    }
}

impl Disk for Pieces {
    fn size(&self) -> u64 {
        SIZE
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        buffer.fill(0);
        let length = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
        let end = offset.checked_add(length).filter(|end| *end <= SIZE).ok_or(io::ErrorKind::UnexpectedEof)?;
        // None is longer than 4 MiB.
        let first = self.0.partition_point(|(start, _)| start + (4 << 20) <= offset);
        for (start, piece) in self.0[first..].iter().take_while(|(start, _)| *start < end) {
            let (from, to) = (start.max(&offset), (start + u64::try_from(piece.len()).unwrap_or(u64::MAX)).min(end));
            if *from < to {
                let index = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
                buffer[index(from - offset)..index(to - offset)]
                    .copy_from_slice(&piece[index(from - start)..index(to - start)]);
            }
        }
        Ok(())
    }
}

/// Opens it, and looks at everything; checksums are not looked at, for hardly any change would get past them.
pub(crate) fn run(input: &[u8]) {
    look(Pieces::parse(input));
}

fn look(disk: impl Disk) {
    if let Ok(system) = open_unchecked(disk) {
        walk(&system, SIZE);
    }
}

/// A disk that knows what was read of it.
struct Known<D> {
    disk: D,
    /// Offsets and lengths, in bytes.
    read: RefCell<Vec<(u64, usize)>>,
}

impl<D: Disk> Disk for Known<D> {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.disk.read_at(offset, buffer)?;
        self.read.borrow_mut().push((offset, buffer.len()));
        Ok(())
    }
}

/// The input that has what the target reads of a disk, in the order in which it does.
///
/// # Errors
/// When the disk cannot be read.
pub fn input(disk: impl Disk) -> io::Result<Vec<u8>> {
    let known = Known { disk, read: RefCell::default() };
    look(&known);
    let (mut pieces, mut seen) = (Vec::<(u64, Vec<u8>)>::new(), HashSet::new());
    for (offset, length) in known.read.take() {
        let end = offset + u64::try_from(length).unwrap_or(u64::MAX);
        for unit in (offset / UNIT..end.div_ceil(UNIT)).filter(|unit| seen.insert(*unit)) {
            let mut line = [0; LINE];
            known.disk.read_at(unit * UNIT, &mut line)?;
            match pieces.last_mut() {
                _ if line == [0; LINE] => {}
                Some((start, piece)) if *start + piece.len() as u64 / UNIT == unit => piece.extend(line),
                _ => pieces.push((unit, line.to_vec())),
            }
        }
    }
    let encoded = pieces.iter().map(|(start, piece)| {
        let start = u32::try_from(*start).expect("within the disk");
        let length = u16::try_from(piece.len() / LINE).expect("no more than a block or a log's record");
        [&start.to_le_bytes()[..], &length.to_le_bytes(), piece].concat()
    });
    Ok(encoded.collect::<Vec<_>>().concat())
}
