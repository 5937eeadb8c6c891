//! A libvirt of another host: at the far end of a network that loses packets, and is cut.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nbd_pool::testing::pki::Authority;
use pullfs_tests::builder::Builder;
use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::libvirt::{Account, Libvirtd};
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::{self, Mount, MountPoint, open_direct};
use pullfs_tests::network::Network;
use pullfs_tests::oracle;
use pullfs_tests::process::{kill_at_once, ok, run, wait_until};
use pullfs_tests::random::Random;
use pullfs_tests::tmpfs::Tmpfs;
use pullfs_tests::tools::{pullfs, tool};
use rustix::io::Errno;
use serde_json::json;
use tempfile::TempDir;

use super::{DISKS, LIMIT, SIZE, builder, contents, errno, has_backup, read_once};

const USAGE: i32 = 1;
pub(super) const MOUNT_FAILED: i32 = 32;

/// What a pool needs for both of the disks: each with 16 MiB for tables, and what is left to others.
pub(super) const ROOM: &str = "128M";
const LITTLE: &str = "96M";

/// For a connection over a network that was cut, to one that hears of it.
pub(super) const NETWORK_LIMIT: Duration = Duration::from_secs(150);

/// Another host, and certificates: of its servers, of a client, and of a client of another CA.
pub(super) struct Scene {
    // In the order in which they go.
    machine: Machine,
    libvirtd: Arc<Libvirtd>,
    pool: Tmpfs,
    network: Network,
    dir: TempDir,
}

impl Scene {
    #[track_caller]
    pub(super) fn new(flavor: Flavor, room: &str) -> Self {
        Self::of(builder(flavor), room)
    }

    #[track_caller]
    fn of(machine: Builder, room: &str) -> Self {
        let network = Network::new();
        let dir = tempfile::Builder::new().prefix("pullfs-pki-").tempdir().expect("a temporary directory");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o711)).expect("modes");
        let path = |name: &str| dir.path().join(name);
        let (ca, other) = (Authority::new("CA"), Authority::new("another CA"));
        ca.server(&path("server"), &[&network.port(1).ip().to_string()]).expect("written");
        for (authority, name) in [(&ca, "client"), (&other, "stranger")] {
            authority.client(&path(name)).expect("written");
        }
        // It trusts the host, which does not trust it.
        fs::copy(path("client/ca-cert.pem"), path("stranger/ca-cert.pem")).expect("a copy");
        // The names that libvirt's library looks for.
        for (own, libvirts) in [("ca-cert", "cacert"), ("client-cert", "clientcert"), ("client-key", "clientkey")] {
            for name in ["client", "stranger"] {
                symlink(format!("{own}.pem"), path(name).join(format!("{libvirts}.pem"))).expect("a link");
            }
        }
        for entry in fs::read_dir(path("server")).expect("a directory") {
            chown(entry.expect("a file").path(), Some(Account::UID), Some(Account::UID)).expect("an owner");
        }
        let version = machine.flavor().libvirt().expect("a flavor of libvirt's");
        let libvirtd = Arc::new(Libvirtd::start_behind(version, &network, &path("server")));
        let machine = machine.on(&libvirtd).start();
        let pool = Tmpfs::seen_by(&machine, room);
        fs::set_permissions(pool.path(), Permissions::from_mode(0o711)).expect("modes");
        libvirtd.pool("scratch", pool.path());
        Self { machine, libvirtd, pool, network, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The options of a mount whose libvirt sees one of the clients, and whose NBD server another.
    fn options(&self, libvirt: &str, nbd: &str) -> String {
        let (host, client) = (self.network.port(1).ip(), self.path(libvirt));
        self.options_with(&format!("qemu+tls://{host}/system?pkipath={}", client.display()), nbd)
    }

    /// The options of a mount by this libvirt, whose NBD server sees one of the clients.
    pub(super) fn options_with(&self, uri: &str, nbd: &str) -> String {
        format!("uri={uri},scratch=pool:scratch,tls={}", self.path(nbd).display())
    }

    pub(super) fn machine(&self) -> &Machine {
        &self.machine
    }

    pub(super) fn network(&self) -> &Network {
        &self.network
    }

    pub(super) fn libvirtd(&self) -> &Libvirtd {
        &self.libvirtd
    }

    #[track_caller]
    fn mount(&self) -> Mount {
        Mount::source(&self.machine.source(), &self.options("client", "client"))
    }

    /// Mounts, and expects it to be refused; what is said.
    #[track_caller]
    pub(super) fn refused(&self, options: &str, code: i32) -> String {
        let place = MountPoint::new();
        mount::mount(&self.machine.source(), &place.mnt(), options).refused(code)
    }

    #[track_caller]
    fn recover(&self) -> String {
        self.recover_by(&self.options("client", "client"))
    }

    #[track_caller]
    fn recover_by(&self, options: &str) -> String {
        run(Command::new(pullfs()).arg("recover").arg(self.machine.source()).args(["-o", options])).success()
    }

    /// The scratch images that there are.
    fn images(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.pool.path()).expect("the pool");
        let paths = entries.map(|entry| entry.expect("a volume").path());
        paths.filter(|path| path.extension().is_some_and(|end| end == "qcow2")).collect()
    }

    #[track_caller]
    pub(super) fn nothing_is_left(&self) {
        wait_until("the end of libvirt's backup", NETWORK_LIMIT, || !has_backup(&self.machine));
        wait_until("a pool without scratch images", NETWORK_LIMIT, || self.images().is_empty());
    }
}

/// Bytes of its file system that a file takes.
fn taken(path: &Path) -> u64 {
    path.metadata().expect("a file").blocks() * 512
}

/// Panics unless what is held is as it was, once libvirt says so again.
#[track_caller]
pub(super) fn reads_go_on(files: &[File; 2], right: &[Vec<u8>; 2], random: &mut Random) {
    wait_until("reads that go on", NETWORK_LIMIT, || {
        files.iter().zip(right).all(|(file, right)| read_once(file, right, random).is_ok())
    });
    for (file, right) in files.iter().zip(right) {
        for _ in 0..64 {
            read_once(file, right, random).expect("a read");
        }
    }
}

fn copied(mount: &Mount, path: &str, name: &str) -> PathBuf {
    let copy = mount.beside(name);
    ok(tool("cp").arg(mount.path(path)).arg(&copy));
    copy
}

on!(disks_of_another_host_are_right: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn disks_of_another_host_are_right(flavor: Flavor) {
    let scene = Scene::new(flavor, ROOM);
    let (machine, mount) = (&scene.machine, scene.mount());
    assert!(scene.images().is_empty(), "a mount alone takes no room");

    // The whole, while the machine writes; at its instant a checkpoint begins.
    fs::create_dir(mount.path("checkpoints/monday")).expect("a checkpoint");
    let right = DISKS.map(|id| machine.copy(id, &format!("{id}.full")));
    for id in DISKS {
        machine.write(id, MIB / 2, MIB, 0x71);
    }
    for (id, right) in DISKS.iter().zip(&right) {
        oracle::same(&mount.disk(id), right);
    }
    let images = scene.images();
    assert_eq!(images.len(), DISKS.len(), "{images:?}");
    for image in &images {
        let metadata = image.metadata().expect("a scratch image");
        assert!(metadata.len() > SIZE + 16 * MIB, "{metadata:?}");
        assert!(taken(image) >= metadata.len(), "all of it is allocated, and stays so: {metadata:?}");
        assert_eq!(metadata.mode() & 0o077, 0, "it is nobody else's");
    }
    let full = copied(&mount, "current/vda/disk.qcow2", "full.qcow2");
    mount.command(&["release"]).success();
    scene.nothing_is_left();

    // What changed since, on top of it.
    machine.write("vda", 3 * MIB / 4, MIB, 0x72);
    let right = machine.copy("vda", "vda.later");
    let delta = copied(&mount, "checkpoints/monday/vda/delta.qcow2", "delta.qcow2");
    machine.write("vda", 0, SIZE, 0x73);
    let again = copied(&mount, "checkpoints/monday/vda/delta.qcow2", "again.qcow2");
    oracle::same(&delta, &again);
    assert!(taken(&delta) < 2 * MIB, "what did not change is not in it: {}", taken(&delta));
    let mut rebase = tool("qemu-img");
    ok(rebase.args(["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b"]).arg(&full).arg(&delta));
    ok(tool("qemu-img").args(["compare", "-q", "-f", "qcow2", "-F", "raw"]).arg(&delta).arg(&right));
    assert!(mount.unmount().success());
    scene.nothing_is_left();
}

// Nobody is there to end the backup, and there is no room but what was reserved.
on!(a_guest_goes_on_while_the_network_is_away: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_guest_goes_on_while_the_network_is_away(flavor: Flavor) {
    let scene = Scene::new(flavor, ROOM);
    let (machine, mount) = (&scene.machine, scene.mount());
    let right = contents(machine);
    let files = DISKS.map(|id| open_direct(&mount.disk(id)));
    let mut random = Random::new(3);
    read_once(&files[0], &right[0], &mut random).expect("a read");
    scene.network.plugged(false);
    scene.pool.fill();
    for pattern in 0x74..0x77 {
        for id in DISKS {
            let began = Instant::now();
            machine.write(id, 0, SIZE, pattern);
            assert!(began.elapsed() < Duration::from_secs(10), "the guest waited for {:?}", began.elapsed());
        }
    }
    assert!(machine.domain().is_running());
    // Data that nobody has read: what is known to be a hole is confirmed already.
    let began = Instant::now();
    let error = files[1].read_exact_at(&mut [0; 4096], 0).expect_err("nobody confirms it");
    assert!([Errno::IO, Errno::STALE].contains(&errno(&error)), "{error}");
    assert!(began.elapsed() < Duration::from_secs(120), "a read took {:?}", began.elapsed());

    scene.network.plugged(true);
    reads_go_on(&files, &right, &mut random);
    drop(files);
    mount.command(&["release"]).success();
    scene.nothing_is_left();
    assert!(mount.unmount().success());
    assert!(machine.domain().is_running());
}

// A QEMU that drains the requests of its disks waits until the answers of its NBD server are sent.
on!(a_reader_that_is_cut_off_holds_up_no_guest: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_reader_that_is_cut_off_holds_up_no_guest(flavor: Flavor) {
    const LARGE: u64 = 64 * MIB;
    const ROUNDS: u64 = 6;
    let disk = Disk::raw("vda", LARGE).filled(&[(0, LARGE)]);
    let scene = Scene::of(Machine::build(flavor).disk(disk), "256M");
    let (machine, mount) = (&scene.machine, scene.mount());
    let file = open_direct(&mount.disk("vda"));
    let read = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _end = Stop(&stop);
        scope.spawn(|| {
            let mut buffer = vec![0; 1 << 20];
            for at in (0..LARGE / MIB).cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
                match file.read_exact_at(&mut buffer, at * MIB) {
                    Ok(()) => drop(read.fetch_add(1, Ordering::Relaxed)),
                    Err(_) => thread::sleep(Duration::from_millis(100)),
                }
            }
        });
        for round in 0..ROUNDS {
            let before = read.load(Ordering::Relaxed);
            wait_until("reads that go on", NETWORK_LIMIT, || read.load(Ordering::Relaxed) > before + 2 + round);
            scene.network.plugged(false);
            thread::sleep(Duration::from_millis(200));
            let began = Instant::now();
            for command in ["stop", "cont", "system_reset"] {
                machine.qmp().must(command, json!({}));
            }
            assert!(began.elapsed() < Duration::from_secs(5), "the guest waited for {:?}", began.elapsed());
            scene.network.plugged(true);
        }
    });
    drop(file);
    mount.command(&["release"]).success();
    scene.nothing_is_left();
    assert!(mount.unmount().success());
}

/// Tells readers to stop, however the test ends.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

on!(a_daemon_that_dies_apart_from_the_host_leaves_nothing: libvirt = Libvirt);
fn a_daemon_that_dies_apart_from_the_host_leaves_nothing(flavor: Flavor) {
    let scene = Scene::new(flavor, ROOM);
    let mount = scene.mount();
    let open = File::open(mount.disk("vda")).expect("a disk");
    assert_eq!(scene.images().len(), DISKS.len());
    scene.network.plugged(false);
    kill_at_once(&[mount.pid(), mount.guardian()]);
    drop(open);
    drop(mount);
    assert!(has_backup(&scene.machine) && !scene.images().is_empty(), "nobody can end it");
    // A domain of that name on this host is another machine, which needs nothing of that one.
    let here = format!("uri={}", scene.libvirtd.uri());
    assert!(Mount::source(&scene.machine.source(), &here).unmount().success());
    let said = scene.recover_by(&here);
    assert!(said.contains("nothing to recover"), "{said}");
    scene.machine.write("vda", 0, SIZE, 0x77);
    scene.network.plugged(true);
    let said = scene.recover();
    assert!(said.contains("storage pool scratch"), "{said}");
    scene.nothing_is_left();
    // Nor does a domain that has ended keep its scratch images.
    let mount = scene.mount();
    let open = File::open(mount.disk("vda")).expect("a disk");
    kill_at_once(&[mount.pid(), mount.guardian()]);
    drop((open, mount));
    scene.machine.domain().virsh("destroy", &[]).success();
    assert!(!scene.images().is_empty());
    scene.recover();
    wait_until("a pool without scratch images", LIMIT, || scene.images().is_empty());
}

on!(what_is_not_safe_is_refused: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn what_is_not_safe_is_refused(flavor: Flavor) {
    let scene = Scene::new(flavor, LITTLE);
    let good = scene.options("client", "client");
    let without = |what: &str| {
        let options = good.split(',').filter(|option| !option.starts_with(what));
        options.collect::<Vec<_>>().join(",")
    };
    assert!(scene.refused(&without("tls="), USAGE).contains("only with TLS"));
    assert!(scene.refused(&format!("{},insecure", without("tls=")), USAGE).contains("only with TLS"));
    assert!(scene.refused(&without("scratch="), USAGE).contains("scratch=pool:NAME"));
    let nowhere = scene.refused(&good.replace("pool:scratch", "pool:typo"), MOUNT_FAILED);
    assert!(nowhere.contains("no storage pool typo"), "{nowhere}");
    let wrong = scene.refused(&scene.options("stranger", "client"), MOUNT_FAILED);
    assert!(wrong.contains("cannot reach domain"), "{wrong}");

    // There is not that much room.
    let mount = scene.mount();
    let error = File::open(mount.disk("vda")).expect_err("no room");
    assert_eq!(errno(&error), Errno::NOSPC);
    let why = super::last_error(&mount);
    assert!(why.contains("storage pool scratch has") && why.contains("are needed"), "{why}");
    scene.nothing_is_left();
    assert!(mount.unmount().success());

    // One disk fits; whoever is not known by its certificate reads nothing of it.
    let one = |options: &str| Mount::source(&scene.machine.source(), &format!("{options},disks=vda"));
    let mount = one(&scene.options("client", "stranger"));
    assert!(fs::read(mount.disk("vda")).is_err(), "a certificate of another CA");
    mount.command(&["release"]);
    scene.nothing_is_left();
    assert!(mount.unmount().success());
    let mount = one(&good);
    let open = File::open(mount.disk("vda")).expect("a disk");
    let host = scene.network.port(1).ip();
    let export = format!("{}-1-0", mount.id());
    let plain = run(tool("nbdinfo").arg(format!("nbd://{host}:10809/{export}")));
    assert!(plain.code != Some(0) && !plain.stdout.contains("export-size"), "{plain}");
    drop(open);
    assert!(mount.unmount().success());
    scene.nothing_is_left();
}

// The first port is somebody else's.
on!(a_port_that_is_free_is_found: libvirt = Libvirt);
fn a_port_that_is_free_is_found(flavor: Flavor) {
    let scene = Scene::new(flavor, ROOM);
    let script =
        "import socket, time\ns = socket.create_server(('', 10809))\nprint('listens', flush=True)\ntime.sleep(600)";
    let mut taker = scene.network.inside("python3");
    let log = scene.path("taker.log");
    let taker = pullfs_tests::process::Running::start(taker.args(["-c", script]), &log);
    wait_until("somebody on the first port", LIMIT, || {
        fs::read_to_string(&log).is_ok_and(|said| said.contains("listens"))
    });
    let mount = scene.mount();
    let right = scene.machine.copy("vda", "right");
    oracle::same(&mount.disk("vda"), &right);
    let told = scene.machine.domain().virsh("backup-dumpxml", &[]).success();
    assert!(told.contains("port='10810'") && told.contains("tls='yes'"), "{told}");
    assert!(mount.unmount().success());
    drop(taker);
    let options = format!("{},nbd={}", scene.options("client", "client"), scene.network.port(11000));
    let mount = Mount::source(&scene.machine.source(), &options);
    oracle::same(&mount.disk("vda"), &right);
    assert!(scene.machine.domain().virsh("backup-dumpxml", &[]).success().contains("port='11000'"));
    assert!(mount.unmount().success());
    scene.nothing_is_left();
}
