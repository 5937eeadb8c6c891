//! File systems that were unmounted.

use images::Image;
use images::xfs::{SIZE, Store};
use inside::FileSystem;

use super::{fill, tree};

/// Compares an image with what the kernel shows of it.
fn check(image: &Image, step: usize) {
    let system = inside::xfs::open(image).unwrap();
    let ours = tree::ours(&system, image, step).unwrap();
    let mount = image.mount("ro");
    let kernels = tree::kernels(&mount.0);
    tree::assert_same(&ours, &kernels);
    check_summary(&system, &mount.0);
}

fn check_summary(system: &dyn FileSystem, mount: &std::path::Path) {
    let (summary, kernels) = (system.summary(), rustix::fs::statvfs(mount).unwrap());
    assert_eq!(u64::from(summary.block_size), kernels.f_bsize);
    // The kernel keeps some blocks for itself, and does not count its log.
    assert!(
        summary.blocks >= kernels.f_blocks && summary.free_blocks >= kernels.f_bfree,
        "{summary:?}, {} free",
        kernels.f_bfree
    );
    assert!(
        summary.free_blocks - kernels.f_bfree < summary.blocks / 8 + 10_000,
        "{summary:?}, {} free",
        kernels.f_bfree
    );
    let (files, more) = summary.files.unwrap();
    assert_eq!(files - more, kernels.f_files - kernels.f_ffree);
    assert_eq!(summary.unclean, None);
}

fn filled(store: &Store, name: &str, mib: u64, arguments: &[&str], block: u64, sizes: &[usize]) -> Image {
    let image = store.made(name, mib, arguments);
    let mount = image.mount("rw");
    fill::directories(&mount.0, sizes);
    fill::names(&mount.0);
    fill::kinds(&mount.0);
    fill::data(&mount.0, block, (12 << 20) / block);
    fill::xattrs(&mount.0);
    drop(mount);
    image
}

#[test]
fn what_mkfs_makes_by_itself() {
    let store = Store::new();
    let image = filled(&store, "default", 1024, &[], 4096, &[4, 30, 400, 21_000]);
    let mount = image.mount("rw");
    fill::shared(&mount.0);
    drop(mount);
    check(&image, 1000);
}

#[test]
fn every_size_and_feature() {
    let store = Store::new();
    let small: &[usize] = &[3, 50, 1200];
    for (name, arguments, block) in [
        ("1k", &["-b", "size=1024"][..], 1024),
        ("1k-names", &["-b", "size=1024", "-n", "size=8192", "-m", "rmapbt=1,reflink=0"], 1024),
        ("64k-names", &["-n", "size=65536"], 4096),
        ("64k", &["-b", "size=65536"], 65536),
        ("sector", &["-s", "size=4096", "-i", "size=2048,nrext64=1"], 4096),
        ("old", &["-m", "bigtime=0,inobtcount=0,finobt=0,reflink=0", "-i", "sparse=0,nrext64=0,maxpct=0"], 4096),
        ("stripes", &["-m", "rmapbt=1", "-l", "su=32k"], 4096),
    ] {
        println!("{name}");
        let image = filled(&store, name, SIZE, arguments, block, small);
        check(&image, 7);
    }
}
