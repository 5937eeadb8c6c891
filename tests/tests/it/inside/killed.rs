//! The process that reads a guest's file system is killed, again and again: who reads meanwhile gets what is right or EIO.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::Scene;
use super::image::Mounted;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::mount::Mount;
use pullfs_tests::process::{self, has_ended, signal_pid, wait_until};
use rustix::fs::{Advice, fadvise};
use rustix::io::Errno;
use rustix::process::Signal;

const READERS: usize = 8;
const KILLS: u64 = 4;

/// How long a new one may take, on a busy machine; after some deaths the daemon waits before it starts one.
const LIMIT: Duration = Duration::from_secs(30);

/// The processes that a daemon has started to look into disks.
pub(super) fn children(daemon: u32) -> Vec<u32> {
    process::children(daemon, "look-inside")
}

/// What is looked at each time.
#[derive(Debug, PartialEq)]
struct Seen {
    names: BTreeSet<OsString>,
    bytes: Vec<u8>,
    target: PathBuf,
}

impl Seen {
    /// Looks past what the kernel remembers, so that each time somebody is asked.
    fn of(files: &Path) -> io::Result<Self> {
        let names = fs::read_dir(files.join("many"))?.map(|entry| Ok(entry?.file_name()));
        let names = names.collect::<io::Result<_>>()?;
        let file = fs::File::open(files.join("home/user/large"))?;
        fadvise(&file, 0, None, Advice::DontNeed)?;
        let mut bytes = Vec::new();
        (&file).read_to_end(&mut bytes)?;
        Ok(Self { names, bytes, target: fs::read_link(files.join("home/long-link"))? })
    }
}

on!(who_reads_meanwhile_gets_what_is_right_or_an_error: new = New);
fn who_reads_meanwhile_gets_what_is_right_or_an_error(flavor: Flavor) {
    let scene = Scene::new(flavor);
    let kernel = Mounted::of(&scene.copy, "loop,ro");
    let right = Seen::of(&kernel.0).expect("the kernel's");
    let mount = Mount::of(&scene.machine);
    let files = mount.path("current/vda/partitions/1/files");
    assert!(Seen::of(&files).expect("ours") == right, "before anything happens");
    let open = fs::File::open(files.join("home/user/large")).expect("a file");
    let kill = |what: &str| {
        let mut pids = Vec::new();
        wait_until(what, LIMIT, || {
            pids = children(mount.pid());
            !pids.is_empty()
        });
        for pid in &pids {
            signal_pid(*pid, Signal::KILL);
        }
        wait_until("their end", LIMIT, || pids.iter().all(|pid| has_ended(*pid)));
    };

    let began = Instant::now();
    let (done, looks, errors) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                // Also if the test has failed meanwhile.
                while !done.load(Ordering::Relaxed) && began.elapsed() < 2 * LIMIT {
                    match Seen::of(&files) {
                        Ok(seen) => {
                            assert!(seen == right, "not what the guest has");
                            looks.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => {
                            assert_eq!(Errno::from_io_error(&error), Some(Errno::IO));
                            errors.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
        for _ in 0..KILLS {
            let before = looks.load(Ordering::Relaxed);
            wait_until("somebody who sees something", LIMIT, || looks.load(Ordering::Relaxed) > before);
            kill("a reader of the disk");
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(errors.into_inner() > 0, "nobody was killed while he was asked");

    // What is open is read without a new one, and the next look starts it.
    assert!(Seen::of(&files).expect("a look after all") == right);
    kill("the last reader of the disk");
    wait_until("an orderly end", LIMIT, || children(mount.pid()).is_empty());
    let mut bytes = vec![0; right.bytes.len()];
    fadvise(&open, 0, None, Advice::DontNeed).expect("advice");
    open.read_exact_at(&mut bytes, 0).expect("an open file");
    assert!(bytes == right.bytes && children(mount.pid()).is_empty(), "who has a file open needs nobody");
    assert!(Seen::of(&files).expect("the next look") == right);
    let last = children(mount.pid());
    assert_eq!(last.len(), 1, "one file system, one reader");
    let told = mount.status();
    let [running, started, failed] =
        ["running", "started", "failed"].map(|count| told["readers"][count].as_u64().expect("a count"));
    assert!(running == 1 && failed > KILLS && started > failed, "{}", told["readers"]);
    drop(open);
    assert!(mount.unmount().success());
    assert!(last.iter().all(|pid| has_ended(*pid)), "it outlived the mount");
}
