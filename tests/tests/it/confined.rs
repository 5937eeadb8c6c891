//! The daemon keeps nothing that it does not need, as seen from outside, and everything it still has to do works.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::guest::Guest;
use pullfs_tests::leftovers::Leftovers;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::{END_LIMIT, Mount, is_mounted};
use pullfs_tests::process::{ok, run, wait_until};
use pullfs_tests::tools::{self, tool};
use pullfs_tests::user::{self, User};
use serde_json::{Value, json};

/// `CAP_DAC_OVERRIDE`, as `/proc` writes it: root's daemon reaches sockets that belong to the machine's user.
const DAC_OVERRIDE: &str = "0000000000000002";

/// No capability.
const NONE: &str = "0000000000000000";

fn machine(flavor: Flavor) -> Machine {
    Machine::build(flavor).disk(Disk::qcow2("vda", 8 * MIB).filled(&[(0, 3 * MIB)])).start()
}

/// The fields of a `/proc/…/status`.
fn fields(status: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(status).expect("a process that runs");
    let pairs = text.lines().filter_map(|line| line.split_once(":\t"));
    pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

/// Every thread of the daemon has `capabilities` and no more, and has given up the rest for good.
#[track_caller]
fn confined(pid: &Value, capabilities: &str) {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the daemon");
    let threads: Vec<_> = tasks.flatten().map(|task| fields(&task.path().join("status"))).collect();
    assert!(threads.len() >= 4, "the first, the runtime's, those of FUSE: {threads:?}");
    for thread in &threads {
        for (field, expected) in [
            ("CapEff", capabilities),
            ("CapPrm", capabilities),
            ("CapInh", NONE),
            ("CapAmb", NONE),
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
            ("Umask", "0077"),
        ] {
            assert_eq!(thread[field], expected, "{field} of {}", thread["Name"]);
        }
        // A user's daemon may not change its own.
        if capabilities != NONE {
            assert_eq!(thread["CapBnd"], capabilities, "CapBnd of {}", thread["Name"]);
        }
    }
    assert_eq!(core_limit(pid), ["0", "0"]);
    let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("a score");
    assert!(score.trim().parse::<i32>().expect("a number") >= 300, "it goes before the guest does: {score}");
}

/// How large a core dump of a process may be: its own limit, and to what it may raise that.
#[track_caller]
fn core_limit(pid: &Value) -> [String; 2] {
    let pid = pid.as_str().map_or_else(|| pid.to_string(), str::to_owned);
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).expect("a limit");
    let mut words = line.split_whitespace().map(str::to_owned);
    [(); 2].map(|()| words.next().expect("two limits"))
}

on!(every_thread_of_the_daemon_is_confined: new = New, old = Old, daemon = Daemon);
fn every_thread_of_the_daemon_is_confined(flavor: Flavor) {
    let machine = machine(flavor);
    let before = machine.copy("vda", "before");
    let mount = Mount::of(&machine);
    ok(tool("cmp").arg(mount.disk("vda")).arg(&before));
    confined(&mount.pid().into(), DAC_OVERRIDE);
    let mut told = mount.status()["sandbox"].take();
    // Which of them depends on the kernel; `ctl/src/harden/tests.rs` looks at what is enforced.
    let landlock = told["landlock"].take();
    assert!(landlock.is_string(), "{landlock}");
    let expected = json!({
        "capabilities": ["dac_override"], "no_new_privileges": true, "landlock": null, "system_calls": true,
        "core_dumps": false, "missing": [],
    });
    assert_eq!(told, expected);
    assert!(mount.unmount().success());
}

on!(an_ordinary_users_daemon_is_confined_and_works: new = New, old = Old);
fn an_ordinary_users_daemon_is_confined_and_works(flavor: Flavor) {
    let mut machine = machine(flavor);
    let before = machine.copy("vda", "before");
    let nothing = Leftovers::of(&machine);
    let user = User::new();
    user::admit(&machine);
    user.mount(&machine.source(), "").success();
    let pid = user.status()["pid"].clone();
    let disk = user.path("mnt/current/vda/disk.raw");
    // Its own copy of what the disk is; the user may read no other file of the machine.
    let known = user.path("known");
    fs::copy(&before, &known).expect("a copy");
    user::own(&known);
    ok(user.command("cmp").arg(&disk).arg(&known));
    machine.write("vda", 0, MIB, 0x55);
    ok(user.command("cmp").arg(&disk).arg(&known));
    confined(&pid, NONE);
    // Not dumpable: what of the process holds its memory belongs to root, and the user's other processes cannot have it.
    assert_eq!(fs::metadata(format!("/proc/{pid}/mem")).expect("the daemon").uid(), 0);
    assert!(!ok(user.command("id").arg("-u")).starts_with('0'));
    run(user.command("head").args(["-c1", &format!("/proc/{pid}/environ")]))
        .code
        .filter(|code| *code != 0)
        .expect("refused");
    ok(user.pullfs().arg("release").arg(user.path("mnt")));
    assert_eq!(Leftovers::of(&machine), nothing);

    // QEMU starts again; its socket is another one.
    machine.quit();
    machine.restart();
    user::admit(&machine);
    ok(user.pullfs().arg("begin").arg(user.path("mnt")));
    ok(user.pullfs().arg("umount").arg(user.path("mnt")));
    assert!(!is_mounted(&user.path("mnt")));
    assert_eq!(Leftovers::of(&machine), nothing);
    wait_until("the daemon's runtime directory to go", END_LIMIT, || {
        fs::read_dir(user.path("run/pullfs")).is_ok_and(|mut entries| entries.next().is_none())
    });
}

on!(what_belongs_to_the_machines_user_is_reached: new = New, old = Old);
fn what_belongs_to_the_machines_user_is_reached(flavor: Flavor) {
    let mut machine = machine(flavor);
    let nothing = Leftovers::of(&machine);
    let mount = Mount::of(&machine);
    user::own(&mount.scratch());
    fs::set_permissions(mount.scratch(), fs::Permissions::from_mode(0o700)).expect("modes");
    for _ in 0..2 {
        for name in ["pull.qmp", "."] {
            user::own(&machine.dir().join(name));
        }
        fs::set_permissions(machine.dir().join("pull.qmp"), fs::Permissions::from_mode(0o600)).expect("modes");
        mount.command(&["begin"]).success();
        if flavor != Flavor::Daemon {
            assert_eq!(
                scratch_modes(machine.server().pid(), &mount.scratch()),
                [0o600],
                "scratch is the daemon's alone"
            );
        }
        mount.command(&["release"]).success();
        assert_eq!(Leftovers::of(&machine), nothing);
        machine.quit();
        machine.restart();
    }
    mount.unmount();
}

/// The modes of the files of `dir` that a process has open.
fn scratch_modes(pid: u32, dir: &Path) -> Vec<u32> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).expect("a process that runs").flatten();
    let ours = descriptors.filter(|entry| fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(dir)));
    let mut files: Vec<_> = ours.map(|entry| fs::metadata(entry.path()).expect("a file")).collect();
    files.dedup_by_key(|file| file.ino());
    files.iter().map(|file| file.mode() & 0o777).collect()
}

on!(a_guardian_that_is_replaced_is_confined_and_undoes: new = New, old = Old);
fn a_guardian_that_is_replaced_is_confined_and_undoes(flavor: Flavor) {
    let machine = machine(flavor);
    let nothing = Leftovers::of(&machine);
    let mut mount = Mount::of(&machine);
    let dir = Path::new("/run/pullfs").join(mount.id());
    mount.command(&["begin"]).success();
    let first = mount.status()["guard"]["pid"].clone();
    let status = |pid: &Value| fields(Path::new(&format!("/proc/{pid}/status")));
    assert_eq!(status(&first)["NoNewPrivs"], "0", "the first one can unmount, also as an ordinary user");
    ok(tool("kill").args(["-KILL", &first.to_string()]));
    wait_until("another guardian", END_LIMIT, || {
        let pid = &mount.status()["guard"]["pid"];
        *pid != first && *pid != 0
    });
    let second = status(&mount.status()["guard"]["pid"]);
    assert_eq!((second["CapPrm"].as_str(), second["NoNewPrivs"].as_str()), (DAC_OVERRIDE, "1"));

    ok(tool("kill").args(["-KILL", &mount.pid().to_string()]));
    mount.ended();
    wait_until("the machine to be as it was", END_LIMIT, || Leftovers::of(&machine) == nothing);
    // What took privileges is left to somebody who has them.
    ok(tool("umount").arg("-l").arg(mount.mnt()));
    wait_until("its directory to go", END_LIMIT, || !dir.exists());
}

on!(it_touches_no_directory_but_those_that_it_found: new = New);
fn it_touches_no_directory_but_those_that_it_found(flavor: Flavor) {
    let machine = machine(flavor);
    let nothing = Leftovers::of(&machine);
    for (options, works) in [("", false), ("sandbox=off", true)] {
        let mount = Mount::with(&machine, options);
        // Another directory of the same name, where root may do everything.
        fs::rename(mount.scratch(), mount.beside("first")).expect("a directory of ours");
        fs::create_dir(mount.scratch()).expect("a directory");
        let begin = mount.command(&["begin"]);
        assert_eq!(begin.code == Some(0), works, "{begin}");
        assert!(works || begin.stderr.contains("scratch file"), "{begin}");
        assert!(mount.unmount().success());
        assert_eq!(Leftovers::of(&machine), nothing);
    }
}

on!(an_ordinary_user_quiesces_a_guest: new = New);
fn an_ordinary_user_quiesces_a_guest(flavor: Flavor) {
    let guest = Guest::boot_with_agent(flavor);
    let user = User::new();
    user::admit(guest.machine());
    user::open_to_all(guest.agent().parent().expect("a directory"));
    user::own(&guest.agent());
    user.mount(&guest.machine().source(), &format!("agent={}", guest.agent().display())).success();
    ok(user.pullfs().args(["begin", "--quiesce"]).arg(user.path("mnt")));
    assert_eq!(user.status()["point"]["quiesced"], true);
    guest.wait_past(guest.counter() + 2);
    ok(user.pullfs().arg("umount").arg(user.path("mnt")));
}

on!(a_sandbox_that_is_off_is_said_to_be: new = New);
fn a_sandbox_that_is_off_is_said_to_be(flavor: Flavor) {
    let machine = machine(flavor);
    let mount = Mount::with(&machine, "sandbox=off");
    let told = mount.status()["sandbox"].clone();
    assert_eq!((&told["no_new_privileges"], &told["landlock"]), (&json!(false), &Value::Null), "{told}");
    assert!(told["missing"][0].as_str().expect("words").contains("sandbox=off"), "{told}");
    let thread = fields(Path::new(&format!("/proc/{}/status", mount.pid())));
    assert_eq!((thread["NoNewPrivs"].as_str(), thread["Seccomp"].as_str()), ("0", "0"));
    assert!(mount.log().contains("sandbox=off"), "{}", mount.log());
    assert!(mount.unmount().success());
}

on!(core_dumps_are_left_where_they_are_asked_for: new = New);
fn core_dumps_are_left_where_they_are_asked_for(flavor: Flavor) {
    let machine = machine(flavor);
    let user = User::new();
    user::admit(&machine);
    user.mount(&machine.source(), "core_dumps").success();
    let status = user.status();
    assert_eq!(status["sandbox"]["core_dumps"], true);
    assert_eq!(core_limit(&status["pid"]), core_limit(&"self".into()), "as it was");
    let memory = fs::metadata(format!("/proc/{}/mem", status["pid"])).expect("the daemon");
    assert_eq!(memory.uid(), user::UID, "a debugger of the user may look");
    ok(user.pullfs().arg("umount").arg(user.path("mnt")));
}

on!(it_works_in_what_a_service_manager_leaves_it: new = New);
fn it_works_in_what_a_service_manager_leaves_it(flavor: Flavor) {
    let machine = machine(flavor);
    let nothing = Leftovers::of(&machine);
    let user = User::new();
    let scratch = format!("scratch={}", user.path("scratch").display());
    let mnt = user.path("mnt");
    let mut command = tool("setpriv");
    command.args(["--bounding-set=-all,+sys_admin,+dac_override", "--no-new-privs"]);
    command.arg(tools::pullfs()).args(["mount", &machine.source()]).arg(&mnt).args(["-o", &scratch]);
    run(&mut command).success();
    let text = fs::read_to_string(mnt.join("status.json")).expect("status.json");
    let status: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(status["sandbox"]["missing"], json!([]));
    ok(tool("head").args(["-c1"]).arg(mnt.join("current/vda/disk.raw")).stdout(Stdio::null()));
    ok(Command::new(tools::pullfs()).arg("umount").arg(&mnt));
    wait_until("the daemon's end", Duration::from_secs(20), || Leftovers::of(&machine) == nothing);
}
