//! The harness itself: a test that cannot see a difference proves nothing.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

mod libvirt;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::guest::Guest;
use pullfs_tests::leftovers::Leftovers;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::process::{ok, run, wait_until};
use pullfs_tests::proxy::Proxy;
use pullfs_tests::qmp::Qmp;
use pullfs_tests::relay::{MOMENTS, Relay};
use pullfs_tests::stalls::Stalls;
use pullfs_tests::tmpfs::Tmpfs;
use pullfs_tests::write_times::WriteTimes;
use pullfs_tests::{guest, oracle, scattered, snapshot, tools};
use serde_json::json;

/// Writes, discards and zeroes of each flavor reach the disk, and only where they should.
fn the_guest_writes(flavor: Flavor) {
    if !flavor.available() {
        return;
    }
    let machine = Machine::build(flavor)
        .disk(Disk::qcow2("vda", 16 * MIB).filled(&[(0, 4 * MIB)]))
        .disk(Disk::raw("vdb", 16 * MIB).filled(&[(0, 4 * MIB)]))
        .start();
    for id in ["vda", "vdb"] {
        machine.add_bitmap(id, "since", 65536);
        let before = machine.copy(id, "before.raw");
        let changes = || oracle::changes(&machine, id, &[&machine.node(id)], "since", 65536).dirty();
        assert!(changes().is_empty());

        machine.write(id, MIB, 65536, 0x22);
        machine.discard(id, 2 * MIB, 65536);
        machine.write_zeroes(id, 3 * MIB, 65536);
        let after = machine.copy(id, "after.raw");
        let (before, after) = (fs::read(before).expect("a copy"), fs::read(after).expect("a copy"));
        assert_eq!(before.len(), after.len());
        let mut expected = before;
        expected[1 << 20..][..65536].fill(0x22);
        expected[2 << 20..][..65536].fill(0);
        expected[3 << 20..][..65536].fill(0);
        assert!(expected == after, "{id}: the guest's requests are on the disk");

        assert_eq!(changes(), [(MIB, 65536), (2 * MIB, 65536), (3 * MIB, 65536)]);
        let data = oracle::allocation(&machine, id).data();
        assert!(data.iter().all(|extent| extent.0 + extent.1 <= 4 * MIB), "{id}: {data:?}");
    }
}

#[test]
fn the_guest_writes_new() {
    the_guest_writes(Flavor::New);
}

#[test]
fn the_guest_writes_old() {
    the_guest_writes(Flavor::Old);
}

#[test]
fn the_guest_writes_libvirt() {
    the_guest_writes(Flavor::Libvirt);
}

#[test]
fn the_guest_writes_libvirt_old() {
    the_guest_writes(Flavor::LibvirtOld);
}

#[test]
fn the_guest_writes_daemon() {
    the_guest_writes(Flavor::Daemon);
}

#[test]
fn a_leftover_is_seen() {
    if !Flavor::New.available() {
        return;
    }
    let machine = Machine::build(Flavor::New).disk(Disk::qcow2("vda", MIB)).start();
    let before = Leftovers::of(&machine);
    assert_eq!(before, Leftovers::of(&machine));
    machine.qmp().must("blockdev-add", json!({"driver": "null-co", "node-name": "left", "size": 1}));
    let after = Leftovers::of(&machine);
    assert_ne!(before, after);
    assert_eq!(after.of_prefix("lef").len(), 1);
    machine.qmp().must("blockdev-del", json!({"node-name": "left"}));
    let socket = machine.dir().join("s");
    let address = json!({"addr": {"type": "unix", "data": {"path": socket}}});
    machine.qmp().must("nbd-server-start", address);
    assert_ne!(before, Leftovers::of(&machine), "a NBD server is a leftover");
    machine.qmp().must("nbd-server-stop", json!({}));
    let node = machine.node("vda");
    let changed = |command: &str, arguments: serde_json::Value, kind: &str| {
        machine.qmp().must(command, arguments);
        let changes = before.changes(&Leftovers::of(&machine));
        assert!(changes.iter().any(|change| change[2..].starts_with(kind)), "{kind}: {changes:?}");
    };
    changed("stop", json!({}), "status ");
    machine.qmp().must("cont", json!({}));
    changed("block-dirty-bitmap-add", json!({"node": node, "name": "left"}), "bitmap fmt-vda:left");
    machine.qmp().must("block-dirty-bitmap-remove", json!({"node": node, "name": "left"}));
    let threshold = |bytes: u64| json!({"node-name": "file-vda", "write-threshold": bytes});
    changed("block-set-write-threshold", threshold(1), "node file-vda");
    machine.qmp().must("block-set-write-threshold", threshold(0));
    before.come_back(&machine, Duration::from_secs(5));
}

/// A relay that breaks nothing would make every soak a success.
#[test]
fn a_proxy_breaks_connections_until_it_is_calm() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let [server, listens] = ["server", "proxy"].map(|name| dir.path().join(name));
    let listener = UnixListener::bind(&server).expect("a socket");
    // Says what it hears, until the test ends.
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            thread::spawn(move || std::io::copy(&mut &client, &mut &client));
        }
    });
    let proxy = Proxy::before(&server, &listens, 1);
    let said = vec![0x5a; 64 << 10];
    let comes_back = |mut client: &UnixStream, said: &[u8]| {
        let mut heard = vec![0; said.len()];
        client.write_all(said).and_then(|()| client.read_exact(&mut heard)).is_ok_and(|()| heard == said)
    };
    let connect = || UnixStream::connect(&listens).expect("the proxy");
    assert!((0..8).any(|_| !comes_back(&connect(), &said)), "nothing broke");
    assert!(proxy.injected().cut_requests.load(Ordering::Relaxed) > 0);
    proxy.calm();
    let (old, mut young) = (connect(), connect());
    assert!(comes_back(&old, &said) && comes_back(&young, b"hello"));
    let _nobody_new = proxy.nobody_new();
    assert!(comes_back(&old, &said), "who has been there stays");
    assert!(young.read(&mut [0]).is_ok_and(|read| read == 0), "who is shaking hands is cut");
}

/// What travels through the relay is what travels without it, descriptors too.
#[test]
fn a_relay_passes_all_and_counts_what_changes_something() {
    if !Flavor::New.available() {
        return;
    }
    let machine = Machine::build(Flavor::New).disk(Disk::qcow2("vda", MIB).filled(&[(0, 65536)])).start();
    let before = Leftovers::of(&machine);
    let relay = Relay::before(&machine.dir().join("pull.qmp"));
    let mount = Mount::source(&relay.source(), "");
    assert_eq!(relay.commands(), [""; 0], "mounting changes nothing");
    let copy = machine.copy("vda", "before");
    oracle::same(&mount.disk("vda"), &copy);
    let commands = relay.commands();
    for command in ["add-fd", "getfd", "transaction", "block-export-add"] {
        assert_eq!(commands.iter().filter(|one| *one == command).count(), 1, "{command} in {commands:?}");
    }
    relay.count();
    mount.command(&["release"]).success();
    let commands = relay.commands();
    assert!(commands.iter().any(|one| one == "block-export-del"), "{commands:?}");
    assert!(!commands.iter().any(|one| one == "transaction"), "counted anew: {commands:?}");
    assert!(mount.unmount().success());
    before.come_back(&machine, Duration::from_secs(5));
    // The next client gets through as well.
    assert!(Mount::source(&relay.source(), "").unmount().success());
}

/// Before the command, QEMU knows nothing of it; after it, all of it.
#[test]
fn a_relay_kills_before_or_after_a_command() {
    if !Flavor::New.available() {
        return;
    }
    let machine = Machine::build(Flavor::New).disk(Disk::qcow2("vda", MIB)).start();
    let relay = Relay::before(&machine.dir().join("pull.qmp"));
    let socket = PathBuf::from(relay.source().strip_prefix("qmp:").expect("a source"));
    for (moment, expected) in MOMENTS.into_iter().zip([0, 1]) {
        let mut victim = Command::new("sleep").arg("60").spawn().expect("sleep");
        relay.kill_at(2, moment, &[victim.id()]);
        let mut qmp = Qmp::connect(&socket, Duration::from_secs(5)).expect("the relay");
        let add = |name: &str| json!({"driver": "null-co", "node-name": name, "size": 1});
        qmp.must("query-jobs", json!({}));
        qmp.must("blockdev-add", add("first"));
        assert!(!relay.has_killed());
        let answer = qmp.execute("blockdev-add", add("second"));
        assert!(answer.is_err() && relay.has_killed(), "{answer:?}");
        assert_eq!(victim.wait().expect("sleep").signal(), Some(9));
        assert_eq!(relay.commands(), ["blockdev-add"; 2]);
        assert_eq!(Leftovers::of(&machine).of_prefix("second").len(), expected, "{moment:?}");
        let mut next = Qmp::connect(&socket, Duration::from_secs(5)).expect("the relay serves on");
        for name in ["first", "second"] {
            let _ = next.execute("blockdev-del", json!({"node-name": name}));
        }
    }
}

#[test]
fn a_stored_bitmap_is_read() {
    if !Flavor::New.available() {
        return;
    }
    let mut machine = Machine::build(Flavor::New).disk(Disk::qcow2("vda", MIB)).start();
    machine.add_bitmap("vda", "since", 65536);
    machine.write("vda", 128 << 10, 512, 0x33);
    machine.quit();
    let map = oracle::stored_bitmap(machine.image("vda"), "since");
    assert_eq!(map.dirty(), [(128 << 10, 65536)]);
}

/// What a restart, an external snapshot and a power failure leave of content and bitmaps; the model builds on it.
fn a_machine_starts_again(flavor: Flavor) {
    if !flavor.available() {
        return;
    }
    let mut machine = Machine::build(flavor)
        .disk(Disk::qcow2("vda", 2 * MIB + 512).cluster(4096).filled(&[(0, MIB)]))
        .disk(Disk::raw("vdb", 2 * MIB + 512).filled(&[(0, MIB)]))
        .start();
    let bitmaps = |machine: &Machine, id: &str| {
        let nodes = machine.qmp().must("query-named-block-nodes", json!({ "flat": true }));
        let node = machine.node(id);
        let found = nodes.as_array().expect("nodes").iter().find(|found| found["node-name"] == *node);
        let bitmaps = found.expect("the active layer")["dirty-bitmaps"].as_array().cloned().unwrap_or_default();
        let told = |bitmap: serde_json::Value| (bitmap["name"].clone(), bitmap["inconsistent"] == true);
        bitmaps.into_iter().map(told).collect::<Vec<_>>()
    };
    for id in ["vda", "vdb"] {
        machine.add_bitmap(id, "monday", 4096);
        machine.write(id, MIB, 512, 0x61);
        machine.resize(id, 3 * MIB);
    }
    snapshot::external(&mut machine, &["vda", "vdb"], "s1", 65536);
    for id in ["vda", "vdb"] {
        // libvirt has no checkpoints of raw disks.
        let goes_on = id == "vda" || flavor.libvirt().is_none();
        let expected = goes_on.then(|| (json!("monday"), false));
        assert_eq!(bitmaps(&machine, id), Vec::from_iter(expected), "{id} goes on in the overlay");
        machine.write(id, 0, 512, 0x62);
    }
    let before = ["vda", "vdb"].map(|id| fs::read(machine.copy(id, id)).expect("a copy"));
    assert!(before.iter().all(|bytes| bytes.len() == 3 << 20 && bytes[0] == 0x62 && bytes[1 << 20] == 0x61));
    machine.quit();
    machine.restart();
    assert_eq!(bitmaps(&machine, "vda"), [(json!("monday"), false)]);
    assert_eq!(bitmaps(&machine, "vdb"), [], "it was not persistent below");
    machine.add_bitmap("vdb", "tuesday", 65536);
    machine.kill();
    machine.restart();
    assert_eq!(bitmaps(&machine, "vda"), [(json!("monday"), true)]);
    assert_eq!(bitmaps(&machine, "vdb"), [], "it was in memory alone");
    for (id, before) in ["vda", "vdb"].iter().zip(&before) {
        assert!(fs::read(machine.copy(id, id)).expect("a copy") == *before, "{id} after two restarts");
    }
}

#[test]
fn a_machine_starts_again_new() {
    a_machine_starts_again(Flavor::New);
}

#[test]
fn a_machine_starts_again_old() {
    a_machine_starts_again(Flavor::Old);
}

#[test]
fn a_machine_starts_again_libvirt() {
    a_machine_starts_again(Flavor::Libvirt);
}

#[test]
fn a_machine_starts_again_libvirt_old() {
    a_machine_starts_again(Flavor::LibvirtOld);
}

#[test]
fn a_scattered_bitmap_is_loaded() {
    if !Flavor::New.available() {
        return;
    }
    let images = tempfile::tempdir().expect("a temporary directory");
    let image = images.path().join("vda.qcow2");
    scattered::image(&image, "many", 400_000);
    let machine = Machine::build(Flavor::New).disk(Disk::qcow2("vda", 0).from_image(&image)).start();
    let node = machine.node("vda");
    let dirty = oracle::changes(&machine, "vda", &[&node], "many", scattered::GRANULARITY).dirty();
    assert_eq!(u64::try_from(dirty.len()).ok(), Some(400_000));
    assert_eq!(dirty[..2], [(0, 512), (1024, 512)]);
}

fn the_guest_counts(flavor: Flavor) {
    if !flavor.available() {
        return;
    }
    let guest = Guest::boot(flavor);
    let seen = guest.counter();
    guest.wait_past(seen + 20);
    guest.machine().qmp().must("stop", json!({}));
    let (seen, mut found) = (guest.counter(), Vec::new());
    for id in ["vda", "vdb"] {
        let copy = guest.machine().copy(id, &format!("{id}.copy"));
        oracle::clean_ext4(&copy);
        found.push(oracle::counter_in(&copy));
    }
    assert!(found[0] == found[1] || found[0] == found[1] + 1, "{found:?}");
    assert!(found[1] >= seen && found[0] <= seen + 1, "{found:?} when {seen} was seen");
}

#[test]
fn the_guest_counts_new() {
    the_guest_counts(Flavor::New);
}

#[test]
fn the_guest_counts_old() {
    the_guest_counts(Flavor::Old);
}

#[test]
fn the_guest_counts_libvirt() {
    the_guest_counts(Flavor::Libvirt);
}

#[test]
fn the_guest_counts_libvirt_old() {
    the_guest_counts(Flavor::LibvirtOld);
}

#[test]
fn a_guest_says_what_is_on_copies() {
    if !Flavor::New.available() {
        return;
    }
    let guest = Guest::daily(Flavor::New);
    let mut copies = Vec::new();
    let mut known = Vec::new();
    for round in 0..2 {
        guest.wait_past(guest.counter() + 3);
        guest.machine().qmp().must("stop", json!({}));
        known.push(guest.counter());
        copies.push(guest.machine().copy("vda", &format!("{round}.raw")));
        guest.machine().qmp().must("cont", json!({}));
    }
    let days = guest::days(Flavor::New, &copies);
    for (days, known) in days.iter().zip(&known) {
        let newest = days.iter().next_back().copied();
        assert!(newest == Some(*known) || newest == Some(known + 1), "{days:?} when {known} was seen");
        assert_eq!(days.iter().copied().collect::<Vec<_>>(), (1..=newest.unwrap_or(0)).collect::<Vec<_>>());
    }
    assert!(known[0] + 3 <= known[1], "{known:?}");
}

/// Its clock stands still when the machine does, so that is for the machine's events to tell.
#[test]
fn a_guest_tells_its_slowest_write_and_when_it_stood_still() {
    if !Flavor::New.available() {
        return;
    }
    let guest = Stalls::boot(Flavor::New, 16);
    guest.wait_more(40);
    assert!(guest.said().contains("pass=1 verified"), "{}", guest.said());
    assert_eq!(guest.stops(), [json!(null); 0]);
    let throttle = |bytes: u64| {
        let limits = json!({
            "id": "/machine/peripheral/vda/virtio-backend", "bps": 0, "bps_rd": 0, "bps_wr": bytes,
            "iops": 0, "iops_rd": 0, "iops_wr": 0,
        });
        guest.machine().qmp().must("block_set_io_throttle", limits);
    };
    // Each write is of 64 KiB.
    throttle(128 << 10);
    wait_until("a slow write", Duration::from_secs(60), || guest.longest() > Duration::from_millis(400));
    throttle(0);
    guest.machine().qmp().must("stop", json!({}));
    guest.machine().qmp().must("cont", json!({}));
    assert_eq!(guest.stops().len(), 1);
    assert_eq!(guest.status(), "running");
}

#[test]
fn a_guest_tells_how_long_small_writes_take() {
    if !Flavor::New.available() {
        return;
    }
    let limits = json!({"iops-total": 100});
    let guest = WriteTimes::boot(Flavor::New, 16, Some(&limits));
    let times = guest.of_next(3);
    // The bucket of a throttle group lets a tenth of a second's pass at once; a second is longer if its last write was slow.
    assert!((1..=400).contains(&times.count()), "{times:?}");
    assert!(times.longest() >= Duration::from_millis(8), "they wait for each other: {times:?}");
    assert!(times.permille(500) <= times.permille(990) && times.permille(990) <= times.longest(), "{times:?}");
}

#[test]
fn a_tmpfs_fills_up() {
    let small = Tmpfs::new("1m");
    assert!(small.is_empty() && small.free() == 1 << 20);
    fs::remove_file(small.fill()).expect("the file that filled it");
    assert!(small.is_empty() && small.free() == 1 << 20);
}

#[test]
fn a_slow_program_is_ended() {
    let slow = std::panic::catch_unwind(|| {
        pullfs_tests::process::run_within(Command::new("sleep").arg("60"), Duration::from_millis(50));
    });
    assert!(slow.is_err());
    assert_eq!(run(Command::new("sh").args(["-c", "exit 7"])).code, Some(7));
}

/// APT's sources come in two formats, and each machine has its own mirror.
#[test]
fn backports_are_derived_from_the_machines_own_source() {
    let script = tools::workspace().join("tests/setup/backports.sh");
    let derive = |apt: &Path| run(Command::new(&script).arg(apt).arg("bookworm"));
    let deb822 = "Types: deb\n# comment\nURIs: http://mirror.example/debian-security\nSuites: bookworm-security\n\n\
                  Enabled: no\nTypes: deb\nURIs: http://wrong.example/debian\nSuites: bookworm\n\n\
                  Types: deb deb-src\nURIs: http://mirror.example/debian\n# comment\n\
                  Suites: bookworm bookworm-updates\nComponents: main\nSigned-By:\n -----BEGIN\n .\n -----END\n";
    let oneline = "deb cdrom:[Debian 12]/ bookworm main\n# deb http://wrong.example/debian bookworm main\n\
                   deb-src http://wrong.example/debian bookworm main\n\
                   deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main contrib\n";
    let cases = [
        (
            "sources.list.d/debian.sources",
            deb822,
            "sources.list.d/pullfs-backports.sources",
            "Types: deb\nURIs: http://mirror.example/debian\nSigned-By:\n -----BEGIN\n .\n -----END\n\
             Suites: bookworm-backports\nComponents: main\n",
        ),
        (
            "sources.list",
            oneline,
            "sources.list.d/pullfs-backports.list",
            "deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm-backports main\n",
        ),
    ];
    for (file, content, ours, expected) in cases {
        let apt = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(apt.path().join("sources.list.d")).expect("a directory");
        assert_eq!(derive(apt.path()).code, Some(3), "no source, no suite");
        fs::write(apt.path().join(file), content).expect("a source");
        derive(apt.path()).success();
        let derived = fs::read_to_string(apt.path().join(ours)).expect("the derived source");
        assert_eq!(derived, expected);
        assert_eq!(derive(apt.path()).success(), "", "the second time there is nothing to do");
    }
    ok(Command::new("sh").arg("-n").arg(&script));
}
