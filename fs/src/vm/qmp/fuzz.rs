//! What a fuzzer feeds with what QEMU sends: each function takes any input and panics where a promise is broken.

use std::ffi::OsStr;
use std::sync::Arc;

use async_trait::async_trait;
use inside::FileKind;
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::broadcast;

use super::graph::Graph;
use super::inventory::assemble;
use super::note;
use super::transport::wire::{Incoming, Lines, value};
use crate::error::{Error, Kind, Result};
use crate::fs::{Access, Attr, Fs};
use crate::guardian::Pid;
use crate::options::Options;
use crate::tree::inode::{Inodes, ROOT};
use crate::vm::{Event, Fleece, Inventory, Machine, Scratch, Taken, Vm, Wanted};

/// Entries of one directory that are looked at: all are made the same way.
const LOOKED_AT: usize = 8;

/// A stream that is cut into lines; the first byte is how long the pieces are that it comes in.
pub fn lines(input: &[u8]) {
    let Some((&size, stream)) = input.split_first() else { return };
    let (mut lines, mut found) = (Lines::default(), Vec::new());
    for mut piece in stream.chunks(usize::from(size) + 1) {
        while let Some(line) = lines.next(&mut piece).expect("a fuzzer's input is no long line") {
            found.push(line);
        }
    }
    let whole = stream.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"));
    let expected: Vec<&[u8]> = whole.filter(|line| !line.trim_ascii().is_empty()).collect();
    assert_eq!(found, expected);
}

/// A line that is understood as a message.
pub fn message(input: &[u8]) {
    let outcome = Incoming::parse(input).map(|incoming| match incoming {
        Incoming::Answer { outcome: Ok(raw), .. } => value(raw).err(),
        Incoming::Answer { outcome: Err(refusal), .. } => Some(refusal.to_string()),
        Incoming::Greeting | Incoming::Event { .. } | Incoming::Other => None,
    });
    let words = outcome.unwrap_or_else(Some).unwrap_or_default();
    assert!(!words.contains(char::is_control) && words.chars().count() < 1100, "no line of an error: {words}");
    // QEMU writes no field twice, no event's name with an escape, and no answer that says nothing.
    if let Ok(known @ Value::Object(_)) = serde_json::from_slice::<Value>(input)
        && known.get("id").is_none_or(|_| known.get("return").or(known.get("error")).is_some())
        && known
            .get("event")
            .is_none_or(|name| name.as_str().is_some_and(|name| name.chars().all(char::is_alphanumeric)))
    {
        assert!(Incoming::parse(known.to_string().as_bytes()).is_ok(), "a good line is understood: {known}");
    }
}

/// The name of a dirty bitmap that may be a note on a checkpoint.
pub fn checkpoint_note(input: &[u8]) {
    let Ok(name) = std::str::from_utf8(input) else { return };
    if let Some((checkpoint, made)) = note::read(name) {
        assert!(note::is_note(name) && name.ends_with(checkpoint));
        // Digits may have had zeroes before them.
        assert_eq!(note::read(&note::write(checkpoint, made)), Some((checkpoint, made)));
    }
    assert!(note::check_name(name).is_err() || !note::is_note(name), "no checkpoint is taken for a note");
}

/// The answers to `query-block`, `query-named-block-nodes` and `x-debug-query-block-graph`, a line each: the tree that
/// they give is looked at from end to end.
pub fn inventory(input: &[u8]) {
    let mut answers = input.splitn(3, |&byte| byte == b'\n').map(serde_json::from_slice::<Value>);
    let (Some(Ok(devices)), Some(Ok(nodes)), Some(Ok(graph))) = (answers.next(), answers.next(), answers.next()) else {
        return;
    };
    let found = super::understand("query-block", devices)
        .and_then(|devices: Vec<_>| assemble(&devices, &Graph::parse(nodes, graph)?, None));
    if let Ok(found) = found {
        thread_local! {
            static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
        }
        RUNTIME.with(|runtime| runtime.block_on(look_around(found.inventory)));
    }
}

async fn look_around(inventory: Inventory) {
    let names = inventory.disks.iter().map(|disk| &disk.name).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(names.len(), inventory.disks.len(), "names are unique");
    let machine = Machine { source: "fuzz".into(), name: None, qemu: String::new(), fleece: Fleece::Job };
    let vm = Arc::new(Still { machine, inventory, events: broadcast::channel(1).0 });
    let inodes = Arc::new(Inodes::new("fuzz"));
    let fs = Fs::new(vm, Options::default(), "fuzz".into(), (0, 0), inodes, Arc::new(|| {}), Pid::default());
    let fs = Arc::new(fs);
    look_at(&fs, ROOT).await;
    fs.statfs().await;
    let status = fs.lookup(ROOT, OsStr::new("status.json")).await.expect("it is always there").attr.ino;
    let status = fs.open(status, Access::Read).await.expect("it can always be read").handle;
    let text = fs.read(status, 0, 1 << 20).await.expect("it can always be read");
    assert!(text.len() == 1 << 20 || serde_json::from_slice::<Value>(&text).is_ok(), "status.json is JSON");
}

async fn look_at(fs: &Fs, directory: u64) {
    let handle = fs.opendir(directory).await.expect("a directory");
    let mut entries = Vec::new();
    fs.readdir(handle, 2, |_, entry| {
        entries.push(entry.clone());
        entries.len() == LOOKED_AT
    })
    .await
    .expect("an open directory");
    fs.release(handle);
    for entry in entries {
        let found = fs.lookup(directory, OsStr::new(&*entry.name)).await.expect("what is listed is there");
        assert_eq!((found.attr.ino, found.attr.kind), (entry.ino, entry.kind));
        let attr = fs.getattr(entry.ino, None).await.expect("what was looked up is there");
        // Of a disk that may change, the time is the moment of asking.
        assert!(attr.mtime >= found.attr.mtime, "time goes on");
        assert_eq!(Attr { mtime: found.attr.mtime, ..attr }, found.attr);
        assert!(i64::try_from(found.attr.size).is_ok(), "a size that a file can have");
        if entry.kind == FileKind::Directory {
            Box::pin(look_at(fs, entry.ino)).await;
        }
    }
}

/// A machine that only tells what it is.
struct Still {
    machine: Machine,
    inventory: Inventory,
    events: broadcast::Sender<Event>,
}

fn refused<T>() -> Result<T> {
    Err(Error::new(Kind::Unsupported, "this machine only tells what it is"))
}

#[async_trait]
impl Vm for Still {
    fn machine(&self) -> &Machine {
        &self.machine
    }

    async fn inventory(&self) -> Result<Inventory> {
        Ok(self.inventory.clone())
    }

    async fn admit(&self, _: &Wanted) -> Result<()> {
        refused()
    }

    async fn take(&self, _: u64, _: &Wanted) -> Result<Taken> {
        refused()
    }

    async fn delete_checkpoint(&self, _: &str, _: bool) -> Result<()> {
        refused()
    }

    async fn release(&self) -> Result<()> {
        Ok(())
    }

    async fn confirm(&self, _: u64) -> Result<()> {
        refused()
    }

    fn scratch(&self) -> Option<Scratch> {
        None
    }

    async fn limit_scratch(&self, _: Option<u64>) -> Result<()> {
        refused()
    }

    fn is_clean(&self) -> bool {
        true
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    async fn disconnect(&self) {}
}
