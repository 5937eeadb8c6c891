use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::Command;

use rustix::process::{getppid, test_kill_process};

use super::*;

/// On a thread of its own, so that only that one is restricted.
fn apart<T: Send>(restricted: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(restricted).join().expect("the restricted thread"))
}

fn denied<T>(outcome: std::io::Result<T>) -> bool {
    outcome.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

#[test]
fn landlock_leaves_what_the_daemon_needs() {
    let (runtime, scratch, other) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let secret = other.path().join("secret");
    std::fs::write(&secret, "x").unwrap();
    let [known, unknown] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let ports = [known.local_addr().unwrap().port()];
    let (pki, textfiles) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(pki.path().join("ca-cert.pem"), "x").unwrap();
    std::fs::write(other.path().join("real.pem"), "x").unwrap();
    std::os::unix::fs::symlink(other.path().join("real.pem"), pki.path().join("linked.pem")).unwrap();
    // The QMP socket, the agent's, an NBD server's: connecting by path is not restricted.
    let socket = other.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let hidden = SocketAddr::from_abstract_name(format!("pullfs-test-{}", std::process::id())).unwrap();
    let _hidden = UnixListener::bind_addr(&hidden).unwrap();
    let (runtime, scratch) = (runtime.path(), scratch.path());

    apart(|| {
        let certificates = vec![pki.path().to_owned()];
        let needs = Needs {
            runtime,
            scratch,
            ports: ports.to_vec(),
            certificates,
            libvirt: false,
            core_dumps: false,
            sandbox: true,
            textfiles: Some(textfiles.path()),
        };
        // A kernel without Landlock fails here: then nothing of this is shown.
        let level = paths::restrict(&needs).expect("a kernel with Landlock");

        let own = runtime.join("mount");
        std::fs::create_dir(&own).unwrap();
        drop(UnixListener::bind(own.join("nbd.sock")).unwrap());
        std::fs::write(own.join("journal"), "step").unwrap();
        std::fs::remove_dir_all(&own).unwrap();
        let file = tempfile::tempfile_in(scratch).unwrap();
        file.set_len(1 << 20).unwrap();
        file.set_len(0).unwrap();
        std::fs::create_dir(scratch.join("named")).unwrap();
        std::fs::remove_dir(scratch.join("named")).unwrap();
        rustix::fs::statvfs(scratch).unwrap();
        assert!(!std::fs::read("/proc/self/mountinfo").unwrap().is_empty());
        std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
        UnixStream::connect(&socket).unwrap();
        TcpStream::connect(known.local_addr().unwrap()).unwrap();
        for name in ["ca-cert.pem", "linked.pem"] {
            assert_eq!(std::fs::read(pki.path().join(name)).unwrap(), b"x");
        }
        assert!(("localhost", 1_u16).to_socket_addrs().is_ok_and(|found| found.count() > 0), "names of hosts");
        test_kill_process(getppid().unwrap()).unwrap();

        let [new, file] = ["vm.prom.new", "vm.prom"].map(|name| textfiles.path().join(name));
        std::fs::write(&new, "up 1").unwrap();
        std::fs::rename(&new, &file).unwrap();
        std::fs::remove_file(&file).unwrap();

        assert!(denied(std::fs::create_dir(textfiles.path().join("dir"))), "what is no file of metrics");
        assert!(denied(std::fs::read(&secret)), "other files");
        assert!(denied(std::fs::write(other.path().join("new"), "x")), "other directories");
        assert!(denied(std::fs::remove_file(&secret)), "removing elsewhere");
        assert!(denied(std::fs::read_dir("/")), "looking around");
        assert!(denied(std::os::unix::fs::symlink("/", scratch.join("link"))), "links");
        assert!(denied(Command::new("/bin/true").status()), "other programs");
        let own = Command::new("/proc/self/exe").arg("--list").output().unwrap();
        assert!(String::from_utf8_lossy(&own.stdout).contains("landlock_leaves_what"), "it starts itself: {own:?}");
        // Ports came with Linux 6.7, the other with 6.12; the daemon says what an older one does not enforce.
        if level == "all" {
            assert!(denied(TcpStream::connect(unknown.local_addr().unwrap())), "other ports");
            assert!(denied(TcpListener::bind("127.0.0.1:0")), "listening");
            assert!(denied(UnixStream::connect_addr(&hidden)), "sockets without a path");
        }
    });
    assert_eq!(std::fs::read(&secret).unwrap(), b"x", "this thread is not restricted");
}

/// Every call of the list by its number, with arguments that make none of them do anything. What it prints is wrong.
const TRY: &str = "
import ctypes, errno, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def fails(expected, *call):
    ctypes.set_errno(0)
    result = libc.syscall(*call)
    if result >= 0 or ctypes.get_errno() != expected:
        print(call, 'gives', result, errno.errorcode.get(ctypes.get_errno()))
open_socket, clone, clone3, *denied = map(int, sys.argv[1:])
for number in denied:
    fails(errno.EPERM, number, -1, -1, -1, -1, -1, -1)
fails(errno.EPERM, clone, 0x10000000, 0, 0, 0, 0)
fails(errno.ENOSYS, clone3, 0, 0)
for family in (socket.AF_PACKET, socket.AF_ALG, socket.AF_VSOCK):
    fails(errno.EPERM, open_socket, int(family), int(socket.SOCK_STREAM), 0)
for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK):
    socket.socket(family, socket.SOCK_DGRAM).close()
";

#[test]
fn calls_that_a_file_system_never_makes_are_denied() {
    let output = apart(|| {
        system_calls::restrict().expect("a kernel with seccomp filters");
        // Threads and processes are still made, here and in the program.
        std::thread::spawn(|| ()).join().unwrap();
        let calls = [libc::SYS_socket, libc::SYS_clone, libc::SYS_clone3];
        let calls = calls.iter().chain(system_calls::DENIED).chain(system_calls::DENIED_HERE);
        Command::new("python3").args(["-c", TRY]).args(calls.map(ToString::to_string)).output().expect("python3")
    });
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
}

#[test]
fn capabilities_are_gone_for_good() {
    let (before, after, child) = apart(|| {
        let before = rustix::thread::capabilities(None).unwrap();
        drop_capabilities().unwrap();
        rustix::thread::set_no_new_privs(true).unwrap();
        let status = Command::new("grep").args(["^Cap", "/proc/self/status"]).output().unwrap();
        (before, rustix::thread::capabilities(None).unwrap(), String::from_utf8(status.stdout).unwrap())
    });
    let kept = before.permitted & KEPT;
    assert_eq!((after.permitted, after.effective, after.inheritable), (kept, kept, CapabilitySet::empty()));
    for line in child.lines() {
        let (name, set) = line.split_once(":\t").unwrap();
        let set = u64::from_str_radix(set, 16).unwrap();
        let may = if name == "CapBnd" && before.permitted.is_empty() { u64::MAX } else { KEPT.bits() };
        assert_eq!(set & !may, 0, "a program that is started has {line}");
    }
    assert_eq!(child.lines().count(), 5);
}
