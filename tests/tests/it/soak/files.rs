//! Reading whole files: mappings, maps, deltas and qcow2 files.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use pullfs_tests::model::{SECTOR, Since};
use pullfs_tests::oracle::{read_json_map, read_map};
use pullfs_tests::process::ok;
use pullfs_tests::tools::tool;
use rustix::io::Errno;

use super::load::Held;
use super::readers::Reader;

/// The granularity of the bitmaps of checkpoints.
const GRAIN: usize = 65536;

/// Maps a file, says how that went, and then writes the parts that it is asked for.
const MAPPER: &str = "import mmap, sys\n\
    try:\n\
    \x20   disk = open(sys.argv[1], 'rb')\n\
    \x20   view = mmap.mmap(disk.fileno(), int(sys.argv[2]), mmap.MAP_SHARED, mmap.PROT_READ)\n\
    except OSError as error:\n\
    \x20   print(error.errno, flush=True)\n\
    \x20   sys.exit()\n\
    print(0, flush=True)\n\
    for line in sys.stdin:\n\
    \x20   offset, length = map(int, line.split())\n\
    \x20   sys.stdout.buffer.write(view[offset:offset + length])\n\
    \x20   sys.stdout.flush()\n";

/// A process that has mapped a file.
struct Mapping {
    child: Child,
    ask: ChildStdin,
    answer: BufReader<ChildStdout>,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Mapping {
    fn of(path: &Path, size: usize) -> Result<Self, Errno> {
        let mut command = tool("python3");
        command
            .args(["-c", MAPPER])
            .arg(path)
            .arg(size.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let mut child = command.spawn().expect("python3");
        let ask = child.stdin.take().expect("a pipe");
        let answer = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut mapping = Self { child, ask, answer };
        let mut line = String::new();
        mapping.answer.read_line(&mut line).expect("a line of the mapping process");
        match line.trim().parse() {
            Ok(0) => Ok(mapping),
            Ok(errno) => Err(Errno::from_raw_os_error(errno)),
            Err(e) => panic!("the mapping process says {line:?}: {e}"),
        }
    }

    /// A part; none when the process died of asking.
    fn part(&mut self, offset: usize, length: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; length];
        writeln!(self.ask, "{offset} {length}").ok()?;
        self.answer.read_exact(&mut bytes).ok()?;
        Some(bytes)
    }
}

impl Reader<'_> {
    pub(super) fn mapped(&mut self, disk: usize) {
        let path = format!("current/{}/disk.raw", self.load.ids[disk]);
        let (Some(held), size) = (self.held(), self.load.sizes[disk]) else { return };
        let whole = self.load.mount.path(&path);
        let Some((mut mapping, held)) = self.settled(held, &path, None, || Mapping::of(&whole, size)) else { return };
        let bytes = &held.model.disks[disk].bytes;
        for _ in 0..=self.random.below(60) {
            let offset = self.random.index(bytes.len());
            let length = (1 + self.random.index(200 << 10)).min(bytes.len() - offset);
            let what = format!("{length} bytes at {offset} of {path} by mmap");
            let Some(found) = self.limited(&what, || mapping.part(offset, length)) else {
                let signal = mapping.child.wait().expect("the mapping process").signal();
                // SIGBUS is how a mapping says that it cannot be read.
                if signal == Some(7) && held.ended.load(Ordering::SeqCst) {
                    self.load.figures.stale.add(1);
                } else {
                    self.unexpected(&format!("{what}: the process ended by signal {signal:?}"));
                }
                return;
            };
            self.load.figures.reads.add(1);
            self.load.figures.bytes.add(length);
            self.equal(&found, &bytes[offset..offset + length], &what, offset);
        }
        self.load.figures.mappings.add(1);
    }

    pub(super) fn maps(&mut self, disk: usize) {
        let id = &self.load.ids[disk].clone();
        if self.random.chance(30) {
            let path = format!("current/{id}/allocated.map");
            let Some((map, held)) = self.text(&path, None) else { return };
            let bytes = &held.model.disks[disk].bytes;
            let mut data = vec![false; bytes.len()];
            for (offset, length) in read_map(&map, |_| true) {
                data[range(offset, length)].fill(true);
            }
            let missing = data.iter().zip(bytes.iter()).position(|(data, byte)| !data && *byte != 0);
            if let Some(missing) = missing {
                self.wrong(&format!("{path} has not {missing}:\n{map}"));
            }
            return;
        }
        let json = self.random.chance(40);
        let file = if json { "dirty.json" } else { "dirty.map" };
        let Some((path, checkpoint)) = self.of_checkpoint(id, file) else { return };
        let Some((map, held)) = self.text(&path, Some(&checkpoint)) else { return };
        let Some(since) = since(&held, &checkpoint, disk) else { return };
        let dirty = if json { read_json_map(&map, |kind| kind & 1 == 1) } else { read_map(&map, |kind| kind & 1 == 1) };
        let bytes = &held.model.disks[disk].bytes;
        let mut told = vec![false; bytes.len()];
        for &(offset, length) in &dirty {
            told[range(offset, length)].fill(true);
        }
        let touched = touched(since);
        // A discard that the disk did not care for touched nothing.
        let wrong = |at: &usize| if told[*at] { !touched[*at] } else { since.then[*at] != bytes[*at] };
        if let Some(at) = (0..bytes.len()).find(wrong) {
            self.wrong(&format!("{path} is wrong at {at}:\n{map}"));
        }
    }

    pub(super) fn delta(&mut self, disk: usize) {
        let id = &self.load.ids[disk].clone();
        let Some((path, checkpoint)) = self.of_checkpoint(id, "delta.raw") else { return };
        let Some((file, held)) = self.open(&path, Some(&checkpoint), false) else { return };
        let Some(since) = since(&held, &checkpoint, disk) else { return };
        let Some(found) = self.all(&file, &held, &path) else { return };
        let (bytes, touched) = (&held.model.disks[disk].bytes, touched(since));
        if found.len() != bytes.len() {
            return self.wrong(&format!("{path} has {} bytes, not {}", found.len(), bytes.len()));
        }
        for at in (0..found.len()).step_by(GRAIN) {
            let grain = at..found.len().min(at + GRAIN);
            let (now, then) = (&bytes[grain.clone()], &since.then[grain.clone()]);
            let hole = found[grain.clone()].iter().all(|&byte| byte == 0) && now == then;
            let changed = touched[at] && found[grain] == *now;
            if !hole && !changed {
                return self.wrong(&format!("{path} is wrong somewhere in the {GRAIN} bytes from {at} on"));
            }
        }
        self.load.figures.deltas.add(1);
    }

    pub(super) fn images(&mut self, disk: usize) {
        let id = &self.load.ids[disk].clone();
        let delta = self.random.chance(50).then(|| self.of_checkpoint(id, "delta.qcow2")).flatten();
        let (path, checkpoint) = match delta {
            Some((path, checkpoint)) => (path, Some(checkpoint)),
            None => (format!("current/{id}/disk.qcow2"), None),
        };
        let Some((file, held)) = self.open(&path, checkpoint.as_deref(), false) else { return };
        let Some(image) = self.all(&file, &held, &path) else { return };
        drop(file);
        let [copy, back, raw] = ["copy.qcow2", "back.raw", "copy.raw"].map(|name| self.dir.path().join(name));
        fs::write(&copy, image).expect("a copy");
        if let Some(checkpoint) = &checkpoint {
            let Some(since) = since(&held, checkpoint, disk) else { return };
            fs::write(&back, since.then.as_slice()).expect("the disk at the checkpoint");
            ok(tool("qemu-img").args(["rebase", "-u", "-F", "raw", "-b"]).arg(&back).arg(&copy));
        }
        ok(tool("qemu-img").args(["check", "-q", "-f", "qcow2"]).arg(&copy));
        ok(tool("qemu-img").args(["convert", "-f", "qcow2", "-O", "raw"]).arg(&copy).arg(&raw));
        self.equal(&fs::read(&raw).expect("the copy"), &held.model.disks[disk].bytes, &path, 0);
        self.load.figures.images.add(1);
    }

    /// All of a map.
    fn text(&self, path: &str, checkpoint: Option<&str>) -> Option<(String, Arc<Held>)> {
        let (file, held) = self.open(path, checkpoint, false)?;
        let bytes = self.all(&file, &held, path)?;
        self.load.figures.maps.add(1);
        Some((String::from_utf8(bytes).expect("text"), held))
    }

    /// A file of any checkpoint of the point in time that is held now.
    fn of_checkpoint(&mut self, id: &str, file: &str) -> Option<(String, String)> {
        let (_, held) = self.held()?;
        let checkpoints = &held.model.checkpoints;
        if checkpoints.is_empty() {
            return None;
        }
        let name = checkpoints[self.random.index(checkpoints.len())].name.clone();
        Some((format!("checkpoints/{name}/{id}/{file}"), name))
    }
}

/// A checkpoint of a point in time; none if it was not there any more.
fn since<'a>(held: &'a Held, checkpoint: &str, disk: usize) -> Option<&'a Since> {
    let found = held.model.checkpoints.iter().find(|found| found.name == checkpoint);
    found.map(|checkpoint| &checkpoint.disks[disk])
}

/// For each byte, whether its grain was touched.
fn touched(since: &Since) -> Vec<bool> {
    let size = since.touched.len() * SECTOR;
    let grains = since.touched.chunks(GRAIN / SECTOR).map(|grain| grain.contains(&true));
    grains.flat_map(|touched| std::iter::repeat_n(touched, GRAIN)).take(size).collect()
}

fn range(offset: u64, length: u64) -> std::ops::Range<usize> {
    let [offset, length] = [offset, length].map(|number| usize::try_from(number).expect("a place"));
    offset..offset + length
}
