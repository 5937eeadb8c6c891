//! Another host's libvirt by ssh: each of its processes may be killed.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::{Mount, open_direct};
use pullfs_tests::oracle;
use pullfs_tests::process::{children, has_ended, kill_at_once, ok, wait_until};
use pullfs_tests::random::Random;
use pullfs_tests::ssh::Sshd;
use pullfs_tests::tools::pullfs;
use rustix::io::Errno;

use super::remote::{MOUNT_FAILED, NETWORK_LIMIT, ROOM, Scene, reads_go_on};
use super::{DISKS, LIMIT, SIZE, contents, errno, has_backup, read_once};

const SYSTEM: i32 = 2;

/// The way by ssh, to another host.
struct Way {
    // In the order in which they go.
    ssh: Sshd,
    scene: Scene,
}

impl Way {
    #[track_caller]
    fn new(flavor: Flavor) -> Self {
        let scene = Scene::new(flavor, ROOM);
        let ssh = Sshd::start(scene.libvirtd(), scene.network());
        Self { ssh, scene }
    }

    fn machine(&self) -> &Machine {
        self.scene.machine()
    }

    /// The options of a mount by this ssh, with this key.
    fn options(&self, ssh: &str, key: &str) -> String {
        self.scene.options_with(&self.ssh.uri(ssh, key), "client")
    }

    #[track_caller]
    fn mount(&self) -> Mount {
        Mount::source(&self.machine().source(), &self.options("ssh", "friend"))
    }
}

/// The process that starts ssh for a mount.
#[track_caller]
fn relay(mount: &Mount) -> u32 {
    let relays = children(mount.pid(), "ssh-relay");
    assert_eq!(relays.len(), 1, "{relays:?}");
    relays[0]
}

/// Each ssh of a mount.
fn calls(relay: u32) -> Vec<u32> {
    children(relay, "ssh")
}

on!(disks_are_right: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn disks_are_right(flavor: Flavor) {
    let way = Way::new(flavor);
    let (machine, mount) = (way.machine(), way.mount());
    let relay = relay(&mount);
    let uri = format!("uri={}", way.ssh.uri("ssh", "friend"));
    let listed = ok(Command::new(pullfs()).args(["list", "-o", &uri]));
    assert!(listed.contains(&machine.source()) && listed.contains(&mount.mnt().display().to_string()), "{listed}");
    fs::create_dir(mount.path("checkpoints/monday")).expect("a checkpoint");
    let right = DISKS.map(|id| machine.copy(id, &format!("{id}.full")));
    for id in DISKS {
        machine.write(id, MIB / 2, MIB, 0x71);
    }
    oracle::same(&mount.disk("vda"), &right[0]);

    let saved = ok(Command::new(pullfs()).args(["checkpoint", "save", &machine.source(), "-o", &uri]));
    assert!(saved.contains("<name>monday</name>"), "{saved}");

    // Another ssh takes the place of one that died, and the point in time is the same.
    let calls_then = calls(relay);
    assert!(!calls_then.is_empty());
    kill_at_once(&calls_then);
    oracle::same(&mount.disk("vdb"), &right[1]);
    oracle::same(&mount.disk("vda"), &right[0]);
    let calls_now = calls(relay);
    assert!(!calls_now.is_empty() && calls_now.iter().all(|pid| !calls_then.contains(pid)), "{calls_now:?}");
    mount.command(&["release"]).success();
    way.scene.nothing_is_left();
    fs::remove_dir(mount.path("checkpoints/monday")).expect("it goes as it came");

    let dir = Path::new("/run/pullfs").join(mount.id());
    assert!(dir.join(format!("ssh-{}", mount.pid())).exists());
    let calls = calls(relay);
    assert!(mount.unmount().success());
    assert!(!dir.exists() && has_ended(relay));
    wait_until("the end of each ssh", LIMIT, || calls.iter().all(|pid| has_ended(*pid)));
    // It goes the way that a mount goes, on which nobody is asked.
    let options = way.options("asking", "friend");
    let found = ok(Command::new(pullfs()).args(["doctor", &machine.source(), "-o", &options]));
    assert!(found.contains("answers at qemu+ssh://"), "{found}");
}

on!(reads_go_on_when_the_network_is_back: libvirt = Libvirt);
fn reads_go_on_when_the_network_is_back(flavor: Flavor) {
    let way = Way::new(flavor);
    let (machine, mount) = (way.machine(), way.mount());
    let right = contents(machine);
    let files = DISKS.map(|id| open_direct(&mount.disk(id)));
    let mut random = Random::new(7);
    read_once(&files[0], &right[0], &mut random).expect("a read");
    way.scene.network().plugged(false);
    for id in DISKS {
        machine.write(id, 0, SIZE, 0x74);
    }
    // Data that nobody has read: what is known to be a hole is confirmed already.
    let began = Instant::now();
    let error = files[1].read_exact_at(&mut [0; 4096], 0).expect_err("nobody confirms it");
    assert!([Errno::IO, Errno::STALE, Errno::TIMEDOUT].contains(&errno(&error)), "{error}");
    assert!(began.elapsed() < Duration::from_secs(120), "a read took {:?}", began.elapsed());
    way.scene.network().plugged(true);
    reads_go_on(&files, &right, &mut random);
    drop(files);
    mount.command(&["release"]).success();
    way.scene.nothing_is_left();
    assert!(mount.unmount().success());
}

on!(whoever_is_killed_nothing_is_left: libvirt = Libvirt);
fn whoever_is_killed_nothing_is_left(flavor: Flavor) {
    let way = Way::new(flavor);
    let held = || {
        let mount = way.mount();
        let open = File::open(mount.disk("vda")).expect("a disk");
        assert!(has_backup(way.machine()));
        let (pid, guardian, relay) = (mount.pid(), mount.guardian(), relay(&mount));
        let processes = [&[relay][..], &calls(relay)].concat();
        (mount, open, [pid, guardian], processes)
    };
    let ends = |processes: &[u32]| {
        wait_until("the end of what led there", LIMIT, || processes.iter().all(|pid| has_ended(*pid)));
    };

    // The guardian goes there by an ssh of its own.
    let (mount, open, [daemon, _], processes) = held();
    kill_at_once(&[daemon]);
    drop((open, mount));
    way.scene.nothing_is_left();
    ends(&processes);

    // So does `pullfs recover`.
    let (mount, open, [daemon, guardian], processes) = held();
    kill_at_once(&[daemon, guardian]);
    drop((open, mount));
    ends(&processes);
    assert!(has_backup(way.machine()), "nobody is there to end it");
    ok(Command::new(pullfs()).arg("recover").arg(way.machine().source()));
    way.scene.nothing_is_left();

    // Without what leads there, a mount goes on as long as its connections do; at its end the guardian does what it cannot.
    let (mount, open, _, processes) = held();
    kill_at_once(&processes);
    ends(&processes);
    drop(open);
    let dir = Path::new("/run/pullfs").join(mount.id());
    mount.unmount();
    wait_until("the guardian", NETWORK_LIMIT, || !dir.exists());
    way.scene.nothing_is_left();
}

on!(who_is_not_known_is_not_trusted: libvirt = Libvirt);
fn who_is_not_known_is_not_trusted(flavor: Flavor) {
    let way = Way::new(flavor);
    let wrong = way.scene.refused(&way.options("ssh", "stranger"), MOUNT_FAILED);
    assert!(wrong.contains("Permission denied") && wrong.contains("cannot reach domain"), "{wrong}");
    let wrong = way.scene.refused(&way.options("fooled", "friend"), MOUNT_FAILED);
    assert!(wrong.contains("Host key verification failed"), "{wrong}");
    let unsafe_way = way.options("ssh", "friend").replace("/system?", "/system?no_verify=1&");
    let wrong = way.scene.refused(&unsafe_way, SYSTEM);
    assert!(wrong.contains("no_verify= is not understood"), "{wrong}");
    let without = way.options("nothing", "friend");
    let wrong = way.scene.refused(&without, MOUNT_FAILED);
    assert!(wrong.contains("cannot start ") && wrong.contains("No such file"), "{wrong}");
}
