//! Tools that people already use, as docs/tools.md shows them: each of its rows is what a run here does.
//!
//! A tool runs three times, on a machine of which a checkpoint was made: first, when nothing changed since, and when one part
//! of the disk did. Each time what it keeps is the disk as QEMU itself copies it. What the machine was read for, what the copy takes
//! and what that says of holes and increments is measured, and compared with the document.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pullfs_tests::bacula::{Bacula, with_libraries};
use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::oracle;
use pullfs_tests::process::{ok, run_within, wait_until};
use pullfs_tests::s3::S3;
use pullfs_tests::tools::{require, workspace};

const SIZE: u64 = 64 * MIB;
const DATA: u64 = 8 * MIB;
const CHANGED: u64 = MIB;

/// For one run of a tool.
const LIMIT: Duration = Duration::from_secs(60);

/// A tool and how it is used. In commands, MNT stands for the mount, BACKUP for a directory of its own, RUN for the number of the
/// run.
struct Tool {
    name: &'static str,
    /// Once before all, in BACKUP; nothing if there is nothing to prepare.
    prepare: &'static str,
    /// The first run.
    first: &'static str,
    /// Those after it.
    next: &'static str,
    /// Makes `OUT`, the disk as this run keeps it; nothing if `kept` is that.
    restore: &'static str,
    /// The file whose holes count; none if it is nobody's image.
    kept: Option<&'static str>,
}

impl Tool {
    /// One whose runs are all alike, and which keeps the image as a file.
    const fn copies(name: &'static str, command: &'static str, kept: &'static str) -> Self {
        Self { name, prepare: "", first: command, next: command, restore: "", kept: Some(kept) }
    }

    /// One whose runs are all alike, and which keeps it in a form of its own.
    const fn packs(name: &'static str, command: &'static str, restore: &'static str) -> Self {
        Self { name, prepare: "", first: command, next: command, restore, kept: None }
    }
}

const TOOLS: [Tool; 16] = [
    Tool::copies("cp", "cp --sparse=always MNT/current/vda/disk.raw BACKUP/vda.raw", "vda.raw"),
    Tool::copies("cp, if newer", "cp -a --update MNT/current/vda/disk.raw BACKUP/vda.raw", "vda.raw"),
    Tool::copies("rsync", "rsync -aS MNT/current/vda/disk.raw BACKUP/vda.raw", "vda.raw"),
    Tool::copies(
        "rsync, in place",
        "rsync -a --inplace --no-whole-file MNT/current/vda/disk.raw BACKUP/vda.raw",
        "vda.raw",
    ),
    Tool::copies("dd", "dd if=MNT/current/vda/disk.raw of=BACKUP/vda.raw bs=1M conv=sparse status=none", "vda.raw"),
    Tool::copies("ddrescue", "ddrescue -q -S MNT/current/vda/disk.raw BACKUP/vda.RUN.raw", "vda.RUN.raw"),
    Tool::packs(
        "tar",
        "tar -cSf BACKUP/vda.tar -C MNT/current vda/disk.raw",
        "tar -xOf BACKUP/vda.tar vda/disk.raw >OUT",
    ),
    Tool {
        name: "tar, incremental",
        prepare: "mkdir BACKUP/root",
        first: "tar -cSf BACKUP/vda.RUN.tar -g BACKUP/vda.snar --exclude=*.qcow2 --exclude=*.map --exclude=partitions -C MNT/current vda",
        next: "tar -cSf BACKUP/vda.RUN.tar -g BACKUP/vda.snar --exclude=*.qcow2 --exclude=*.map --exclude=partitions -C MNT/current vda",
        restore: "tar -xSf BACKUP/vda.RUN.tar -g /dev/null -C BACKUP/root && cp BACKUP/root/vda/disk.raw OUT",
        kept: None,
    },
    Tool {
        name: "cpio",
        prepare: "echo vda/disk.raw >BACKUP/list",
        first: "cd MNT/current && cpio --quiet -o -H newc <BACKUP/list >BACKUP/vda.cpio",
        next: "cd MNT/current && cpio --quiet -o -H newc <BACKUP/list >BACKUP/vda.cpio",
        restore: "cpio --quiet -i --to-stdout vda/disk.raw <BACKUP/vda.cpio >OUT",
        kept: None,
    },
    Tool {
        name: "qemu-img convert",
        prepare: "",
        first: "qemu-img convert -f raw -O qcow2 MNT/current/vda/disk.raw BACKUP/vda.RUN.qcow2",
        next: "qemu-img convert -f raw -O qcow2 MNT/current/vda/disk.raw BACKUP/vda.RUN.qcow2",
        restore: "qemu-img convert -O raw BACKUP/vda.RUN.qcow2 OUT",
        kept: Some("vda.RUN.qcow2"),
    },
    Tool {
        name: "cp of what changed",
        prepare: "",
        first: "cp MNT/current/vda/disk.qcow2 BACKUP/vda.monday.qcow2",
        next: "cp MNT/checkpoints/monday/vda/delta.qcow2 BACKUP/vda.RUN.qcow2",
        restore: "f=BACKUP/vda.RUN.qcow2; [ -e $f ] || f=BACKUP/vda.monday.qcow2; qemu-img convert -O raw $f OUT",
        kept: Some("vda.monday.qcow2"),
    },
    Tool {
        name: "pullfs sync",
        prepare: "",
        first: "pullfs sync -q MNT/current/vda BACKUP/vda.raw",
        next: "pullfs sync -q MNT/checkpoints/monday/vda BACKUP/vda.raw",
        restore: "",
        kept: Some("vda.raw"),
    },
    Tool {
        name: "restic",
        prepare: "restic -q init -r BACKUP/repo",
        first: "restic -q backup -r BACKUP/repo MNT/current/vda/disk.raw",
        next: "restic -q backup -r BACKUP/repo MNT/current/vda/disk.raw",
        restore: "restic -q dump -r BACKUP/repo latest MNT/current/vda/disk.raw >OUT",
        kept: None,
    },
    Tool {
        name: "borg",
        prepare: "borg init -e none BACKUP/repo",
        first: "borg create --sparse BACKUP/repo::RUN MNT/current/vda/disk.raw",
        next: "borg create --sparse BACKUP/repo::RUN MNT/current/vda/disk.raw",
        restore: "borg extract --stdout BACKUP/repo::RUN >OUT",
        kept: None,
    },
    Tool::packs(
        "rclone, to S3",
        "rclone copy MNT/current/vda/disk.raw S3:bucket/vda",
        "rclone cat S3:bucket/vda/disk.raw >OUT",
    ),
    Tool {
        name: "Bacula",
        prepare: "",
        first: "echo 'run job=vm1 level=Full yes' | bconsole -c BACKUP/bconsole.conf",
        next: "echo 'run job=vm1 level=Incremental yes' | bconsole -c BACKUP/bconsole.conf",
        restore: "printf 'restore fileset=vm1 where=BACKUP/restored select current all done yes\\nwait\\n' |
            bconsole -c BACKUP/bconsole.conf && mv BACKUP/restored/MNT/current/vda/disk.raw OUT",
        kept: None,
    },
];

/// A machine, its mount, and where a tool keeps what it copies.
struct Bench<'a> {
    tool: &'a Tool,
    machine: Machine,
    mount: Mount,
    backup: PathBuf,
    /// For those tools that want one.
    s3: Option<S3>,
    bacula: Option<Bacula>,
}

impl Bench<'_> {
    fn sh(&self, command: &str, run: usize) {
        let backup = self.backup.display().to_string();
        let out = self.backup.join("out");
        let line = command
            .replace("MNT", &self.mount.mnt().display().to_string())
            .replace("BACKUP", &backup)
            .replace("OUT", &out.display().to_string())
            .replace("RUN", &run.to_string());
        let mut sh = Command::new("sh");
        sh.args(["-euc", &line]).current_dir(&self.backup);
        let path = std::env::var("PATH").unwrap_or_default();
        let mut own = pullfs_tests::tools::pullfs().parent().map(|dir| dir.display().to_string()).unwrap_or_default();
        if self.bacula.is_some() {
            own = Bacula::programs().display().to_string();
            with_libraries(&mut sh);
        }
        sh.env("PATH", format!("{own}:{path}")).env("HOME", &self.backup);
        sh.env("RESTIC_PASSWORD", "of a test").env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes");
        if let Some(s3) = &self.s3 {
            s3.rclone(&mut sh);
        }
        run_within(&mut sh, LIMIT).success();
    }

    fn fetched(&self) -> u64 {
        self.mount.status()["cache"]["fetched"].as_u64().expect("bytes asked of the machine")
    }

    /// Runs the tool; what it was read for. What it keeps is the disk.
    fn run(&self, run: usize) -> Read {
        let right = self.machine.copy("vda", &format!("right.{run}"));
        let before = self.fetched();
        self.sh(if run == 1 { self.tool.first } else { self.tool.next }, run);
        // Its jobs go on by themselves.
        if let Some(bacula) = &self.bacula {
            bacula.finished(run);
        }
        let read = Read::of(self.fetched() - before);
        if self.mount.state() == "held" {
            self.mount.command(&["release"]).success();
        }
        let kept = self.kept(run);
        match (self.tool.restore, &kept) {
            ("", Some(kept)) => oracle::same_image(kept, &right),
            (restore, _) => {
                self.sh(restore, run);
                oracle::same(&self.backup.join("out"), &right);
            }
        }
        read
    }

    fn kept(&self, run: usize) -> Option<PathBuf> {
        self.tool.kept.map(|name| self.backup.join(name.replace("RUN", &run.to_string())))
    }
}

/// What the machine's disk was read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Read {
    Nothing,
    Changes,
    Data,
    /// So many bytes, which the document never has.
    Other(u64),
}

impl Read {
    fn of(bytes: u64) -> Self {
        match bytes {
            0 => Self::Nothing,
            CHANGED => Self::Changes,
            // Holes are read, too, until it is known in the background where they are: on a busy machine for a while.
            bytes if (DATA..=SIZE / 2).contains(&bytes) => Self::Data,
            bytes => Self::Other(bytes),
        }
    }

    fn word(self) -> String {
        match self {
            Self::Nothing => "nothing".to_owned(),
            Self::Changes => "what changed".to_owned(),
            Self::Data => "the data".to_owned(),
            Self::Other(bytes) => format!("{bytes} bytes"),
        }
    }
}

/// The row of a tool in the document.
fn row(tool: &Tool, read: [Read; 3], holes: Option<bool>) -> String {
    let holes = holes.map_or("in its form", |kept| if kept { "yes" } else { "no" });
    let command = match (tool.first, tool.next) {
        (first, next) if first == next => format!("`{first}`"),
        (first, next) => format!("`{first}`, then `{next}`"),
    };
    // In a table it would be the end of a cell, also within code.
    let command = command.replace('|', "\\|");
    let [first, same, changed] = read.map(Read::word);
    format!("| {} | {command} | {first} | {same} | {changed} | {holes} |", tool.name)
}

fn document() -> Vec<String> {
    let text = fs::read_to_string(workspace().join("docs/tools.md")).expect("docs/tools.md");
    let rows = text.lines().filter(|line| line.starts_with("| ")).skip(1);
    rows.map(str::to_owned).collect()
}

fn second() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs()
}

/// Runs a tool; its row.
fn measured(tool: &Tool, flavor: Flavor) -> String {
    let program = tool.first.split_whitespace().next().expect("a program");
    match program {
        "pullfs" | "echo" => {}
        "cd" => require(tool.name),
        program => require(program),
    }
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", SIZE).filled(&[(16 * MIB, DATA)])).start();
    let mount = Mount::of(&machine);
    let backup = machine.dir().join("backup");
    fs::create_dir(&backup).expect("a directory");
    let s3 = tool.first.contains("S3:").then(|| S3::start(&machine.dir().join("s3.log")));
    let bacula = (tool.name == "Bacula").then(|| Bacula::start(&backup, &mount.mnt()));
    let bench = Bench { tool, machine, mount, backup, s3, bacula };
    if !tool.prepare.is_empty() {
        bench.sh(tool.prepare, 0);
    }
    fs::create_dir(bench.mount.path("checkpoints/monday")).expect("a checkpoint");
    let made = second();
    if bench.bacula.is_some() {
        // What is of the very second in which a job begins is read by the next one too.
        wait_until("another second", LIMIT, || second() > made);
    }
    let first = bench.run(1);
    let same = bench.run(2);
    // Tools that look at whole seconds see no change within one.
    wait_until("another second", LIMIT, || second() > made + 1);
    bench.machine.write("vda", 18 * MIB, CHANGED, 0x3c);
    let changed = bench.run(3);
    let holes = bench.kept(1).filter(|kept| kept.exists()).map(|kept| takes(&kept) <= DATA + 4 * MIB);
    assert!(bench.mount.unmount().success());
    row(tool, [first, same, changed], holes)
}

fn takes(path: &Path) -> u64 {
    fs::metadata(path).expect("a file").blocks() * 512
}

on!(every_row_is_what_a_tool_does: new = New);
fn every_row_is_what_a_tool_does(flavor: Flavor) {
    let document = document();
    let rows: Vec<String> = TOOLS.iter().map(|tool| measured(tool, flavor)).collect();
    let missing: Vec<&String> = rows.iter().filter(|row| !document.contains(row)).collect();
    assert!(missing.is_empty(), "not in docs/tools.md:\n{missing:#?}");
    let others: Vec<&String> = document.iter().filter(|row| !rows.contains(row)).collect();
    assert!(others.is_empty(), "in docs/tools.md, but nothing does so:\n{others:#?}");
}

on!(tools_that_look_into_images_find_what_is_there: new = New);
fn tools_that_look_into_images_find_what_is_there(flavor: Flavor) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let image = dir.path().join("image");
    fs::File::create(&image).and_then(|file| file.set_len(16 * MIB)).expect("an image");
    let hello = dir.path().join("hello");
    fs::create_dir(&hello).and_then(|()| fs::write(hello.join("hello.txt"), "hello\n")).expect("a file");
    ok(Command::new("mke2fs").args(["-q", "-t", "ext4", "-L", "HELLO", "-d"]).arg(&hello).arg(&image));
    let machine = Machine::build(flavor).disk(Disk::raw("vda", 16 * MIB).from_image(&image)).start();
    let mount = Mount::of(&machine);
    let disk = mount.disk("vda");
    for tool in ["7z", "file", "sha256sum", "losetup", "qemu-img"] {
        require(tool);
    }
    let told = ok(Command::new("file").arg(&disk));
    assert!(told.contains("ext4") && told.contains("HELLO"), "{told}");
    let told = ok(Command::new("7z").arg("l").arg(&disk));
    assert!(told.contains("hello.txt"), "{told}");
    let sums = dir.path().join("sums");
    let right = machine.copy("vda", "right");
    let sum = ok(Command::new("sha256sum").arg(&right));
    let sum = sum.split_whitespace().next().expect("a sum");
    fs::write(&sums, format!("{sum}  {}\n", disk.display())).expect("a file");
    ok(Command::new("sha256sum").args(["--check", "--strict"]).arg(&sums));
    let told = ok(Command::new("qemu-img").args(["compare", "-f", "raw", "-F", "raw"]).args([&disk, &right]));
    assert!(told.contains("identical"), "{told}");
    ok(Command::new("qemu-img").arg("check").arg(mount.path("current/vda/disk.qcow2")));

    // The kernel's own driver, over a loop device.
    let seen = dir.path().join("seen");
    fs::create_dir(&seen).expect("a directory");
    let mut sh = Command::new("unshare");
    let script = "mount -o loop,ro,noload \"$1\" \"$2\" && cat \"$2/hello.txt\" && umount \"$2\"";
    let read = ok(sh.args(["--mount", "--propagation", "private", "sh", "-euc", script, "sh"]).arg(&disk).arg(&seen));
    assert_eq!(read, "hello\n");
    assert!(mount.unmount().success());
}
