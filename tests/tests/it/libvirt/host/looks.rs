//! What a look costs, and gives.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::Instant;

use pullfs_tests::flavor::Flavor;
use pullfs_tests::mount::{END_LIMIT, is_mounted};
use pullfs_tests::namespace::Namespace;
use pullfs_tests::oracle;
use pullfs_tests::process::{run, run_within, wait_until};
use pullfs_tests::tools::pullfs;
use pullfs_tests::user::User;
use serde_json::json;

use super::super::has_backup;
use super::{Host, LIMIT, SOON, libvirtd, machine};

on!(a_look_mounts_and_a_list_does_not: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_look_mounts_and_a_list_does_not(flavor: Flavor) {
    let libvirtd = libvirtd(flavor);
    let (one, other) = (machine(flavor, &libvirtd), machine(flavor, &libvirtd));
    let host = Host::of(&libvirtd, "");
    let mut names = [one.domain().name().to_owned(), other.domain().name().to_owned()];
    names.sort();

    let costs = host.costs();
    assert_eq!(host.names(), names);
    let long = run(Command::new("ls").arg("-l").arg(host.mnt())).success();
    assert_eq!(long.lines().filter(|line| line.starts_with("dr-x")).count(), 2, "{long}");
    assert_eq!((host.children().len(), host.starts()), (1, 0), "the guardian alone");
    assert_eq!(host.costs(), costs);
    assert_eq!((&host.told(&one)["state"], &host.told(&other)["state"]), (&json!("idle"), &json!("idle")));

    let right = one.copy("vda", "right");
    let entries = fs::read_dir(host.dir(&one)).expect("a directory, mounted by this look");
    assert!(entries.flatten().any(|entry| entry.file_name() == "current"), "in the same call");
    assert!(is_mounted(&host.dir(&one)) && host.children().len() == 2);
    oracle::same(&host.disk(&one), &right);
    assert_eq!((&host.told(&one)["state"], &host.told(&other)["state"]), (&json!("mounted"), &json!("idle")));
    let uuid = one.domain().virsh("domuuid", &[]).success();
    let listed = run(Command::new(pullfs()).args(["list", "-o", &format!("uri={}", libvirtd.uri())]));
    let place = format!("on {}", host.dir(&one).display());
    assert!(listed.success().lines().any(|line| line.contains(uuid.trim()) && line.ends_with(&place)));
    // A command is a look, unless it unmounts.
    let name = other.domain().name();
    assert!(host.command(&["umount"], name).refused(3).contains("no machine is mounted"));
    assert!(host.command(&["status"], name).success().contains(name));
    host.command(&["umount"], name).success();
    // Another look at it, deep inside, is its first one.
    let right = other.copy("vda", "right");
    oracle::same(&host.disk(&other), &right);

    let none = fs::read_dir(host.mnt().join("none")).expect_err("there is none");
    assert_eq!(none.kind(), std::io::ErrorKind::NotFound);
    let refused = host.command(&["status", "--watch"], "").refused(1);
    assert!(refused.contains("--watch is for a domain"), "{refused}");
    let text = host.command(&["status"], "").success();
    assert!(text.contains("2 domains running") && text.contains("  mounted"), "{text}");
}

on!(fifty_looks_at_once_start_one_process: libvirt = Libvirt, libvirt_old = LibvirtOld);
fn fifty_looks_at_once_start_one_process(flavor: Flavor) {
    let libvirtd = libvirtd(flavor);
    let machine = machine(flavor, &libvirtd);
    let host = Host::of(&libvirtd, "");
    let path = host.dir(&machine).join("status.json");
    let path = &path;
    thread::scope(|scope| {
        let looks: Vec<_> = (0..50).map(|_| scope.spawn(move || fs::read_to_string(path))).collect();
        for look in looks {
            look.join().expect("a thread").expect("the status");
        }
    });
    assert_eq!((host.starts(), host.children().len()), (1, 2));
}

on!(a_domain_that_cannot_be_mounted_is_an_error_with_its_reason: libvirt = Libvirt);
fn a_domain_that_cannot_be_mounted_is_an_error_with_its_reason(flavor: Flavor) {
    let libvirtd = libvirtd(flavor);
    let machine = machine(flavor, &libvirtd);
    let host = Host::of(&libvirtd, ",disks=vdx");
    for _ in 0..2 {
        let error = fs::read_dir(host.dir(&machine)).expect_err("no such disk");
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{error}");
    }
    let told = host.told(&machine);
    assert!(told["state"] == "failed" && told["reason"].as_str().is_some_and(|why| why.contains("vdx")), "{told}");
    assert_eq!((host.starts(), host.children().len()), (2, 1), "each look tries it again");
}

#[test]
fn hundreds_of_domains_are_listed_at_once() {
    if !Flavor::Libvirt.available() {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let node = |name: &str, count: usize| {
        let mut xml = "<node>".to_owned();
        for number in 0..count {
            let os = "<memory>1024</memory><os><type>hvm</type></os>";
            write!(xml, "<domain type='test'><name>vm{number:03}</name>{os}</domain>").expect("a string");
        }
        let file = dir.path().join(name);
        fs::write(&file, xml + "</node>").expect("a file");
        format!("test://{}", file.display())
    };
    let few = Host::at(&node("few", 1), "");
    let many = Host::at(&node("many", 300), "");
    let begun = Instant::now();
    let names = many.names();
    let took = begun.elapsed();
    assert_eq!((names.len(), &*names[299]), (300, "vm299"));
    assert!(took.as_secs() < 1, "{took:?}");
    assert_eq!((many.costs(), many.children().len()), (few.costs(), 1), "they cost nothing");
}

on!(mount_and_fstab_know_it: libvirt = Libvirt);
fn mount_and_fstab_know_it(flavor: Flavor) {
    let libvirtd = libvirtd(flavor);
    let machine = machine(flavor, &libvirtd);
    let right = machine.copy("vda", "right");
    let namespace = Namespace::new();
    let mnt = namespace.mnt().display().to_string();
    let scratch = namespace.path("scratch");
    fs::create_dir(&scratch).expect("a directory");
    let options = format!("noauto,nofail,uri={},scratch={}", libvirtd.uri(), scratch.display());
    namespace.fstab(&format!("libvirt: {mnt} pullfs {options} 0 0\n"));
    let name = machine.domain().name();
    for umount in ["umount -R", "pullfs umount"] {
        namespace.ok(&format!("mount {mnt}"));
        assert_eq!(namespace.ok(&format!("ls {mnt}")).trim(), name);
        namespace.ok(&format!("cmp {mnt}/{name}/current/vda/disk.raw {}", right.display()));
        namespace.ok(&format!("{umount} {mnt}"));
        namespace.daemons_end();
        assert_eq!(namespace.ok(&format!("ls {mnt}")), "");
    }
    wait_until("the end of libvirt's backup", END_LIMIT, || !has_backup(&machine));
    // The same by hand.
    namespace.ok(&format!("mount -t pullfs -o {options} libvirt: {mnt}"));
    assert_eq!(namespace.ok(&format!("ls {mnt}")).trim(), name);
    let again = namespace.run(&format!("mount -t pullfs -o {options} libvirt: {mnt}"));
    assert!(again.code == Some(32) && again.stderr.contains("is not empty"), "{again}");
    namespace.ok(&format!("pullfs umount {mnt}"));
}

#[test]
fn it_takes_root_and_says_so() {
    if !Flavor::Libvirt.available() {
        return;
    }
    let user = User::new();
    let mut command = user.command(user.path("pullfs"));
    command.args(["mount", "libvirt:", "mnt", "-o", "uri=test:///default"]);
    let refused = run_within(&mut command, SOON).refused(32);
    assert!(refused.contains("takes root"), "{refused}");
    let mut doctor = user.command(user.path("pullfs"));
    doctor.args(["doctor", "libvirt:", "-o", "uri=test:///default"]);
    let told = run_within(&mut doctor, SOON);
    assert!(told.code == Some(2) && told.stdout.contains("takes root"), "{told}");
    let mut doctor = Command::new(pullfs());
    doctor.args(["doctor", "libvirt:", "-o", "uri=test:///default"]).env("PULLFS_CONFIG", "/dev/null");
    let told = run_within(&mut doctor, LIMIT).success();
    assert!(told.contains("autofs") && told.contains("1 domain runs"), "{told}");
}
