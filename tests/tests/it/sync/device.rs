//! A block device is a copy like any other, but for its identity, which is not beside it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::process::{ok, run};
use pullfs_tests::tools::tool;
use serde_json::{Value, json};

use super::{BUSY, SYSTEM, USAGE, command, full, record, since};

/// A block device over a file; gone when dropped.
struct Loop(PathBuf);

impl Loop {
    #[track_caller]
    fn over(file: &Path) -> Self {
        Self(ok(tool("losetup").args(["--find", "--show"]).arg(file)).trim().into())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        run(tool("losetup").arg("--detach").arg(&self.0));
    }
}

on!(a_block_device_is_a_copy_too: new = New, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_block_device_is_a_copy_too(flavor: Flavor) {
    let size = 8 * MIB + 512;
    let machine = Machine::build(flavor).disk(Disk::qcow2("vda", size).filled(&[(MIB, 2 * MIB)])).start();
    let before = machine.copy("vda", "before");
    let mount = Mount::of(&machine);
    record(&machine, &mount, "monday", "vda");
    let file = mount.beside("file");
    let identity = mount.beside("identity");
    let device = |length: u64| {
        fs::write(&file, vec![0x55; usize::try_from(length).expect("a length")]).expect("a file");
        Loop::over(&file)
    };
    let sync = |source: &Path, dest: &Loop| run(command(source, &dest.0).arg("--identity").arg(&identity));

    let small = device(4 * MIB);
    assert!(sync(&full(&mount, "vda"), &small).refused(SYSTEM).contains("too small"));
    assert!(fs::read(&file).expect("the file").iter().all(|&byte| byte == 0x55) && !identity.exists());
    drop(small);
    let large = device(10 * MIB);
    let line = run(&mut command(&full(&mount, "vda"), &large.0)).refused(USAGE);
    assert!(line.contains("--identity"), "{line}");
    sync(&full(&mount, "vda"), &large).success();
    let same = |with: &Path| ok(tool("cmp").args(["-n", &size.to_string()]).arg(&large.0).arg(with));
    same(&before);
    let mut noted: Value = serde_json::from_slice(&fs::read(&identity).expect("the identity")).expect("JSON");
    noted["checkpoint"] = json!("monday");
    fs::write(&identity, noted.to_string()).expect("the identity");
    mount.control("release").expect("release");
    machine.write("vda", size - 512, 512, 0x71);
    machine.discard("vda", MIB, MIB);
    let after = machine.copy("vda", "after");
    sync(&since(&mount, "monday", "vda"), &large).success();
    same(&after);
    let mut rest = [0];
    File::open(&large.0).expect("the device").read_exact_at(&mut rest, size).expect("past the disk");
    assert_eq!(rest, [0x55], "what lies past the disk is not touched");

    // A device that is in use is not written to.
    let mounted = mount.beside("mounted");
    fs::create_dir(&mounted).expect("a directory");
    ok(tool("mkfs.ext4").arg("-q").arg(&large.0));
    ok(tool("mount").arg(&large.0).arg(&mounted));
    let refused = sync(&full(&mount, "vda"), &large);
    ok(tool("umount").arg(&mounted));
    assert!(refused.refused(BUSY).contains("mounted"));
    drop(large);
    assert!(mount.unmount().success());
}
