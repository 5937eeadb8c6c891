//! `status.json` is what docs/status.schema.json says in every state there is, and has all that it says; so is what
//! commands print as JSON.

use std::fs::{self, File};
use std::process::Command;
use std::time::{Duration, Instant};

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::process::{run, wait_until};
use pullfs_tests::schema::Schema;
use pullfs_tests::tools::pullfs;
use rustix::process::Signal;
use serde_json::Value;

use super::config::Config;
use super::tls::{Port, Scene};

/// Until something is noticed, on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);

type Documents = Vec<(&'static str, Value)>;

fn machine(flavor: Flavor) -> Machine {
    let disk = Disk::qcow2("vda", 32 * MIB).filled(&[(0, 16 * MIB)]);
    Machine::build(flavor).disk(disk).disk(Disk::raw("vdb", 4 * MIB).filled(&[(0, MIB)])).start()
}

/// From nothing to the end of the machine.
fn a_life(flavor: Flavor, documents: &mut Documents) {
    let mut machine = machine(flavor);
    machine.add_bitmap("vda", "foreign", 65536);
    let mount = Mount::of(&machine);
    documents.push(("nothing was held yet", mount.status()));
    fs::create_dir(mount.path("checkpoints/monday")).expect("a checkpoint");
    let open = File::open(mount.disk("vda")).expect("a disk");
    machine.write("vda", 0, MIB, 0x11);
    documents.push(("held, at a checkpoint, and read", mount.status()));
    mount.control("begin").expect_err("a file is open");
    documents.push(("something failed", mount.status()));
    drop(open);
    mount.control("release").expect("a release");
    documents.push(("released", mount.status()));
    mount.control("begin").expect("a point in time");
    machine.quit();
    wait_until("the end of the point in time", LIMIT, || mount.state() == "none");
    let status = mount.status();
    assert!(status["unreachable"].is_string(), "{status}");
    documents.push(("the machine ended", status));
}

/// Disks that are left out, and all that limits.
fn limited(flavor: Flavor, documents: &mut Documents) {
    let machine = machine(flavor);
    let options = "disks=vda,max_rate=8M,max_inflight=4,polite,idle_timeout=1h,hold_limit=2h,scratch_limit=4M";
    let mount = Mount::with(&machine, options);
    let open = File::open(mount.disk("vda")).expect("a disk");
    let status = mount.status();
    assert_eq!(status["skipped"][0]["kind"], "disk", "{status}");
    assert!(status["throttle"].is_object() && status["point"]["scratch"]["limit"].is_u64(), "{status}");
    documents.push(("held, throttled, a disk left out", status));
    mount.control("set max_rate=16M").expect("it can be changed");
    mount.control("reload polite=no").expect("it can be changed");
    documents.push(("some options were changed", mount.status()));
    // More than the limit: the point in time is given up.
    (0..16).for_each(|mib| machine.write("vda", mib * MIB, MIB, 0x22));
    wait_until("the end of the point in time", LIMIT, || mount.state() == "none");
    let status = mount.status();
    assert_eq!(status["last_end"]["kind"], "scratch", "{status}");
    documents.push(("ended to protect the guest", status));
    drop(open);
    assert!(mount.unmount().success());
}

/// Options from everywhere.
fn configured(flavor: Flavor, documents: &mut Documents) {
    let machine = machine(flavor);
    let config = Config::new("[options]\nreadahead = \"1M\"\n");
    let variables = [("PULLFS_CONFIG", config.path().display().to_string()), ("PULLFS_CACHE", "16M".to_owned())];
    let mount =
        Mount::configured(&machine.source(), "polite", &variables.each_ref().map(|(name, value)| (*name, &**value)));
    documents.push(("options from everywhere", mount.status()));
    assert!(mount.unmount().success());
}

/// A bitmap that a raw image lost, and one that a crash broke.
fn broken(flavor: Flavor, documents: &mut Documents) {
    let mut machine = machine(flavor);
    let mount = Mount::of(&machine);
    fs::create_dir(mount.path("checkpoints/monday")).expect("a checkpoint");
    assert!(mount.unmount().success());
    machine.quit();
    machine.restart();
    for (state, disk, field) in [("a disk lost its bitmap", "vdb", "whole"), ("a bitmap is broken", "vda", "unusable")]
    {
        let mount = Mount::of(&machine);
        let status = mount.status();
        assert!(status["checkpoints"][0]["disks"][disk][field].is_string(), "{status}");
        documents.push((state, status));
        assert!(mount.unmount().success());
        // Bitmaps that are in use are not on the disk.
        machine.kill();
        machine.restart();
    }
}

fn over_tcp(flavor: Flavor, documents: &mut Documents) {
    let scene = Scene::new(flavor, Port::Tls, &[]);
    let nbd = scene.start_nbd(Port::Tls);
    let mount = Mount::source(&scene.source(), &format!("{},{nbd}", scene.tls("client")));
    drop(File::open(mount.disk("vda")).expect("a disk"));
    let status = mount.status();
    assert!(status["mount"]["options"]["tls"].is_string() && status["mount"]["options"]["nbd"].is_string(), "{status}");
    documents.push(("held, over TLS", status));
    assert!(mount.unmount().success());
}

on!(status_json_is_as_its_schema_says_in_every_state: new = New, old = Old);
fn status_json_is_as_its_schema_says_in_every_state(flavor: Flavor) {
    let mut documents = Vec::new();
    a_life(flavor, &mut documents);
    limited(flavor, &mut documents);
    broken(flavor, &mut documents);
    configured(flavor, &mut documents);
    over_tcp(flavor, &mut documents);
    let schema = Schema::of("status.schema.json");
    assert_eq!(schema.gaps(), [""; 0]);
    assert_eq!(schema.faults(&documents), "");
    assert_eq!(schema.unseen(&documents), [""; 0], "no document has them");
    let mut other = documents[0].1.clone();
    other["version"] = 2.into();
    assert!(schema.faults(&[("another version", other)]).contains("version"), "the validator looks");
}

on!(what_commands_print_as_json_has_a_schema: new = New);
fn what_commands_print_as_json_has_a_schema(flavor: Flavor) {
    let machine = machine(flavor);
    machine.add_bitmap("vda", "monday", 65536);
    machine.write("vda", 0, MIB, 0x11);
    let mount = Mount::of(&machine);
    let printed = |arguments: &[&str], path: &str| -> Value {
        let said = run(Command::new(pullfs()).args(arguments).arg(mount.path(path)).arg("--json")).success();
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
    };
    let status = Schema::of("status.schema.json");
    let listed = printed(&["checkpoint", "list"], "");
    assert_eq!(listed[0]["name"], "monday", "{listed}");
    assert_eq!(status.part("checkpoints").faults(&[("a list", listed)]), "");
    assert_eq!(status.faults(&[("status", printed(&["status"], ""))]), "");
    let maps = ["current/vda/allocated.map", "checkpoints/monday/vda/dirty.map", "checkpoints/monday/vda/dirty.json"];
    let maps: Vec<_> = maps.into_iter().map(|path| (path, printed(&["map"], path))).collect();
    let map = Schema::of("map.schema.json");
    assert_eq!(map.gaps(), [""; 0]);
    assert_eq!(map.faults(&maps), "");
    assert_eq!(map.unseen(&maps), [""; 0], "no document has them");
}

on!(a_machine_that_hangs_is_told_of: new = New, old = Old);
fn a_machine_that_hangs_is_told_of(flavor: Flavor) {
    let mut machine = machine(flavor);
    let mount = Mount::of(&machine);
    // What it said a moment ago still counts for a second.
    mount.status();
    machine.server().signal(Signal::STOP);
    let begun = Instant::now();
    let mut status = mount.status();
    wait_until("an answer that is too old", LIMIT, || {
        status = mount.status();
        status["unreachable"].is_string()
    });
    // A command has 30 s.
    assert!(begun.elapsed() < Duration::from_secs(20), "it took {:?}", begun.elapsed());
    assert_eq!(Schema::of("status.schema.json").faults(&[("the machine hangs", status)]), "");
    machine.server().signal(Signal::CONT);
    wait_until("a machine that answers", LIMIT, || mount.status().get("unreachable").is_none());
    assert!(mount.unmount().success());
}
