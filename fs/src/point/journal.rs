//! The journal of a mount: what may exist because of it, in a file that outlives the process.
//!
//! ```text
//! {"version":1,"mount":"pullfs-0a1b2c","source":"qmp:/run/vm1.qmp",…}    the header
//! {"note":1,"of":{…}}                                                    written before it is made
//! {"struck":1}                                                           written after it is gone
//! ```
//! The file is locked (flock(2)) for as long as the process that keeps it lives, so a journal that can be locked is of a
//! dead one, and the kernel is who says so. Lines that belong together are one write(2), which comes before all that they
//! announce; one that was cut off is the last one and was followed by nothing, so it counts for nothing. The file is where the mount's sockets are, on a file system that ends with the
//! host's run, as the machines do: nothing is synchronised to a disk (docs/adr/014-journal-and-guardian.md).

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

/// The file's name in the mount's directory.
pub const NAME: &str = "journal";

/// Its name until it is locked and has a header.
const NEW: &str = "journal.new";

/// Version of the form.
const VERSION: u32 = 1;

/// Longest journal that is read, in bytes: a point in time of 1,000 disks has some 5,000 lines of 200 bytes.
const MAX_SIZE: u64 = 16 << 20;

/// What is known of a mount before it makes anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    version: u32,
    /// The mount's id, which everything it makes begins with.
    pub mount: String,
    /// The source, as `status.json` shows it.
    pub source: String,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// The process that keeps the journal.
    pub pid: u32,
    /// The certificates that the machine's monitor is reached with, over TCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<PathBuf>,
    /// The file that metrics are written to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub textfile: Option<PathBuf>,
    /// Whether it may be reached over TCP without any.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub insecure: bool,
    /// The libvirt that it is reached through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
}

impl Header {
    /// The header of a mount by this process.
    pub fn new(mount: String, source: String, mount_point: PathBuf) -> Self {
        let pid = std::process::id();
        Self {
            version: VERSION,
            mount,
            source,
            mount_point,
            pid,
            tls: None,
            insecure: false,
            textfile: None,
            uri: None,
        }
    }

    /// The same of a mount that has these options: whoever cleans up goes the same way to the machine.
    #[must_use]
    pub fn reached_with(self, tls: Option<PathBuf>, insecure: bool) -> Self {
        Self { tls, insecure, ..self }
    }

    /// The same of a mount through this libvirt.
    #[must_use]
    pub fn through(self, uri: Option<String>) -> Self {
        Self { uri, ..self }
    }

    /// The same of a mount that writes metrics to a file.
    #[must_use]
    pub fn with_textfile(self, textfile: Option<PathBuf>) -> Self {
        Self { textfile, ..self }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
struct Noted<'a, U> {
    note: u64,
    of: &'a U,
}

#[derive(Serialize, Deserialize)]
struct Struck {
    struck: u64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Line<U> {
    Note { note: u64, of: U },
    Struck(Struck),
}

/// A journal that this process has locked.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
    header: Header,
    /// Where the notes begin, in bytes.
    body: u64,
}

impl Journal {
    /// Begins one in a directory that belongs to the mount alone.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(dir: &Path, header: Header) -> Result<Self> {
        let (new, path) = (dir.join(NEW), dir.join(NAME));
        let failed = |error: std::io::Error| unwritten(&path, error);
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create_new(true).mode(0o600).open(&new).map_err(failed)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| failed(error.into()))?;
        let mut journal = Self { file, path: path.clone(), header, body: 0 };
        journal.body = journal.append([&journal.header])?;
        // From here on others may find it: it is locked.
        std::fs::rename(&new, &path).map_err(failed)?;
        Ok(journal)
    }

    /// Takes over the journal of a process that is dead. `None` while that lives, or if there is none.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when it is not a journal of this version.
    pub fn of_dead(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(NAME);
        let failed = |error: std::io::Error| {
            Error::with_source(Kind::Io, format!("cannot read the journal {}", path.display()), error)
        };
        let file = match OpenOptions::new().read(true).append(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(failed(error.into())),
        }
        // Another one may have cleaned up in between.
        let same = |found: std::fs::Metadata, ours: &std::fs::Metadata| found.ino() == ours.ino();
        let ours = file.metadata().map_err(failed)?;
        if !std::fs::symlink_metadata(&path).is_ok_and(|found| same(found, &ours)) {
            return Ok(None);
        }
        let text = read(&file).map_err(failed)?;
        let first = text.split_inclusive('\n').next().unwrap_or_default();
        let header: Header = serde_json::from_str(first).map_err(|error| not_understood(&path, error))?;
        if header.version != VERSION {
            let reason = format!("it is of version {}, this pullfs knows {VERSION}", header.version);
            return Err(not_understood(&path, std::io::Error::other(reason)));
        }
        let body = u64::try_from(first.len()).unwrap_or(u64::MAX);
        // What is appended from now on must begin on a line of its own.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        file.set_len(u64::try_from(whole).unwrap_or(u64::MAX)).map_err(failed)?;
        Ok(Some(Self { file, path, header, body }))
    }

    /// The same for tests, where the dead one is this process: what another test starts at this moment has, until it runs, copies
    /// of this process' descriptors, and so the lock.
    #[cfg(test)]
    pub(crate) fn of_dead_here(dir: &Path) -> Result<Self> {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            if let Some(journal) = Self::of_dead(dir)? {
                return Ok(journal);
            }
            assert!(std::time::Instant::now() < deadline, "the journal in {} stays locked", dir.display());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// The header of a journal, whoever keeps it; none if there is none that is understood.
    pub fn header_in(dir: &Path) -> Option<Header> {
        let text = read(&File::open(dir.join(NAME)).ok()?).ok()?;
        let header: Header = serde_json::from_str(text.lines().next()?).ok()?;
        (header.version == VERSION).then_some(header)
    }

    /// What is known of the mount.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What was noted and not struck off, with its numbers.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when a line is not understood: then nothing is guessed.
    pub fn notes<U: DeserializeOwned>(&self) -> Result<Vec<(u64, U)>> {
        let text = read(&self.file)
            .map_err(|error| Error::with_source(Kind::Io, format!("cannot read {}", self.path.display()), error))?;
        let mut notes: Vec<(u64, U)> = Vec::new();
        for line in text.lines().skip(1) {
            match serde_json::from_str(line).map_err(|error| not_understood(&self.path, error))? {
                Line::Note { note, of } => notes.push((note, of)),
                Line::Struck(Struck { struck }) => notes.retain(|(note, _)| *note != struck),
            }
        }
        Ok(notes)
    }

    /// Notes what may exist from now on, all of it in one write.
    pub(super) fn note<U: Serialize>(&self, notes: &[(u64, U)]) -> Result<()> {
        self.append(notes.iter().map(|(note, of)| Noted { note: *note, of })).map(drop)
    }

    /// Strikes off what does not exist any more, in one write as well.
    pub(super) fn strike(&self, numbers: &[u64]) -> Result<()> {
        self.append(numbers.iter().map(|&struck| Struck { struck })).map(drop)
    }

    /// Nothing exists any more.
    pub(super) fn clear(&self) -> Result<()> {
        self.file.set_len(self.body).map_err(|error| unwritten(&self.path, error))
    }

    /// Ends the journal: there is nothing that anybody would have to undo.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.path).map_err(|error| unwritten(&self.path, error))
    }

    /// How many bytes the lines have.
    fn append<L: Serialize>(&self, lines: impl IntoIterator<Item = L>) -> Result<u64> {
        let mut text = Vec::new();
        for line in lines {
            serde_json::to_writer(&mut text, &line).map_err(|error| unwritten(&self.path, error.into()))?;
            text.push(b'\n');
        }
        (&self.file).write_all(&text).map_err(|error| unwritten(&self.path, error))?;
        Ok(u64::try_from(text.len()).unwrap_or(u64::MAX))
    }
}

/// Whether a journal names anything, whoever keeps it.
pub fn has_notes(dir: &Path) -> bool {
    let text = File::open(dir.join(NAME)).and_then(|file| read(&file)).unwrap_or_default();
    // It is cut down to its header whenever nothing is left.
    text.lines().count() > 1
}

fn read(file: &File) -> std::io::Result<String> {
    let mut file = file;
    if file.metadata()?.len() > MAX_SIZE {
        return Err(std::io::Error::other("it is larger than any journal"));
    }
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    file.take(MAX_SIZE).read_to_end(&mut bytes)?;
    // A line that was cut off was never followed by what it announces.
    bytes.truncate(bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
    String::from_utf8(bytes).map_err(std::io::Error::other)
}

fn unwritten(path: &Path, error: std::io::Error) -> Error {
    Error::with_source(Kind::Io, format!("cannot write the journal {}", path.display()), error)
}

fn not_understood(path: &Path, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    let message = format!("the journal {} is not understood; what it names is left alone", path.display());
    Error::with_source(Kind::Invalid, message, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(dir: &Path) -> Journal {
        let header = Header::new("pullfs-000001".to_owned(), "qmp:/x".to_owned(), PathBuf::from("/mnt"));
        Journal::create(dir, header).unwrap()
    }

    fn notes(journal: &Journal) -> Vec<(u64, String)> {
        journal.notes().unwrap()
    }

    #[test]
    fn what_a_dead_process_noted_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let journal = begin(dir.path());
        assert!(Journal::of_dead(dir.path()).unwrap().is_none(), "whoever keeps it lives");
        journal.note(&[(1, "one"), (2, "two"), (3, "three")]).unwrap();
        journal.strike(&[2, 3]).unwrap();
        // Numbers are used again.
        journal.note(&[(2, "three")]).unwrap();
        let header = journal.header().clone();
        drop(journal);

        let journal = Journal::of_dead_here(dir.path()).unwrap();
        assert_eq!(*journal.header(), header);
        assert_eq!(notes(&journal), [(1, "one".to_owned()), (2, "three".to_owned())]);
        assert!(Journal::of_dead(dir.path()).unwrap().is_none(), "one at a time");
        journal.clear().unwrap();
        assert!(notes(&journal).is_empty());
        journal.remove().unwrap();
        assert!(Journal::of_dead(dir.path()).unwrap().is_none());
    }

    #[test]
    fn a_journal_may_be_cut_off_anywhere() {
        let dir = tempfile::tempdir().unwrap();
        let journal = begin(dir.path());
        journal.note(&[(1, "one"), (2, "two")]).unwrap();
        let whole = std::fs::read(dir.path().join(NAME)).unwrap();
        let body = usize::try_from(journal.body).unwrap();
        drop(journal);
        for end in body..=whole.len() {
            std::fs::write(dir.path().join(NAME), &whole[..end]).unwrap();
            let journal = Journal::of_dead_here(dir.path()).unwrap();
            let lines =
                whole[body..end].split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")).count();
            assert_eq!(notes(&journal).len(), lines, "cut off at {end}");
            journal.note(&[(9, "nine")]).unwrap();
            assert_eq!(notes(&journal).last().unwrap().0, 9);
        }
    }

    #[test]
    fn nothing_is_guessed() {
        let dir = tempfile::tempdir().unwrap();
        let journal = begin(dir.path());
        let header = std::fs::read_to_string(dir.path().join(NAME)).unwrap();
        drop(journal);
        for (text, why) in [
            (header.replace("\"version\":1", "\"version\":2"), "another version"),
            ("hello\n".to_owned(), "no journal"),
            (String::new(), "nothing"),
        ] {
            std::fs::write(dir.path().join(NAME), text).unwrap();
            assert_eq!(Journal::of_dead_here(dir.path()).unwrap_err().kind(), Kind::Invalid, "{why}");
        }
        std::fs::write(dir.path().join(NAME), header + "{\"note\":1,\"of\":7}\n").unwrap();
        let journal = Journal::of_dead_here(dir.path()).unwrap();
        assert_eq!(journal.notes::<String>().unwrap_err().kind(), Kind::Invalid);
    }
}
