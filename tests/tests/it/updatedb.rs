//! updatedb, which walks all that is mounted each night.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::leftovers::Leftovers;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::process::{ok, run};
use pullfs_tests::tools::workspace;

/// A file of plocate's package.
fn plocate(name: &str) -> PathBuf {
    let path = workspace().join("target/setup/plocate").join(name);
    assert!(path.exists(), "there is no {}: run `make setup`", path.display());
    path
}

/// The list of file systems in a configuration of updatedb.
fn pruned(conf: &str) -> BTreeSet<&str> {
    let line = conf.lines().find_map(|line| line.strip_prefix("PRUNEFS=\"")).expect("a list");
    line.trim_end_matches('"').split(' ').collect()
}

on!(it_takes_no_point_in_time_and_can_be_told_to_pass_by: new = New);
fn it_takes_no_point_in_time_and_can_be_told_to_pass_by(flavor: Flavor) {
    let machine = Machine::build(flavor).disk(Disk::raw("vda", 4 * MIB)).start();
    let mount = Mount::of(&machine);
    let before = Leftovers::of(&machine);
    let conf = mount.beside("updatedb.conf");
    fs::copy(plocate("etc/updatedb.conf"), &conf).expect("a copy");
    let debian = fs::read_to_string(&conf).expect("the configuration");
    for _ in 0..2 {
        ok(Command::new(workspace().join("mount-helpers/prunefs.sh")).arg(&conf));
    }
    let ours = fs::read_to_string(&conf).expect("the configuration");
    assert_eq!(&pruned(&ours) - &pruned(&debian), BTreeSet::from(["fuse.pullfs"]));
    assert_eq!(ours.matches("fuse.pullfs").count(), 1, "{ours}");

    for (conf, found) in [(&debian, true), (&ours, false)] {
        let database = mount.beside("database");
        // The test's own directory may be in one.
        let list: Vec<&str> = pruned(conf).into_iter().filter(|kind| *kind != "tmpfs").collect();
        let mut updatedb = Command::new(plocate("usr/sbin/updatedb.plocate"));
        updatedb.args(["--require-visibility", "no", "--prunepaths", "", "--prune-bind-mounts", "no"]);
        updatedb.arg("--prunefs").arg(list.join(" ")).arg("--database-root").arg(mount.beside(""));
        ok(updatedb.arg("--output").arg(&database));
        let locate = |name: &str| {
            let mut plocate = Command::new(plocate("usr/bin/plocate"));
            run(plocate.arg("--database").arg(&database).arg(name)).stdout
        };
        assert!(locate("daemon.log").contains("/daemon.log"), "what is beside the mount is found");
        assert_eq!(locate("disk.raw").contains("current/vda/disk.raw"), found);
        assert_eq!(mount.state(), "none");
        assert!(before.changes(&Leftovers::of(&machine)).is_empty());
    }
    let no_list = mount.beside("empty.conf");
    fs::write(&no_list, "PRUNENAMES=\".git\"\n").expect("a file");
    let refused = run(Command::new(workspace().join("mount-helpers/prunefs.sh")).arg(&no_list));
    assert!(refused.code == Some(1) && refused.stderr.contains("has no line"), "{refused}");
    assert!(mount.unmount().success());
}
