//! File systems that were copied while they were mounted and written to: our view of a copy, and the kernel's after it replayed the
//! log of another one.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use images::xfs::{SIZE, Store};
use images::{Image, run};
use inside::{FileSystem, Kind};

use super::{fill, tree};

/// Copies of what changes extents all the time.
const MOMENTS: u64 = 10;

/// Changes of all kinds, until it is told to stop.
fn write(root: &Path, seed: u64, stop: &AtomicBool) {
    let mut state = seed;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    while !stop.load(Ordering::Relaxed) {
        let directory = root.join(format!("d{}", random(12)));
        let _ = fs::create_dir(&directory);
        let path = directory.join(format!("f{}{}", random(400), "-".repeat(usize::try_from(random(60)).unwrap())));
        let other = root.join(format!("d{}", random(12))).join(format!("f{}", random(400)));
        // What cannot be done at the moment is not.
        let _: io::Result<()> = match random(15) {
            0..3 => fs::write(&path, fill::noise(usize::try_from(random(60_000)).unwrap())),
            3 => fs::rename(&path, &other),
            4 => fs::remove_file(&other),
            5 => fs::hard_link(&path, &other),
            6 => symlink("s".repeat(usize::try_from(random(900) + 1).unwrap()), &other),
            7 => change(&path, random(1 << 22), random(30_000)),
            8 => OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(random(200_000))),
            9 => {
                let name = format!("user.{}", random(30));
                let value = fill::noise(usize::try_from(random(3000)).unwrap());
                rustix::fs::lsetxattr(&path, &name, &value, rustix::fs::XattrFlags::empty()).map_err(io::Error::from)
            }
            10 => fs::remove_dir_all(root.join(format!("d{}", random(12))).join("sub")),
            11 => fs::create_dir_all(directory.join(format!("sub/{}/{}", random(30), random(30)))),
            12 => fs::remove_file(&path),
            13 => share(&path, &other),
            _ => File::open(&path).and_then(|file| if random(3) == 0 { file.sync_all() } else { Ok(()) }),
        };
    }
}

fn change(path: &Path, offset: u64, length: u64) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    if offset.is_multiple_of(3) {
        let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        return Ok(rustix::fs::fallocate(&file, flags, offset, length + 1)?);
    }
    file.write_all_at(&fill::noise(usize::try_from(length).unwrap()), offset)
}

fn share(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (File::open(from)?, OpenOptions::new().create(true).truncate(false).write(true).open(to)?);
    Ok(rustix::fs::ioctl_ficlone(&to, &from)?)
}

/// Whether a copy could be compared: not, if it was taken while what we cannot finish was under way.
pub(crate) fn check(copy: &Image) -> bool {
    let system = match inside::xfs::open(copy) {
        Ok(system) => system,
        Err(error) if error.kind() == Kind::Unclean && error.to_string().contains("under way") => {
            println!("{error}");
            return false;
        }
        Err(error) => panic!("{error}"),
    };
    // Each of its own name: a loop device that is not gone yet would be used again, with what it has in its cache.
    let kernels = copy.copy(&format!("{}-kernels", copy.path.file_name().unwrap().to_str().unwrap()));
    let mount = kernels.mount("rw");
    let theirs = tree::kernels(&mount.0);
    let ours = tree::ours(&system, copy, 100).unwrap();
    tree::assert_same(&ours, &theirs);
    assert!(ours.len() > 10, "{} files", ours.len());
    assert_eq!(system.summary().unclean, None);
    true
}

/// Copies of a file system at several moments while two threads write.
fn live(arguments: &[&str], moments: u64, rounds: Duration) {
    let store = Store::new();
    let image = store.made("live", SIZE, arguments);
    let mount = image.mount("rw");
    let stop = AtomicBool::new(false);
    let mut compared = 0;
    thread::scope(|scope| {
        for seed in 1..3 {
            let root = mount.0.join(seed.to_string());
            fs::create_dir(&root).unwrap();
            scope.spawn({
                let stop = &stop;
                move || write(&root, seed, stop)
            });
        }
        let copies: Vec<Image> = (0..moments)
            .map(|moment| {
                thread::sleep(rounds);
                if moment % 3 == 0 {
                    run("sync", &["-f", mount.0.to_str().unwrap()]);
                }
                image.copy(&format!("moment-{moment}"))
            })
            .collect();
        stop.store(true, Ordering::Relaxed);
        compared = copies.iter().filter(|copy| check(copy)).count();
    });
    assert!(compared as u64 > moments / 2, "{compared} of {moments} were compared");
}

#[test]
fn copies_of_what_is_being_written() {
    live(&[], 8, Duration::from_millis(300));
}

#[test]
fn copies_with_small_blocks_and_all_maps() {
    live(&["-b", "size=1024", "-n", "size=4096", "-m", "rmapbt=1", "-l", "su=32k"], 6, Duration::from_millis(300));
}

/// What `xfs_io -c shutdown` leaves, and a file system whose every change is in the log alone.
#[test]
fn a_shutdown_in_the_middle() {
    let store = Store::new();
    for (name, flag) in [("flushed", "shutdown -f"), ("not", "shutdown")] {
        let image = store.made(name, SIZE, &[]);
        let mount = image.mount("rw");
        fill::directories(&mount.0, &[20, 2000]);
        fill::kinds(&mount.0);
        fill::xattrs(&mount.0);
        run("sync", &["-f", mount.0.to_str().unwrap()]);
        fill::names(&mount.0);
        fs::remove_dir_all(mount.0.join("many-20")).unwrap();
        run("xfs_io", &["-x", "-c", flag, mount.0.to_str().unwrap()]);
        drop(mount);
        assert!(check(&image.copy(&format!("{name}-copy"))));
    }
}

/// A frozen file system is whole, though its log is not empty.
#[test]
fn a_freeze() {
    let store = Store::new();
    let image = store.made("frozen", SIZE, &[]);
    let mount = image.mount("rw");
    fill::names(&mount.0);
    fill::data(&mount.0, 4096, 300);
    fill::shared(&mount.0);
    run("fsfreeze", &["-f", mount.0.to_str().unwrap()]);
    let copy = image.copy("copy");
    run("fsfreeze", &["-u", mount.0.to_str().unwrap()]);
    assert!(check(&copy));
}

/// Writes to what is shared change a file's extents in several transactions, so a copy finds some that are not done.
#[test]
fn copies_while_shared_extents_are_written() {
    const PIECES: u64 = 500;
    let store = Store::new();
    let image = store.made("shared", SIZE, &[]);
    let mount = image.mount("rw");
    let (original, clone) = (mount.0.join("original"), mount.0.join("clone"));
    fs::write(&original, fill::noise(usize::try_from(PIECES * 4096).unwrap())).unwrap();
    for number in 0..20 {
        fs::write(mount.0.join(number.to_string()), "x").unwrap();
    }
    run("sync", &["-f", mount.0.to_str().unwrap()]);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                share(&original, &clone).unwrap();
                let file = OpenOptions::new().write(true).open(&clone).unwrap();
                for piece in (0..PIECES).step_by(3) {
                    file.write_all_at(&fill::noise(4096), piece * 4096).unwrap();
                }
                file.sync_data().unwrap();
            }
        });
        scope.spawn(|| {
            let file = File::create(mount.0.join("synced")).unwrap();
            for number in 0_u64.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                file.write_all_at(&number.to_le_bytes(), 0).unwrap();
                file.sync_all().unwrap();
            }
        });
        let copies: Vec<Image> = (0..MOMENTS)
            .map(|moment| {
                thread::sleep(Duration::from_millis(20));
                image.copy(&format!("moment-{moment}"))
            })
            .collect();
        stop.store(true, Ordering::Relaxed);
        assert!(copies.iter().all(check));
    });
}
