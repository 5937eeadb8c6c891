//! After a release, an unmount or a signal, QEMU and the host are as they were, and the next backup tool has its turn.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::leftovers::Leftovers;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::{self, END_LIMIT, Mount, MountPoint};
use pullfs_tests::oracle;
use pullfs_tests::process::{has_ended, ok, run, wait_until};
use pullfs_tests::tools::{pullfs, tool};
use rustix::process::Signal;
use serde_json::json;

fn machine(flavor: Flavor) -> Machine {
    let machine = Machine::build(flavor)
        .disk(Disk::qcow2("vda", 8 * MIB).filled(&[(0, 3 * MIB)]))
        .disk(Disk::with_checkpoints(flavor, "vdb", 8 * MIB).filled(&[(0, 3 * MIB)]))
        .start();
    for id in ["vda", "vdb"] {
        machine.add_bitmap(id, "monday", 65536);
        machine.write(id, 2 * MIB, 65536, 0x77);
    }
    machine
}

/// Reads of all kinds, and a guest that writes, so that there is something to clean up.
fn use_it(machine: &Machine, mount: &Mount) {
    for id in ["vda", "vdb"] {
        ok(tool("cmp").args(["-n", "1000000"]).arg(mount.disk(id)).arg(mount.disk(id)));
        machine.write(id, 0, MIB, 0x55);
        fs::read(mount.path(&format!("checkpoints/monday/{id}/dirty.map"))).expect("a map");
        fs::read(mount.path(&format!("checkpoints/monday/{id}/delta.raw"))).expect("a delta");
    }
}

fn empty(dir: &Path) -> bool {
    fs::read_dir(dir).map_or(true, |mut entries| entries.next().is_none())
}

/// `virsh backup-begin` with a checkpoint, and its end; where there is no libvirt, what it does for that.
#[track_caller]
fn next_backup_tool(machine: &Machine) {
    if machine.flavor().libvirt().is_some() {
        return next_tool_of_libvirt(machine);
    }
    let mut qmp = machine.qmp();
    let scratch = machine.dir().join("next.qcow2");
    let (node, socket) = (machine.node("vda"), machine.dir().join("next.nbd"));
    ok(tool("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&scratch).arg("8M"));
    qmp.must("nbd-server-start", json!({"addr": {"type": "unix", "data": {"path": socket}}}));
    let target = json!({
        "driver": "qcow2", "node-name": "next", "backing": node, "file": {"driver": "file", "filename": scratch},
    });
    qmp.must("blockdev-add", target);
    let actions = json!({"actions": [
        {"type": "block-dirty-bitmap-add", "data": {"node": node, "name": "next", "persistent": true}},
        {"type": "block-dirty-bitmap-add", "data": {"node": node, "name": "since", "disabled": true}},
        {"type": "block-dirty-bitmap-merge", "data": {"node": node, "target": "since", "bitmaps": ["monday"]}},
        {"type": "blockdev-backup", "data": {
            "job-id": "next", "device": node, "target": "next", "sync": "none", "auto-dismiss": false}},
    ]});
    qmp.must("transaction", actions);
    qmp.must("block-export-add", json!({"type": "nbd", "id": "next", "node-name": "next", "name": "vda"}));
    drop(qmp);
    machine.write("vda", MIB, 65536, 0x66);
    ok(tool("nbdinfo").arg(format!("nbd+unix:///vda?socket={}", socket.display())));
    let mut qmp = machine.qmp();
    qmp.must("nbd-server-stop", json!({}));
    qmp.wait_event("BLOCK_EXPORT_DELETED", END_LIMIT, |data| data["id"] == "next");
    qmp.must("job-cancel", json!({"id": "next"}));
    qmp.wait_event("JOB_STATUS_CHANGE", END_LIMIT, |data| data["id"] == "next" && data["status"] == "concluded");
    qmp.must("job-dismiss", json!({"id": "next"}));
    qmp.must("blockdev-del", json!({"node-name": "next"}));
    for name in ["next", "since"] {
        qmp.must("block-dirty-bitmap-remove", json!({"node": node, "name": name}));
    }
    drop(qmp);
    for file in [scratch, socket] {
        let _ = fs::remove_file(file);
    }
}

#[track_caller]
fn next_tool_of_libvirt(machine: &Machine) {
    let domain = machine.domain();
    let file = |name: &str, xml: String| {
        let path = machine.dir().join(name);
        fs::write(&path, xml).expect("a description");
        path.display().to_string()
    };
    let socket = machine.dir().join("next.nbd");
    let backup = format!(
        "<domainbackup mode='pull'><incremental>monday</incremental><server transport='unix' socket='{}'/></domainbackup>",
        socket.display()
    );
    let backup = file("backup.xml", backup);
    let checkpoint = file("next.xml", "<domaincheckpoint><name>next</name></domaincheckpoint>".to_owned());
    domain.virsh("backup-begin", &[&backup, &checkpoint]).success();
    machine.write("vda", MIB, 65536, 0x66);
    ok(tool("nbdinfo").arg(format!("nbd+unix:///vda?socket={}", socket.display())));
    domain.virsh("domjobabort", &[]).success();
    wait_until("the end of a backup", END_LIMIT, || domain.virsh("backup-dumpxml", &[]).code != Some(0));
    domain.virsh("checkpoint-delete", &["next"]).success();
}

on!(release_and_unmount_leave_nothing: new = New, old = Old, daemon = Daemon, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn release_and_unmount_leave_nothing(flavor: Flavor) {
    let machine = machine(flavor);
    let nothing = Leftovers::of(&machine);
    let mount = Mount::of(&machine);
    let id = mount.id();
    let run_dir = Path::new("/run/pullfs").join(&id);
    use_it(&machine, &mount);
    let held = Leftovers::of(&machine);
    assert!(held.any_job(), "{held:?}");
    if flavor.libvirt().is_none() {
        assert!(held.of_prefix(&id).len() >= 4, "everything has our name: {held:?}");
    }
    mount.command(&["release"]).success();
    assert_eq!(Leftovers::of(&machine), nothing, "after the release");
    assert!(empty(&mount.scratch()), "scratch after the release");
    assert_eq!(mount.state(), "none");
    assert!(mount.status()["last_end"]["reason"].is_string(), "it says why it ended");
    mount.command(&["release"]).refused(3);
    next_backup_tool(&machine);
    assert_eq!(Leftovers::of(&machine), nothing);

    use_it(&machine, &mount);
    assert_eq!(mount.status()["point"]["number"], 2);
    let scratch = mount.scratch();
    assert!(mount.unmount().success());
    if flavor.libvirt().is_none() {
        assert!(machine.dir().join("pull.qmp").exists(), "QEMU's own socket stays");
    }
    assert_eq!(Leftovers::of(&machine), nothing, "after the unmount");
    assert!(empty(&scratch), "scratch after the unmount");
    assert!(!run_dir.exists(), "{} after the unmount", run_dir.display());
    next_backup_tool(&machine);
    // The monitor is free again too.
    let again = Mount::of(&machine);
    assert!(again.unmount().success());
}

on!(a_mount_that_was_never_read_leaves_nothing: new = New, old = Old, daemon = Daemon, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_mount_that_was_never_read_leaves_nothing(flavor: Flavor) {
    let machine = machine(flavor);
    let nothing = Leftovers::of(&machine);
    let mount = Mount::of(&machine);
    let run_dir = Path::new("/run/pullfs").join(mount.id());
    assert!(mount.unmount().success());
    assert_eq!(Leftovers::of(&machine), nothing);
    assert!(!run_dir.exists());
}

on!(a_signal_unmounts_and_leaves_nothing: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_signal_unmounts_and_leaves_nothing(flavor: Flavor) {
    for signal in [Signal::TERM, Signal::INT] {
        let machine = machine(flavor);
        let nothing = Leftovers::of(&machine);
        let mount = Mount::of(&machine);
        let run_dir = Path::new("/run/pullfs").join(mount.id());
        use_it(&machine, &mount);
        assert!(mount.signal(signal).success(), "an orderly end");
        assert_eq!(Leftovers::of(&machine), nothing, "after {signal:?}");
        assert!(!run_dir.exists());
        next_backup_tool(&machine);
    }
}

on!(the_background_daemon_ends_with_its_mount: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn the_background_daemon_ends_with_its_mount(flavor: Flavor) {
    let machine = machine(flavor);
    let nothing = Leftovers::of(&machine);
    for command in ["pullfs", "umount", "fusermount3"] {
        let point = MountPoint::new();
        mount::mount(&machine.source(), &point.mnt(), &machine.options(&point.scratch())).success();
        assert!(mount::is_mounted(&point.mnt()), "it returns when the mount answers");
        let status = fs::read(point.mnt().join("status.json")).expect("status.json");
        let status: serde_json::Value = serde_json::from_slice(&status).expect("JSON");
        let pid = status["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).expect("a process id");
        assert!(!has_ended(pid), "pid is the daemon's");
        ok(Command::new("head").arg("-c1").arg(point.mnt().join("current/vda/disk.raw")));
        let done = match command {
            "pullfs" => run(Command::new(pullfs()).arg("umount").arg(point.mnt())),
            "umount" => run(tool("umount").arg(point.mnt())),
            _ => run(tool("fusermount3").arg("-u").arg(point.mnt())),
        };
        done.success();
        assert!(!mount::is_mounted(&point.mnt()));
        let gone = || has_ended(pid);
        if command == "pullfs" {
            assert!(gone(), "`pullfs umount` waits for the daemon");
        }
        wait_until("the daemon's end", END_LIMIT, gone);
        assert_eq!(Leftovers::of(&machine), nothing, "after {command}");
    }
}

on!(the_machine_may_go_first: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn the_machine_may_go_first(flavor: Flavor) {
    the_machine_goes(flavor, Machine::kill);
    if flavor.libvirt().is_some() {
        the_machine_goes(flavor, |machine| drop(machine.domain().virsh("destroy", &[]).success()));
    }
}

#[track_caller]
fn the_machine_goes(flavor: Flavor, end: fn(&mut Machine)) {
    let mut machine = machine(flavor);
    let mount = Mount::of(&machine);
    let open = fs::File::open(mount.disk("vda")).expect("a disk");
    end(&mut machine);
    let read = || std::os::unix::fs::FileExt::read_at(&open, &mut [0; 512], 0);
    wait_until("reads to fail", Duration::from_secs(10), || read().is_err());
    // The mount itself answers: it says what happened.
    let status = mount.status();
    assert!(status["last_end"]["reason"].is_string() || status["last_error"]["message"].is_string(), "{status}");
    drop(open);
    let scratch = mount.scratch();
    let run_dir = Path::new("/run/pullfs").join(mount.id());
    assert!(mount.unmount().success(), "nothing can be left in what has ended");
    assert!(empty(&scratch) && !run_dir.exists(), "what was on the host");
}

on!(the_guest_keeps_what_it_wrote: new = New, old = Old, daemon = Daemon, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn the_guest_keeps_what_it_wrote(flavor: Flavor) {
    let machine = machine(flavor);
    let mount = Mount::of(&machine);
    use_it(&machine, &mount);
    machine.discard("vda", 2 * MIB, MIB);
    machine.write("vdb", 8 * MIB - 512, 512, 0x44);
    // Through the filter that holds the point in time, which is not in the way.
    let during = ["vda", "vdb"].map(|id| machine.copy(id, &format!("{id}.during")));
    assert!(mount.unmount().success());
    for (id, during) in ["vda", "vdb"].iter().zip(&during) {
        oracle::same(&machine.copy(id, &format!("{id}.after")), during);
    }
}
