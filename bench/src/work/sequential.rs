//! (a) A whole disk of random data from its beginning to its end, and (f) what that costs.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::Machine;
use pullfs_tests::oracle;
use rustix::fs::{Advice, fadvise};

use super::Work;
use crate::args::Args;
use crate::held::Held;
use crate::peers::{self, NBDCOPY, Nbdfuse, QemuFuse};
use crate::process::{cpu, cpu_of_ended, most_resident, timed};
use crate::readers::{READERS, Reader};
use crate::results::{OURS, Results};
use crate::units::{GIB, MIB, Unit, float};
use crate::work::data;

pub(crate) const WORK: Work = Work {
    letter: 'a',
    title: "sequential read of a disk of random data",
    how: "The image is in the page cache of the server's side, so that the ways are compared and not the disk below. Each \
          reader has a mount of its own that has read nothing yet, then reads again from the kernel's page cache. The \
          copiers and the other file systems read the same export of the same point in time.",
    run: throughput,
};

pub(crate) const COST: Work = Work {
    letter: 'f',
    title: "what reading it with `dd bs=1M` once costs",
    how: "CPU seconds of the client's process (the file system's, or the copier's) and of QEMU, and the client's largest \
          resident memory.",
    run: cost,
};

pub(crate) const COPIED: &str = "copied to null:";
pub(crate) const TO_FILE: &str = "copied to a file";
pub(crate) const CLIENT_CPU: &str = "CPU of the client";
const QEMU_CPU: &str = "CPU of QEMU meanwhile";
const MEMORY: &str = "memory of the client at most";
pub(crate) const NBDFUSE: &str = "nbdfuse";
pub(crate) const QEMU_FUSE: &str = "QEMU's FUSE export";
const IMAGE: &str = "the raw image itself";

/// What a reader does with a fresh mount.
pub(crate) fn cold(reader: Reader) -> String {
    format!("{}, cold", reader.name())
}

fn again(reader: Reader) -> String {
    format!("{}, again", reader.name())
}

fn throughput(args: &Args, results: &mut Results) {
    let (machine, size) = (machine(args.size), args.size);
    compare(&machine);
    let speed = |took: Duration| float(size) / float(MIB) / took.as_secs_f64();
    let mut add = |what: &str, who: &str, took| results.add('a', what, who, Unit::MibPerSecond, speed(took));
    for _ in 0..args.rounds {
        for reader in READERS {
            let mut both = |who: &str, disk: &Path| {
                add(&cold(reader), who, reader.read(disk, size));
                if reader != Reader::Direct {
                    add(&again(reader), who, reader.read(disk, size));
                }
            };
            both(OURS, &Held::of(&machine).mount.disk("vda"));
            let held = Held::of(&machine);
            both(NBDFUSE, &Nbdfuse::of(&held.uri()).disk());
            both(QEMU_FUSE, &QemuFuse::of(&held).disk());
            add(&cold(reader), IMAGE, reader.read(machine.image("vda"), size));
        }
        let (target, null) = (machine.dir().join("copy"), Path::new("null:"));
        for nbdcopy in &NBDCOPY {
            let held = Held::of(&machine);
            add(COPIED, nbdcopy.name, timed(&nbdcopy.command(&held.uri(), null)));
            add(TO_FILE, nbdcopy.name, timed(&nbdcopy.command(&held.uri(), &target)));
            empty(&target);
        }
        let held = Held::of(&machine);
        add(TO_FILE, "qemu-img convert", timed(&peers::convert(&held.uri(), &target)));
        empty(&target);
        add(TO_FILE, OURS, timed(&data::cp(&held.mount.disk("vda"), &target)));
        empty(&target);
        add(TO_FILE, IMAGE, timed(&data::cp(machine.image("vda"), &target)));
        empty(&target);
    }
}

fn cost(args: &Args, results: &mut Results) {
    let mut machine = machine(args.size);
    let gib = float(args.size) / float(GIB);
    let qemu = machine.server().pid();
    for _ in 0..args.rounds {
        let mut add = |who: &str, client: f64, server: f64| {
            results.add('f', CLIENT_CPU, who, Unit::CpuPerGib, client / gib);
            results.add('f', QEMU_CPU, who, Unit::CpuPerGib, server / gib);
        };
        let held = Held::of(&machine);
        let ours = Spent::by(held.mount.pid(), qemu, || Reader::Dd.read(&held.mount.disk("vda"), args.size));
        add(OURS, ours.client, ours.server);
        let nbdfuse = Nbdfuse::of(&held.uri());
        let theirs = Spent::by(nbdfuse.pid(), qemu, || Reader::Dd.read(&nbdfuse.disk(), args.size));
        add(NBDFUSE, theirs.client, theirs.server);
        let memory = [(OURS, most_resident(held.mount.pid())), (NBDFUSE, most_resident(nbdfuse.pid()))];
        drop(nbdfuse);
        let export = QemuFuse::of(&held);
        let both = Spent::by(qemu, qemu, || Reader::Dd.read(&export.disk(), args.size));
        add(QEMU_FUSE, 0.0, both.server);
        drop(export);
        for nbdcopy in &NBDCOPY {
            let (before, server) = (cpu_of_ended(), cpu(qemu));
            timed(&nbdcopy.command(&held.uri(), Path::new("null:")));
            add(nbdcopy.name, cpu_of_ended() - before, cpu(qemu) - server);
        }
        for (who, mib) in memory {
            results.add('f', MEMORY, who, Unit::Mib, mib);
        }
    }
}

/// CPU seconds.
struct Spent {
    client: f64,
    server: f64,
}

impl Spent {
    /// What two processes spend while something is done.
    #[track_caller]
    fn by(client: u32, server: u32, work: impl FnOnce() -> Duration) -> Self {
        let before = (cpu(client), cpu(server));
        work();
        Self { client: cpu(client) - before.0, server: cpu(server) - before.1 }
    }
}

/// A machine with a raw disk of random data, all of it in the page cache.
#[track_caller]
fn machine(size: u64) -> Machine {
    let machine = Machine::build(Flavor::New).disk(data::full("vda", size)).start();
    Reader::Dd.read(machine.image("vda"), size);
    machine
}

/// That what is measured reads the disk, and not something else fast.
#[track_caller]
fn compare(machine: &Machine) {
    let held = Held::of(machine);
    oracle::same(&held.mount.disk("vda"), machine.image("vda"));
}

/// Takes a copy's blocks away, and what is waiting to be written with them.
#[track_caller]
fn empty(copy: &Path) {
    let file = File::options().write(true).open(copy).expect("a copy");
    file.set_len(0).expect("emptying a copy");
    fadvise(&file, 0, None, Advice::DontNeed).expect("advice");
}
