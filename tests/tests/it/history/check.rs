//! Everything that a mount shows, compared with the model.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pullfs_tests::model::{Disk, Model, SECTOR, State};
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
    /// Takes the point in time, lets the guest write on, and compares all that is there with what the disks were.
    pub(super) fn check(&mut self, step: &Step) {
        let frozen = self.model.clone();
        let first = if let Step::Checkpoint { .. } = step {
            // Making it took the point in time.
            None
        } else if self.random.chance(30) {
            self.mount().control("begin").expect("a point in time");
            None
        } else {
            let index = self.random.index(frozen.disks.len());
            let path = self.mount().disk(&frozen.disks[index].id);
            Some(File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
        };
        let meanwhile = requests(&mut self.random, &self.model, 3);
        self.done.push(format!("   meanwhile {meanwhile:?}"));
        self.guest(&meanwhile);

        for disk in &frozen.disks {
            let whole = read(&self.mount().disk(&disk.id));
            self.equal(&whole, &disk.bytes, &format!("{}: the whole disk", disk.id));
        }
        self.listed(&frozen);
        for checkpoint in &frozen.checkpoints {
            for disk in 0..frozen.disks.len() {
                if frozen.state(&checkpoint.name, disk) == State::Unusable {
                    self.refused(&checkpoint.name, &frozen.disks[disk].id);
                } else {
                    self.changed(&frozen, &checkpoint.name, disk);
                }
            }
        }
        if let Step::Checkpoint { name, parent } = step {
            self.save(&frozen, name, parent.as_deref());
        }
        self.elsewhere(&frozen);
        drop(first);
        if self.random.chance(70) {
            self.mount().control("release").expect("a release");
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

    /// What nobody can tell is an error, not an empty map.
    fn refused(&self, checkpoint: &str, id: &str) {
        for file in ["dirty.map", "dirty.json", "delta.raw", "delta.qcow2"] {
            let path = self.mount().path(&format!("checkpoints/{checkpoint}/{id}/{file}"));
            let error = fs::read(&path).expect_err("an unusable checkpoint cannot be read");
            assert_eq!(Errno::from_io_error(&error), Some(Errno::IO), "{}", path.display());
        }
    }

    /// The map has what was touched and nothing else; the disk at the checkpoint with the raw delta is the disk.
    fn changed(&self, frozen: &Model, checkpoint: &str, disk: usize) {
        let (id, bytes) = (&frozen.disks[disk].id, &frozen.disks[disk].bytes);
        let since = &frozen.checkpoints.iter().find(|found| found.name == checkpoint).expect("it is there").disks[disk];
        let what = format!("{id} since {checkpoint}");
        let dir = self.mount().path(&format!("checkpoints/{checkpoint}/{id}"));
        let map = String::from_utf8(read(&dir.join("dirty.map"))).expect("text");
        let extents = self.extents(&map, bytes.len(), &what);

        let missing = frozen.state(checkpoint, disk) == State::Missing;
        let more = missing || since.then.len() < bytes.len();
        assert_eq!(map.contains("# note: "), more, "{what}: says why more counts as changed than was touched\n{map}");
        let mut built = since.then.to_vec();
        if missing {
            built.fill(GARBAGE);
            assert_eq!(total(&extents), bytes.len(), "{what}: all of it\n{map}");
        } else {
            let touched = rounded(&since.touched, granularity(&map));
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

    /// One disk since one checkpoint, or the whole of it, by way of others: a chain that QEMU opens, and `pullfs sync`.
    fn elsewhere(&mut self, frozen: &Model) {
        let index = self.random.index(frozen.disks.len());
        let (id, bytes) = (&frozen.disks[index].id, &frozen.disks[index].bytes);
        let expected = self.copies.join("expected");
        fs::write(&expected, bytes.as_slice()).expect("a file");
        let usable: Vec<_> = frozen.checkpoints.iter().filter(|found| frozen.usable(&found.name)).collect();
        let choice = self.random.index(usable.len() + 1);
        let Some(checkpoint) = usable.get(choice).map(|checkpoint| checkpoint.name.as_str()) else {
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
