//! Makes the corpus of the target `xfs` anew (docs/fuzzing.md): what is read of two small file systems, of which one has a log to
//! replay. It mounts, so it takes root.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use images::xfs::{SIZE, Store};
use rustix::fs::{XattrFlags, setxattr};

/// A little of all that has a form of its own on the disk.
fn fill(root: &Path) {
    for number in 0..30 {
        fs::write(root.join(format!("file {number}")), "x").expect("a file");
    }
    for target in ["short", &"long".repeat(200)] {
        symlink(target, root.join(&target[..5])).expect("a link");
    }
    fs::create_dir_all(root.join("directory/another")).expect("directories");
    let path = root.join("fragmented");
    let file = File::create(&path).expect("a file");
    for piece in 0..80 {
        file.write_all_at(b"y", piece * 2048).expect("written");
    }
    let xattr = |name: &str, value: &[u8]| setxattr(&path, name, value, XattrFlags::empty()).expect("an attribute");
    xattr("user.large", &[7; 1500]);
    for number in 0..9 {
        xattr(&format!("user.{number}"), &[number; 100]);
    }
}

fn main() {
    let store = Store::new();
    let whole = store.made("whole", SIZE, &["-b", "size=1024"]);
    let mount = whole.mount("rw");
    fill(&mount.0);
    images::ok(std::process::Command::new("sync").arg("-f").arg(&mount.0));
    let dirty = whole.copy("dirty");
    drop(mount);
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/xfs");
    for image in [whole, dirty] {
        inside::xfs::open(&image).expect("a file system that is right");
        let input = pullfs_fuzz::xfs::input(&image).expect("a disk that can be read");
        let path = corpus.join(image.path.file_name().expect("a name"));
        fs::write(&path, &input).expect("an input");
        println!("{}: {} bytes", path.display(), input.len());
    }
}
