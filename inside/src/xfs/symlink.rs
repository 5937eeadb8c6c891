//! Symbolic links: in the inode, or in blocks.

use crate::{Disk, Error, FileKind, Kind, Result};

use super::inode::Format;
use super::volume::{Seal, Volume};
use crate::numbers::{be32, index, length, slice};

/// Longest target, in bytes.
const MAX_TARGET: usize = 1024;
/// Most blocks of one, the smallest ones with their headers.
const MAX_BLOCKS: usize = 3;

impl<D: Disk> Volume<D> {
    /// [`crate::FileSystem::link_target`].
    pub(super) fn target(&self, number: u64) -> Result<Vec<u8>> {
        let inode = self.inode(number)?;
        if inode.attributes.kind != FileKind::Symlink {
            return Err(Error::new(Kind::WrongKind, format!("XFS: inode {number} is no symbolic link")));
        }
        let size = index(inode.attributes.size);
        if size == 0 || size > MAX_TARGET {
            return Err(inode.corrupt("its target is too long"));
        }
        let fork = inode.data();
        if fork.format == Format::Local {
            return Ok(slice(fork.bytes, 0, size)?.to_vec());
        }
        let header = if self.superblock.v5 { 56 } else { 0 };
        let block_size = index(self.superblock.block_size);
        let blocks = (1..=MAX_BLOCKS).find(|blocks| blocks * (block_size - header) >= size).unwrap_or(MAX_BLOCKS);
        let mut target = Vec::with_capacity(size);
        // Blocks that lie together have one header, so the last ones may have nothing left to hold.
        for (offset, count) in self.runs(&fork, 0, length(blocks))? {
            let mut bytes = vec![0; index(count) * block_size];
            let changed = self.read(offset, &mut bytes)?;
            let part = (size - target.len()).min(bytes.len() - header);
            if part == 0 {
                break;
            }
            if self.superblock.v5 {
                self.verify(&bytes, offset, Seal::REMOTE, number, changed)?;
                let is_next = index(be32(&bytes, 4)?) == target.len() && index(be32(&bytes, 8)?) == part;
                if !bytes.starts_with(b"XSLM") || !is_next {
                    return Err(inode.corrupt("a block of its target is none"));
                }
            }
            target.extend_from_slice(slice(&bytes, header, part)?);
        }
        if target.len() == size { Ok(target) } else { Err(inode.corrupt("its target is cut off")) }
    }
}
