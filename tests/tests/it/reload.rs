//! `set` and `pullfs reload` change options of a mount that is there, and disturb neither its point in time nor its readers.

use std::fs::{self, File};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::{Mount, MountPoint};
use pullfs_tests::oracle;
use pullfs_tests::process::{run, wait_for, wait_until};
use pullfs_tests::tools::{pullfs, tool, workspace};
use rustix::io::Errno;
use serde_json::Value;

use super::config::{Config, status};

/// For what is to happen at once, on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

fn machine(flavor: Flavor, size: u64) -> Machine {
    Machine::build(flavor).disk(Disk::qcow2("vda", size).filled(&[(0, size)])).start()
}

#[track_caller]
fn set(mount: &Mount, option: &str) {
    mount.control(&format!("set {option}")).unwrap_or_else(|error| panic!("{option}: {error}\n{}", mount.log()));
}

on!(a_rate_set_and_taken_back_while_dd_reads: new = New, old = Old, daemon = Daemon);
fn a_rate_set_and_taken_back_while_dd_reads(flavor: Flavor) {
    const RATE: u64 = MIB;
    let machine = machine(flavor, 64 * MIB);
    let before = machine.copy("vda", "before");
    // Nothing limits it to begin with.
    let mount = Mount::of(&machine);
    mount.control("begin").expect("a point in time");
    let number = mount.status()["point"]["number"].clone();
    assert!(mount.status()["throttle"].is_null());
    set(&mount, "max_rate=1M");
    let status = mount.status();
    assert_eq!(status["throttle"]["max_rate"], RATE, "{status}");
    assert_eq!(status["mount"]["options"]["max_rate"], RATE, "{status}");
    assert_eq!(status["mount"]["origins"]["max_rate"]["from"], "control", "{status}");

    let copy = mount.beside("copy");
    let mut dd = tool("dd");
    dd.arg(format!("if={}", mount.disk("vda").display())).arg(format!("of={}", copy.display()));
    let mut dd = dd.args(["bs=1M", "status=none"]).spawn().expect("dd");
    let read = || mount.status()["point"]["nbd"]["bytes"].as_u64().expect("bytes");
    wait_until("dd's first reads", LIMIT, || read() > 0);
    let (first, begun) = (read(), Instant::now());
    thread::sleep(Duration::from_secs(3));
    let (more, seconds) = (read() - first, begun.elapsed().as_secs() + 1);
    assert!(more > 0 && more <= 2 * RATE * seconds, "{more} bytes in {seconds} s");
    // Other limits beside it, and then none: at this rate it would take a minute.
    set(&mount, "max_inflight=2");
    set(&mount, "polite");
    set(&mount, "polite=no");
    set(&mount, "max_inflight=default");
    assert!(dd.try_wait().expect("dd").is_none(), "it reads on");
    set(&mount, "max_rate=default");
    assert!(wait_for(&mut dd, LIMIT).is_some_and(|status| status.success()), "dd\n{}", mount.log());
    oracle::same(&copy, &before);

    let status = mount.status();
    assert!(status["throttle"].is_null() && status["mount"]["options"]["max_rate"].is_null(), "{status}");
    assert_eq!(status["mount"]["origins"]["max_rate"]["from"], "control", "{status}");
    assert_eq!((&status["point"]["number"], &status["points"]["taken"]), (&number, &1.into()), "{status}");
    assert!(mount.unmount().success());
}

/// What a command is refused with, and the line that `status.json` has of it.
#[track_caller]
fn refused(mount: &Mount, option: &str, errno: Errno, words: &str) {
    let error = mount.control(&format!("set {option}")).expect_err(option);
    assert_eq!(Errno::from_io_error(&error), Some(errno), "{option}: {error}");
    let status = mount.status();
    let said = status["last_error"]["message"].as_str().unwrap_or_default();
    assert!(said.contains(words) && said.lines().count() == 1, "{option}: {said}");
}

on!(what_cannot_be_set_is_refused_and_changes_nothing: new = New, old = Old);
fn what_cannot_be_set_is_refused_and_changes_nothing(flavor: Flavor) {
    let machine = machine(flavor, 16 * MIB);
    let mount = Mount::with(&machine, "max_rate=64M,hold_limit=2h");
    let open = File::open(mount.disk("vda")).expect("a disk");
    (0..8).for_each(|mib| machine.write("vda", mib * MIB, MIB, 0x11));
    wait_until("old data", LIMIT, || mount.status()["point"]["scratch"]["used"].as_u64() > Some(8 * MIB - 1));
    let before = mount.status();
    refused(&mount, "max_rate=fast", Errno::INVAL, "mount option max_rate=fast: it takes bytes a second");
    refused(&mount, "max_inflight=0", Errno::INVAL, "a number from 1 to 1024");
    refused(&mount, "polite=perhaps", Errno::INVAL, "yes or no");
    refused(&mount, "speed=11", Errno::INVAL, "no mount option speed");
    for option in ["cache=64M", "disks=vda", "allow_other", "scratch=/tmp", "umask=default"] {
        let name = option.split('=').next().expect("a name");
        refused(&mount, option, Errno::OPNOTSUPP, &format!("mount option {name} takes a new mount: unmount, and"));
    }
    // What would end the point in time.
    refused(&mount, "hold_limit=1ms", Errno::BUSY, "would end at once: hold_limit= passed; release it first");
    refused(&mount, "scratch_limit=4M", Errno::BUSY, "scratch_limit= would be 4 MiB; release it first");
    let after = mount.status();
    for part in ["/mount", "/point/number", "/point/state", "/points", "/throttle", "/last_end"] {
        assert_eq!(after.pointer(part), before.pointer(part), "{part}");
    }
    let done = mount.command(&["set"]);
    assert!(done.code == Some(1), "an option is missing: {done}");
    drop(open);
    assert!(mount.unmount().success());
}

on!(terms_that_are_set_hold_for_the_point_in_time_that_is_held: new = New, old = Old);
fn terms_that_are_set_hold_for_the_point_in_time_that_is_held(flavor: Flavor) {
    let machine = machine(flavor, 32 * MIB);
    let mount = Mount::of(&machine);
    let ended = |kind: &str| {
        wait_until("the end of the point in time", LIMIT, || mount.state() == "none");
        assert_eq!(mount.status()["last_end"]["kind"], kind);
    };
    // Above what is taken, and then below what the guest overwrites.
    mount.control("begin").expect("a point in time");
    set(&mount, "scratch_limit=1G");
    assert_eq!(mount.status()["point"]["scratch"]["limit"], 1 << 30);
    set(&mount, "scratch_limit=4M");
    assert_eq!(
        (mount.status()["point"]["scratch"]["limit"].as_u64(), mount.state()),
        (Some(4 * MIB), "held".to_owned())
    );
    (0..16).for_each(|mib| machine.write("vda", mib * MIB, MIB, 0x22));
    ended("scratch");
    // The next one has the limit, too.
    mount.control("begin").expect("a point in time");
    assert_eq!(mount.status()["point"]["scratch"]["limit"], 4 * MIB);
    set(&mount, "scratch_limit=default");
    assert!(mount.status()["point"]["scratch"]["limit"].is_null());
    let open = File::open(mount.disk("vda")).expect("a disk");
    set(&mount, "idle_timeout=1s");
    thread::sleep(Duration::from_secs(2));
    assert_eq!(mount.state(), "held", "a file is open");
    drop(open);
    ended("idle");
    set(&mount, "idle_timeout=default");
    set(&mount, "start=manual");
    let error = File::open(mount.disk("vda")).expect_err("only begin takes one");
    assert_eq!(Errno::from_io_error(&error), Some(Errno::NODATA));
    mount.control("begin").expect("a point in time");
    set(&mount, "hold_limit=3s");
    ended("hold_limit");
    assert!(mount.unmount().success());
}

on!(reload_changes_what_can_be_changed_and_names_the_rest: new = New);
fn reload_changes_what_can_be_changed_and_names_the_rest(flavor: Flavor) {
    let machine = machine(flavor, 16 * MIB);
    let (source, mount) = (machine.source(), MountPoint::new());
    let mnt = mount.mnt().display().to_string();
    let config = Config::new("[options]\nreadahead = \"1M\"\npolite = true\nmax_inflight = 4\n");
    let variables = [("PULLFS_IDLE_TIMEOUT", "1h"), ("PULLFS_MAX_INFLIGHT", "default")];
    config.pullfs(&["mount", &source, &mnt, "-o", &mount.scratch(), "-o", "max_rate=8M"], &variables).success();
    let control = |line: &str| fs::write(mount.mnt().join("control"), line).expect("control");
    control("begin");
    let told = || status(&mount);
    let origin = |name: &str| told()["mount"]["origins"][name]["from"].clone();
    assert_eq!(
        (origin("polite"), origin("idle_timeout"), origin("max_rate")),
        ("file".into(), "environment".into(), "given".into())
    );
    assert_eq!(told()["mount"]["origins"]["readahead"]["line"], 2);
    let before = told();
    // Without the environment of the mount: it is asked for that.
    let reload = || config.pullfs(&["reload", &mnt], &[("PULLFS_CONFIG", "/dev/null")]);
    let nothing = reload();
    assert_eq!((nothing.code, nothing.stdout.as_str(), nothing.stderr.as_str()), (Some(0), "", ""));
    assert_eq!(told()["mount"], before["mount"]);

    control("set hold_limit=3h");
    config.write(&format!(
        "[options]\nreadahead = \"2M\"\ncache = \"64M\"\nmax_rate = \"1M\"\nmax_inflight = 8\n\n\
         [source.\"{source}\"]\nstart = \"manual\"\numask = \"022\"\n"
    ));
    let done = reload();
    assert_eq!(done.code, Some(0), "{done}");
    let place = config.path().display().to_string();
    let lines: Vec<&str> = done.stdout.lines().collect();
    let expected = [
        format!("start=manual  {place}, line 8 [source.\"{source}\"]"),
        "hold_limit=default  built-in".to_owned(),
        format!("readahead=2M  {place}, line 2 [options]"),
        "polite=no  built-in".to_owned(),
    ];
    assert_eq!(lines, expected, "{done}");
    let left: Vec<&str> = done.stderr.lines().collect();
    let expected = [
        format!("pullfs: cache=64M ({place}, line 3 [options]) takes a new mount: pullfs umount, then mount"),
        format!(
            "pullfs: umask=022 ({place}, line 9 [source.\"{source}\"]) takes a new mount: pullfs umount, then mount"
        ),
    ];
    assert_eq!(left, expected, "{done}");
    let after = told();
    for (name, value) in [
        ("readahead", Value::from(2 << 20)),
        ("polite", false.into()),
        ("start", "manual".into()),
        ("hold_limit", Value::Null),
        ("cache", (32 << 20).into()),
        ("max_rate", (8 << 20).into()),
        ("max_inflight", Value::Null),
        ("idle_timeout", 3600.0.into()),
    ] {
        assert_eq!(after["mount"]["options"][name], value, "{name}");
    }
    assert_eq!((origin("readahead"), origin("max_rate")), ("reload".into(), "given".into()));
    assert_eq!(after["throttle"]["polite"], false, "{after}");
    assert_eq!(after["point"]["number"], before["point"]["number"]);
    assert_eq!((&after["point"]["state"], &after["points"]["taken"]), (&"held".into(), &1.into()));
    let again = reload();
    assert_eq!((again.code, again.stdout.as_str(), again.stderr.lines().count()), (Some(0), "", 2), "{again}");

    // A mistake changes nothing, and what would end the point in time does not either.
    config.write("[options]\nreadahead = \"3M\"\npolite = \"perhaps\"\n");
    let done = reload();
    assert!(done.code == Some(1) && done.stderr.contains("line 3 [options]: mount option polite"), "{done}");
    assert_eq!(told()["mount"], after["mount"]);
    config.write("[options]\nreadahead = \"3M\"\nhold_limit = \"1ms\"\n");
    let done = reload();
    assert!(done.code == Some(4) && done.stderr.contains("would end at once"), "{done}");
    assert_eq!(told()["mount"]["options"]["readahead"], 3 << 20, "the others are changed");
    assert_eq!(told()["point"]["state"], "held");
    // A file that was named is meant: without it nothing is taken back.
    fs::remove_file(config.path()).expect("the file");
    let done = reload();
    assert!(done.code == Some(1) && done.stderr.contains("does not exist"), "{done}");
    assert_eq!(told()["mount"]["options"]["readahead"], 3 << 20);
    config.write("");
    config.pullfs(&["umount", &mnt], &[]).success();
    let done = reload();
    assert_eq!(done.code, Some(3), "{done}");
}

on!(the_unit_reloads: new = New);
fn the_unit_reloads(flavor: Flavor) {
    let machine = machine(flavor, 4 * MIB);
    let config = Config::new("");
    let path = config.path().display().to_string();
    let mount = Mount::configured(&machine.source(), "", &[("PULLFS_CONFIG", &path)]);
    config.write("[options]\nmax_rate = \"9M\"\n");
    let unit = fs::read_to_string(workspace().join("mount-helpers/systemd/pullfs@.service")).expect("the unit");
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecReload=")).expect("how it reloads");
    // As systemd has it: words, of which one is a variable of /etc/pullfs/vm1.conf.
    let mnt = mount.mnt().display().to_string();
    let words: Vec<&str> = line.split(' ').map(|word| if word == "${MOUNT_POINT}" { &mnt } else { word }).collect();
    assert_eq!(words[0], "/usr/local/bin/pullfs", "{line}");
    run(Command::new(pullfs()).args(&words[1..])).success();
    assert_eq!(mount.status()["mount"]["options"]["max_rate"], 9 << 20);
    assert!(mount.unmount().success());
}
