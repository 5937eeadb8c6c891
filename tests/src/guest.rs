//! A real guest: Linux that writes to two disks all the time, or says what is on disks; see tests/setup/guest-init.sh.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::agent;
use crate::builder::Builder;
use crate::disk::Disk;
use crate::flavor::Flavor;
use crate::machine::Machine;
use crate::process::{ok, wait_until};
use crate::tools;

/// About 3 s by itself; other tests keep the processors busy.
pub(crate) const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// To make a file and to copy it.
const FILE_LIMIT: Duration = Duration::from_millis(20);

/// Of an ext4, without many files, in bytes.
const SIZE: u64 = 96 << 20;

/// The name of the agent's socket.
const AGENT: &str = "agent.sock";

/// A guest that has booted. `vda` is a qcow2 disk, `vdb` a raw one; both hold ext4 with a journal.
#[derive(Debug)]
pub struct Guest {
    machine: Machine,
    serial: PathBuf,
    images: TempDir,
}

impl Guest {
    /// Boots, and returns after the first number is on both disks.
    #[track_caller]
    pub fn boot(flavor: Flavor) -> Self {
        Self::boot_with(flavor, "", |machine, _| machine)
    }

    /// Boots a guest that runs qemu-guest-agent, and returns when the agent answers.
    #[track_caller]
    pub fn boot_with_agent(flavor: Flavor) -> Self {
        let guest = Self::boot_with_port(flavor, "pullfs.agent");
        guest.ask_agent("guest-ping");
        guest
    }

    /// Boots a guest that has the agent's port; `word`, of its kernel's command line, says what it does with it.
    #[track_caller]
    pub fn boot_with_port(flavor: Flavor, word: &str) -> Self {
        Self::boot_with(flavor, word, |machine, images| machine.agent(&images.join(AGENT)))
    }

    /// Boots a guest that keeps a file for each number, `/days/N`, on both disks.
    #[track_caller]
    pub fn daily(flavor: Flavor) -> Self {
        Self::boot_with(flavor, "pullfs.mode=daily", |machine, _| machine)
    }

    /// [`Guest::daily`], with XFS on its disks.
    #[track_caller]
    pub fn daily_on_xfs(flavor: Flavor) -> Self {
        Self::boot_on(flavor, xfs, "pullfs.mode=daily pullfs.fs=xfs", |machine, _| machine)
    }

    #[track_caller]
    fn boot_with(flavor: Flavor, word: &str, devices: impl FnOnce(Builder, &Path) -> Builder) -> Self {
        Self::boot_on(flavor, ext4, word, devices)
    }

    /// `made` gives an image of that name in a directory.
    #[track_caller]
    fn boot_on(
        flavor: Flavor,
        made: fn(&Path, &str) -> PathBuf,
        word: &str,
        devices: impl FnOnce(Builder, &Path) -> Builder,
    ) -> Self {
        let images = tempfile::Builder::new().prefix("pullfs-guest-").tempdir().expect("a temporary directory");
        let raw = made(images.path(), "a.raw");
        let qcow2 = images.path().join("a.qcow2");
        ok(tools::tool("qemu-img").args(["convert", "-O", "qcow2"]).arg(&raw).arg(&qcow2));
        let serial = images.path().join("serial");
        let machine = Machine::build(flavor)
            .disk(Disk::qcow2("vda", 0).from_image(&qcow2))
            .disk(Disk::raw("vdb", 0).from_image(&made(images.path(), "b.raw")))
            .arguments(&linux(word, &serial));
        let machine = devices(machine, images.path()).start();
        let guest = Self { machine, serial, images };
        guest.wait_past(0);
        guest
    }

    /// The machine that the guest runs on.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The host's socket of the guest's agent, which libvirt keeps for itself.
    pub fn agent(&self) -> PathBuf {
        self.images.path().join(AGENT)
    }

    /// The answer of the guest's agent, once nobody else has its socket.
    #[track_caller]
    pub fn ask_agent(&self, command: &str) -> Value {
        let mut answer = None;
        wait_until("the guest's agent", BOOT_LIMIT, || {
            answer = match self.machine.flavor().libvirt() {
                Some(_) => self.machine.domain().ask_agent(command),
                None => agent::ask(&self.agent(), command).ok(),
            };
            answer.is_some()
        });
        answer.expect("waited for")
    }

    /// The newest number that is on both disks for certain.
    pub fn counter(&self) -> u64 {
        let said = self.said();
        said.lines().rev().find_map(|line| line.trim().strip_prefix("counter=")?.parse().ok()).unwrap_or(0)
    }

    /// Waits until the guest has written a number after `counter`.
    #[track_caller]
    pub fn wait_past(&self, counter: u64) {
        wait_until("the guest to count on", BOOT_LIMIT, || self.counter() > counter);
        untroubled(&self.said());
    }

    /// Everything on the serial console, but for a last line that has not arrived whole.
    pub fn said(&self) -> String {
        said(&self.serial)
    }
}

/// What a guest says of copies of a [`Guest::daily`] guest's disks, with which it was booted: it mounts each of them, as
/// any Linux would after a power failure, and tells the numbers of the files there. The copies are written to.
#[track_caller]
pub fn days(flavor: Flavor, copies: &[PathBuf]) -> Vec<BTreeSet<u64>> {
    let dir = tempfile::Builder::new().prefix("pullfs-guest-").tempdir().expect("a temporary directory");
    let serial = dir.path().join("serial");
    let mut machine = Machine::build(flavor).arguments(&linux("pullfs.mode=list", &serial));
    let names: Vec<String> = ('a'..='z').take(copies.len()).map(|letter| format!("vd{letter}")).collect();
    assert_eq!(names.len(), copies.len(), "a letter for each disk");
    for (name, copy) in names.iter().zip(copies) {
        let qcow2 = copy.extension().is_some_and(|extension| extension == "qcow2");
        let disk = if qcow2 { Disk::qcow2(name, 0) } else { Disk::raw(name, 0) };
        machine = machine.disk(disk.from_image(copy));
    }
    let mut machine = machine.start();
    machine.server().wait(BOOT_LIMIT);
    let said = said(&serial);
    untroubled(&said);
    let listed = |name: &String| {
        assert!(said.contains(&format!("guest: {name} listed")), "{name} was not listed:\n{said}");
        let numbers = said.lines().filter_map(|line| line.trim().strip_prefix(&format!("{name}="))?.parse().ok());
        numbers.collect()
    };
    names.iter().map(listed).collect()
}

/// Has Linux fill the FAT file systems on some images with so many files each, and others. Gives an ext4, in their directory, with
/// what it then shows of them: `vdb`, `vdc`, ….
#[track_caller]
pub fn fill(flavor: Flavor, images: &[(PathBuf, u32)]) -> PathBuf {
    let dir = images.first().and_then(|(image, _)| image.parent()).expect("images in a directory");
    let all: u32 = images.iter().map(|(_, files)| files).sum();
    // 4 KiB for each file, with its inode.
    let (serial, copies) = (dir.join("serial"), ext4_of(dir, "copies", SIZE + u64::from(all) * 4096));
    let files: Vec<String> = images.iter().map(|(_, files)| files.to_string()).collect();
    let mode = format!("pullfs.mode=fill pullfs.files={}", files.join(":"));
    let machine = Machine::build(flavor).arguments(&linux(&mode, &serial));
    let mut machine = machine.disk(Disk::raw("vda", 0).from_image(&copies));
    for (letter, (image, _)) in ('b'..='z').zip(images) {
        machine = machine.disk(Disk::raw(&format!("vd{letter}"), 0).from_image(image));
    }
    machine.start().server().wait(2 * BOOT_LIMIT + FILE_LIMIT * all);
    let said = said(&serial);
    untroubled(&said);
    assert!(said.contains("guest: filled"), "the guest did not come to an end:\n{said}");
    copies
}

/// The arguments that boot Linux, with a word on its kernel's command line.
#[track_caller]
pub(crate) fn linux(word: &str, serial: &Path) -> Vec<String> {
    let (kernel, initramfs) = tools::guest();
    let arguments = [
        ("-m", "256".into()),
        ("-kernel", kernel.display().to_string()),
        ("-initrd", initramfs.display().to_string()),
        ("-append", format!("console=ttyS0 quiet panic=-1 no_timer_check {word}")),
        ("-serial", format!("file:{}", serial.display())),
    ];
    arguments.into_iter().flat_map(|(option, value)| [option.to_owned(), value]).collect()
}

/// Everything on a serial console, but for a last line that has not arrived whole.
pub(crate) fn said(serial: &Path) -> String {
    let mut said = String::from_utf8_lossy(&fs::read(serial).unwrap_or_default()).into_owned();
    said.truncate(said.rfind('\n').map_or(0, |end| end + 1));
    said
}

/// Panics if a guest says that something failed, or its kernel does.
#[track_caller]
fn untroubled(said: &str) {
    for trouble in ["cannot", ": bad /a/", "I/O error", "EXT4-fs error", "XFS (vd"] {
        assert!(!said.contains(trouble), "the guest is in trouble:\n{said}");
    }
}

/// XFS is made no smaller.
fn xfs(dir: &Path, name: &str) -> PathBuf {
    let image = dir.join(name);
    fs::File::create(&image).and_then(|file| file.set_len(300 << 20)).expect("an image");
    ok(tools::tool("mkfs.xfs").arg("-q").arg(&image));
    image
}

fn ext4(dir: &Path, name: &str) -> PathBuf {
    ext4_of(dir, name, SIZE)
}

fn ext4_of(dir: &Path, name: &str, size: u64) -> PathBuf {
    let image = dir.join(name);
    fs::File::create(&image).and_then(|file| file.set_len(size)).expect("an image");
    ok(tools::tool("mkfs.ext4").args(["-q", "-F", "-J", "size=4"]).arg(&image));
    image
}
