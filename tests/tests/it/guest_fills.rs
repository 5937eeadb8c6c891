//! A FAT file system that a guest's Linux filled is read as that Linux shows it, by itself and in the tree.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use images::Image;
use images::compare::{extents, same_tree};
use inside::{FileKind, FileSystem, Id, Time, fat};
use pullfs_tests::disk::Disk;
use pullfs_tests::guest;
use pullfs_tests::machine::Machine;
use pullfs_tests::mount::Mount;
use pullfs_tests::process::ok;
use pullfs_tests::tools::tool;

use crate::inside::{compared, differences};

/// How many files the guest makes; `make long` has one disk with more.
const FEW: u32 = 400;

/// A mount of an ext4 by this computer's kernel.
struct Loop<'a>(&'a Path);

impl<'a> Loop<'a> {
    fn new(image: &Path, at: &'a Path) -> Self {
        std::fs::create_dir(at).expect("a mount point");
        ok(tool("mount").args(["-t", "ext4", "-o", "loop,ro"]).arg(image).arg(at));
        Self(at)
    }
}

impl Drop for Loop<'_> {
    fn drop(&mut self) {
        ok(tool("umount").arg(self.0));
    }
}

on!(what_linux_wrote_to_fat_is_read_as_linux_shows_it: new = New);
fn what_linux_wrote_to_fat_is_read_as_linux_shows_it(flavor: pullfs_tests::flavor::Flavor) {
    let dir = tempfile::Builder::new().prefix("pullfs-fat-").tempdir().expect("a temporary directory");
    let most = compared(FEW);
    // A KiB for each file, with its name.
    let large = (64 << 20) + u64::from(most) * 1024;
    let kinds = [("12", "16", 30 << 20, FEW), ("16", "1", 30 << 20, FEW), ("32", "1", large, most)];
    let images = kinds.map(|(width, cluster, size, files)| {
        let image = dir.path().join(width);
        File::create(&image).and_then(|file| file.set_len(size)).expect("an image");
        ok(tool("mkfs.vfat").args(["-F", width, "-s", cluster, "-n", "LABEL"]).arg(&image));
        (image, files)
    });
    let copies = guest::fill(flavor, &images);
    let mount = dir.path().join("mnt");
    let _mounted = Loop::new(&copies, &mount);
    for ((image, files), copy) in images.iter().zip(["vdb", "vdc", "vdd"]) {
        ok(tool("fsck.vfat").arg("-n").arg(image));
        let disk = Image::open(image);
        let fs = fat::open(Image::open(image)).expect("a FAT file system");
        assert_eq!(fs.summary().unclean, None);
        let count = same_tree(&fs, &disk, fs.root(), &mount.join(copy), &|_, ours, path, theirs| {
            let name = path.display();
            let mode = u32::from(ours.mode);
            assert_eq!((mode, ours.uid, ours.gid), (theirs.mode() & 0o7777, theirs.uid(), theirs.gid()), "{name}");
            if ours.kind == FileKind::File {
                assert_eq!(ours.modified, Time { seconds: theirs.mtime(), nanoseconds: 0 }, "{name}");
            }
        });
        // Two of ten were removed again.
        assert!(u32::try_from(count).expect("a number of files") > files / 10 * 8, "{count}");
        let find =
            |directory: Id, name: &str| fs.lookup(directory, name.as_bytes()).expect("a directory").expect("a file");
        let one = find(find(fs.root(), "turns"), "one");
        let pieces = extents(&fs, one, 300_000).len();
        assert!(pieces > 15, "a file that grew in turns with another has {pieces} pieces");
    }

    let machine = Machine::build(flavor);
    let machine = images
        .iter()
        .zip(["vda", "vdb", "vdc"])
        .fold(machine, |machine, ((image, _), id)| machine.disk(Disk::raw(id, 0).from_image(image)));
    let machine = machine.start();
    let pullfs = Mount::of(&machine);
    for (id, copy) in [("vda", "vdb"), ("vdb", "vdc"), ("vdc", "vdd")] {
        let (files, theirs) = (pullfs.path(&format!("current/{id}/partitions/0/files")), mount.join(copy));
        assert_eq!(differences(&files, &theirs), "", "in our tree, against Linux's");
        assert_eq!(differences(&theirs, &files), "", "the other way round");
    }
    assert!(pullfs.unmount().success());
}
