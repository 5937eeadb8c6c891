//! Everything over TCP: with TLS it is what it is over a unix socket, without it it is refused, and nobody else is taken
//! for the machine.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nbd_pool::testing::pki::{Authority, LOOPBACK};
use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::leftovers::Leftovers;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::{self, Mount, MountPoint};
use pullfs_tests::oracle;
use pullfs_tests::ports::free_port;
use pullfs_tests::process::{ok, run, wait_until};
use pullfs_tests::tools::{pullfs, tool, workspace};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;

const USAGE: i32 = 1;
const SYSTEM: i32 = 2;
/// mount(8): the mount failed.
const MOUNT_FAILED: i32 = 32;

/// For a guardian on a busy machine.
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(60);

/// What a monitor's port takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Port {
    Plain,
    /// From clients that show a certificate of the CA.
    Tls,
}

/// A machine with a monitor on a TCP port, and certificates: QEMU's in `server`, a client's in `client`.
pub(super) struct Scene {
    machine: Machine,
    ca: Authority,
    dir: TempDir,
}

impl Scene {
    #[track_caller]
    pub(super) fn new(flavor: Flavor, port: Port, arguments: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("pullfs-pki-").tempdir().expect("a temporary directory");
        let ca = Authority::new("CA");
        ca.server(&dir.path().join("server"), &LOOPBACK).expect("written");
        ca.client(&dir.path().join("client")).expect("written");
        Self::with_certificates(dir, ca, flavor, port, arguments)
    }

    #[track_caller]
    fn with_certificates(dir: TempDir, ca: Authority, flavor: Flavor, port: Port, arguments: &[&str]) -> Self {
        let server = dir.path().join("server");
        let [option, monitor, object] = match flavor {
            Flavor::Daemon => ["--chardev", "--monitor", "--object"],
            _ => ["-chardev", "-mon", "-object"],
        };
        let (tls, mode) = (
            if port == Port::Tls { ",tls-creds=tls0" } else { "" },
            if flavor == Flavor::Daemon { "" } else { ",mode=control" },
        );
        let mut all = vec![
            object.to_owned(),
            format!("tls-creds-x509,id=tls0,endpoint=server,verify-peer=yes,dir={}", server.display()),
            option.to_owned(),
            format!("socket,id=tcp,host=127.0.0.1,port=0,server=on,wait=off{tls}"),
            monitor.to_owned(),
            format!("chardev=tcp{mode}"),
        ];
        all.extend(arguments.iter().map(ToString::to_string));
        let disk = |id| Disk::qcow2(id, 8 * MIB).filled(&[(0, MIB + 4096), (5 * MIB + 512, 65536)]);
        let machine = Machine::build(flavor).disk(disk("vda")).disk(disk("vdb")).arguments(&all).start();
        Self { machine, ca, dir }
    }

    /// The source, with the port that the system chose.
    #[track_caller]
    pub(super) fn source(&self) -> String {
        let devices = self.machine.qmp().must("query-chardev", json!({}));
        let device = devices.as_array().expect("a list").iter().find(|device| device["label"] == "tcp");
        let name = device.and_then(|device| device["filename"].as_str()).expect("the monitor's address");
        let port = name.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(',').next()).expect(name);
        format!("qmp:127.0.0.1:{port}")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn tls(&self, name: &str) -> String {
        format!("tls={}", self.path(name).display())
    }

    /// The test starts the machine's NBD server on a TCP port, with TLS or without.
    #[track_caller]
    pub(super) fn start_nbd(&self, port: Port) -> String {
        let number = free_port();
        let address = json!({"type": "inet", "data": {"host": "127.0.0.1", "port": number.to_string()}});
        let mut arguments = json!({"addr": address, "max-connections": 0});
        if port == Port::Tls {
            arguments["tls-creds"] = json!("tls0");
        }
        self.machine.qmp().must("nbd-server-start", arguments);
        format!("nbd=127.0.0.1:{number}")
    }

    /// Reads both disks at one point in time while the machine writes, and compares with QEMU's own copies.
    #[track_caller]
    fn reads_right(&self, mount: &Mount) {
        let before = ["vda", "vdb"].map(|id| self.machine.copy(id, &format!("{id}.before")));
        let open = File::open(mount.disk("vda")).expect("a disk");
        for id in ["vda", "vdb"] {
            self.machine.write(id, MIB / 2, MIB, 0xe1);
            self.machine.discard(id, 5 * MIB, MIB);
        }
        for (id, before) in ["vda", "vdb"].iter().zip(&before) {
            let out = mount.beside("out");
            ok(tool("cp").arg("--sparse=always").arg(mount.disk(id)).arg(&out));
            oracle::same(&out, before);
            assert!(oracle::allocated(&out) < 8 * MIB, "holes are known");
        }
        drop(open);
    }
}

#[track_caller]
fn says(line: &str, words: &[&str]) {
    for word in words {
        assert!(line.contains(word), "no {word:?} in {line:?}");
    }
}

/// Mounts, which must fail; the one line of error.
#[track_caller]
fn refused(source: &str, options: &str, code: i32) -> String {
    let point = MountPoint::new();
    let line = mount::mount(source, &point.mnt(), options).refused(code);
    assert!(!mount::is_mounted(&point.mnt()), "{line}, but it is mounted");
    line
}

on!(a_monitor_over_tls: new = New, old = Old, daemon = Daemon);
fn a_monitor_over_tls(flavor: Flavor) {
    let scene = Scene::new(flavor, Port::Tls, &[]);
    let nothing = Leftovers::of(&scene.machine);
    scene.machine.add_bitmap("vda", "since", 65536);
    scene.machine.write("vda", 3 * MIB, 65536, 0xa1);
    let mount = Mount::source(&scene.source(), &scene.tls("client"));
    assert_eq!(mount.status()["machine"]["source"], scene.source());
    scene.reads_right(&mount);
    let map = fs::read_to_string(mount.path("checkpoints/since/vda/dirty.map")).expect("a map");
    assert_eq!(oracle::read_map(&map, |kind| kind & 1 != 0), [(3 * MIB, 65536)]);
    assert!(mount.unmount().success());
    scene.machine.qmp().must("block-dirty-bitmap-remove", json!({"node": scene.machine.node("vda"), "name": "since"}));
    assert_eq!(Leftovers::of(&scene.machine), nothing);
}

on!(disks_over_tls: new = New, old = Old, daemon = Daemon);
fn disks_over_tls(flavor: Flavor) {
    let scene = Scene::new(flavor, Port::Tls, &[]);
    let nbd = scene.start_nbd(Port::Tls);
    let taken = Leftovers::of(&scene.machine);
    let mount = Mount::source(&scene.source(), &format!("{nbd},{}", scene.tls("client")));
    scene.reads_right(&mount);
    assert!(mount.unmount().success());
    assert_eq!(Leftovers::of(&scene.machine), taken, "the server is not ours to stop");

    // The monitor may be of this host.
    let mount = Mount::with(&scene.machine, &format!("{nbd},{}", scene.tls("client")));
    scene.reads_right(&mount);
    assert!(mount.unmount().success());
    assert_eq!(Leftovers::of(&scene.machine), taken);
}

on!(plain_text_that_is_meant: new = New, old = Old, daemon = Daemon);
fn plain_text_that_is_meant(flavor: Flavor) {
    let scene = Scene::new(flavor, Port::Plain, &[]);
    let nbd = scene.start_nbd(Port::Plain);
    let taken = Leftovers::of(&scene.machine);
    let mount = Mount::source(&scene.source(), &format!("{nbd},insecure"));
    scene.reads_right(&mount);
    assert!(mount.unmount().success());
    assert_eq!(Leftovers::of(&scene.machine), taken);
}

on!(who_is_not_the_machine_or_not_wanted: new = New, old = Old);
fn who_is_not_the_machine_or_not_wanted(flavor: Flavor) {
    let scene = Scene::new(flavor, Port::Tls, &[]);
    let nothing = Leftovers::of(&scene.machine);
    let source = scene.source();
    says(&refused(&source, "", USAGE), &[&source, "tls=DIR", "insecure"]);
    says(&refused(&source, &scene.tls("nowhere"), USAGE), &["nowhere/ca-cert.pem", "cannot be read"]);
    Authority::new("another CA").client(&scene.path("stranger")).expect("written");
    says(&refused(&source, &scene.tls("stranger"), MOUNT_FAILED), &["is not signed by", "stranger/ca-cert.pem"]);
    let elsewhere = source.replace("127.0.0.1", "127.0.0.2");
    says(&refused(&elsewhere, &scene.tls("client"), MOUNT_FAILED), &[&elsewhere, "nobody listens"]);
    scene.ca.fill(&scene.path("plain")).expect("written");
    says(&refused(&source, &scene.tls("plain"), MOUNT_FAILED), &["wants a client certificate", "plain"]);
    let key = scene.path("client/client-key.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("changed");
    says(&refused(&source, &scene.tls("client"), USAGE), &["client-key.pem", "0644"]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o400)).expect("changed");
    // QEMU says nothing at all to a client that says nothing of TLS.
    says(&refused(&source, "insecure", MOUNT_FAILED), &[&source, "tls="]);
    let mount = Mount::source(&source, &scene.tls("client"));
    assert_eq!(mount.state(), "none");
    assert!(mount.unmount().success());
    assert_eq!(Leftovers::of(&scene.machine), nothing);
}

on!(a_monitor_that_has_no_tls: new = New, old = Old);
fn a_monitor_that_has_no_tls(flavor: Flavor) {
    let scene = Scene::new(flavor, Port::Plain, &[]);
    // Not even where plain text is allowed: certificates were given.
    let options = format!("insecure,{}", scene.tls("client"));
    says(&refused(&scene.source(), &options, MOUNT_FAILED), &["does not speak TLS"]);
}

on!(an_nbd_server_that_is_another: new = New, old = Old);
fn an_nbd_server_that_is_another(flavor: Flavor) {
    let scene = Scene::new(flavor, Port::Tls, &[]);
    says(&refused(&scene.machine.source(), "nbd=127.0.0.1:10809", USAGE), &["nbd=127.0.0.1:10809", "tls=DIR"]);
    let taken = |nbd: &str, options: &str, words: &[&str]| {
        let before = Leftovers::of(&scene.machine);
        let mount = Mount::with(&scene.machine, &format!("{nbd},{options}"));
        let error = fs::read(mount.disk("vda")).expect_err("no disk");
        assert_eq!(Errno::from_io_error(&error), Some(Errno::IO), "{error}");
        says(mount.status()["last_error"]["message"].as_str().expect("a message"), words);
        assert!(mount.unmount().success());
        assert_eq!(Leftovers::of(&scene.machine), before);
    };
    let nbd = scene.start_nbd(Port::Tls);
    taken(&nbd, "insecure", &["TLS alone"]);
    Authority::new("another CA").client(&scene.path("stranger")).expect("written");
    taken(&nbd, &scene.tls("stranger"), &["is not signed by", "stranger/ca-cert.pem"]);
    scene.machine.qmp().must("nbd-server-stop", json!({}));
    let nbd = scene.start_nbd(Port::Plain);
    taken(&nbd, &scene.tls("client"), &["offers no TLS"]);
}

on!(a_qemu_of_another_user: new = New, old = Old);
fn a_qemu_of_another_user(flavor: Flavor) {
    let other: &[&str] = if flavor == Flavor::Old { &["-runas", "nobody"] } else { &["-run-with", "user=nobody"] };
    let scene = Scene::new(flavor, Port::Plain, other);
    // For the sockets of the test's own questions, not for pullfs's.
    fs::set_permissions(scene.machine.dir(), fs::Permissions::from_mode(0o777)).expect("changed");
    let nothing = Leftovers::of(&scene.machine);
    let mount = Mount::source(&scene.source(), "insecure");
    let line = mount.command(&["begin"]).refused(SYSTEM);
    says(&line, &["does not get at", "as root", "Permission denied"]);
    assert_eq!(fs::read_dir(mount.scratch()).expect("a directory").count(), 0, "no scratch is left");
    assert!(mount.unmount().success());
    assert_eq!(Leftovers::of(&scene.machine), nothing);

    // By descriptor it gets what it needs, whoever it is.
    let mount = Mount::of(&scene.machine);
    scene.reads_right(&mount);
    assert!(mount.unmount().success());
    assert_eq!(Leftovers::of(&scene.machine), nothing);
}

on!(certificates_as_the_manual_makes_them: new = New, old = Old);
fn certificates_as_the_manual_makes_them(flavor: Flavor) {
    let manual = fs::read_to_string(workspace().join("docs/tls.md")).expect("the manual");
    let (_, rest) = manual.split_once("```sh\n").expect("commands");
    let (commands, rest) = rest.split_once("```\n").expect("their end");
    assert!(!rest.contains("```"), "commands that no test runs");
    let dir = tempfile::Builder::new().prefix("pullfs-pki-").tempdir().expect("a temporary directory");
    ok(Command::new("sh").args(["-euc", commands]).current_dir(dir.path()));
    let mut scene = Scene::with_certificates(dir, Authority::new("not used"), flavor, Port::Tls, &[]);
    let nbd = scene.start_nbd(Port::Tls);
    let source = scene.source().replace("127.0.0.1", "localhost");
    let mount = Mount::source(&source, &format!("{nbd},{}", scene.tls("client")));
    scene.reads_right(&mount);
    assert!(mount.unmount().success());
    let log = scene.machine.server().log();
    assert!(!log.contains("warning"), "QEMU has something against them: {log}");
}

/// A mount that holds a point in time over TLS.
fn held(scene: &Scene) -> Mount {
    let mount = Mount::source(&scene.source(), &scene.tls("client"));
    mount.command(&["begin"]).success();
    assert!(Leftovers::of(&scene.machine).any_job());
    mount
}

/// The guardian's process id; 0 while there is none.
fn guardian(mount: &Mount) -> u32 {
    mount.status()["guard"]["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a process id")
}

fn kill(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(pid, signal).expect("a process of this test");
}

on!(who_cleans_up_goes_by_tls_as_well: new = New, old = Old);
fn who_cleans_up_goes_by_tls_as_well(flavor: Flavor) {
    let scene = Scene::new(flavor, Port::Tls, &[]);
    let nothing = Leftovers::of(&scene.machine);
    let mut mount = held(&scene);
    kill(mount.pid(), Signal::KILL);
    mount.ended();
    wait_until("the guardian", CLEAN_UP_LIMIT, || {
        !mount::is_mounted(&mount.mnt()) && Leftovers::of(&scene.machine) == nothing
    });

    // A guardian that takes the place of one that died is confined as the daemon is, and reads the certificates all the
    // same. Unmounting it leaves to others.
    let mut mount = held(&scene);
    let first = guardian(&mount);
    kill(first, Signal::KILL);
    wait_until("another guardian", CLEAN_UP_LIMIT, || ![0, first].contains(&guardian(&mount)));
    kill(mount.pid(), Signal::KILL);
    mount.ended();
    wait_until("the other guardian", CLEAN_UP_LIMIT, || Leftovers::of(&scene.machine) == nothing);
    drop(mount);

    // The daemon stands still while its guardian dies, so that there is no other one.
    let mut mount = held(&scene);
    let last = guardian(&mount);
    kill(mount.pid(), Signal::STOP);
    kill(last, Signal::KILL);
    kill(mount.pid(), Signal::KILL);
    mount.ended();
    let recover = |options: &[&str]| run(Command::new(pullfs()).arg("recover").arg(scene.source()).args(options));
    says(&recover(&[]).refused(USAGE), &["tls=DIR"]);
    assert!(Leftovers::of(&scene.machine).any_job());
    recover(&["-o", &scene.tls("client")]).success();
    assert!(!mount::is_mounted(&mount.mnt()));
    assert_eq!(Leftovers::of(&scene.machine), nothing);
}
