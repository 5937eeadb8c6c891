//! Whoever uses the mount beside the readers: points in time and checkpoints come and go, by files and by commands.

use std::fs;
use std::io;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use pullfs_tests::process::{Finished, run_within};
use pullfs_tests::random::Random;
use pullfs_tests::tools::pullfs;
use rustix::io::Errno;

use super::load::{EndOnPanic, Held, Load, Now, OPERATION_LIMIT};

/// More checkpoints than this cost memory and show nothing new.
const CHECKPOINTS: usize = 3;
/// Their names are used again and again.
const NAMES: u64 = 6;
/// Exit code of `pullfs` when something else has what is needed.
const BUSY: i32 = 4;

/// How a command went that may be refused.
enum Outcome {
    Done,
    Busy,
    /// Something that must not be; it was noted.
    Fault,
}

pub(super) struct Churn<'a> {
    load: &'a Load<'a>,
    slot: usize,
    random: Random,
}

impl<'a> Churn<'a> {
    pub(super) fn new(load: &'a Load<'a>, slot: usize, seed: u64) -> Self {
        Self { load, slot, random: Random::new(seed) }
    }

    pub(super) fn run(mut self) {
        let _end = EndOnPanic(self.load);
        while !self.load.over() {
            self.act();
            let most = if self.random.chance(25) { 3000 } else { 500 };
            thread::sleep(Duration::from_millis(self.random.below(most)));
        }
        self.release();
    }

    fn act(&mut self) {
        match self.random.below(100) {
            0..45 => {
                self.release();
                self.begin();
            }
            // Refused as long as somebody has a file open, which is nearly always.
            45..60 => self.begin(),
            60..75 => self.delete(),
            75..85 => self.release(),
            _ => self.status(),
        }
    }

    /// A new point in time, as a rule with a checkpoint.
    fn begin(&mut self) {
        let (load, mut world) = (self.load, self.load.world());
        let free = (0..NAMES).map(|number| format!("cp{number}"));
        let free: Vec<String> =
            free.filter(|name| world.model.checkpoints.iter().all(|had| had.name != *name)).collect();
        let full = world.model.checkpoints.len() >= CHECKPOINTS;
        let name = (!full && self.random.chance(60)).then(|| free[self.random.index(free.len())].clone());
        let by_command = self.random.chance(15);
        let (_, before) = load.now();
        load.change(Now::Changing);
        let began = Instant::now();
        let outcome = match &name {
            Some(name) if by_command => self.command(&["begin", "--checkpoint", name]),
            Some(name) => self.outcome("mkdir", || fs::create_dir(load.mount.path(&format!("checkpoints/{name}")))),
            None if by_command => self.command(&["begin"]),
            None => self.outcome("begin", || load.mount.control("begin")),
        };
        match outcome {
            Outcome::Done => {
                load.figures.longest_begin.note(began.elapsed());
                load.figures.points.add(1);
                if let Some(name) = name {
                    load.figures.made.add(1);
                    world.model.checkpoint(&name);
                }
                load.change(Now::Held(Held::new(world.model.clone())));
            }
            Outcome::Busy if matches!(before, Now::Held(_)) => {
                load.figures.busy.add(1);
                load.change(before);
            }
            Outcome::Busy => {
                load.figures.unexpected.add(1);
                load.fault("begin with nothing held says EBUSY".to_owned());
            }
            Outcome::Fault => {}
        }
    }

    fn release(&mut self) {
        let (load, _world) = (self.load, self.load.world());
        let (_, Now::Held(held)) = load.now() else { return };
        load.change(Now::Changing);
        held.ended.store(true, Ordering::SeqCst);
        let began = Instant::now();
        let outcome = if self.random.chance(15) {
            self.command(&["release"])
        } else {
            self.outcome("release", || load.mount.control("release"))
        };
        load.figures.longest_release.note(began.elapsed());
        match outcome {
            Outcome::Done => load.change(Now::Nothing),
            Outcome::Busy => {
                load.figures.unexpected.add(1);
                load.fault("a release says EBUSY".to_owned());
            }
            Outcome::Fault => {}
        }
    }

    fn delete(&mut self) {
        let (load, mut world) = (self.load, self.load.world());
        if world.model.checkpoints.is_empty() {
            return;
        }
        let index = self.random.index(world.model.checkpoints.len());
        let name = world.model.checkpoints[index].name.clone();
        if let (_, Now::Held(held)) = load.now() {
            held.deleting(&name);
        }
        let _nobody_new = load.link.nobody_new();
        match self.outcome("rmdir", || fs::remove_dir(load.mount.path(&format!("checkpoints/{name}")))) {
            Outcome::Done => {
                load.figures.deleted.add(1);
                world.model.delete(&name);
            }
            Outcome::Busy => load.figures.busy.add(1),
            Outcome::Fault => {}
        }
    }

    fn status(&mut self) {
        let mount = self.load.mount;
        let mut command = Command::new(pullfs());
        command.arg("status").arg(mount.mnt());
        if self.random.chance(50) {
            command.arg("--json");
        }
        let finished = self.limited("pullfs status", || run_within(&mut command, OPERATION_LIMIT));
        if finished.code != Some(0) {
            self.load.figures.unexpected.add(1);
            self.load.fault(finished.to_string());
        }
    }

    fn limited<T>(&self, what: &str, operation: impl FnOnce() -> T) -> T {
        self.load.limited(self.slot, || what.to_owned(), operation)
    }

    fn command(&self, arguments: &[&str]) -> Outcome {
        let mut command = Command::new(pullfs());
        command.arg(arguments[0]).arg(self.load.mount.mnt()).args(&arguments[1..]);
        let finished: Finished = self.limited(arguments[0], || run_within(&mut command, OPERATION_LIMIT));
        match finished.code {
            Some(0) => Outcome::Done,
            Some(BUSY) => Outcome::Busy,
            _ => {
                self.load.figures.unexpected.add(1);
                self.load.fault(finished.to_string());
                Outcome::Fault
            }
        }
    }

    fn outcome(&self, what: &str, operation: impl FnOnce() -> io::Result<()>) -> Outcome {
        match self.limited(what, operation).map_err(|e| Errno::from_io_error(&e)) {
            Ok(()) => Outcome::Done,
            Err(Some(Errno::BUSY)) => Outcome::Busy,
            Err(other) => {
                let status = self.load.mount.status();
                self.load.figures.unexpected.add(1);
                self.load.fault(format!("{what} says {other:?}: {status}"));
                Outcome::Fault
            }
        }
    }
}
