//! (i) `find` over the guest's files, beside the kernel's own mount of a copy.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::Machine;
use pullfs_tests::mount::Mount;
use pullfs_tests::process::{ok, run, run_within};
use pullfs_tests::tools::tool;

use super::Work;
use crate::args::Args;
use crate::process::{LIMIT, children, most_resident, timed};
use crate::results::{OURS, Results};
use crate::turns::turns;
use crate::units::{MIB, Unit};

pub(crate) const WORK: Work = Work {
    letter: 'i',
    title: "walks over 100,000 files of the guest",
    how: "The disk is ext4 without a partition table, with two trees of 100,000 empty files each. `find` reads names, `find -ls` \
          asks what each file is too, `rsync -naAX` for extended attributes besides. pullfs' mount and the kernel's (a loop \
          device over a copy of the image) are new for each run, so neither has anything of the file system in memory; the image \
          is in the page cache for both. pullfs' memory is the daemon's and that of the process that reads the disk. What they \
          find is compared in the first round. guestmount is measured where it is installed and its appliance starts.",
    run: walks,
};

/// Size of the disk, in bytes.
const SIZE: u64 = 512 * MIB;

/// Directories, and how many files each of them has: those of mail and caches, and those of programs.
const TREES: [(&str, u32, u32); 2] =
    [("100 directories of 1,000", 100, 1000), ("10,000 directories of 10", 10_000, 10)];

const KERNEL: &str = "Linux (loop mount of a copy)";
const GUESTMOUNT: &str = "guestmount of a copy";

/// For guestmount's appliance: under TCG it takes minutes where it starts at all.
const APPLIANCE_LIMIT: Duration = Duration::from_secs(300);

/// What is done, of which `{}` is a tree and `{empty}` a directory with nothing in it.
const WALKS: [(&str, &[&str]); 3] = [
    ("find", &["find", "{}"]),
    ("find -ls", &["find", "{}", "-ls"]),
    ("rsync -naAX", &["rsync", "-naAX", "{}/", "{empty}"]),
];

fn walks(args: &Args, results: &mut Results) {
    let images = tempfile::tempdir_in("/var/tmp").expect("a temporary directory");
    let (image, copy) = (images.path().join("vda.raw"), images.path().join("copy.raw"));
    let empty = images.path().join("empty");
    fs::create_dir(&empty).expect("a directory");
    make(&image);
    ok(tool("cp").arg("--sparse=always").args([&image, &copy]));
    let mut peers = vec![OURS, KERNEL];
    match Guestmount::of(&copy) {
        Ok(_) => peers.push(GUESTMOUNT),
        Err(why) => results.miss('i', &format!("guestmount: {why}")),
    }
    let machine = Machine::build(Flavor::New).disk(Disk::raw("vda", SIZE).from_image(&image)).start();
    for round in 0..args.rounds {
        if round == 0 {
            let theirs = Looped::of(&copy, "ro");
            assert!(everything(&ours(&Mount::of(&machine))) == everything(&theirs.0), "the files are not the kernel's");
        }
        for (what, arguments) in WALKS {
            for (tree, ..) in TREES {
                let what = format!("{what}, {tree}");
                for who in turns(&peers, round) {
                    let walk = |place: &Path| walk(arguments, &place.join(tree), &empty);
                    let took = match who {
                        KERNEL => walk(&Looped::of(&copy, "ro").0),
                        GUESTMOUNT => walk(&Guestmount::of(&copy).unwrap_or_else(|why| panic!("guestmount: {why}")).0),
                        _ => {
                            let mount = Mount::of(&machine);
                            let took = walk(&ours(&mount));
                            let (daemon, reader) = memory(&mount);
                            for (whose, most) in [("the daemon", daemon), ("what reads the disk", reader)] {
                                results.add('i', &format!("{what}: memory of {whose}, at most"), OURS, Unit::Mib, most);
                            }
                            took
                        }
                    };
                    results.add('i', &what, who, Unit::Seconds, took);
                }
            }
        }
    }
}

/// Does one of [`WALKS`]; how long it took, in seconds.
#[track_caller]
fn walk(arguments: &[&str], tree: &Path, empty: &Path) -> f64 {
    let fill = |argument: &&str| argument.replace("{empty}", utf8(empty)).replace("{}", utf8(tree));
    let mut arguments = arguments.iter().map(fill);
    let command = arguments.next().expect("a command");
    timed(tool(&command).args(arguments)).as_secs_f64()
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("a path of ours")
}

/// Where pullfs has the files; the point in time is taken, which is none of the work.
#[track_caller]
fn ours(mount: &Mount) -> PathBuf {
    mount.command(&["begin"]).success();
    mount.path("current/vda/partitions/0/files")
}

/// Of the daemon, and of all of its children.
#[track_caller]
fn memory(mount: &Mount) -> (f64, f64) {
    let readers = children(mount.pid());
    assert!(!readers.is_empty(), "nobody reads the disk");
    (most_resident(mount.pid()), readers.into_iter().map(most_resident).sum())
}

/// Kind, mode, size, links, time and name of each file.
#[track_caller]
fn everything(place: &Path) -> Vec<String> {
    let told = run_within(tool("find").arg(place).args(["-printf", r"%y %m %s %n %T@ %P\n"]), LIMIT).success();
    let mut lines: Vec<String> = told.lines().map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

/// An image of ext4 with all the files.
#[track_caller]
fn make(image: &Path) {
    File::create(image).and_then(|file| file.set_len(SIZE)).expect("an image");
    ok(tool("mkfs.ext4").args(["-q", "-N", "262144", "-E", "lazy_itable_init=0,lazy_journal_init=0"]).arg(image));
    let mounted = Looped::of(image, "rw");
    for (tree, directories, files) in TREES {
        for directory in 0..directories {
            let directory = mounted.0.join(tree).join(format!("directory-{directory:04}"));
            fs::create_dir_all(&directory).expect("a directory");
            for file in 0..files {
                File::create(directory.join(format!("a file of the guest, number {file}"))).expect("a file");
            }
        }
    }
}

/// An image that the kernel has mounted.
struct Looped(PathBuf);

impl Looped {
    #[track_caller]
    fn of(image: &Path, access: &str) -> Self {
        let place = beside(image, access);
        ok(tool("mount").args(["-t", "ext4", "-o", &format!("loop,{access}")]).arg(image).arg(&place));
        Self(place)
    }
}

impl Drop for Looped {
    fn drop(&mut self) {
        run(tool("umount").arg(&self.0));
    }
}

/// An image that libguestfs' guestmount shows.
struct Guestmount(PathBuf);

impl Guestmount {
    /// Says why if it cannot.
    fn of(image: &Path) -> Result<Self, String> {
        let place = beside(image, "guestmount");
        let mut command = Command::new("timeout");
        command.arg(APPLIANCE_LIMIT.as_secs().to_string()).args(["guestmount", "--ro", "-m", "/dev/sda", "-a"]);
        match run_within(command.arg(image).arg(&place), APPLIANCE_LIMIT * 2).code {
            Some(0) => Ok(Self(place)),
            Some(127) => Err("it is not installed".to_owned()),
            _ => Err("its appliance does not start".to_owned()),
        }
    }
}

impl Drop for Guestmount {
    fn drop(&mut self) {
        run(tool("guestunmount").arg(&self.0));
    }
}

/// A directory to mount on.
#[track_caller]
fn beside(image: &Path, name: &str) -> PathBuf {
    let place = image.with_extension(name);
    fs::create_dir_all(&place).expect("a mount point");
    place
}
