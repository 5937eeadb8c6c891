//! A libvirtd of a test's own, with real domains.
//!
//! It runs in namespaces that are gone with it: what it keeps of its own lies on file systems that nobody else sees, and the
//! kernel ends every process that it started, QEMU too. Whatever ends the test ends it, and takes its directory away. Several
//! run side by side, and one that the computer has for other purposes is not touched. `/tmp` is the same inside and outside: that is where its
//! socket, images, scratch files and NBD sockets are.
//!
//! The namespaces are kept by a process that is not libvirtd (`keeper.sh`): libvirtd may be killed and started again while its
//! domains go on.

mod domain;

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rustix::net::sockopt::socket_peercred;
use rustix::process::Signal;
use tempfile::TempDir;

pub(crate) use domain::escape;
pub use domain::{Domain, node};

use crate::flavor::Flavor;
use crate::network::Network;
use crate::process::{Finished, has_ended, ok, run, signal_pid, wait_for, wait_until, write_script};
use crate::tools;

/// For libvirtd to answer, or to end, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// The directory in its own whose mounts go on into its namespaces.
const MOUNTS: &str = "mounts";

/// For the kernel to end all processes of the namespaces.
const END_LIMIT: Duration = Duration::from_secs(20);

/// Runs what makes the namespaces, and takes away what is left of them outside, also if all of the tests are told to end.
const AND_CLEAN_UP: &str = r#"trap : HUP INT TERM; "$@"; umount -l "$0/mounts"; rm -rf --one-file-system "$0""#;

/// Which libvirt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 9.0, with QEMU 7.2.
    Old,
    /// 11.3, with the installed QEMU.
    New,
}

impl Version {
    /// Its root directory; `None` when it was declared that there is none.
    #[track_caller]
    pub fn root(self) -> Option<PathBuf> {
        match self {
            Self::Old => tools::libvirt_old(),
            Self::New => tools::libvirt_new(),
        }
    }

    /// Its virsh, which runs outside of all namespaces.
    #[track_caller]
    pub fn virsh(self) -> Command {
        let root = self.root().expect("libvirt; see Flavor::available");
        let libraries = fs::read_dir(root.join("usr/lib"))
            .expect("libvirt's libraries")
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|dir| dir.join("libvirt.so.0").exists())
            .expect("libvirt's libraries");
        let mut command = Command::new(root.join("usr/bin/virsh"));
        command.env("LD_LIBRARY_PATH", libraries);
        command
    }
}

/// Who runs QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Account {
    /// root, who may open whatever a test has made.
    Root,
    /// `libvirt-qemu` ([`Account::UID`]), as on every Debian: libvirt gives it the images, and nothing else.
    LibvirtQemu,
}

impl Account {
    /// User and group `libvirt-qemu`, on Debian. The computer need not have them.
    pub const UID: u32 = 64055;

    /// qemu.conf.
    fn configuration(self) -> String {
        let (name, ownership) = match self {
            Self::Root => ("root", 0),
            Self::LibvirtQemu => ("libvirt-qemu", 1),
        };
        // Nothing of the computer is confined for a domain, and no virtlogd runs. A domain of its own mount namespace would
        // not see what a test mounts later.
        format!(
            "user = \"{name}\"\ngroup = \"{name}\"\ndynamic_ownership = {ownership}\nremember_owner = 0\n\
             security_driver = \"none\"\nseccomp_sandbox = 0\nnamespaces = []\ncgroup_controllers = []\n\
             stdio_handler = \"file\"\n"
        )
    }
}

/// User `sshd`, which the computer need not have.
const SSHD: u32 = 64056;

/// No polkit is asked who may connect: the directory is root's.
const DAEMON: &str = "auth_unix_ro = \"none\"\nauth_unix_rw = \"none\"\nlog_outputs = \"3:stderr\"\n";

/// For libvirtd.conf and qemu.conf: TLS with the certificates of this directory, for clients that have one of the same CA.
fn listening(certificates: &Path) -> (String, String) {
    let dir = certificates.display();
    let daemon = format!(
        "listen_tls = 1\nlisten_tcp = 0\nauth_tls = \"none\"\nkey_file = \"{dir}/server-key.pem\"\n\
         cert_file = \"{dir}/server-cert.pem\"\nca_file = \"{dir}/ca-cert.pem\"\n"
    );
    (daemon, format!("backup_tls_x509_cert_dir = \"{dir}\"\nbackup_tls_x509_verify = 1\n"))
}

/// A libvirtd, until it is dropped, with all of its domains.
#[derive(Debug)]
pub struct Libvirtd {
    version: Version,
    account: Account,
    keeper: Child,
    /// Each line starts a libvirtd, and its end ends the keeper.
    orders: Mutex<Option<ChildStdin>>,
    dir: TempDir,
}

impl Libvirtd {
    /// Starts one whose QEMUs are root's.
    #[track_caller]
    pub fn start(version: Version) -> Self {
        Self::start_as(version, Account::Root)
    }

    /// Starts one whose QEMUs are this account's.
    #[track_caller]
    pub fn start_as(version: Version, account: Account) -> Self {
        Self::start_at(version, account, None)
    }

    /// Starts one at the far end of a network, where it takes connections with TLS, as do its QEMUs' NBD servers of backups.
    /// `certificates` is the directory of a server (`ca-cert.pem`, `server-cert.pem`, `server-key.pem`); clients show one of
    /// the same CA. Its QEMUs are `libvirt-qemu`'s.
    #[track_caller]
    pub fn start_behind(version: Version, network: &Network, certificates: &Path) -> Self {
        Self::start_at(version, Account::LibvirtQemu, Some((network, certificates)))
    }

    #[track_caller]
    fn start_at(version: Version, account: Account, far: Option<(&Network, &Path)>) -> Self {
        let root = version.root().expect("libvirt; see Flavor::available");
        let dir = tempfile::Builder::new().prefix("pullfs-libvirt-").tempdir().expect("a temporary directory");
        // What the account runs is there.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o711)).expect("modes");
        for name in ["run", "log", "etc/libvirt", MOUNTS] {
            fs::create_dir_all(dir.path().join(name)).expect("a directory");
        }
        let mounts = dir.path().join(MOUNTS);
        ok(tools::tool("mount").arg("--bind").args([&mounts, &mounts]));
        ok(tools::tool("mount").arg("--make-shared").arg(&mounts));
        let write =
            |name: &str, text: String| fs::write(dir.path().join("etc").join(name), text).expect("a file of /etc");
        let (daemon, qemu) = far.map_or_else(Default::default, |(_, certificates)| listening(certificates));
        write("libvirt/libvirtd.conf", format!("{DAEMON}{daemon}"));
        write("libvirt/qemu.conf", format!("{}{qemu}", account.configuration()));
        let (users, groups) = ["/etc/passwd", "/etc/group"].map(|file| fs::read_to_string(file).expect(file)).into();
        let id = Account::UID;
        let own = format!("libvirt-qemu:x:{id}:{id}::/nonexistent:/usr/sbin/nologin\n");
        // Whom an ssh server is where it is not root, and a root that may log in without a password.
        write("passwd", format!("{users}{own}sshd:x:{SSHD}:65534::/run/sshd:/usr/sbin/nologin\n"));
        write("shadow", "root:*:19000:0:99999:7:::\n".to_owned());
        write("group", format!("{groups}libvirt-qemu:x:{id}:\n"));

        let qemu = if version == Version::Old { Flavor::Old } else { Flavor::New };
        write_program(&dir.path().join("emulator"), &qemu.emulator());

        let log = fs::File::create(dir.path().join("keeper.log")).expect("a log");
        let mut keeper = match far {
            Some((network, _)) => network.inside("sh"),
            None => tools::tool("sh"),
        };
        keeper.args(["-c", AND_CLEAN_UP]).arg(dir.path());
        // Its end is that of its standard input: a signal at a parent's death would come when the thread that starts it ends.
        let namespaces = ["--mount", "--propagation=slave", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"];
        keeper.arg("unshare").args(namespaces);
        if far.is_none() {
            keeper.arg("--net");
        }
        keeper.args(["sh", "-euc", include_str!("keeper.sh"), "keeper"]).arg(dir.path()).arg(root);
        keeper.args(far.map(|_| "--listen"));
        // What Cargo sets for its tests is not for libvirt's programs.
        keeper.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        keeper.stdin(Stdio::piped()).stdout(log.try_clone().expect("a second handle of the log")).stderr(log);
        let mut keeper = keeper.spawn().expect("unshare(1)");
        let orders = Mutex::new(keeper.stdin.take());
        let mut libvirtd = Self { version, account, keeper, orders, dir };
        libvirtd.order();
        let answers = || {
            if let Some(status) = libvirtd.keeper.try_wait().expect("waiting for a child") {
                panic!("libvirtd's namespaces ended with {status}: {}", libvirtd.said());
            }
            libvirtd.answers()
        };
        wait_until("libvirtd's answer", LIMIT, answers);
        libvirtd
    }

    /// The one that all tests of this process share as long as any of them has it; its QEMUs are root's. Not for tests
    /// that stop it.
    #[track_caller]
    pub fn shared(version: Version) -> Arc<Self> {
        static SHARED: [Mutex<Weak<Libvirtd>>; 2] = [const { Mutex::new(Weak::new()) }; 2];
        let slot = &SHARED[usize::from(version == Version::New)];
        // One that could not be started has left an empty slot.
        let mut shared = slot.lock().unwrap_or_else(PoisonError::into_inner);
        // One that crashed under a test fails that test, and not all that come later.
        shared.upgrade().filter(|running| running.answers()).unwrap_or_else(|| {
            let started = Arc::new(Self::start(version));
            *shared = Arc::downgrade(&started);
            started
        })
    }

    /// Which libvirt it is.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Who runs its QEMUs.
    pub fn account(&self) -> Account {
        self.account
    }

    /// The connection's URI.
    pub fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.socket().display())
    }

    /// Has it keep volumes in a directory, by a storage pool of this name.
    #[track_caller]
    pub fn pool(&self, name: &str, dir: &Path) {
        self.virsh(&["pool-define-as", name, "dir", "--target", &dir.display().to_string()]).success();
        self.virsh(&["pool-start", name]).success();
    }

    /// virsh, of the same version, with this connection.
    #[track_caller]
    pub fn virsh(&self, arguments: &[&str]) -> Finished {
        run(&mut self.command(arguments))
    }

    #[track_caller]
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.version.virsh();
        command.args(["-q", "-c", &self.uri()]).args(arguments);
        command
    }

    /// Its process id.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        let stream = UnixStream::connect(self.socket()).expect("libvirtd's socket");
        let peer = socket_peercred(&stream).expect("who listens");
        peer.pid.as_raw_nonzero().get().try_into().expect("a process id")
    }

    /// Ends it in an orderly way. Domains go on.
    #[track_caller]
    pub fn stop(&self) {
        self.end(Signal::TERM);
    }

    /// Ends it at once. Domains go on.
    #[track_caller]
    pub fn kill(&self) {
        self.end(Signal::KILL);
    }

    /// Starts it again after its end, and returns when it answers.
    #[track_caller]
    pub fn start_again(&self) {
        self.order();
        wait_until("libvirtd's answer", LIMIT, || self.answers());
    }

    /// What it and its keeper have said.
    pub fn said(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.path(name)).unwrap_or_default();
        format!("{}{}", read("keeper.log"), read("libvirtd.log"))
    }

    /// The QEMU of its version, for its domains: one for all of them, so that libvirt asks it only once what it can do.
    pub(crate) fn emulator(&self) -> PathBuf {
        self.path("emulator")
    }

    /// A file of its directory, which all of it is in.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where its domains see what is mounted later, too.
    pub fn mounts(&self) -> PathBuf {
        self.path(MOUNTS)
    }

    fn socket(&self) -> PathBuf {
        self.path("run/libvirt-sock")
    }

    fn order(&self) {
        use std::io::Write as _;
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let keeper = orders.as_mut().expect("it is there until the drop");
        keeper.write_all(b"start\n").unwrap_or_else(|e| panic!("libvirtd's keeper: {e}: {}", self.said()));
    }

    fn answers(&self) -> bool {
        UnixStream::connect(self.socket()).is_ok() && self.virsh(&["uri"]).code == Some(0)
    }

    #[track_caller]
    fn end(&self, signal: Signal) {
        let pid = self.pid();
        signal_pid(pid, signal);
        wait_until("libvirtd's end", LIMIT, || has_ended(pid));
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- libvirtd\n{}", self.said());
        }
        drop(self.orders.get_mut().unwrap_or_else(PoisonError::into_inner).take());
        let _ = wait_for(&mut self.keeper, END_LIMIT);
    }
}

/// A program that does what a command does, and takes further arguments. What it writes can be read while it runs.
#[track_caller]
fn write_program(path: &Path, command: &Command) {
    let quoted = |word: &OsStr| format!("'{}'", word.to_str().expect("a path in UTF-8").replace('\'', r"'\''"));
    let mut script = "#!/bin/sh\n".to_owned();
    for (name, value) in command.get_envs() {
        let _ = writeln!(script, "export {}={}", name.display(), quoted(value.unwrap_or_default()));
    }
    let words = std::iter::once(command.get_program()).chain(command.get_args()).map(quoted);
    let _ = writeln!(script, "exec stdbuf -oL -eL {} \"$@\"", words.collect::<Vec<_>>().join(" "));
    write_script(path, &script);
}
