//! A long life: whatever happens to a machine, each full copy is the disk, and an old full copy with what changed since
//! is the new one.
//!
//! A seed makes a sequence of steps ([`step::Step`]): a guest that writes, checkpoints that come and go, disks that grow,
//! external snapshots, restarts and power failures. A model in memory ([`pullfs_tests::model`]) takes part in all of
//! them. After each step everything there is to read is compared with it ([`check`]), while the guest writes on. What a
//! domain of libvirt's tells at one instant after the other, is compared with the model of each.
//!
//! `PULLFS_TEST_HISTORY=STEPS` makes longer histories, `PULLFS_TEST_HISTORY=STEPS,SEED` repeats one.

mod check;
mod step;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::model::{Keeper, Model};
use pullfs_tests::mount::Mount;
use pullfs_tests::oracle;
use pullfs_tests::random::Random;
use pullfs_tests::snapshot;

use step::{Change, Request, Step};

/// Of each history, unless the environment says otherwise.
const STEPS: u64 = 52;

/// Of a domain's, where a step has up to four points in time.
const STEPS_OF_LIBVIRT: u64 = 20;

on!(seed_1: new = New);
fn seed_1(flavor: Flavor) {
    live(flavor, 1);
}

on!(seed_2: old = Old);
fn seed_2(flavor: Flavor) {
    live(flavor, 2);
}

on!(seed_3: new = New);
fn seed_3(flavor: Flavor) {
    live(flavor, 3);
}

on!(seed_4: old = Old);
fn seed_4(flavor: Flavor) {
    live(flavor, 4);
}

on!(seed_5: libvirt = Libvirt);
fn seed_5(flavor: Flavor) {
    live(flavor, 5);
}

on!(seed_6: libvirt_old = LibvirtOld);
fn seed_6(flavor: Flavor) {
    live(flavor, 6);
}

fn live(flavor: Flavor, seed: u64) {
    let told = std::env::var("PULLFS_TEST_HISTORY").unwrap_or_default();
    let mut told = told.split(',').map(|number| number.trim().parse().ok());
    let steps = if flavor.libvirt().is_some() { STEPS_OF_LIBVIRT } else { STEPS };
    let (steps, seed) = (told.next().flatten().unwrap_or(steps), told.next().flatten().unwrap_or(seed));
    let mut world = World::begin(flavor, seed);
    for number in 0..steps {
        let free = world.free();
        let step = Step::choose(&mut world.random, &world.model, number, &free);
        world.done.push(format!("{number}: {step:?}"));
        world.steps += 1;
        world.take(&step);
        world.check(&step);
    }
    let mount = world.mount.take().expect("a mount");
    assert!(mount.unmount().success());
}

/// A machine, its mount, the model of both, and the copies that were made on the way.
struct World {
    mount: Option<Mount>,
    machine: Machine,
    model: Model,
    random: Random,
    options: String,
    /// Copies: `DISK.CHECKPOINT.qcow2` (a chain), `DISK.CHECKPOINT.raw` (for `pullfs sync`).
    copies: PathBuf,
    /// Of each image of a chain, by checkpoint, the one behind it.
    behind: BTreeMap<String, Option<String>>,
    seed: u64,
    steps: u64,
    done: Vec<String>,
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (steps, seed, flavor) = (self.steps, self.seed, self.machine.flavor());
            eprintln!("--- the history of {flavor:?} QEMU, repeated by PULLFS_TEST_HISTORY={steps},{seed}");
            eprintln!("{}", self.done.join("\n"));
        }
    }
}

impl World {
    fn begin(flavor: Flavor, seed: u64) -> Self {
        // No size is a multiple of its cluster; the second disk's bitmaps are finer than the others'.
        let machine = Machine::build(flavor)
            .disk(Disk::qcow2("vda", 5 * MIB + 1536).filled(&[(0, MIB + 4096), (4 * MIB, MIB + 1536)]))
            .disk(Disk::qcow2("vdb", 3 * MIB + 512).cluster(4096).filled(&[(512, MIB), (2 * MIB + 1024, 65536)]))
            .disk(Disk::raw("vdc", 4 * MIB + 2560).filled(&[(65536, 2 * MIB)]))
            .start();
        let mut model = Model::of(if flavor.libvirt().is_some() { Keeper::Libvirt } else { Keeper::Qemu });
        for id in ["vda", "vdb", "vdc"] {
            let bytes = fs::read(machine.copy(id, "begin.raw")).expect("a copy");
            model.add_disk(id, bytes, machine.format(id) == "qcow2");
        }
        let copies = machine.dir().join("copies");
        fs::create_dir(&copies).expect("a directory");
        let mut random = Random::new(seed);
        let cluster = ["64K", "4K", "512", "2M"][random.index(4)];
        let options = format!("cluster_size={cluster}");
        let mount = Some(Mount::with(&machine, &options));
        let done = vec![format!("mounted with {options}")];
        Self { mount, machine, model, random, options, copies, behind: BTreeMap::new(), seed, steps: 0, done }
    }

    fn mount(&self) -> &Mount {
        self.mount.as_ref().expect("a mount")
    }

    fn ids(&self) -> Vec<String> {
        self.model.disks.iter().map(|disk| disk.id.clone()).collect()
    }

    /// Names of checkpoints that are gone, and whose images are behind those of no other.
    fn free(&self) -> Vec<String> {
        let mut needed = BTreeSet::new();
        for checkpoint in &self.model.checkpoints {
            let mut image = Some(&checkpoint.name);
            while let Some(name) = image {
                needed.insert(name);
                image = self.behind.get(name).and_then(Option::as_ref);
            }
        }
        self.behind.keys().filter(|name| !needed.contains(name)).cloned().collect()
    }

    /// Lets a step happen, to the machine and to the model.
    fn take(&mut self, step: &Step) {
        // What was left from the last check: QEMU resizes no disk meanwhile, and the next point in time shall be a new one.
        // Making a checkpoint lets go of it by itself, and a power failure asks nobody.
        if !matches!(step, Step::Checkpoint { .. } | Step::Kill { .. }) && self.mount().state() == "held" {
            self.mount().control("release").expect("a release");
        }
        match step {
            Step::Guest(requests) => self.guest(requests),
            Step::Checkpoint { name, parent } => {
                let path = self.mount().path(&format!("checkpoints/{name}"));
                fs::create_dir(&path).unwrap_or_else(|e| panic!("mkdir {}: {e}", path.display()));
                assert_eq!(self.mount().state(), "held", "the point in time of {name}");
                self.model.checkpoint(name);
                self.behind.insert(name.clone(), parent.clone());
            }
            Step::Delete { name } => {
                let path = self.mount().path(&format!("checkpoints/{name}"));
                fs::remove_dir(&path).unwrap_or_else(|e| panic!("rmdir {}: {e}", path.display()));
                assert!(!path.exists(), "{} was removed", path.display());
                self.model.delete(name);
            }
            Step::Grow { disk, size } => {
                self.machine.resize(&self.model.disks[*disk].id, u64::try_from(*size).expect("a size"));
                self.model.grow(*disk, *size);
            }
            Step::Snapshot { disks, tag, cluster } => {
                let ids = self.ids();
                let ids: Vec<&str> = disks.iter().map(|&disk| ids[disk].as_str()).collect();
                snapshot::external(&mut self.machine, &ids, tag, *cluster);
                self.model.snapshot(disks);
            }
            Step::Restart { remount } => {
                self.again(*remount, Machine::quit);
                self.model.restart();
            }
            Step::Kill { remount } => {
                for id in self.ids() {
                    self.machine.flush(&id);
                }
                self.again(*remount, Machine::kill);
                self.model.kill();
            }
        }
    }

    /// Ends the machine and starts it again, with the old mount or a new one.
    fn again(&mut self, remount: bool, end: fn(&mut Machine)) {
        if remount {
            let mount = self.mount.take().expect("a mount");
            assert!(mount.unmount().success());
        }
        end(&mut self.machine);
        self.machine.restart();
        if remount {
            self.mount = Some(Mount::with(&self.machine, &self.options));
        }
    }

    /// The guest does something.
    fn guest(&mut self, requests: &[Request]) {
        for &Request { disk, change, offset, length } in requests {
            let id = self.model.disks[disk].id.clone();
            let [at, long] = [offset, length].map(|number| u64::try_from(number).expect("a place"));
            let after = match change {
                Change::Write(pattern) => {
                    self.machine.write(&id, at, long, pattern);
                    vec![pattern; length]
                }
                Change::Zero => {
                    self.machine.write_zeroes(&id, at, long);
                    vec![0; length]
                }
                Change::Discard => {
                    self.machine.discard(&id, at, long);
                    oracle::discarded(&self.machine, &self.model.disks[disk], offset, length)
                }
            };
            self.model.change(disk, offset, &after);
        }
    }
}
