//! The file system without a mount and without QEMU: a machine in memory is the reference.

mod by_handle;
mod changed;
mod contents;
mod lvm;
mod partitions;
mod times;

use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::*;
use crate::guardian::Pid;
use crate::image::Seek;
use crate::options::Start;
use crate::tree::inode::ROOT;
use crate::vm::Fleece;
use crate::vm::memory::Memory;

fn mount(vm: &Arc<Memory>, options: Options) -> Arc<Fs> {
    let inodes = Arc::new(Inodes::new("memory"));
    Arc::new(Fs::new(vm.clone(), options, "pullfs-test".into(), (7, 8), inodes, Arc::new(|| {}), Pid::default()))
}

fn machine(fleece: Fleece) -> Arc<Memory> {
    Memory::new(&[("vda", 100_000), ("vdb", 512)], fleece)
}

async fn walk(fs: &Arc<Fs>, path: &str) -> Result<Entry> {
    let mut ino = ROOT;
    let mut entry = None;
    for name in path.split('/') {
        let found = fs.lookup(ino, OsStr::new(name)).await?;
        ino = found.attr.ino;
        entry = Some(found);
    }
    entry.ok_or_else(|| Error::new(Kind::Invalid, "an empty path"))
}

/// As the kernel does: an open that finds its look-up outdated looks up again, once.
async fn open(fs: &Arc<Fs>, path: &str) -> Result<u64> {
    let entry = walk(fs, path).await?;
    let access = if path == "control" { Access::Write } else { Access::Read };
    match fs.open(entry.attr.ino, access).await {
        Err(error) if error.kind() == Kind::Stale => Ok(fs.open(walk(fs, path).await?.attr.ino, access).await?.handle),
        other => Ok(other?.handle),
    }
}

async fn read_all(fs: &Arc<Fs>, handle: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let more = fs.read(handle, bytes.len() as u64, 40_000).await?;
        if more.is_empty() {
            return Ok(bytes);
        }
        bytes.extend_from_slice(&more);
    }
}

async fn status(fs: &Arc<Fs>) -> Value {
    let handle = open(fs, "status.json").await.unwrap();
    serde_json::from_slice(&read_all(fs, handle).await.unwrap()).unwrap()
}

async fn command(fs: &Arc<Fs>, word: &str) -> Result<usize> {
    let handle = open(fs, "control").await?;
    fs.write(handle, word.as_bytes()).await
}

/// Everything that is not an open of a file that shows a disk.
async fn look_at(fs: &Arc<Fs>, ino: u64) {
    assert!(fs.getattr(ino, None).await.is_ok());
    let handle = fs.opendir(ino).await.unwrap();
    let mut entries = Vec::new();
    fs.readdir(handle, 2, |_, entry| {
        entries.push(entry.clone());
        false
    })
    .await
    .unwrap();
    fs.release(handle);
    for entry in entries {
        let found = fs.lookup(ino, OsStr::new(&*entry.name)).await.unwrap();
        assert_eq!(found.attr.ino, entry.ino, "readdir and lookup agree");
        assert_eq!(found.attr.kind, entry.kind);
        if entry.kind == FileKind::Directory {
            Box::pin(look_at(fs, entry.ino)).await;
        } else {
            let attr = fs.getattr(entry.ino, None).await.unwrap();
            assert!(attr.mtime >= found.attr.mtime, "the moment of asking, while nothing is known");
            assert_eq!(Attr { mtime: found.attr.mtime, ..attr }, found.attr);
        }
    }
}

#[tokio::test]
async fn looking_takes_no_point_in_time() {
    let vm = machine(Fleece::Job);
    vm.checkpoint("monday");
    let fs = mount(&vm, Options::default());
    look_at(&fs, ROOT).await;
    assert_eq!(status(&fs).await["point"]["state"], "none");
    assert!(fs.statfs().await.blocks > 0);
    assert_eq!(vm.taken(), 0);
    open(&fs, "current/vdb/disk.raw").await.unwrap();
    open(&fs, "checkpoints/monday/vda/dirty.map").await.unwrap();
    assert_eq!(vm.taken(), 1, "all share one");
    look_at(&fs, ROOT).await;
    assert_eq!(status(&fs).await["point"]["state"], "held");
}

#[tokio::test]
async fn only_control_is_written_whoever_asks() {
    let vm = machine(Fleece::Job);
    let fs = mount(&vm, Options::default());
    for (path, access) in
        [("current/vda/disk.raw", Access::Write), ("status.json", Access::Write), ("control", Access::Read)]
    {
        let ino = walk(&fs, path).await.unwrap().attr.ino;
        assert_eq!(fs.open(ino, access).await.unwrap_err().kind(), Kind::Denied, "{path}");
    }
    assert_eq!(vm.taken(), 0);
}

#[tokio::test]
async fn modes_and_owners_are_what_was_asked_for() {
    let fs = mount(&machine(Fleece::Job), Options { umask: 0o027, gid: Some(99), ..Options::default() });
    let raw = walk(&fs, "current/vda/disk.raw").await.unwrap().attr;
    assert_eq!((raw.mode, raw.uid, raw.gid, raw.size), (0o440, 7, 99, 100_000));
    assert_eq!(walk(&fs, "current").await.unwrap().attr.mode, 0o550);
    assert_eq!(walk(&fs, "control").await.unwrap().attr.mode, 0o200);
    assert_eq!(walk(&fs, "current/vdz").await.unwrap_err().kind(), Kind::NotFound);
}

/// The kernel may see answers in another order than they were given, and reads end at the size that it saw last.
#[tokio::test]
async fn an_estimated_size_is_never_told_of_a_node_that_can_be_read() {
    let vm = machine(Fleece::Job);
    vm.write("vda", 0, &vec![1; 70_000]);
    let fs = mount(&vm, Options::default());
    let (qcow2, raw) = ("current/vda/disk.qcow2", "current/vda/disk.raw");
    let estimated = walk(&fs, qcow2).await.unwrap();
    assert_eq!(fs.open(estimated.attr.ino, Access::Read).await.unwrap_err().kind(), Kind::Stale);
    let exact = walk(&fs, qcow2).await.unwrap();
    assert_ne!(exact.generation, estimated.generation);
    let handle = fs.open(exact.attr.ino, Access::Read).await.unwrap().handle;
    let size = read_all(&fs, handle).await.unwrap().len() as u64;
    assert_eq!(fs.getattr(exact.attr.ino, Some(handle)).await.unwrap().size, size);
    // A raw file has the disk's size before and after; it needs no second look-up.
    assert_eq!(walk(&fs, raw).await.unwrap().generation, exact.generation);

    command(&fs, "release").await.unwrap();
    let told = fs.getattr(exact.attr.ino, Some(handle)).await.unwrap_err();
    assert_eq!(told.kind(), Kind::Stale, "an estimate would end the file there");
    assert!(fs.getattr(exact.attr.ino, None).await.is_ok());
    assert_ne!(walk(&fs, qcow2).await.unwrap().generation, exact.generation);
}

#[tokio::test]
async fn a_release_makes_open_files_stale_for_good() {
    let vm = machine(Fleece::Job);
    vm.write("vda", 0, b"before");
    let fs = mount(&vm, Options::default());
    let first = walk(&fs, "current/vda/disk.raw").await.unwrap();
    let old = fs.open(first.attr.ino, Access::Read).await.unwrap().handle;
    assert_eq!(&fs.read(old, 0, 6).await.unwrap()[..], b"before");
    assert!(status(&fs).await["cache"]["bytes"].as_u64() > Some(0));
    command(&fs, "release\n").await.unwrap();
    assert_eq!(fs.read(old, 0, 6).await.unwrap_err().kind(), Kind::Stale);
    vm.write("vda", 0, b"after!");
    let stale = fs.open(first.attr.ino, Access::Read).await.unwrap_err();
    assert_eq!(stale.kind(), Kind::Stale, "the kernel must look the file up again first");
    let again = walk(&fs, "current/vda/disk.raw").await.unwrap();
    assert_eq!(again.attr.ino, first.attr.ino);
    assert_ne!(again.generation, first.generation, "so that the kernel cuts the old descriptors off");
    let new = fs.open(again.attr.ino, Access::Read).await.unwrap().handle;
    assert_eq!(&fs.read(new, 0, 6).await.unwrap()[..], b"after!");
    assert_eq!(fs.read(old, 0, 6).await.unwrap_err().kind(), Kind::Stale);
    let told = status(&fs).await;
    assert_eq!(told["last_end"]["reason"], "released");
    assert!(told["cache"]["fetched"].as_u64() > Some(0), "{told}");
}

#[tokio::test]
async fn no_byte_comes_out_after_a_loss() {
    for (fleece, announced) in
        [(Fleece::Job, true), (Fleece::Job, false), (Fleece::Backing, true), (Fleece::Backing, false)]
    {
        let vm = machine(fleece);
        vm.write("vda", 4096, b"before the loss");
        let fs = mount(&vm, Options::default());
        let handle = open(&fs, "current/vda/disk.raw").await.unwrap();
        fs.read(handle, 0, 512).await.unwrap();
        vm.lose(announced);
        // What came and was confirmed before is right, and may be had again; nothing else is given out.
        let error = fs.read(handle, 4096, 512).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Io, "{fleece:?}, announced: {announced}");
        match fs.seek(handle, 0, Seek::Data).await {
            Err(error) => assert_eq!(error.kind(), Kind::Io),
            Ok(found) => assert_eq!((fleece, announced, found), (Fleece::Job, false, 4096), "as it was learnt before"),
        }
        if announced {
            for _ in 0..100 {
                if status(&fs).await["last_end"]["reason"] == "lost by the test" {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!(status(&fs).await["last_end"]["reason"], "lost by the test");
            let new = open(&fs, "current/vda/disk.raw").await.unwrap();
            assert!(fs.read(new, 0, 512).await.is_ok(), "a new one can be taken");
        }
    }
}

#[tokio::test]
async fn commands_are_granted_or_refused_with_a_reason() {
    let vm = machine(Fleece::Job);
    let fs = mount(&vm, Options { start: Start::Manual, ..Options::default() });
    assert_eq!(open(&fs, "current/vda/disk.raw").await.unwrap_err().kind(), Kind::NothingHeld);
    assert_eq!(command(&fs, "release").await.unwrap_err().kind(), Kind::NothingHeld);
    for wrong in ["", "begin now", "relase", "\u{0}", &"begin ".repeat(1000)] {
        assert_eq!(command(&fs, wrong).await.unwrap_err().kind(), Kind::Invalid, "{wrong:?}");
    }
    command(&fs, "begin").await.unwrap();
    let handle = open(&fs, "current/vda/disk.raw").await.unwrap();
    assert_eq!(command(&fs, "begin").await.unwrap_err().kind(), Kind::Busy);
    assert!(status(&fs).await["last_error"]["message"].as_str().unwrap().contains("files are open"));
    fs.release(handle);
    command(&fs, "begin").await.unwrap();
    assert_eq!(vm.taken(), 2);
    let file = open(&fs, "current/vdb/disk.raw").await.unwrap();
    assert_eq!(fs.write(file, b"x").await.unwrap_err().kind(), Kind::Denied);
    assert_eq!(fs.read(12_345, 0, 1).await.unwrap_err().kind(), Kind::Invalid);
}

#[tokio::test]
async fn a_machine_that_refuses_is_not_asked_for_every_file() {
    let vm = machine(Fleece::Job);
    let fs = mount(&vm, Options::default());
    vm.refuse(Some(Kind::Busy));
    for _ in 0..3 {
        assert_eq!(open(&fs, "current/vda/disk.raw").await.unwrap_err().kind(), Kind::Busy);
    }
    let told = status(&fs).await;
    assert!(told["last_error"]["message"].as_str().unwrap().ends_with("told to refuse"));
    assert_eq!(told["point"]["number"], 1, "one try for all three");
    vm.refuse(None);
    command(&fs, "begin").await.unwrap();
    assert!(open(&fs, "current/vda/disk.raw").await.is_ok());
}

#[tokio::test]
async fn mkdir_makes_a_checkpoint_and_takes_the_same_instant() {
    let vm = machine(Fleece::Job);
    let fs = mount(&vm, Options::default());
    let checkpoints = walk(&fs, "checkpoints").await.unwrap().attr.ino;
    let current = walk(&fs, "current").await.unwrap().attr.ino;
    assert_eq!(fs.mkdir(current, OsStr::new("x")).await.unwrap_err().kind(), Kind::Denied);
    vm.write("vda", 0, b"before");
    assert!(fs.mkdir(checkpoints, OsStr::new("monday")).await.unwrap().attr.kind == FileKind::Directory);
    vm.write("vda", 512, b"after");
    let raw = open(&fs, "current/vda/disk.raw").await.unwrap();
    assert_eq!(&fs.read(raw, 0, 517).await.unwrap()[510..], [0; 7], "the disk at the checkpoint");
    let map = open(&fs, "checkpoints/monday/vda/dirty.map").await.unwrap();
    assert!(parse(std::str::from_utf8(&read_all(&fs, map).await.unwrap()).unwrap()).is_empty());
    assert_eq!(status(&fs).await["point"]["checkpoint"], "monday");
    assert_eq!(fs.mkdir(checkpoints, OsStr::new("tuesday")).await.unwrap_err().kind(), Kind::Busy);
    assert_eq!(fs.rmdir(checkpoints, OsStr::new("monday")).await.unwrap_err().kind(), Kind::Busy);
    fs.release(map);
    fs.release(raw);
    fs.mkdir(checkpoints, OsStr::new("tuesday")).await.unwrap();
    assert_eq!(fs.mkdir(checkpoints, OsStr::new("monday")).await.unwrap_err().kind(), Kind::Exists);
    let map = open(&fs, "checkpoints/monday/vda/dirty.map").await.unwrap();
    let changed = parse(std::str::from_utf8(&read_all(&fs, map).await.unwrap()).unwrap());
    assert_eq!(changed, [(512..1024, true)], "monday to tuesday");
    fs.rmdir(checkpoints, OsStr::new("tuesday")).await.unwrap();
    assert_eq!(walk(&fs, "checkpoints/tuesday").await.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(fs.rmdir(checkpoints, OsStr::new("tuesday")).await.unwrap_err().kind(), Kind::NotFound);
    assert!(!fs.read(map, 0, 10).await.unwrap().is_empty(), "what is open stays");
}

#[tokio::test]
async fn changes_since_another_checkpoint_take_another_point_in_time() {
    let vm = machine(Fleece::Backing);
    vm.tells_of_one_base();
    vm.checkpoint("monday");
    vm.write("vda", 0, &[1]);
    vm.checkpoint("tuesday");
    vm.write("vda", 5_000, &[2]);
    let fs = mount(&vm, Options::default());
    let (monday, tuesday) = ("checkpoints/monday/vda/dirty.map", "checkpoints/tuesday/vda/dirty.map");
    let map = open(&fs, monday).await.unwrap();
    assert_eq!(status(&fs).await["point"]["base"], "monday");
    look_at(&fs, ROOT).await;
    assert_eq!(parse(&String::from_utf8(read_all(&fs, map).await.unwrap()).unwrap()).len(), 2);
    let raw = open(&fs, "current/vda/disk.raw").await.unwrap();
    let error = open(&fs, tuesday).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Busy, "files are open");
    assert!(error.to_string().contains("checkpoint monday") && error.to_string().contains("since=tuesday"), "{error}");
    assert!(
        status(&fs).await["last_error"]["message"].as_str().unwrap().contains("since=tuesday"),
        "it is said there, too"
    );
    assert!(fs.read(raw, 0, 10).await.is_ok(), "who reads is left alone");
    fs.release(map);
    fs.release(raw);
    let map = open(&fs, tuesday).await.unwrap();
    assert_eq!((vm.taken(), &status(&fs).await["point"]["base"]), (2, &Value::from("tuesday")), "nobody was there");
    assert_eq!(parse(&String::from_utf8(read_all(&fs, map).await.unwrap()).unwrap()).len(), 1);
    fs.release(map);
    command(&fs, "begin since=monday").await.unwrap();
    assert_eq!(open(&fs, tuesday).await.unwrap_err().kind(), Kind::Busy, "somebody chose this instant");
    assert!(open(&fs, monday).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_just_being_closed_is_not_in_the_way() {
    let vm = machine(Fleece::Backing);
    vm.tells_of_one_base();
    vm.checkpoint("monday");
    vm.checkpoint("tuesday");
    let fs = mount(&vm, Options::default());
    let checkpoints = walk(&fs, "checkpoints").await.unwrap().attr.ino;
    let (monday, tuesday) = ("checkpoints/monday/vda/dirty.map", "checkpoints/tuesday/vda/dirty.map");
    let closed_late = async |handle| {
        tokio::time::sleep(Duration::from_millis(100)).await;
        fs.release(handle);
    };
    let map = open(&fs, monday).await.unwrap();
    let (other, ()) = tokio::join!(open(&fs, tuesday), closed_late(map));
    let (begun, ()) = tokio::join!(command(&fs, "begin since=monday"), closed_late(other.unwrap()));
    begun.unwrap();
    // No close makes one that somebody chose another one.
    let map = open(&fs, monday).await.unwrap();
    let asked = tokio::time::Instant::now();
    assert_eq!(open(&fs, tuesday).await.unwrap_err().kind(), Kind::Busy);
    assert_eq!(asked.elapsed(), Duration::ZERO);
    let (deleted, ()) = tokio::join!(fs.rmdir(checkpoints, OsStr::new("monday")), closed_late(map));
    deleted.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_removed_is_tried_again() {
    let vm = machine(Fleece::Job);
    let fs = mount(&vm, Options::default());
    open(&fs, "current/vda/disk.raw").await.unwrap();
    vm.clings(4);
    assert_eq!(command(&fs, "release").await.unwrap_err().kind(), Kind::Timeout);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(!vm.is_clean(), "it was tried twice, after 2 s and 4 s more");
    tokio::time::sleep(Duration::from_secs(25)).await;
    assert!(vm.is_clean(), "nobody had to come");
}

#[tokio::test]
async fn after_the_end_nothing_is_taken() {
    let vm = machine(Fleece::Job);
    let fs = mount(&vm, Options::default());
    let handle = open(&fs, "current/vda/disk.raw").await.unwrap();
    fs.points().end().await.unwrap();
    assert_eq!(fs.read(handle, 0, 1).await.unwrap_err().kind(), Kind::Stale);
    assert_eq!(open(&fs, "current/vda/disk.raw").await.unwrap_err().kind(), Kind::Gone);
    assert_eq!(vm.taken(), 1);
}

/// The extents that a map tells, as its reader would parse them, and whether each has to be read.
fn parse(map: &str) -> Vec<(Range<u64>, bool)> {
    let lines = map.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (offset, length): (u64, u64) = (fields[0].parse().unwrap(), fields[1].parse().unwrap());
            (offset..offset + length, fields[3] != "dirty,zero")
        })
        .collect()
}
