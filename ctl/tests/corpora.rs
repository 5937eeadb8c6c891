//! What fuzzers begin with, and changes of it, through the process that reads a guest's disks: it answers what the readers
//! answer whom nothing separates from their caller, and no disk ends it.

use std::fmt::Debug;
use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::ops::{ControlFlow, Range};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use inside::{Disk, FileKind, FileSystem, Id};
use pullfs_fs::error::{Error, Kind, Result};
use pullfs_fs::guest::{Blocks, Children, Listed, MAX_ANSWERS, Reader, Readers, SUBCOMMAND};
use pullfs_fuzz::disks_of;
use pullfs_fuzz::mutation::{Random, mutate};

const PULLFS: &str = env!("CARGO_BIN_EXE_pullfs");

/// Targets that read disks.
const TARGETS: [&str; 6] = ["ext", "xfs", "fat", "ntfs", "table", "lvm"];

/// Changed inputs of each target, each of which takes two processes or more.
const CHANGES: usize = 60;

/// Longest changed input, in bytes.
const LONGEST: usize = 64 << 10;

/// Most files of a disk that are looked at.
const FILES: usize = 64;

/// How long a process may take to end that has nothing to do.
const LIMIT: Duration = Duration::from_secs(20);

/// The inputs of a target's corpus, and changes of them that are the same each time.
fn inputs(target: &str, changes: usize) -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut paths: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let corpus: Vec<_> = paths.iter().map(|path| (path.display().to_string(), fs::read(path).unwrap())).collect();
    let mut random = Random::new(1);
    let made = (0..changes).map(|number| {
        let (path, input) = &corpus[random.below(corpus.len())];
        let (_, other) = &corpus[random.below(corpus.len())];
        (format!("change {number} of {path}"), mutate(&mut random, input, other, LONGEST))
    });
    let made: Vec<_> = made.collect();
    corpus.into_iter().chain(made).collect()
}

struct Made(Mutex<Box<dyn Disk + Send>>);

#[async_trait]
impl Blocks for Made {
    fn size(&self) -> u64 {
        self.0.lock().unwrap().size()
    }

    fn name(&self) -> &'static str {
        "an input"
    }

    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap()];
        let read = self.0.lock().unwrap().read_at(range.start, &mut bytes);
        read.map(|()| bytes.into()).map_err(|error| Error::with_source(Kind::Io, "it cannot be read", error))
    }
}

/// Both have come to the same; errors are told in other words. What it was, if it was no error.
#[track_caller]
fn same<T: PartialEq + Debug>(what: &str, child: Result<T>, direct: inside::Result<T>) -> Option<T> {
    match (child, direct) {
        (Ok(one), Ok(other)) => {
            assert_eq!(one, other, "{what}");
            Some(one)
        }
        (Err(error), Err(_)) => {
            assert!(!error.to_string().starts_with("the reader of"), "{what}: {error}");
            None
        }
        (child, direct) => panic!("{what}: {child:?}, and directly {direct:?}"),
    }
}

/// The first names of a directory; an error comes where there is no name before it.
fn list(system: &dyn FileSystem, directory: Id) -> inside::Result<Vec<Listed>> {
    let mut names = Vec::new();
    let outcome = system.list(directory, 0, &mut |entry| {
        names.push(Listed { name: entry.name.to_vec(), id: entry.id, kind: entry.kind, next: entry.next });
        if names.len() < MAX_ANSWERS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    if names.is_empty() { outcome.map(|()| names) } else { Ok(names) }
}

/// Looks at files, from the root on, both ways; how many there were.
async fn walk(what: &str, child: &dyn Reader, direct: &dyn FileSystem) -> usize {
    let mut files = vec![child.root(), Id(0), Id(u64::MAX)];
    let mut next = 0;
    while let Some(&file) = files.get(next) {
        next += 1;
        let what = &format!("{what}, {file:?}");
        let Some(attributes) = same(what, child.attributes(file).await, direct.attributes(file)) else { continue };
        same(what, child.xattrs(file).await, direct.xattrs(file));
        match attributes.kind {
            FileKind::Directory => {
                same(what, child.parent(file).await, direct.parent(file));
                let names = child.list(file, 0).await.map(|names| names.all);
                let names = same(what, names, list(direct, file)).unwrap_or_default();
                for Listed { name, .. } in names.iter().take(3) {
                    let with_attributes = |id| direct.attributes(id).map(|attributes| (id, attributes));
                    let found = direct.lookup(file, name).and_then(|found| found.map(with_attributes).transpose());
                    same(what, child.lookup(file, name).await, found);
                }
                let new: Vec<_> = names.iter().map(|listed| listed.id).filter(|id| !files.contains(id)).collect();
                files.extend(new);
                files.truncate(FILES);
            }
            FileKind::Symlink => drop(same(what, child.link_target(file).await, direct.link_target(file))),
            _ => drop(same(what, child.extents(file, 0).await, direct.extents(file, 0, MAX_ANSWERS))),
        }
    }
    assert_eq!(child.deaths(), 0, "{what}: the reader died");
    next
}

#[tokio::test]
async fn no_disk_ends_a_reader_and_all_are_read_as_without_one() {
    let children = Children::new(Path::new(PULLFS));
    for target in TARGETS {
        let (mut opened, mut files) = (0, 0);
        for (what, input) in inputs(target, CHANGES) {
            for (disk, direct) in disks_of(target, &input).into_iter().zip(disks_of(target, &input)) {
                let disk = Arc::new(Made(Mutex::new(disk)));
                same(&what, children.table(Arc::clone(&disk) as _).await, inside::table::read(&direct));
                match (children.open(disk).await, inside::open::<Box<dyn Disk + Send>>(direct)) {
                    (Ok(child), Ok(direct)) => {
                        assert_eq!(child.summary(), &direct.summary(), "{what}");
                        opened += 1;
                        files += walk(&what, child.as_ref(), direct.as_ref()).await;
                    }
                    (child, direct) => drop(same(&what, child.map(|_| ()), direct.map(|_| ()))),
                }
            }
        }
        println!("{target}: {opened} file systems with {files} files");
        let read = ["table", "lvm"].contains(&target) || (opened > 1 && files > 20);
        assert!(read, "{target}: {opened} file systems with {files} files");
    }
    assert!(children.pids().len() <= 1, "nobody is left but the last");
}

#[test]
fn nonsense_ends_a_reader_in_order() {
    for (what, input) in inputs("wire", 4 * CHANGES) {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut command = Command::new(PULLFS);
        command.arg(SUBCOMMAND).stdin(Stdio::from(OwnedFd::from(theirs)));
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        drop(command);
        // Two bytes are for the target alone. As a message, and as whatever it may be after it.
        let frame = input.get(2..).unwrap_or_default();
        let length = u32::try_from(frame.len()).unwrap().to_be_bytes();
        // It may have ended before it heard all.
        ours.write_all(&[&length[..], frame, &input].concat()).ok();
        ours.shutdown(Shutdown::Write).ok();
        ours.set_read_timeout(Some(LIMIT)).unwrap();
        let mut said = Vec::new();
        let ended = ours.read_to_end(&mut said).map_err(|error| error.kind());
        // What it did not hear before it ended is an error here.
        assert!(matches!(ended, Ok(_) | Err(io::ErrorKind::ConnectionReset)), "{what}: {ended:?}");
        assert!(said.len() < 1 << 20, "{what}: {} bytes", said.len());
        let finished = child.wait_with_output().unwrap();
        let words = String::from_utf8_lossy(&finished.stderr);
        assert!(matches!(finished.status.code(), Some(0 | 1)) && words.lines().count() <= 1, "{what}: {words}");
    }
}
