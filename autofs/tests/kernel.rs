//! The kernel of this computer, as root.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use autofs::{Access, Autofs, Kind, Remains, Request};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

const LIMIT: Duration = Duration::from_secs(20);

/// A mount that is taken away again.
struct Mounted {
    autofs: Autofs,
    requests: OwnedFd,
    dir: tempfile::TempDir,
}

impl Mounted {
    fn new() -> Self {
        // The leader of a group: nothing that it does itself waits. Fails where it is one.
        rustix::process::setpgid(None, None).ok();
        let dir = tempfile::tempdir().unwrap();
        let access = Access { uid: 0, gid: 0, mode: 0o550 };
        let (autofs, requests) = Autofs::mount("test:", dir.path(), access).expect("autofs, which root may mount");
        Self { autofs, requests, dir }
    }

    /// The next request; none within the time.
    fn request(&self, limit: Duration) -> Option<Request> {
        let mut polled = [PollFd::new(&self.requests, PollFlags::IN)];
        if poll(&mut polled, Some(&limit.try_into().unwrap())).unwrap() == 0 {
            return None;
        }
        let mut packet = [0; Request::LONGEST];
        let length = rustix::io::read(&self.requests, &mut packet).unwrap();
        Some(Request::parse(&packet[..length]).expect("a request"))
    }

    /// `ls`, in a process group of its own.
    fn ls(&self, name: &str) -> Child {
        let mut ls = Command::new("ls");
        ls.arg(self.dir.path().join(name)).process_group(0).env("LC_ALL", "C");
        ls.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn mount(&self, name: &str) {
        let place = self.dir.path().join(name);
        rustix::mount::mount("test", &place, "tmpfs", MountFlags::empty(), None).unwrap();
        fs::write(place.join("file"), "").unwrap();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        rustix::mount::unmount(self.dir.path(), UnmountFlags::DETACH).ok();
    }
}

fn said(ls: Child) -> (String, String) {
    let output = ls.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr))
}

#[test]
fn a_look_mounts_in_the_same_call() {
    let mounted = Mounted::new();
    for name in ["vm1", "vm2"] {
        mounted.autofs.make(OsStr::new(name)).unwrap();
    }
    assert_eq!(said(mounted.ls("")).0, "vm1\nvm2\n");
    assert_eq!(mounted.request(Duration::from_millis(50)), None, "to list them is no look into one");
    let mut look = mounted.ls("vm1");
    let request = mounted.request(LIMIT).expect("a request");
    assert_eq!((request.kind, &*request.name), (Kind::Missing, OsStr::new("vm1")));
    mounted.mount("vm1");
    assert!(look.try_wait().unwrap().is_none(), "it waits");
    mounted.autofs.ready(request.token).unwrap();
    assert_eq!(said(look).0, "file\n");
    assert_eq!(said(mounted.ls("vm1")).0, "file\n");
    assert_eq!(mounted.request(Duration::from_millis(50)), None, "it is there");
    assert!(mounted.autofs.ready(request.token).is_err(), "one answer");
    assert_eq!(mounted.autofs.remove(OsStr::new("vm1")).unwrap_err().raw_os_error(), Some(Errno::BUSY.raw_os_error()));
    mounted.autofs.remove(OsStr::new("vm2")).unwrap();
}

#[test]
fn a_failure_is_the_error_of_the_look() {
    let mounted = Mounted::new();
    mounted.autofs.make(OsStr::new("vm1")).unwrap();
    for (name, why, words) in [("vm1", Errno::IO, "Input/output error"), ("none", Errno::NOENT, "No such file")] {
        let mut look = mounted.ls(name);
        // Some programs try again in another way.
        while look.try_wait().unwrap().is_none() {
            let Some(request) = mounted.request(Duration::from_millis(50)) else { continue };
            assert_eq!((request.kind, &*request.name), (Kind::Missing, OsStr::new(name)));
            mounted.autofs.fail(request.token, why).unwrap();
        }
        let said = said(look).1;
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn nobody_waits_for_an_automounter_that_is_gone() {
    let mut mounted = Mounted::new();
    mounted.autofs.make(OsStr::new("vm1")).unwrap();
    let (_, none) = rustix::pipe::pipe().unwrap();
    mounted.requests = none;
    // The first one to look notices it, and some kernels do not even let it live.
    let first = mounted.ls("vm1").wait_with_output().unwrap();
    assert!(!first.status.success() && first.stdout.is_empty(), "{first:?}");
    assert_eq!(said(mounted.ls("vm1")), (String::new(), String::new()), "what lies below");
}

#[test]
fn whoever_waited_when_it_died_is_let_go() {
    for by_path in [true, false] {
        let mut mounted = Mounted::new();
        mounted.autofs.make(OsStr::new("vm1")).unwrap();
        let mut look = mounted.ls("vm1");
        mounted.request(LIMIT).expect("a request");
        let (_, none) = rustix::pipe::pipe().unwrap();
        mounted.requests = none;
        std::thread::sleep(Duration::from_millis(100));
        assert!(look.try_wait().unwrap().is_none(), "the kernel does not notice by itself");
        if by_path {
            let remains = Remains::at(mounted.dir.path()).unwrap();
            rustix::mount::unmount(mounted.dir.path(), UnmountFlags::DETACH).unwrap();
            remains.abandon().unwrap();
        } else {
            mounted.autofs.abandon().unwrap();
        }
        let (listed, error) = said(look);
        assert!(listed.is_empty() && error.contains("No such file"), "{error}");
    }
    assert!(Remains::at(Path::new("/tmp")).unwrap().abandon().is_err());
}

#[test]
fn what_nobody_uses_expires() {
    let mounted = Mounted::new();
    mounted.autofs.make(OsStr::new("vm1")).unwrap();
    mounted.mount("vm1");
    mounted.autofs.expire_after(Duration::from_secs(1)).unwrap();
    let place = mounted.dir.path().join("vm1");
    let open = fs::File::open(place.join("file")).unwrap();
    std::thread::sleep(Duration::from_millis(2100));
    assert!(!mounted.autofs.expire().unwrap(), "it is in use");
    drop(open);
    let end = Instant::now() + LIMIT;
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            while Instant::now() < end {
                if mounted.autofs.expire().unwrap() {
                    return true;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            false
        });
        // Still needed, the first time.
        let request = mounted.request(LIMIT).expect("a request");
        assert_eq!((request.kind, &*request.name), (Kind::Expire, OsStr::new("vm1")));
        mounted.autofs.fail(request.token, Errno::BUSY).unwrap();
        let request = mounted.request(LIMIT).expect("another one");
        rustix::mount::unmount(&place, UnmountFlags::empty()).unwrap();
        mounted.autofs.ready(request.token).unwrap();
        assert!(asked.join().unwrap());
    });
    assert!(is_empty(&place));
    rustix::mount::unmount(mounted.dir.path(), UnmountFlags::empty()).expect("nothing of ours keeps it busy");
    assert_eq!(mounted.autofs.expire().unwrap_err().raw_os_error(), Some(Errno::NOENT.raw_os_error()), "it is gone");
}

fn is_empty(place: &Path) -> bool {
    fs::read_dir(place).unwrap().next().is_none()
}
