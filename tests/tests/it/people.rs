//! What a person sees: colours, widths, all mounts at once, `--watch`, and what is waited for. `script` is the terminal.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::{Mount, MountPoint};
use pullfs_tests::process::{Finished, LIMIT, ok, run, signal_child, signal_pid, wait_for, within, write_script};
use pullfs_tests::tools::{pullfs, tool};
use rustix::process::Signal;
use serde_json::Value;

const NOT_FOUND: i32 = 3;

/// Longer than any command here should wait, shorter than a stopped daemon takes.
const PROMPT: Duration = Duration::from_secs(30);

fn machine(flavor: Flavor) -> Machine {
    Machine::build(flavor).disk(Disk::raw("vda", MIB)).start()
}

/// Runs pullfs with a terminal of so many columns.
fn on_a_terminal(environment: &str, columns: u32, arguments: &str) -> Finished {
    run(&mut terminal(environment, columns, arguments))
}

fn terminal(environment: &str, columns: u32, arguments: &str) -> Command {
    let line = format!("stty cols {columns} rows 50; {environment} {} {arguments}", pullfs().display());
    let mut script = tool("script");
    // Whoever runs the tests may have wishes of their own.
    for wish in ["CI", "CLICOLOR", "CLICOLOR_FORCE", "NO_COLOR"] {
        script.env_remove(wish);
    }
    script.env("TERM", "xterm").env("SHELL", "/bin/sh");
    script.args(["-q", "-e", "-c", &line, "/dev/null"]);
    script
}

/// What a terminal shows of a command from when `words` are shown; not before that the machine goes on.
#[track_caller]
fn after_waiting(machine: &mut Machine, arguments: &str, words: &'static str) -> String {
    let pid = machine.server().pid();
    signal_pid(pid, Signal::STOP);
    let mut script = terminal("", 100, arguments);
    let mut child = script.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("script");
    let mut out = child.stdout.take().expect("standard output");
    let shown = within(words, LIMIT, move || {
        let (mut shown, mut more) = (String::new(), [0; 4096]);
        while !shown.contains(words) {
            let length = out.read(&mut more).expect("what is shown");
            assert!(length > 0, "no {words:?} in {shown}");
            shown += &String::from_utf8_lossy(&more[..length]);
        }
        signal_pid(pid, Signal::CONT);
        out.read_to_string(&mut shown).expect("the rest");
        shown
    });
    assert_eq!(wait_for(&mut child, LIMIT).expect("its end").code(), Some(0), "{shown}");
    shown.rsplit(words).next().unwrap_or_default().to_owned()
}

/// A `--watch` whose blocks can be read.
fn watched(mount: &Mount, json: bool) -> (Child, BufReader<impl Read + Send + 'static>) {
    let mut command = Command::new(pullfs());
    command.args(["status", "--watch=1"]).arg(mount.mnt()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.args(json.then_some("--json")).spawn().expect("pullfs");
    let out = child.stdout.take().expect("standard output");
    (child, BufReader::new(out))
}

on!(colours_are_for_terminals: new = New);
fn colours_are_for_terminals(flavor: Flavor) {
    let machine = machine(flavor);
    let mount = Mount::of(&machine);
    let mnt = mount.mnt();
    let status = format!("status {}", mnt.display());
    let escapes = |text: &str| text.contains('\x1b');
    assert!(escapes(&on_a_terminal("", 200, &status).success()), "on a terminal");
    assert!(!escapes(&on_a_terminal("NO_COLOR=1", 200, &status).success()), "NO_COLOR");
    for environment in ["TERM=dumb", "TERM=dumb CI=true"] {
        assert!(
            !escapes(&on_a_terminal(environment, 200, &status).success()),
            "a terminal that has none: {environment}"
        );
    }
    assert!(!escapes(&on_a_terminal("", 200, &format!("{status} --color=never")).success()));
    assert!(!escapes(&mount.command(&["status"]).success()), "not on a terminal");
    assert!(escapes(&ok(Command::new(pullfs()).args(["status", "--color=always"]).arg(&mnt))));
    let narrow = on_a_terminal("", 50, &format!("{status} --color=never")).success();
    assert!(narrow.lines().all(|line| line.trim_end().len() <= 50), "{narrow}");
    let wide = on_a_terminal("", 200, &format!("{status} --color=never")).success();
    let words = |text: &str| text.split_whitespace().collect::<String>();
    assert_eq!(words(&narrow), words(&wide), "nothing is lost");
    assert!(mount.unmount().success());
}

on!(all_mounts_are_listed: new = New);
fn all_mounts_are_listed(flavor: Flavor) {
    let machines = [machine(flavor), machine(flavor)];
    let [lives, stopped] = machines.each_ref().map(Mount::of);
    stopped.send(Signal::STOP);
    let shown =
        within("a list in spite of a daemon that is stopped", PROMPT, || ok(Command::new(pullfs()).arg("status")));
    let json = within("the same in JSON", PROMPT, || ok(Command::new(pullfs()).args(["status", "--json"])));
    stopped.send(Signal::CONT);
    let line = |mount: &Mount| {
        let place = mount.mnt().display().to_string();
        shown.lines().find(|line| line.contains(&place)).unwrap_or_else(|| panic!("no {place}: {shown}")).to_owned()
    };
    assert!(line(&lives).contains("1 disk, 0 checkpoints"), "{shown}");
    assert!(line(&stopped).ends_with("it does not answer"), "{shown}");
    let all: Vec<Value> = serde_json::from_str(&json).expect("an array");
    let of =
        |mount: &Mount| all.iter().find(|one| one["mount_point"] == *mount.mnt().to_string_lossy()).expect("a mount");
    assert_eq!(of(&lives)["status"]["mount_id"], lives.id());
    assert!(of(&lives)["error"].is_null() && of(&stopped)["status"].is_null(), "{json}");
    assert_eq!(of(&stopped)["error"], "it does not answer");
    for mount in [lives, stopped] {
        assert!(mount.unmount().success());
    }
}

on!(watching_goes_on_until_it_is_interrupted: new = New);
fn watching_goes_on_until_it_is_interrupted(flavor: Flavor) {
    let machine = machine(flavor);
    let mount = Mount::of(&machine);
    for json in [false, true] {
        let (mut child, out) = watched(&mount, json);
        let wanted = if json { "\"reads\"" } else { "rates" };
        let (line, _out) = within("two readings", LIMIT, move || {
            let mut lines = out.lines().map(|line| line.expect("a line")).filter(move |line| line.contains(wanted));
            (lines.nth(usize::from(json)).expect("a second reading"), lines)
        });
        assert!(!line.contains('\x1b') && (json || line.contains("/s from the machine")), "{line}");
        assert!(!json || serde_json::from_str::<Value>(&line).is_ok_and(|all| all["mount_id"] == mount.id()), "{line}");
        signal_child(&child, Signal::INT);
        assert_eq!(wait_for(&mut child, LIMIT).expect("its end").code(), Some(0));
    }
    assert!(mount.unmount().success());
}

on!(watching_ends_with_the_mount: new = New);
fn watching_ends_with_the_mount(flavor: Flavor) {
    let machine = machine(flavor);
    let mount = Mount::of(&machine);
    let (mut child, mut out) = watched(&mount, false);
    let reader = thread::spawn(move || {
        let mut first = String::new();
        out.read_line(&mut first).expect("a line");
        (first, out)
    });
    let (first, _out) = within("the first block", LIMIT, || reader.join().expect("a reader"));
    assert!(first.starts_with("machine"), "{first}");
    assert!(mount.unmount().success());
    assert_eq!(wait_for(&mut child, LIMIT).expect("its end").code(), Some(NOT_FOUND));
    let mut said = String::new();
    child.stderr.take().expect("standard error").read_to_string(&mut said).expect("its words");
    assert!(said.contains("any more") && said.lines().count() == 1, "{said}");
}

on!(what_is_waited_for_is_said_on_a_terminal_alone: new = New);
fn what_is_waited_for_is_said_on_a_terminal_alone(flavor: Flavor) {
    let mut machine = machine(flavor);
    let mount = Mount::of(&machine);
    let pid = machine.server().pid();
    let mnt = mount.mnt();
    let arguments = format!("begin {}", mnt.display());
    signal_pid(pid, Signal::STOP);
    let shown = on_a_terminal("", 100, &arguments);
    let silent = mount.command(&["begin"]);
    let place = MountPoint::new();
    let mounting = on_a_terminal("", 100, &format!("mount {} {}", machine.source(), place.mnt().display()));
    signal_pid(pid, Signal::CONT);
    assert!(shown.stdout.contains("waiting for the machine: begin"), "{shown}");
    let after = shown.stdout.rsplit("waiting for the machine: begin").next().unwrap_or_default();
    assert!(after.contains("\x1b[2K") && after.trim_end().contains("pullfs: begin:"), "it is gone: {shown}");
    assert!(!silent.refused(2).contains("waiting for the machine"));
    let waited = format!("waiting for {}", machine.source());
    let after = mounting.stdout.rsplit(&waited).next().unwrap_or_default();
    assert!(mounting.code == Some(32) && mounting.stdout.contains(&waited), "{mounting}");
    assert!(
        after.contains("\x1b[2Kpullfs: no greeting from"),
        "what the daemon says comes when it is gone: {mounting}"
    );
    assert!(mount.unmount().success());
}

on!(each_command_says_what_it_waits_for: new = New);
fn each_command_says_what_it_waits_for(flavor: Flavor) {
    let mut machine = machine(flavor);
    machine.add_bitmap("vda", "monday", 65536);
    let mut mount = Mount::of(&machine);
    let map = mount.path("checkpoints/monday/vda/dirty.map").display().to_string();
    let umount = "unmounted; waiting until nothing of it is left in the machine";
    let source = machine.source();
    let commands = [
        (format!("map {map}"), "reading the map", "virtual size"),
        (format!("umount {}", mount.mnt().display()), umount, ""),
        (format!("recover {source}"), "waiting for the machine", "nothing to recover"),
    ];
    for (command, words, told) in commands {
        let after = after_waiting(&mut machine, &command, words);
        let (_, after) = after.rsplit_once("\x1b[2K").unwrap_or_else(|| panic!("{command}: it stays: {after:?}"));
        assert!(after.contains(told) && (!told.is_empty() || after.trim().is_empty()), "{command}: {after:?}");
    }
    assert!(mount.ended().success());
}

/// A QEMU that is slow to start.
const SLOWLY: &str = "#!/bin/sh\nsleep 3\nPATH=${PATH#*:} exec qemu-system-x86_64 \"$@\"\n";

on!(the_demo_shows_what_is_promised: new = New);
fn the_demo_shows_what_is_promised(_: Flavor) {
    let dir = tempfile::tempdir().expect("a directory");
    let slow = dir.path().join("qemu-system-x86_64");
    write_script(&slow, SLOWLY);
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap_or_default());
    let silent = ok(Command::new(pullfs()).arg("demo").env("PATH", &path));
    assert!(!silent.contains("waiting") && !silent.contains('\x1b'), "{silent}");
    let shown = on_a_terminal(&format!("PATH='{path}'"), 100, "demo").success();
    let (_, after) = shown.rsplit_once("waiting for QEMU to start").unwrap_or_else(|| panic!("silent: {shown}"));
    assert!(after.contains("\x1b[2K"), "it is gone: {shown}");
    for shown in [silent, shown] {
        let cmps = shown.matches("$ cmp mnt/current/vda/disk.raw full.raw").count();
        assert!(cmps == 2 && shown.contains("\nDone."), "{shown}");
        assert!(shown.contains("query-jobs: []") && shown.contains("query-block-exports: []"), "{shown}");
    }
}
