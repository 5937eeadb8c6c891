//! Blocks to read from.

use std::io;

/// A disk, or something that looks like one. Does not change while it is read.
pub trait Disk {
    /// Size, in bytes.
    fn size(&self) -> u64;

    /// Fills `buffer` from `offset` on, in bytes.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] if it would reach past the end; whatever the disk fails with.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl<D: Disk + ?Sized> Disk for &D {
    fn size(&self) -> u64 {
        (**self).size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buffer)
    }
}

impl<D: Disk + ?Sized> Disk for Box<D> {
    fn size(&self) -> u64 {
        (**self).size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buffer)
    }
}

/// A disk in memory.
impl Disk for [u8] {
    fn size(&self) -> u64 {
        u64::try_from(self.len()).unwrap_or(u64::MAX)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| past_the_end())?;
        let end = start.checked_add(buffer.len()).ok_or_else(past_the_end)?;
        buffer.copy_from_slice(self.get(start..end).ok_or_else(past_the_end)?);
        Ok(())
    }
}

impl Disk for Vec<u8> {
    fn size(&self) -> u64 {
        self.as_slice().size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.as_slice().read_at(offset, buffer)
    }
}

/// A piece of a disk, as a disk of its own.
#[derive(Debug, Clone)]
pub struct Part<D> {
    disk: D,
    start: u64,
    size: u64,
}

impl<D: Disk> Part<D> {
    /// `size` bytes from `start` on, as far as the disk has them.
    pub fn new(disk: D, start: u64, size: u64) -> Self {
        let size = size.min(disk.size().saturating_sub(start));
        Self { disk, start, size }
    }
}

impl<D: Disk> Disk for Part<D> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let length = u64::try_from(buffer.len()).map_err(|_| past_the_end())?;
        let end = offset.checked_add(length).ok_or_else(past_the_end)?;
        if end > self.size {
            return Err(past_the_end());
        }
        self.disk.read_at(self.start + offset, buffer)
    }
}

fn past_the_end() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "a read past the end of the disk")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_ends_where_it_ends() {
        let disk: Vec<u8> = (0..10).collect();
        let part = Part::new(&disk, 3, 4);
        let mut two = [0; 2];
        part.read_at(2, &mut two).unwrap();
        assert_eq!(two, [5, 6]);
        assert_eq!(part.read_at(3, &mut two).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(part.read_at(u64::MAX, &mut two).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(Part::new(&disk, 8, 4).size(), 2, "a part has no more than the disk");
        assert_eq!(Part::new(&disk, 11, 4).size(), 0);
    }
}
