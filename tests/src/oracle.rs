//! Judges that are not ours: cmp, qemu-img, qemu-nbd with nbdinfo, e2fsck, the kernel's own lseek.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use serde_json::{Value, json};

use crate::machine::Machine;
use crate::model::Disk;
use crate::process::{Running, ok, run, wait_until};
use crate::tools::tool;

/// A part of a disk: offset and length.
pub type Extent = (u64, u64);

/// Panics unless two files hold the same bytes.
#[track_caller]
pub fn same(one: &Path, other: &Path) {
    ok(tool("cmp").arg(one).arg(other));
}

/// Panics unless two raw images are the same to `qemu-img compare`, which reads through its own block layer.
#[track_caller]
pub fn same_image(one: &Path, other: &Path) {
    ok(tool("qemu-img").args(["compare", "-q", "-f", "raw", "-F", "raw"]).arg(one).arg(other));
}

/// Bytes that a file takes on its file system.
pub fn allocated(path: &Path) -> u64 {
    fs::metadata(path).expect("a file").blocks() * 512
}

/// The data of a file as lseek tells it.
#[track_caller]
pub fn seek_walk(path: &Path) -> Vec<Extent> {
    let file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut extents = Vec::new();
    let mut at = 0;
    loop {
        let data = match seek(&file, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Past the last data.
            Err(Errno::NXIO) => return extents,
            Err(e) => panic!("SEEK_DATA from {at} in {}: {e}", path.display()),
        };
        let hole = seek(&file, SeekFrom::Hole(data)).unwrap_or_else(|e| panic!("SEEK_HOLE from {data}: {e}"));
        assert!(data >= at && hole > data, "lseek from {at} found data at {data} and a hole at {hole}");
        extents.push((data, hole - data));
        at = hole;
    }
}

/// The lines of `nbdinfo --map` whose type `matches`, neighbours merged.
///
/// Lines of comment are passed over, so this reads pullfs' own maps as well.
#[track_caller]
pub fn read_map(text: &str, matches: impl Fn(u32) -> bool) -> Vec<Extent> {
    let mut extents = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |index: usize| -> u64 {
            fields.get(index).and_then(|field| field.parse().ok()).unwrap_or_else(|| panic!("a map line: {line:?}"))
        };
        if matches(u32::try_from(number(2)).expect("an extent's type")) {
            push(&mut extents, (number(0), number(1)));
        }
    }
    extents
}

/// The same from `nbdinfo --map --json`, by any JSON reader.
#[track_caller]
pub fn read_json_map(text: &str, matches: impl Fn(u64) -> bool) -> Vec<Extent> {
    let list: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("a map that is not JSON: {e}\n{text}"));
    let mut extents = Vec::new();
    for item in list.as_array().expect("an array of extents") {
        let number = |key: &str| item[key].as_u64().unwrap_or_else(|| panic!("no {key} in {item}"));
        assert!(item["description"].is_string(), "no description in {item}");
        if matches(number("type")) {
            push(&mut extents, (number("offset"), number("length")));
        }
    }
    extents
}

fn push(extents: &mut Vec<Extent>, (offset, length): Extent) {
    match extents.last_mut() {
        Some(last) if last.0 + last.1 == offset => last.1 += length,
        _ => extents.push((offset, length)),
    }
}

/// What `nbdinfo --map` says of an export.
#[derive(Debug)]
pub struct Map {
    /// As text.
    pub text: String,
    /// As JSON.
    pub json: String,
}

impl Map {
    #[track_caller]
    fn of(uri: &str, context: &str) -> Self {
        let map = format!("--map={context}");
        let text = ok(tool("nbdinfo").arg(&map).arg(uri));
        let json = ok(tool("nbdinfo").args(["--json", &map]).arg(uri));
        Self { text, json }
    }

    /// The extents that hold data, of an allocation map.
    #[track_caller]
    pub fn data(&self) -> Vec<Extent> {
        read_map(&self.text, |kind| kind == 0)
    }

    /// The extents that read as zeroes, of an allocation map.
    #[track_caller]
    pub fn zero(&self) -> Vec<Extent> {
        read_map(&self.text, |kind| kind & 2 != 0)
    }

    /// The extents that changed, of a dirty map.
    #[track_caller]
    pub fn dirty(&self) -> Vec<Extent> {
        read_map(&self.text, |kind| kind == 1)
    }
}

/// What a disk holds now, as QEMU's own NBD server tells it: the test starts the server and stops it again.
#[track_caller]
pub fn allocation(machine: &Machine, id: &str) -> Map {
    machine.without_guest(id, || export(machine, &machine.node(id), None))
}

/// What changed since a bitmap was added, as QEMU's own NBD server tells it of a merged copy of the bitmap, which the
/// test makes and removes again. With several nodes (a backing chain): of all their bitmaps of that name.
#[track_caller]
pub fn changes(machine: &Machine, id: &str, nodes: &[&str], bitmap: &str, granularity: u64) -> Map {
    let copy = "oracle-copy";
    let node = nodes[0];
    let sources: Vec<Value> = nodes.iter().map(|node| json!({"node": node, "name": bitmap})).collect();
    let arguments = json!({"node": node, "name": copy, "disabled": true, "granularity": granularity});
    machine.qmp().must("block-dirty-bitmap-add", arguments);
    machine.qmp().must("block-dirty-bitmap-merge", json!({"node": node, "target": copy, "bitmaps": sources}));
    let map = machine.without_guest(id, || export(machine, node, Some(copy)));
    machine.qmp().must("block-dirty-bitmap-remove", json!({"node": node, "name": copy}));
    map
}

#[track_caller]
fn export(machine: &Machine, node: &str, bitmap: Option<&str>) -> Map {
    let socket = machine.dir().join("oracle.nbd");
    let mut export = json!({"type": "nbd", "id": "oracle", "node-name": node, "name": "o"});
    if let Some(bitmap) = bitmap {
        export["bitmaps"] = json!([bitmap]);
    }
    let mut qmp = machine.qmp();
    qmp.must("nbd-server-start", json!({"addr": {"type": "unix", "data": {"path": socket}}}));
    qmp.must("block-export-add", export);
    let uri = format!("nbd+unix:///o?socket={}", socket.display());
    let context = bitmap.map_or_else(|| "base:allocation".to_owned(), |name| format!("qemu:dirty-bitmap:{name}"));
    let map = Map::of(&uri, &context);
    qmp.must("nbd-server-stop", json!({}));
    qmp.wait_event("BLOCK_EXPORT_DELETED", Duration::from_secs(10), |data| data["id"] == "oracle");
    let _ = fs::remove_file(&socket);
    map
}

/// What a discard left: each byte is zero now or stays; which of them, is up to the disk, so QEMU's own tool tells.
#[track_caller]
pub fn discarded(machine: &Machine, disk: &Disk, offset: usize, length: usize) -> Vec<u8> {
    let now = fs::read(machine.copy(&disk.id, "discarded.raw")).expect("a copy");
    let now = now[offset..offset + length].to_vec();
    let before = &disk.bytes[offset..offset + length];
    let fine = now.iter().zip(before).all(|(now, before)| *now == 0 || now == before);
    assert!(fine, "{}: a discard of {length} bytes at {offset} made new data", disk.id);
    now
}

/// The dirty map of a bitmap that is stored in an image, by qemu-nbd. No machine may have the image.
#[track_caller]
pub fn stored_bitmap(image: &Path, bitmap: &str) -> Map {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let socket = dir.path().join("nbd");
    let mut command = tool("qemu-nbd");
    command.args(["--read-only", "--persistent", "--format=qcow2", "--bitmap", bitmap, "--socket"]);
    let mut server = Running::start(command.arg(&socket).arg(image), &dir.path().join("log"));
    wait_until("qemu-nbd to listen", Duration::from_secs(10), || {
        server.check();
        socket.exists()
    });
    Map::of(&format!("nbd+unix:///?socket={}", socket.display()), &format!("qemu:dirty-bitmap:{bitmap}"))
}

/// Replays the journal of a copied file system, as its next mount would, and panics unless e2fsck then finds no fault.
#[track_caller]
pub fn clean_ext4(copy: &Path) {
    // Exit code 1: the file system was modified, which is what a replay does.
    let replay = run(tool("e2fsck").args(["-E", "journal_only", "-y"]).arg(copy));
    assert!(matches!(replay.code, Some(0 | 1)), "{replay}");
    ok(tool("e2fsck").args(["-f", "-n"]).arg(copy));
}

/// Panics unless a copy of an ext4 is complete as it is: there is nothing to replay, and e2fsck finds no fault.
#[track_caller]
pub fn quiesced_ext4(copy: &Path) {
    let superblock = ok(tool("dumpe2fs").arg("-h").arg(copy));
    assert!(!superblock.contains("needs_recovery"), "its journal is not empty:\n{superblock}");
    ok(tool("e2fsck").args(["-f", "-n"]).arg(copy));
}

/// The counter in a copy of one of the guest's disks, whose journal has been replayed.
#[track_caller]
pub fn counter_in(copy: &Path) -> u64 {
    let text = ok(tool("debugfs").args(["-R", "cat /counter"]).arg(copy));
    text.trim().parse().unwrap_or_else(|e| panic!("the counter in {} is {text:?}: {e}", copy.display()))
}
