//! Messages of the background go to the system's journal, which holds nobody up.
//!
//! The test plays the journal: a mount namespace of its own has a directory of the test's at `/run/systemd/journal`.

use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::MountPoint;
use pullfs_tests::process::{has_ended, ok, run, signal_pid, wait_until, within};
use pullfs_tests::tools::{pullfs, tool};
use rustix::process::Signal;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(30);

/// What the namespace has: nothing of the host's journal, and the test's directory in its place.
const INSIDE: &str = "set -e
mount -t tmpfs none /run/systemd
if [ -n \"$1\" ]; then mkdir /run/systemd/journal; mount --bind \"$1\" /run/systemd/journal; fi
\"$2\" mount \"$3\" \"$4\" -o \"$5\"
cat \"$4/status.json\"";

/// A mount in the background of a namespace of its own.
struct Hidden {
    pid: u32,
    guardian: u32,
    mnt: PathBuf,
}

impl Hidden {
    #[track_caller]
    fn of(machine: &Machine, point: &MountPoint, journal: Option<&Path>) -> Self {
        fs::create_dir_all("/run/systemd").expect("a directory");
        let mut command = tool("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", INSIDE, "sh"]);
        command.arg(journal.unwrap_or(Path::new(""))).arg(pullfs()).arg(machine.source()).arg(point.mnt());
        let said = run(command.arg(machine.options(&point.scratch()))).success();
        let status: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
        let number = |value: &Value| value.as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a process id");
        let (pid, guardian) = (number(&status["pid"]), number(&status["guard"]["pid"]));
        // As the daemon sees it.
        let mnt = PathBuf::from(format!("/proc/{pid}/root{}", point.mnt().display()));
        Self { pid, guardian, mnt }
    }

    /// A request that fails, which is worth a message.
    #[track_caller]
    fn fail(&self) {
        fs::write(self.mnt.join("control"), "nonsense\n").expect_err("no command");
    }

    fn end(&self) {
        signal_pid(self.pid, Signal::TERM);
        wait_until("the end of the daemon", LIMIT, || has_ended(self.pid) && has_ended(self.guardian));
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        if std::thread::panicking() && !has_ended(self.pid) {
            signal_pid(self.pid, Signal::TERM);
        }
    }
}

fn machine(flavor: Flavor) -> Machine {
    Machine::build(flavor).disk(Disk::qcow2("vda", 8 * MIB).filled(&[(0, MIB)])).start()
}

fn journal(dir: &Path) -> UnixDatagram {
    let journal = UnixDatagram::bind(dir.join("socket")).expect("a socket");
    journal.set_read_timeout(Some(LIMIT)).expect("a limit");
    journal
}

/// The next message that has these words, as it came.
#[track_caller]
fn heard(journal: &UnixDatagram, words: &str) -> String {
    let mut entry = vec![0; 1 << 20];
    loop {
        let length = journal.recv(&mut entry).unwrap_or_else(|error| panic!("no {words:?}: {error}"));
        let text = String::from_utf8_lossy(&entry[..length]).into_owned();
        if text.contains(words) {
            return text;
        }
    }
}

/// Panics unless the message has a field of that value.
#[track_caller]
fn has(entry: &str, name: &str, value: &str) {
    let length = u64::try_from(value.len()).expect("a length").to_le_bytes();
    let field = format!("{name}\n{}{value}\n", String::from_utf8_lossy(&length));
    assert!(entry.contains(&field), "no {name}={value} in {entry:?}");
}

on!(messages_of_the_background_are_in_the_journal: new = New, libvirt = Libvirt);
fn messages_of_the_background_are_in_the_journal(flavor: Flavor) {
    let machine = machine(flavor);
    let (point, dir) = (MountPoint::new(), tempfile::tempdir().expect("a directory"));
    let journal = journal(dir.path());
    let mount = Hidden::of(&machine, &point, Some(dir.path()));
    mount.fail();
    let entry = heard(&journal, "control takes one command a write");
    has(&entry, "PRIORITY", "4");
    has(&entry, "SYSLOG_IDENTIFIER", "pullfs");
    has(&entry, "PULLFS_PROCESS", "daemon");
    has(&entry, "PULLFS_SOURCE", &machine.source());
    has(&entry, "PULLFS_MOUNT", point.mnt().to_str().expect("a path"));

    // A guardian has something to say of a daemon that hangs.
    let open = fs::File::open(mount.mnt.join("current/vda/disk.raw")).expect("a disk");
    signal_pid(mount.pid, Signal::STOP);
    let entry = heard(&journal, "the daemon gives no sign of life");
    has(&entry, "PRIORITY", "3");
    has(&entry, "PULLFS_PROCESS", "guardian");
    has(&entry, "PULLFS_SOURCE", &machine.source());
    drop(open);
    wait_until("the end of the guardian", LIMIT, || has_ended(mount.guardian));
}

on!(a_journal_that_hangs_holds_nobody_up: new = New);
fn a_journal_that_hangs_holds_nobody_up(flavor: Flavor) {
    let machine = machine(flavor);
    let before = machine.copy("vda", "before");
    let (point, dir) = (MountPoint::new(), tempfile::tempdir().expect("a directory"));
    let journal = journal(dir.path());
    let mount = Hidden::of(&machine, &point, Some(dir.path()));
    let other = UnixDatagram::unbound().expect("a socket");
    other.set_nonblocking(true).expect("no waiting");
    while other.send_to(b"MESSAGE=of others\n", dir.path().join("socket")).is_ok() {}
    let (disk, control) = (mount.mnt.join("current/vda/disk.raw"), mount.mnt.join("control"));
    let read = within("a read beside a journal that hangs", LIMIT, move || {
        fs::write(&control, "nonsense\n").expect_err("no command");
        let mut bytes = vec![0; 1 << 20];
        fs::File::open(disk).and_then(|disk| disk.read_exact_at(&mut bytes, 0)).map(|()| bytes).expect("a read")
    });
    assert!(read == fs::read(before).expect("a copy")[..1 << 20], "other bytes");
    journal.set_nonblocking(true).expect("no waiting");
    while journal.recv(&mut [0; 64]).is_ok() {}
    journal.set_nonblocking(false).expect("waiting again");
    // Now that there is room, what it missed is told first.
    mount.fail();
    heard(&journal, "1 messages were dropped");
    heard(&journal, "control takes one command a write");
    mount.end();
}

on!(without_a_journal_it_mounts_all_the_same: new = New);
fn without_a_journal_it_mounts_all_the_same(flavor: Flavor) {
    let machine = machine(flavor);
    let point = MountPoint::new();
    let mount = Hidden::of(&machine, &point, None);
    mount.fail();
    let status = ok(tool("cat").arg(mount.mnt.join("status.json")));
    assert!(status.contains("control takes one command a write"), "{status}");
    ok(tool("head").arg("-c1").arg(mount.mnt.join("current/vda/disk.raw")));
    mount.end();
}
