//! (a) A whole disk of random data from its beginning to its end, and (f) what that costs.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::Machine;
use rustix::fs::{Advice, fadvise};

use super::Work;
use crate::args::Args;
use crate::held::Held;
use crate::peers::{self, FILE_SYSTEMS, NBDCOPY, shown};
use crate::process::{cpu, cpu_of_ended, most_resident, timed, warm};
use crate::readers::{READERS, Reader};
use crate::results::{OURS, Results};
use crate::turns::turns;
use crate::units::{GIB, MIB, Unit, float};
use crate::work::data;

pub(crate) const WORK: Work = Work {
    letter: 'a',
    title: "sequential read of a disk of random data",
    how: "The image is in the page cache of the server's side, so that the ways are compared and not the disk below. Each \
          reader has a mount of its own that has read nothing yet, then reads again from the kernel's page cache. The \
          copiers and the other file systems read the export of a point in time that pullfs holds. Who begins changes from \
          round to round; each copy of the first round is compared with the image.",
    run: throughput,
};

pub(crate) const COST: Work = Work {
    letter: 'f',
    title: "what reading it with `dd bs=1M` once costs",
    how: "CPU seconds of the client's process (the file system's, or the copier's) and of QEMU, and the client's largest \
          resident memory. Each has a mount, or an export, of its own. QEMU's FUSE export has no client: all that it costs \
          is QEMU's.",
    run: cost,
};

pub(crate) const COPIED: &str = "copied to null:";
pub(crate) const TO_FILE: &str = "copied to a file";
pub(crate) const CLIENT_CPU: &str = "CPU of the client";
const QEMU_CPU: &str = "CPU of QEMU meanwhile";
const MEMORY: &str = "memory of the client at most";
pub(crate) const NBDFUSE: &str = "nbdfuse";
pub(crate) const QEMU_FUSE: &str = "QEMU's FUSE export";
const CONVERT: &str = "qemu-img convert";
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
    let readers: Vec<&str> = FILE_SYSTEMS.into_iter().chain([IMAGE]).collect();
    let copiers: Vec<&str> = nbdcopies().chain([CONVERT, OURS, IMAGE]).collect();
    let target = machine.dir().join("copy");
    for round in 0..args.rounds {
        for reader in READERS {
            for who in turns(&readers, round) {
                if who == IMAGE {
                    add(&cold(reader), IMAGE, reader.read(machine.image("vda"), size));
                    continue;
                }
                shown(who, &machine, |disk, _| {
                    add(&cold(reader), who, reader.read(disk, size));
                    if reader != Reader::Direct {
                        add(&again(reader), who, reader.read(disk, size));
                    }
                });
            }
        }
        for who in turns(&copiers, round) {
            let held = Held::of(&machine);
            if nbdcopies().any(|name| name == who) {
                warm(2 * size);
                add(COPIED, who, timed(&copier(who, &held, Path::new("null:"))));
            }
            warm(2 * size);
            add(TO_FILE, who, timed(&copier(who, &held, &target)));
            if round == 0 {
                data::same(&target, machine.image("vda"));
            }
            empty(&target);
        }
    }
}

fn cost(args: &Args, results: &mut Results) {
    let mut machine = machine(args.size);
    let gib = float(args.size) / float(GIB);
    let qemu = machine.server().pid();
    let everybody: Vec<&str> = FILE_SYSTEMS.into_iter().chain(nbdcopies()).collect();
    for round in 0..args.rounds {
        for who in turns(&everybody, round) {
            let spent = if nbdcopies().any(|name| name == who) {
                let held = Held::of(&machine);
                warm(2 * args.size);
                let (client, server) = (cpu_of_ended(), cpu(qemu));
                timed(&copier(who, &held, Path::new("null:")));
                Spent { client: Some(cpu_of_ended() - client), memory: None, server: cpu(qemu) - server }
            } else {
                shown(who, &machine, |disk, client| {
                    let (before, server) = (client.map(cpu), cpu(qemu));
                    Reader::Dd.read(disk, args.size);
                    let client_spent = client.zip(before).map(|(pid, before)| cpu(pid) - before);
                    Spent { client: client_spent, memory: client.map(most_resident), server: cpu(qemu) - server }
                })
            };
            let mut add = |what: &str, unit, sample| results.add('f', what, who, unit, sample);
            if let Some(client) = spent.client {
                add(CLIENT_CPU, Unit::CpuPerGib, client / gib);
            }
            add(QEMU_CPU, Unit::CpuPerGib, spent.server / gib);
            if let Some(memory) = spent.memory {
                add(MEMORY, Unit::Mib, memory);
            }
        }
    }
}

/// What a disk's reading cost: CPU seconds, and MiB.
struct Spent {
    client: Option<f64>,
    memory: Option<f64>,
    server: f64,
}

/// The names of the ways to run nbdcopy.
fn nbdcopies() -> impl Iterator<Item = &'static str> {
    NBDCOPY.iter().map(|nbdcopy| nbdcopy.name)
}

/// A copy of the machine's disk to a file (nbdcopy: or to `null:`) by one of those who make some.
#[track_caller]
fn copier(who: &str, held: &Held<'_>, target: &Path) -> Command {
    match who {
        OURS => data::cp(&held.mount.disk("vda"), target),
        IMAGE => data::cp(held.machine.image("vda"), target),
        CONVERT => peers::convert(&held.uri(), target),
        _ => {
            let nbdcopy = NBDCOPY.iter().find(|nbdcopy| nbdcopy.name == who).expect("a way to run nbdcopy");
            nbdcopy.command(&held.uri(), target)
        }
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
    data::same(&held.mount.disk("vda"), machine.image("vda"));
}

/// Takes a copy's blocks away, and what is waiting to be written with them.
#[track_caller]
fn empty(copy: &Path) {
    let file = File::options().write(true).open(copy).expect("a copy");
    file.set_len(0).expect("emptying a copy");
    fadvise(&file, 0, None, Advice::DontNeed).expect("advice");
}
