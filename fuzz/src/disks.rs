//! Disks that are mostly holes: what partition tables, physical volumes of LVM2 and members of md are read from.
//!
//! An input has the disks' size (8 bytes), and then pieces: where (8 bytes, the highest of which chooses the disk), how many
//! bytes (2 bytes), and the bytes. So a small input is a large disk, and most of its bytes mean something. Checksums are put
//! right before the disk is read a second time: nothing that was changed would get past them.

use std::cell::Cell;
use std::io;

use inside::Disk;
use inside::lvm::{self, Volume};
use inside::table::{self, Partition, Table};
use inside::{raid, table::Scheme};

/// Most that is read of a disk for its table, in bytes: some 100 KiB for each of 256 partitions, twice.
const MAX_READ: u64 = 128 << 20;

pub(crate) struct Sparse {
    size: u64,
    pieces: Vec<(u64, Vec<u8>)>,
    read: Cell<u64>,
}

impl Disk for Sparse {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(length(buffer)).filter(|&end| end <= self.size);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.read.set(self.read.get() + length(buffer));
        buffer.fill(0);
        for (start, bytes) in &self.pieces {
            let (from, to) = (offset.max(*start), end.min(start.saturating_add(length(bytes))));
            if from < to {
                let at = |base: u64, place: u64| usize::try_from(place - base).expect("within memory");
                buffer[at(offset, from)..at(offset, to)].copy_from_slice(&bytes[at(*start, from)..at(*start, to)]);
            }
        }
        Ok(())
    }
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).expect("within memory")
}

pub(crate) fn disks(input: &[u8]) -> Option<[Sparse; 2]> {
    let (size, mut rest) = input.split_first_chunk::<8>()?;
    let size = u64::from_le_bytes(*size) & 0xff_ffff_ffff;
    let mut disks = [(); 2].map(|()| Sparse { size, pieces: Vec::new(), read: Cell::new(0) });
    while let Some((place, more)) = rest.split_first_chunk::<8>() {
        let (count, more) = more.split_first_chunk::<2>()?;
        let count = usize::from(u16::from_le_bytes(*count)).min(more.len());
        let place = u64::from_le_bytes(*place);
        disks[usize::from(place >> 56 != 0)].pieces.push((place & 0xff_ffff_ffff, more[..count].to_vec()));
        rest = &more[count..];
    }
    Some(disks)
}

impl Sparse {
    fn get(&self, offset: u64, count: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.read_at(offset, &mut bytes).ok()?;
        Some(bytes)
    }

    fn number(&self, offset: u64, count: usize) -> Option<u64> {
        let mut bytes = self.get(offset, count)?;
        bytes.resize(8, 0);
        bytes.try_into().ok().map(u64::from_le_bytes)
    }

    /// Puts the CRC-32 of a piece, which begins with `state`, somewhere.
    fn sign(&mut self, place: u64, state: u32, piece: (u64, usize)) -> Option<u32> {
        let bytes = self.get(piece.0, piece.1)?;
        let crc = bytes.iter().fold(state, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
        });
        self.pieces.push((place, crc.to_le_bytes().to_vec()));
        Some(crc)
    }

    fn invert(&mut self, place: u64, crc: u32) {
        self.pieces.push((place, (!crc).to_le_bytes().to_vec()));
    }

    /// Puts the checksums of a GUID partition table in that sector right.
    fn sign_gpt(&mut self, sector: u64, number: u64) -> Option<()> {
        let header = number.checked_mul(sector)?;
        if self.get(header, 8)? != b"EFI PART" {
            return None;
        }
        let entries = self.number(header + 72, 8)?.checked_mul(sector)?;
        let count = self.number(header + 80, 4)?.checked_mul(self.number(header + 84, 4)?)?;
        let count = usize::try_from(count).ok().filter(|&count| count <= 1 << 16)?;
        let crc = self.sign(header + 88, u32::MAX, (entries, count))?;
        self.invert(header + 88, crc);
        self.pieces.push((header + 16, vec![0; 4]));
        let size = usize::try_from(self.number(header + 12, 4)?).ok().filter(|&size| size <= 4096)?;
        let crc = self.sign(header + 16, u32::MAX, (header, size))?;
        self.invert(header + 16, crc);
        Some(())
    }

    /// Puts the checksums of a physical volume's label and of its metadata area right.
    fn sign_lvm(&mut self) -> Option<()> {
        const STATE: u32 = 0xf597_a6cf;
        self.sign(512 + 16, STATE, (512 + 20, 492))?;
        let area = 4096;
        let (start, size) = (self.number(area + 40, 8)?, self.number(area + 48, 8)?);
        let size = usize::try_from(size).ok().filter(|&size| size <= 1 << 16)?;
        self.sign(area + 56, STATE, (area.checked_add(start)?, size))?;
        self.sign(area, STATE, (area + 4, 508))?;
        Some(())
    }

    /// Puts the checksum of a superblock of md right: of version 1 at its three places, as far as it has two devices.
    fn sign_md(&mut self, place: u64) -> Option<()> {
        let devices = self.number(place + 220, 4)?.min(1920);
        self.pieces.push((place + 216, vec![0; 4]));
        let bytes = self.get(place, usize::try_from(256 + 2 * devices).ok()?)?;
        let sum: u64 =
            bytes.chunks(4).map(|word| word.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))).sum();
        let sum = ((sum & 0xffff_ffff) + (sum >> 32)) & 0xffff_ffff;
        self.pieces.push((place + 216, sum.to_le_bytes()[..4].to_vec()));
        Some(())
    }
}

/// A disk's partition table.
pub(crate) fn table(input: &[u8]) {
    let Some([mut disk, _]) = disks(input) else { return };
    looked_at(&disk);
    for sector in [512, 4096] {
        disk.sign_gpt(sector, 1);
        disk.sign_gpt(sector, (disk.size / sector).saturating_sub(1));
    }
    looked_at(&disk);
}

fn looked_at(disk: &Sparse) {
    disk.read.set(0);
    let read = table::read(disk);
    assert!(disk.read.get() <= MAX_READ, "{} bytes were read", disk.read.get());
    let Ok(Table { scheme, partitions, problems, .. }) = read else { return };
    assert!(partitions.len() <= Table::MAX_PARTITIONS && problems.len() <= 16, "bounded");
    assert!(partitions.windows(2).all(|pair| pair[0].number < pair[1].number), "in order");
    let sound: Vec<&Partition> = partitions.iter().filter(|partition| partition.problem.is_none()).collect();
    for one in &partitions {
        let end = one.offset.checked_add(one.size);
        assert!(one.size == 0 || end.is_some_and(|end| end <= disk.size), "on the disk: {one:?}");
        assert_eq!(one.number == 0, scheme == Scheme::Whole);
        assert!(one.problem.is_none() || one.content.is_none(), "what is wrong is not looked into");
    }
    let mut by_offset = sound.clone();
    by_offset.sort_by_key(|one| one.offset);
    assert!(by_offset.iter().all(|one| one.size > 0), "there is something");
    assert!(by_offset.windows(2).all(|two| two[0].offset + two[0].size <= two[1].offset), "apart");
}

/// Two disks with physical volumes of LVM2, and members of md.
pub(crate) fn lvm(input: &[u8]) {
    let Some(mut disks) = disks(input) else { return };
    grouped(&disks);
    for disk in &mut disks {
        disk.sign_lvm();
        for place in [(disk.size & !511).saturating_sub(8192) & !4095, 0, 4096] {
            if disk.number(place, 4) == Some(0xa92b_4efc) {
                disk.sign_md(place);
            }
        }
    }
    grouped(&disks);
}

fn grouped(disks: &[Sparse; 2]) {
    let found = lvm::read(disks).expect("these disks do not fail");
    for volume in found.groups.iter().flat_map(|group| &group.volumes) {
        assert!(!volume.name.is_empty() && !volume.name.contains('/') && volume.name != "..", "a name of a file");
        mapped(volume, disks);
    }
    for disk in disks {
        let member = raid::member(disk).expect("these disks do not fail");
        if let Some(range) = member.and_then(|member| member.data.ok()) {
            assert!(range.start < range.end && range.end <= disk.size, "on the disk");
        }
    }
}

/// The first pieces of a volume, and the last.
fn mapped(volume: &Volume, disks: &[Sparse; 2]) {
    let Ok(segments) = &volume.segments else {
        assert_eq!(volume.piece(0), None);
        return;
    };
    let mut next = 0;
    for segment in segments {
        assert!(segment.offset == next && segment.length > 0, "no gaps");
        next += segment.length;
        let mut at = segment.offset;
        for offset in [None, None, None, None, Some(next - 1)] {
            let offset = offset.unwrap_or(at);
            let Some(piece) = volume.piece(offset).filter(|_| offset < next) else { break };
            let end = piece.offset.checked_add(piece.length).expect("a place");
            assert!(piece.length > 0 && end <= disks[piece.disk].size, "on the disk");
            at = offset + piece.length;
        }
    }
    assert_eq!(next, volume.size);
    assert_eq!(volume.piece(next), None);
}
