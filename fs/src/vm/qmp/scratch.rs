//! The scratch image of a disk: where QEMU puts old clusters, in a file that has no name.
//!
//! pullfs writes the empty image itself. QEMU's `blockdev-create` opens it in a coroutine, and a QEMU 7.2 that is asked for
//! its nodes by anybody in that moment fails an assertion (`qcow2_get_specific_info`), which is the end of the guest.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::by_path;
use super::ids::{DiskIds, Role};
use super::steps::PlannedDisk;
use super::undo::{Context, SCRATCH_NAME, SCRATCH_SUFFIX, remove_scratch};
use crate::block::extents::Extents;
use crate::error::{Error, Kind, Result};
use crate::image::qcow2::{ClusterSize, Qcow2};
use crate::image::{Image, Segment};
use crate::vm::Fleece;

/// A directory of our own, for as long as the file of these ids has a name.
pub(super) fn place(dir: &Path, ids: &DiskIds) -> PathBuf {
    dir.join(format!("{}{SCRATCH_SUFFIX}", ids.of(Role::File)))
}

/// A file that has no name, or loses it as soon as QEMU has opened it: whoever dies, nothing of it stays on disk.
pub(super) async fn add_file(context: &Context, dir: &Path, disk: &PlannedDisk) -> Result<()> {
    let node = disk.ids.of(Role::File);
    let open = |filename: String| json!({"driver": "file", "node-name": node, "filename": filename, "discard": "unmap", "auto-read-only": false});
    let failed = |error| {
        let message = format!("cannot make a scratch file in {} (option scratch=)", dir.display());
        Error::with_source(Kind::Io, message, error)
    };
    let empty = Qcow2::new(disk.size, ClusterSize::default(), &Extents::default(), &Extents::default(), None)?;
    if context.descriptors {
        let file = tempfile::tempfile_in(dir).map_err(failed)?;
        write(&empty, &file).map_err(failed)?;
        context.files().insert(node.clone(), file.try_clone().map_err(failed)?);
        let set = context.session.add_descriptor(OwnedFd::from(file), &node).await?;
        return context.session.add_node(open(format!("/dev/fdset/{set}"))).await;
    }
    let place = place(dir, &disk.ids);
    std::fs::DirBuilder::new().mode(0o700).create(&place).map_err(failed)?;
    let path = place.join(SCRATCH_NAME);
    let name = path.to_str().ok_or_else(|| {
        Error::new(Kind::Invalid, format!("{} is not UTF-8, which QEMU needs for scratch=", dir.display()))
    })?;
    let file = File::create_new(&path).map_err(failed)?;
    write(&empty, &file).map_err(failed)?;
    context.files().insert(node.clone(), file);
    let added = context.session.add_node(open(name.to_owned())).await;
    remove_scratch(&place)?;
    added.map_err(|error| by_path::explain(error, &path))
}

/// The node of the image in the file.
pub(super) fn image(disk: &PlannedDisk, fleece: Fleece) -> Value {
    let (name, file) = (disk.ids.of(Role::Scratch), disk.ids.of(Role::File));
    let mut options = json!({"driver": "qcow2", "node-name": name, "file": file, "discard": "unmap"});
    if fleece == Fleece::Backing {
        options["backing"] = json!(disk.node);
    }
    options
}

/// File systems keep a file in blocks of so many bytes, or multiples.
const BLOCK: usize = 4096;

/// Writes an image that has nothing of a disk in it. Its zeroes, among them most of each table, stay holes.
pub(in crate::vm) fn write(image: &Qcow2, file: &File) -> io::Result<()> {
    file.set_len(image.size())?;
    let mut at = 0;
    for segment in image.map(0..image.size()) {
        at += match segment {
            Segment::Bytes(bytes) => {
                for (block, start) in bytes.chunks(BLOCK).zip((at..).step_by(BLOCK)) {
                    if block.iter().any(|byte| *byte != 0) {
                        file.write_all_at(block, start)?;
                    }
                }
                bytes.len()
            }
            Segment::Zero(length) | Segment::Disk { length, .. } => length,
        } as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// All of an image, as it is mapped.
    fn told(image: &Qcow2) -> Vec<u8> {
        let segments = image.map(0..image.size());
        segments
            .into_iter()
            .flat_map(|segment| match segment {
                Segment::Bytes(bytes) => bytes.to_vec(),
                Segment::Zero(length) | Segment::Disk { length, .. } => vec![0; length],
            })
            .collect()
    }

    #[test]
    fn an_empty_image_takes_little_room_however_large_the_disk_is() {
        for disk in [512, 1 << 20, 1 << 40, 1 << 50] {
            let empty = Qcow2::new(disk, ClusterSize::default(), &Extents::default(), &Extents::default(), None);
            let (empty, file) = (empty.unwrap(), tempfile::tempfile().unwrap());
            write(&empty, &file).unwrap();
            let metadata = file.metadata().unwrap();
            assert_eq!(metadata.len(), empty.size());
            // Its header, and the first entries of two tables of reference counts; more where they count many tables.
            let most = if disk > 1 << 40 { 64 * BLOCK as u64 } else { 4 * BLOCK as u64 };
            assert!(metadata.blocks() * 512 <= most, "{disk}: {metadata:?}");
            let mut read = Vec::new();
            (&file).read_to_end(&mut read).unwrap();
            assert_eq!(read, told(&empty), "what is left out is zero");
        }
    }
}
