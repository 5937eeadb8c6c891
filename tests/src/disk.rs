//! Disks of machines under test, with content that tells where it belongs.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::flavor::Flavor;
use crate::libvirt::escape;
use crate::process::ok;
use crate::tools;

/// The cluster of a qcow2 image unless it is told otherwise.
pub(crate) const CLUSTER: u64 = 64 << 10;

/// A disk to start a machine with.
#[derive(Clone, Debug)]
pub struct Disk {
    pub(crate) id: String,
    pub(crate) format: &'static str,
    size: u64,
    cluster: u64,
    filled: Vec<(u64, u64)>,
    /// The throttle group that its requests wait in.
    group: Option<String>,
    /// It has data everywhere, and no image.
    endless: bool,
    pub(crate) image: Option<PathBuf>,
    /// The active layer's node, where it is not the one that the machine was started with.
    pub(crate) node: Option<String>,
}

impl Disk {
    /// A new qcow2 disk (clusters of 64 KiB).
    pub fn qcow2(id: &str, size: u64) -> Self {
        Self::new(id, "qcow2", size)
    }

    /// A new raw disk.
    pub fn raw(id: &str, size: u64) -> Self {
        Self::new(id, "raw", size)
    }

    /// A new disk that can have checkpoints, and is raw where it can: libvirt has checkpoints of qcow2 disks alone.
    pub fn with_checkpoints(flavor: Flavor, id: &str, size: u64) -> Self {
        if flavor.libvirt().is_some() { Self::qcow2(id, size) } else { Self::raw(id, size) }
    }

    /// A disk that takes no space and no time: all of it is data, and what it reads as is nobody's business.
    pub fn endless(id: &str, size: u64) -> Self {
        Self { endless: true, ..Self::raw(id, size) }
    }

    fn new(id: &str, format: &'static str, size: u64) -> Self {
        Self {
            id: id.to_owned(),
            format,
            size,
            cluster: CLUSTER,
            filled: Vec::new(),
            group: None,
            endless: false,
            image: None,
            node: None,
        }
    }

    /// Gives a new qcow2 disk another cluster size.
    #[must_use]
    pub fn cluster(mut self, cluster: u64) -> Self {
        self.cluster = cluster;
        self
    }

    /// Fills these extents (offset, length) of a new disk: each 8 bytes tell where they belong.
    #[must_use]
    pub fn filled(mut self, extents: &[(u64, u64)]) -> Self {
        self.filled.extend_from_slice(extents);
        self
    }

    /// Puts it behind a throttle group of QEMU's: whoever uses it, all of its requests wait there.
    #[must_use]
    pub fn slowed_by(mut self, group: &str) -> Self {
        self.group = Some(group.to_owned());
        self
    }

    /// An image that is there.
    #[must_use]
    pub fn from_image(mut self, image: &Path) -> Self {
        self.image = Some(image.to_owned());
        self
    }

    /// Makes the disk's image in `dir`, unless it has one.
    #[track_caller]
    pub fn create_in(&mut self, dir: &Path) {
        if self.image.is_none() && !self.endless {
            self.image = Some(self.create(dir));
        }
    }

    /// The disk's image.
    #[track_caller]
    pub fn image(&self) -> &Path {
        self.image.as_deref().expect("a disk of a machine has an image")
    }

    /// QEMU's description of the disk, as the node `node`.
    #[track_caller]
    pub(crate) fn blockdev(&self, node: &str) -> String {
        let file = format!("file-{}", self.id);
        let mut below = if self.endless {
            json!({"driver": "null-co", "node-name": file, "size": self.size, "read-zeroes": false})
        } else {
            json!({"driver": "file", "node-name": file, "filename": self.image(), "discard": "unmap"})
        };
        if let Some(group) = &self.group {
            below = json!({"driver": "throttle", "throttle-group": group, "file": below});
        }
        json!({"driver": self.format, "node-name": node, "discard": "unmap", "file": below}).to_string()
    }

    /// libvirt's description of the disk.
    #[track_caller]
    pub(crate) fn xml(&self, scsi: bool, iothread: bool) -> String {
        assert!(self.group.is_none() && !self.endless, "libvirt has no word for {self:?}");
        let (bus, iothread) = (if scsi { "scsi" } else { "virtio" }, if iothread { " iothread='1'" } else { "" });
        format!(
            "<disk type='file' device='disk'>
               <driver name='qemu' type='{format}' discard='unmap'{iothread}/>
               <source file='{image}'/>
               <target dev='{id}' bus='{bus}'/>
               <alias name='ua-{id}'/>
             </disk>",
            format = self.format,
            image = escape(&self.image().display().to_string()),
            id = self.id,
        )
    }

    fn create(&self, dir: &Path) -> PathBuf {
        let image = dir.join(format!("{}.{}", self.id, self.format));
        let raw = dir.join(format!("{}.raw", self.id));
        let file = File::create(&raw).expect("an image");
        file.set_len(self.size).expect("an image");
        // Odd, so that the disks of a machine differ at every place.
        let seed = self.id.bytes().fold(1_u64, |seed, byte| seed * 257 + u64::from(byte));
        for &(offset, length) in &self.filled {
            let words = offset / 8..(offset + length) / 8;
            let words: Vec<_> = words.map(|word| (word ^ seed << 40).to_le_bytes()).collect();
            file.write_all_at(words.as_flattened(), offset).expect("filling an image");
        }
        if self.format != "raw" {
            let cluster = format!("cluster_size={}", self.cluster);
            ok(tools::tool("qemu-img").args(["convert", "-O", self.format, "-o", &cluster]).arg(&raw).arg(&image));
            std::fs::remove_file(&raw).expect("removing the raw image");
        }
        image
    }
}
