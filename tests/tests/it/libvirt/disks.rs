//! Which disks of a domain are shown, and why others are not; and whose files QEMU can use.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use pullfs_tests::flavor::Flavor;
use pullfs_tests::libvirt::{Account, Libvirtd};
use pullfs_tests::mount::{Mount, mount};
use pullfs_tests::oracle;
use pullfs_tests::process::ok;
use pullfs_tests::tools::tool;
use serde_json::Value;

use super::{DISKS, LIMIT, SIZE, builder, last_error, nothing_is_left};

fn skipped(status: &Value, name: &str) -> String {
    let all = status["skipped"].as_array().expect("a list");
    let found = all.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("no {name} in {status}"));
    found["reason"].as_str().expect("a reason").to_owned()
}

on!(what_is_no_disk_to_back_up_is_skipped_with_the_reason: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn what_is_no_disk_to_back_up_is_skipped_with_the_reason(flavor: Flavor) {
    let images = tempfile::Builder::new().prefix("pullfs-images-").tempdir().expect("a directory");
    let disk = |name: &str, kind: &str, rest: &str| {
        let image = images.path().join(format!("{name}.raw"));
        fs::write(&image, vec![0x11; 1 << 20]).expect("an image");
        let source = format!("<source file='{}'/>", image.display());
        let bus = if kind == "cdrom" { "ide" } else { "virtio" };
        format!(
            "<disk type='file' device='{kind}'><driver name='qemu' type='raw'/>{source}<target dev='{name}' bus='{bus}'/>\
             {rest}</disk>"
        )
    };
    let machine = builder(flavor)
        .devices(&disk("hda", "cdrom", "<readonly/>"))
        .devices("<disk type='file' device='cdrom'><target dev='hdb' bus='ide'/><readonly/></disk>")
        .devices(&disk("vdr", "disk", "<readonly/>"))
        .devices(&disk("vds", "disk", "<shareable/>"))
        .start();
    let right = machine.copy("vda", "right");
    let mount = Mount::with(&machine, "disks=vda");
    let status = mount.status_of_machine();
    for (name, reason) in
        [("hda", "disks="), ("vdb", "left out by the option disks="), ("vdr", "disks="), ("hdb", "disks=")]
    {
        assert!(skipped(&status, name).contains(reason), "{status}");
    }
    assert_eq!(ok(tool("ls").arg(mount.path("current"))), "vda\n");
    oracle::same(&mount.disk("vda"), &right);
    assert!(mount.unmount().success());

    let mount = Mount::of(&machine);
    let status = mount.status_of_machine();
    for (name, reason) in [
        ("hda", "it is a removable medium"),
        ("hdb", "there is no medium in it"),
        ("vdr", "it is read-only"),
        ("vds", "other machines may write to it"),
    ] {
        assert_eq!(skipped(&status, name), reason);
    }
    assert_eq!(ok(tool("ls").arg(mount.path("current"))), "vda\nvdb\n");
    oracle::same(&mount.disk("vda"), &right);
    mount.command(&["release"]).success();
    nothing_is_left(&machine, &mount);
    assert!(mount.unmount().success());
    let wrong = Mount::of(&machine);
    let mnt = wrong.beside("mnt2");
    fs::create_dir(&mnt).expect("a directory");
    let refused = mount_at(&machine, &mnt, "disks=hda").refused(32);
    assert!(refused.contains("disk hda") && refused.contains("left out") || refused.contains("removable"), "{refused}");
    assert!(wrong.unmount().success());
}

fn mount_at(
    machine: &pullfs_tests::machine::Machine,
    mnt: &std::path::Path,
    options: &str,
) -> pullfs_tests::process::Finished {
    mount(&machine.source(), mnt, &machine.options(options))
}

on!(qemu_of_another_user_is_let_in: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn qemu_of_another_user_is_let_in(flavor: Flavor) {
    let version = flavor.libvirt().expect("a flavor of libvirt's");
    let libvirtd = Arc::new(Libvirtd::start_as(version, Account::LibvirtQemu));
    let machine = builder(flavor).on(&libvirtd).start();
    let right = DISKS.map(|id| machine.copy(id, &format!("{id}.right")));
    // Access control lists, which not every /tmp has.
    let scratch = tempfile::Builder::new().prefix("pullfs-scratch-").tempdir_in("/var/tmp").expect("a directory");
    fs::set_permissions(scratch.path(), Permissions::from_mode(0o711)).expect("modes");
    let mount = Mount::with(&machine, &format!("scratch={}", scratch.path().display()));
    let open = File::open(mount.disk("vda")).expect("a disk");
    for id in DISKS {
        machine.write(id, 0, SIZE, 0x71);
    }
    for (id, copy) in DISKS.iter().zip(&right) {
        oracle::same(&mount.disk(id), copy);
    }
    drop(open);
    mount.command(&["release"]).success();
    assert_eq!(fs::read_dir(scratch.path()).expect("a directory").count(), 0);

    // Where it cannot come, nothing is left, and the reason is told.
    assert!(mount.unmount().success());
    fs::set_permissions(scratch.path(), Permissions::from_mode(0o700)).expect("modes");
    let mount = Mount::with(&machine, &format!("scratch={}", scratch.path().display()));
    let began = std::time::Instant::now();
    assert!(File::open(mount.disk("vda")).is_err());
    assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());
    let why = last_error(&mount);
    assert!(why.contains("scratch=") && why.contains("64055"), "{why}");
    assert_eq!(fs::read_dir(scratch.path()).expect("a directory").count(), 0);
    nothing_is_left(&machine, &mount);
    assert!(mount.unmount().success());
}
