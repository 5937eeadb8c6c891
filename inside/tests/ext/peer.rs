//! Names and contents against `ext4-view`, which others wrote, of a file system at rest and one that was cut off.

use std::fs;

use ext4_view::{Ext4, PathBuf};
use inside::{Disk, FileKind, FileSystem, Id, Place};

use crate::compare::{extents, list};
use crate::fill::{EXT4, Takes, fill};
use crate::image::Image;

fn compare(ours: &dyn FileSystem, disk: &dyn Disk, theirs: &Ext4, directory: Id, path: &PathBuf) -> usize {
    let mut names: Vec<_> = list(ours, directory).unwrap();
    names.sort_by(|one, other| one.0.cmp(&other.0));
    let entries = theirs.read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().as_ref().to_vec());
    let mut entries: Vec<_> = entries.filter(|name| name != b"." && name != b"..").collect();
    entries.sort();
    assert_eq!(names.iter().map(|(name, ..)| name.clone()).collect::<Vec<_>>(), entries, "{path:?}");
    let mut files = names.len();
    for (name, id, _) in names {
        let path = path.join(name.as_slice());
        let attributes = ours.attributes(id).unwrap();
        let metadata = theirs.symlink_metadata(&path).unwrap();
        assert_eq!((attributes.mode, attributes.uid), (metadata.mode() & 0o7777, metadata.uid()), "{path:?}");
        match attributes.kind {
            FileKind::Directory => files += compare(ours, disk, theirs, id, &path),
            // It takes no target for right that has a name of more than 255 bytes.
            FileKind::Symlink if attributes.size < 256 => {
                assert_eq!(ours.link_target(id).unwrap(), theirs.read_link(&path).unwrap().as_ref(), "{path:?}");
            }
            FileKind::File if attributes.size < 1 << 20 => {
                let mut bytes = Vec::new();
                for extent in extents(ours, id, attributes.size, 64).unwrap() {
                    let start = bytes.len();
                    bytes.resize(start + usize::try_from(extent.length).unwrap(), 0);
                    match extent.place {
                        Place::Hole => {}
                        Place::Inline(inline) => bytes[start..].copy_from_slice(&inline),
                        Place::Disk(at) => disk.read_at(at, &mut bytes[start..]).unwrap(),
                    }
                }
                assert!(bytes == theirs.read(&path).unwrap(), "{path:?}");
            }
            _ => {}
        }
    }
    files
}

#[test]
fn another_reader_sees_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let image = Image::make(directory.path(), "mkfs.ext4", &["-b", "4096"], 128);
    let mount = image.mount("loop,commit=300");
    fill(&mount.0, Takes { names: 500, ..EXT4 });
    // It takes no time before 1970, or after 2038, for right.
    fs::remove_dir_all(mount.0.join("times")).unwrap();
    fs::File::open(&mount.0).unwrap().sync_all().unwrap();
    let cut = image.copy("cut");
    drop(mount);
    for image in [&image, &cut] {
        let ours = image.open().unwrap();
        let theirs = Ext4::load_from_path(&image.1).unwrap();
        assert!(compare(&ours, image, &theirs, ours.root(), &PathBuf::new("/")) > 500);
    }
}
