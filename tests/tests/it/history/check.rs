//! Everything that a mount shows, compared with the model.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pullfs_tests::model::{Checkpoint, Disk, Instant, Model, SECTOR, State};
use pullfs_tests::oracle::{self, Extent};
use pullfs_tests::process::{ok, wait_until};
use pullfs_tests::tools::{pullfs, tool};
use rustix::io::Errno;
use serde_json::Value;

use super::World;
use super::step::{Step, requests};

/// What stands for a backup that says nothing about a disk of which all counts as changed.
const GARBAGE: u8 = 0xd6;

/// How long after a change status.json may still tell of the time before.
const LATE: Duration = Duration::from_secs(5);

impl World {
    /// Takes the point in time, lets the guest write on, and compares all that is there with what the disks were. What changed
    /// since older checkpoints than it serves is looked at one after the other, each at an instant of its own.
    pub(super) fn check(&mut self, step: &Step) {
        let (instant, mut begun, mut open) = self.first(step);
        self.meanwhile();
        self.whole(&instant);
        self.listed(&instant.frozen);
        self.told(&instant);
        if let Step::Checkpoint { name, parent } = step {
            self.save(&instant.frozen, name, parent.as_deref());
        }
        let mut choice = Some(self.choose(&instant.frozen));
        self.elsewhere(&instant, &mut choice);
        let older = instant.frozen.checkpoints.iter().filter(|checkpoint| !instant.serves(&checkpoint.name));
        // Each is older than what the one before it serves.
        for Checkpoint { name, .. } in older.rev() {
            self.refused(&instant.frozen, name, Errno::BUSY);
            drop(open);
            let own;
            (own, begun, open) = self.since(name, begun);
            self.meanwhile();
            self.whole(&own);
            self.told(&own);
            self.elsewhere(&own, &mut choice);
        }
        assert_eq!(choice, None, "what was chosen was looked at");
        drop(open);
        if self.random.chance(70) {
            self.mount().control("release").expect("a release");
        }
    }

    /// The point in time after a step; whether somebody began it, or a file that is open on it.
    fn first(&mut self, step: &Step) -> (Instant, bool, Option<File>) {
        if let Step::Checkpoint { name, .. } = step {
            // Making it took the point in time.
            return (self.model.instant(Some(name)), true, None);
        }
        let instant = self.model.instant(None);
        if self.random.chance(30) {
            self.mount().control("begin").expect("a point in time");
            return (instant, true, None);
        }
        let index = self.random.index(instant.frozen.disks.len());
        let open = open(&self.mount().disk(&instant.frozen.disks[index].id));
        (instant, false, Some(open))
    }

    /// Another point in time, which tells what changed since this checkpoint, instead of one that nothing is open on.
    fn since(&mut self, checkpoint: &str, begun: bool) -> (Instant, bool, Option<File>) {
        let instant = self.model.instant_since(checkpoint);
        self.done.push(format!("   since {checkpoint}"));
        if self.random.chance(50) {
            self.mount().control(&format!("begin since={checkpoint}")).expect("a point in time");
            return (instant, true, None);
        }
        if begun {
            self.mount().control("release").expect("a release");
        }
        let readable = |disk: &usize| instant.frozen.state(checkpoint, *disk) != State::Unusable;
        let readable: Vec<usize> = (0..instant.frozen.disks.len()).filter(readable).collect();
        let id = &instant.frozen.disks[readable[self.random.index(readable.len())]].id;
        let open = open(&self.mount().path(&format!("checkpoints/{checkpoint}/{id}/dirty.map")));
        (instant, false, Some(open))
    }

    /// The guest writes on.
    fn meanwhile(&mut self) {
        let meanwhile = requests(&mut self.random, &self.model, 3);
        self.done.push(format!("   meanwhile {meanwhile:?}"));
        self.guest(&meanwhile);
    }

    fn whole(&self, instant: &Instant) {
        assert_eq!(self.mount().status()["point"]["base"].as_str(), instant.base.as_deref(), "with seed {}", self.seed);
        for disk in &instant.frozen.disks {
            let whole = read(&self.mount().disk(&disk.id));
            self.equal(&whole, &disk.bytes, &format!("{}: the whole disk", disk.id));
        }
    }

    /// What a point in time tells of the checkpoints that it serves.
    fn told(&self, instant: &Instant) {
        for Checkpoint { name, .. } in instant.frozen.checkpoints.iter().filter(|served| instant.serves(&served.name)) {
            self.refused(&instant.frozen, name, Errno::IO);
            for disk in 0..instant.frozen.disks.len() {
                if instant.frozen.state(name, disk) != State::Unusable {
                    self.changed(instant, name, disk);
                }
            }
        }
    }

    /// The checkpoints that exist, and no others; those that are broken are said to be. It may be told a second late.
    fn listed(&self, frozen: &Model) {
        let mut expected = BTreeSet::new();
        for checkpoint in &frozen.checkpoints {
            let states = (0..frozen.disks.len()).map(|disk| frozen.state(&checkpoint.name, disk));
            expected.insert((checkpoint.name.clone(), states.map(|state| state == State::Unusable).collect()));
        }
        let mut told = BTreeSet::new();
        wait_until("the checkpoints that there are", LATE, || {
            let status = self.mount().status();
            let all = status["checkpoints"].as_array().expect("checkpoints").iter();
            told = all.map(|checkpoint| unusable(checkpoint, frozen)).collect();
            told == expected
        });
        let names = fs::read_dir(self.mount().path("checkpoints")).expect("the checkpoints");
        let names = names.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"));
        assert_eq!(names.collect::<BTreeSet<_>>(), expected.into_iter().map(|(name, _)| name).collect());
    }

    /// What nobody can tell is an error, not an empty map; so is, at an instant that serves no such checkpoint, the rest.
    fn refused(&self, frozen: &Model, checkpoint: &str, errno: Errno) {
        for (index, disk) in frozen.disks.iter().enumerate() {
            let unusable = frozen.state(checkpoint, index) == State::Unusable;
            if unusable != (errno == Errno::IO) {
                continue;
            }
            for file in ["dirty.map", "dirty.json", "delta.raw", "delta.qcow2"] {
                let path = self.mount().path(&format!("checkpoints/{checkpoint}/{}/{file}", disk.id));
                let error = fs::read(&path).expect_err("what cannot be told");
                assert_eq!(Errno::from_io_error(&error), Some(errno), "{}", path.display());
            }
        }
    }

    /// The map has what was touched and nothing else; the disk at the checkpoint with the raw delta is the disk.
    fn changed(&self, instant: &Instant, checkpoint: &str, disk: usize) {
        let frozen = &instant.frozen;
        let (id, bytes) = (&frozen.disks[disk].id, &frozen.disks[disk].bytes);
        let at =
            |name: &str| &frozen.checkpoints.iter().find(|found| found.name == name).expect("it is there").disks[disk];
        let (since, origin) = (at(checkpoint), instant.origin(checkpoint, disk));
        let what = format!("{id} since {checkpoint}");
        let dir = self.mount().path(&format!("checkpoints/{checkpoint}/{id}"));
        let map = String::from_utf8(read(&dir.join("dirty.map"))).expect("text");
        let extents = self.extents(&map, bytes.len(), &what);

        let missing = frozen.state(checkpoint, disk) == State::Missing;
        let more = missing || since.then.len() < bytes.len() || origin != checkpoint;
        assert_eq!(map.contains("# note: "), more, "{what}: says why more counts as changed than was touched\n{map}");
        let mut built = since.then.to_vec();
        if missing {
            built.fill(GARBAGE);
            assert_eq!(total(&extents), bytes.len(), "{what}: all of it\n{map}");
        } else {
            let touched = rounded(&at(origin).touched, granularity(&map));
            for &(offset, length, _) in &extents {
                let sectors = offset / SECTOR..(offset + length).div_ceil(SECTOR);
                let untouched = sectors.clone().find(|&sector| !touched[sector]);
                assert_eq!(untouched, None, "{what}: a sector that nobody touched is in {sectors:?}\n{map}");
            }
        }
        built.resize(bytes.len(), 0);
        let delta = read(&dir.join("delta.raw"));
        assert_eq!(delta.len(), bytes.len(), "{what}: the delta's size");
        for &(offset, length, zero) in &extents {
            let range = offset..offset + length;
            assert!(!zero || bytes[range.clone()].iter().all(|&byte| byte == 0), "{what}: no zeroes at {range:?}");
            built[range.clone()].copy_from_slice(&delta[range]);
        }
        self.equal(&built, bytes, &format!("{what}: the old copy with the delta"));
        let data = extents.iter().filter(|extent| !extent.2).map(|&(offset, length, _)| (wide(offset), wide(length)));
        assert_eq!(oracle::seek_walk(&dir.join("delta.raw")), merged(data), "{what}: holes are what is no data");
    }

    /// The lines of a map: offset, length, and whether it reads as zeroes.
    fn extents(&self, map: &str, size: usize, what: &str) -> Vec<(usize, usize, bool)> {
        let mut extents = Vec::new();
        let mut end = 0;
        for line in map.lines().filter(|line| !line.starts_with('#')) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [offset, length, kind, name] = fields[..] else { panic!("{what}: {line:?}") };
            let zero = match (kind, name) {
                ("1", "dirty") => false,
                ("3", "dirty,zero") => true,
                _ => panic!("{what}: {line:?}"),
            };
            let [offset, length]: [usize; 2] = [offset, length].map(|number| number.parse().expect("a number"));
            let sorted = offset >= end && length > 0 && offset + length <= size;
            assert!(sorted, "{what}: {line:?} comes after {end} on a disk of {size} with seed {}", self.seed);
            end = offset + length;
            extents.push((offset, length, zero));
        }
        extents
    }

    /// Copies at a new checkpoint, as a user keeps them: `cp` of a qcow2 file, and a raw file by `pullfs sync`.
    fn save(&self, frozen: &Model, name: &str, parent: Option<&str>) {
        for disk in &frozen.disks {
            let id = &disk.id;
            let source = match parent {
                Some(parent) => self.mount().path(&format!("checkpoints/{parent}/{id}/delta.qcow2")),
                None => self.mount().path(&format!("current/{id}/disk.qcow2")),
            };
            ok(tool("cp").arg(source).arg(self.copies.join(format!("{id}.{name}.qcow2"))));
            let raw = self.copies.join(format!("{id}.{name}.raw"));
            sync(&self.mount().path(&format!("current/{id}")), &raw);
            self.equal(&read(&raw), &disk.bytes, &format!("{id}: a full copy by sync at {name}"));
        }
    }

    /// A disk, and a checkpoint since which it is looked at in other ways, or none for the whole of it.
    fn choose(&mut self, frozen: &Model) -> (usize, Option<String>) {
        let disk = self.random.index(frozen.disks.len());
        let usable: Vec<_> = frozen.checkpoints.iter().filter(|found| frozen.usable(&found.name)).collect();
        let choice = self.random.index(usable.len() + 1);
        (disk, usable.get(choice).map(|checkpoint| checkpoint.name.clone()))
    }

    /// The disk that was chosen, at the first instant that serves it, by way of others: a chain that QEMU opens, and `pullfs
    /// sync`.
    fn elsewhere(&self, instant: &Instant, choice: &mut Option<(usize, Option<String>)>) {
        let serves = |checkpoint: &Option<String>| checkpoint.as_ref().is_none_or(|name| instant.serves(name));
        let Some((index, checkpoint)) = choice.take_if(|(_, checkpoint)| serves(checkpoint)) else { return };
        let (id, bytes) = (&instant.frozen.disks[index].id, &instant.frozen.disks[index].bytes);
        let expected = self.copies.join("expected");
        fs::write(&expected, bytes.as_slice()).expect("a file");
        let Some(checkpoint) = checkpoint else {
            let whole = self.copies.join("whole.qcow2");
            ok(tool("cp").arg(self.mount().path(&format!("current/{id}/disk.qcow2"))).arg(&whole));
            same_chain(&whole, &expected);
            return;
        };
        let dir = self.mount().path(&format!("checkpoints/{checkpoint}/{id}"));
        // In the directory of the copies, because the name of its backing file is relative.
        let top = self.copies.join("now.qcow2");
        ok(tool("cp").arg(dir.join("delta.qcow2")).arg(&top));
        same_chain(&top, &expected);

        let synced = self.copies.join("synced");
        for (from, to) in [("raw", synced.clone()), ("raw.pullfs.json", self.copies.join("synced.pullfs.json"))] {
            let from = self.copies.join(format!("{id}.{checkpoint}.{from}"));
            fs::copy(&from, &to).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
        }
        sync(&dir, &synced);
        oracle::same(&synced, &expected);
    }

    fn equal(&self, found: &[u8], expected: &[u8], what: &str) {
        if found != expected {
            let at = found.iter().zip(expected).position(|(found, expected)| found != expected);
            let (long, right) = (found.len(), expected.len());
            panic!("{what} with seed {}: {long} bytes, not {right}, or other bytes from {at:?} on", self.seed);
        }
    }
}

/// A checkpoint's name, and for each disk whether it is said to be unusable.
fn unusable(told: &Value, frozen: &Model) -> (String, Vec<bool>) {
    let said = |disk: &Disk| told["disks"][&*disk.id]["unusable"].is_string();
    (told["name"].as_str().expect("a name").to_owned(), frozen.disks.iter().map(said).collect())
}

/// Panics unless QEMU finds no fault in an image, and its content, with that of the images behind it, is as `expected`.
fn same_chain(image: &Path, expected: &Path) {
    ok(tool("qemu-img").args(["check", "-q", "-f", "qcow2"]).arg(image));
    ok(tool("qemu-img").args(["compare", "-q", "-f", "qcow2", "-F", "raw"]).arg(image).arg(expected));
}

fn sync(source: &Path, dest: &Path) {
    ok(Command::new(pullfs()).args(["sync", "--quiet"]).arg(source).arg(dest));
}

fn open(path: &Path) -> File {
    File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn read(path: &Path) -> Vec<u8> {
    match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound => panic!("there is no {}", path.display()),
        Err(e) => panic!("{}: {e}", path.display()),
    }
}

/// The granularity that a map's header tells.
fn granularity(map: &str) -> usize {
    let line = map.lines().find_map(|line| line.strip_prefix("# granularity: "));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.unwrap_or_else(|| panic!("no granularity in the header\n{map}"))
}

/// What was touched, in whole grains.
fn rounded(touched: &[bool], granularity: usize) -> Vec<bool> {
    let grain = granularity / SECTOR;
    let grains = touched.chunks(grain).map(|grain| (grain.len(), grain.contains(&true)));
    grains.flat_map(|(length, any)| std::iter::repeat_n(any, length)).collect()
}

fn merged(extents: impl Iterator<Item = Extent>) -> Vec<Extent> {
    let mut merged: Vec<Extent> = Vec::new();
    for (offset, length) in extents {
        match merged.last_mut() {
            Some(last) if last.0 + last.1 == offset => last.1 += length,
            _ => merged.push((offset, length)),
        }
    }
    merged
}

fn total(extents: &[(usize, usize, bool)]) -> usize {
    extents.iter().map(|extent| extent.1).sum()
}

fn wide(number: usize) -> u64 {
    u64::try_from(number).expect("an offset")
}
