//! The guardian as a process that nobody came to tell anything: it knows from the start what to clean up after. With a
//! machine and a mount, `tests/tests/it/killed/` does the same.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use pullfs_fs::guardian::SUBCOMMAND;
use pullfs_fs::point::journal::{Header, Journal};

const PULLFS: &str = env!("CARGO_BIN_EXE_pullfs");

/// A guardian of a directory, and its daemon's end of the socket.
fn guardian(dir: &Path) -> (Child, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut guardian = Command::new(PULLFS);
    guardian.arg(SUBCOMMAND).arg(dir).stdin(Stdio::from(OwnedFd::from(theirs)));
    (guardian.spawn().unwrap(), ours)
}

#[test]
fn a_daemon_that_dies_before_it_says_a_word_is_cleaned_up_after() {
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("mount");
    std::fs::create_dir(&dir).unwrap();
    let place = base.path().join("mnt");
    let header = Header::new("pullfs-dead".into(), "qmp:/nonexistent".into(), place);
    let journal = Journal::create(&dir, header).unwrap();
    let (mut guardian, socket) = guardian(&dir);
    drop(socket);
    // The daemon lives as long as its journal is locked.
    assert!(dir.exists());
    drop(journal);
    assert!(guardian.wait().unwrap().success());
    assert!(!dir.exists(), "the dead mount's directory");
}

#[test]
fn a_daemon_that_dies_without_a_journal_leaves_no_directory() {
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("mount");
    std::fs::create_dir(&dir).unwrap();
    // It was just removing it.
    std::fs::write(dir.join("ssh-1"), "").unwrap();
    let (mut guardian, socket) = guardian(&dir);
    drop(socket);
    assert!(guardian.wait().unwrap().success());
    assert!(!dir.exists());
}
