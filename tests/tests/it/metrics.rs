//! What Prometheus is told is what happened, and telling it takes nothing from anybody.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::time::{Duration, Instant};

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::leftovers::Leftovers;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::{self, END_LIMIT, Mount, MountPoint, open_direct};
use pullfs_tests::ports::free_port;
use pullfs_tests::process::{ok, run, wait_until};
use pullfs_tests::prometheus::{Metrics, approved, request, scrape};
use pullfs_tests::tools::{self, pullfs, tool};
use rustix::process::Signal;
use serde_json::{Value, json};

/// For what happens at once, on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

/// Each of the reads whose number is known.
const PIECE: u64 = 128 << 10;

fn machine(flavor: Flavor) -> Machine {
    let machine = Machine::build(flavor)
        .disk(Disk::qcow2("vda", 8 * MIB).filled(&[(0, 8 * MIB)]))
        .disk(Disk::raw("vdb", 2 * MIB).filled(&[(0, MIB)]))
        .start();
    machine.add_bitmap("vda", "monday", 65536);
    machine
}

/// A mount that tells on a port.
#[track_caller]
fn telling(machine: &Machine, options: &str) -> (Mount, u16) {
    let port = free_port();
    (Mount::with(machine, &format!("metrics=127.0.0.1:{port}{options}")), port)
}

/// How a counter grew.
#[track_caller]
fn grown(name: &str, labels: &[(&str, &str)], [before, after]: [&Metrics; 2]) -> u64 {
    assert!(after.find(name, labels).is_some(), "no {name} in {}", after.text);
    after.count(name, labels) - before.count(name, labels)
}

/// Each number in a histogram is of all below it too, and the last is all of them.
#[track_caller]
fn adds_up(metrics: &Metrics, name: &str, labels: &[(&str, &str)]) {
    let fits = |(of, with, _): &&(String, std::collections::BTreeMap<String, String>, f64)| {
        *of == format!("{name}_bucket")
            && labels.iter().all(|(label, value)| with.get(*label).is_some_and(|is| is == value))
    };
    let buckets: Vec<f64> = metrics.samples.iter().filter(fits).map(|(_, _, value)| *value).collect();
    assert_eq!(buckets.len(), 20, "{name}");
    assert!(buckets.is_sorted(), "{buckets:?}");
    assert_eq!(buckets.last().copied(), metrics.find(&format!("{name}_count"), labels));
    assert!(metrics.get(&format!("{name}_sum"), labels) > 0.0);
}

on!(counters_are_what_happened: new = New, old = Old, daemon = Daemon, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn counters_are_what_happened(flavor: Flavor) {
    let machine = machine(flavor);
    machine.write("vda", 0, 3 * 65536, 0x11);
    let nothing = Leftovers::of(&machine);
    let (mount, port) = telling(&machine, ",readahead=0");
    let idle = scrape(port);
    assert_eq!((idle.count("pullfs_point_held", &[]), idle.count("pullfs_points_taken_total", &[])), (0, 0));
    assert_eq!(idle.count("pullfs_dirty_bytes", &[("checkpoint", "monday"), ("disk", "vda")]), 3 * 65536);
    assert_eq!(idle.count("pullfs_disk_size_bytes", &[("disk", "vdb")]), 2 * MIB);
    assert_eq!(idle.count("pullfs_machine_up", &[]), 1);
    assert_eq!(Leftovers::of(&machine), nothing, "a scrape starts nothing");

    let disk = open_direct(&mount.disk("vda"));
    let read = || {
        for piece in 0..8 {
            disk.read_exact_at(&mut vec![0; 128 << 10], piece * PIECE).expect("a read");
        }
    };
    let before = scrape(port);
    read();
    let first = scrape(port);
    let reads = [("operation", "read")];
    assert_eq!(grown("pullfs_fuse_request_duration_seconds_count", &reads, [&before, &first]), 8);
    assert_eq!(grown("pullfs_fuse_read_bytes_total", &[], [&before, &first]), MIB);
    // Whether there is data is asked for in the background; what was read is data.
    for name in ["cache_miss_bytes_total", "cache_fetched_bytes_total", "nbd_read_bytes_total"] {
        assert_eq!(grown(&format!("pullfs_{name}"), &[], [&before, &first]), MIB, "{name}");
    }
    assert_eq!(grown("pullfs_cache_misses_total", &[], [&before, &first]), 8);
    assert_eq!(first.count("pullfs_readahead_bytes_total", &[]), 0);
    read();
    let second = scrape(port);
    assert_eq!(grown("pullfs_fuse_request_duration_seconds_count", &reads, [&first, &second]), 8);
    assert_eq!(grown("pullfs_cache_hits_total", &[], [&first, &second]), 8);
    assert_eq!(grown("pullfs_cache_hit_bytes_total", &[], [&first, &second]), MIB);
    assert_eq!(grown("pullfs_nbd_read_bytes_total", &[], [&first, &second]), 0);
    adds_up(&second, "pullfs_fuse_request_duration_seconds", &reads);
    wait_until("the map of the disk to be known", LIMIT, || {
        scrape(port).count("pullfs_nbd_requests_in_flight", &[]) == 0
    });
    let quiet = scrape(port);
    adds_up(&quiet, "pullfs_nbd_request_duration_seconds", &[]);
    let answered = quiet.count("pullfs_nbd_request_duration_seconds_count", &[]);
    assert_eq!(quiet.count("pullfs_nbd_requests_total", &[]), answered);
    assert!(mount.path("current/vda/nothing").metadata().is_err());
    let lookups = [("operation", "lookup")];
    assert_eq!(grown("pullfs_fuse_errors_total", &lookups, [&quiet, &scrape(port)]), 1);
    drop(disk);
    assert!(mount.unmount().success());
    assert_eq!(Leftovers::of(&machine), nothing);
}

on!(points_in_time_are_counted_with_their_ends: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn points_in_time_are_counted_with_their_ends(flavor: Flavor) {
    let machine = machine(flavor);
    let (mount, port) = telling(&machine, "");
    let ended = |reason: &str| scrape(port).count("pullfs_points_ended_total", &[("reason", reason)]);
    mount.command(&["begin"]).success();
    let held = scrape(port);
    assert_eq!((held.count("pullfs_point_held", &[]), held.count("pullfs_points_taken_total", &[])), (1, 1));
    machine.write("vda", 0, MIB, 0x22);
    wait_until("an older point in time", LIMIT, || {
        scrape(port).get("pullfs_point_age_seconds", &[]) > held.get("pullfs_point_age_seconds", &[])
    });
    let scratch = scrape(port);
    assert!(scratch.count("pullfs_scratch_used_bytes", &[]) >= MIB, "{}", scratch.text);
    assert!(scratch.count("pullfs_scratch_free_bytes", &[]) > 0);
    mount.command(&["begin"]).success();
    mount.command(&["release"]).success();
    assert_eq!((ended("replaced"), ended("released"), ended("ended")), (1, 1, 0));
    assert_eq!(scrape(port).find("pullfs_point_age_seconds", &[]), None);
    mount.command(&["begin"]).success();
    if flavor.libvirt().is_some() {
        machine.cancel_backup();
    } else {
        machine.qmp().must("nbd-server-stop", json!({}));
    }
    wait_until("the loss", LIMIT, || ended("ended") == 1);
    assert_eq!(scrape(port).count("pullfs_points_taken_total", &[]), 3);
    assert!(mount.unmount().success());
}

/// The first column of the tables in docs/metrics.md: what is told, as documented.
fn documented() -> BTreeSet<String> {
    let text = fs::read_to_string(tools::workspace().join("docs/metrics.md")).expect("a document");
    let names = text.lines().filter_map(|line| line.strip_prefix("| `pullfs_")?.split_once('`'));
    names.map(|(name, _)| format!("pullfs_{name}")).collect()
}

/// Names of metrics in a text, such as an expression.
fn mentioned(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let family = |name: &str| {
        let part = ["_bucket", "_sum", "_count"].into_iter().find_map(|part| name.strip_suffix(part));
        part.filter(|family| family.ends_with("_duration_seconds")).unwrap_or(name).to_owned()
    };
    text.split(|c| !word(c)).filter(|name| name.starts_with("pullfs_")).map(family).collect()
}

on!(what_is_told_is_documented_and_shown: new = New);
fn what_is_told_is_documented_and_shown(flavor: Flavor) {
    let machine = machine(flavor);
    let (mount, port) = telling(&machine, ",polite,scratch_limit=1G");
    ok(tools::tool("cat").arg(mount.disk("vda")).stdout(std::process::Stdio::null()));
    mount.command(&["begin"]).success();
    let metrics = scrape(port);
    approved(&metrics.text);
    let told: BTreeSet<String> = metrics.kinds.keys().cloned().collect();
    assert_eq!(told, documented(), "docs/metrics.md");
    let dashboard = tools::workspace().join("docs/grafana/pullfs.json");
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(dashboard).expect("a file")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let expressions = panels.iter().flat_map(|panel| panel["targets"].as_array().expect("targets"));
    let shown: Vec<&str> = expressions.map(|target| target["expr"].as_str().expect("an expression")).collect();
    for expression in &shown {
        assert!(expression.contains("source=~\"$source\",mount=~\"$mount\""), "of the chosen mounts: {expression}");
    }
    let shown = mentioned(&shown.join(" "));
    assert!(shown.is_subset(&told), "{:?}", shown.difference(&told));
    assert!(shown.len() > 20, "it shows most of what there is: {shown:?}");
    let alerts = tools::workspace().join("docs/prometheus-alerts.yml");
    ok(tools::promtool().args(["check", "rules"]).arg(&alerts));
    let alerts = mentioned(&fs::read_to_string(alerts).expect("rules"));
    assert!(!alerts.is_empty() && alerts.is_subset(&told), "{:?}", alerts.difference(&told));
    assert!(mount.unmount().success());
}

on!(names_of_the_machine_break_no_line: new = New, old = Old);
fn names_of_the_machine_break_no_line(flavor: Flavor) {
    let machine = machine(flavor);
    let name = "x\"} 1 \\ ü";
    machine.add_bitmap("vda", name, 65536);
    machine.write("vda", 0, 65536, 0x33);
    let (mount, port) = telling(&machine, "");
    let metrics = scrape(port);
    approved(&metrics.text);
    assert_eq!(metrics.count("pullfs_dirty_bytes", &[("checkpoint", name)]), 65536);
    assert!(mount.unmount().success());
}

on!(a_file_comes_with_the_mount_and_goes_with_it: new = New, old = Old, daemon = Daemon);
fn a_file_comes_with_the_mount_and_goes_with_it(flavor: Flavor) {
    let machine = machine(flavor);
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("vm.prom");
    let empty = || fs::read_dir(dir.path()).expect("a directory").next().is_none();
    let option = format!("metrics={}", file.display());

    let mount = Mount::with(&machine, &option);
    assert_eq!(mount.status()["sandbox"]["missing"], json!([]), "all of it");
    let text = fs::read_to_string(&file).expect("a file");
    approved(&text);
    assert_eq!(Metrics::parse(&text).count("pullfs_point_held", &[]), 0);
    assert_eq!(fs::metadata(&file).expect("a file").permissions().mode() & 0o777, 0o644);
    mount.command(&["begin"]).success();
    wait_until("the file to be written again", 2 * LIMIT, || {
        let text = fs::read_to_string(&file).expect("there is one at any time");
        Metrics::parse(&text).count("pullfs_point_held", &[]) == 1
    });
    assert!(mount.unmount().success());
    assert!(empty(), "it is gone before the daemon is");

    let mut mount = Mount::with(&machine, &option);
    assert!(file.exists());
    mount.send(Signal::KILL);
    mount.ended();
    wait_until("the guardian to remove it", END_LIMIT, empty);
    drop(mount);

    fs::write(&file, "not ours\n").expect("a file");
    let point = MountPoint::new();
    let refused = mount::mount(&machine.source(), &point.mnt(), &option).refused(32);
    assert!(refused.contains("no file of pullfs"), "{refused}");
    assert_eq!(fs::read_to_string(&file).expect("a file"), "not ours\n");
}

on!(silent_scrapers_hinder_nobody: new = New);
fn silent_scrapers_hinder_nobody(flavor: Flavor) {
    let machine = machine(flavor);
    let (mount, port) = telling(&machine, "");
    let connect = || TcpStream::connect(("127.0.0.1", port)).expect("a connection");
    // Three times as many as are served at once: each has its time, 2 s, and then the place of another.
    let silent: Vec<TcpStream> = (0..48).map(|_| connect()).collect();
    let begun = Instant::now();
    ok(tools::tool("cat").arg(mount.disk("vda")).stdout(std::process::Stdio::null()));
    let last = scrape(port);
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
    assert!(last.count("pullfs_fuse_read_bytes_total", &[]) >= 8 * MIB, "the disk was read meanwhile");
    for mut stream in silent {
        stream.set_read_timeout(Some(LIMIT)).expect("a limit");
        let mut said = Vec::new();
        stream.read_to_end(&mut said).expect("it was hung up");
    }
    // A head without an end: several times what the kernel's buffers take while nobody reads.
    let mut endless = connect();
    endless.set_write_timeout(Some(LIMIT)).expect("a limit");
    let (begun, mut sent) = (Instant::now(), 0);
    while sent < 64 * MIB && endless.write_all(&[b'x'; 4096]).is_ok() {
        sent += 4096;
    }
    assert!(sent < 64 * MIB && begun.elapsed() < LIMIT, "it is hung up on: {sent} bytes, {:?}", begun.elapsed());
    assert!(mount.unmount().success());
}

on!(nothing_else_is_served: new = New);
fn nothing_else_is_served(flavor: Flavor) {
    let machine = machine(flavor);
    let (mount, port) = telling(&machine, "");
    for (line, code) in
        [("GET /", "404"), ("GET /metrics/", "404"), ("POST /metrics", "405"), ("GET /status.json", "404")]
    {
        let answer = request(port, line).expect("an answer");
        assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{line}: {answer}");
    }
    // Who has the port refuses it to another mount.
    let point = MountPoint::new();
    let option = format!("{},metrics=:{port}", point.scratch());
    let refused = mount::mount(&machine.source(), &point.mnt(), &option).refused(32);
    assert!(refused.contains("cannot listen on 127.0.0.1:") && refused.contains("metrics="), "{refused}");
    assert!(mount.unmount().success());
    TcpListener::bind(("127.0.0.1", port)).expect("the port is free again");
}

on!(a_machine_that_hangs_is_told_of: new = New, old = Old);
fn a_machine_that_hangs_is_told_of(flavor: Flavor) {
    let mut machine = machine(flavor);
    let (mount, port) = telling(&machine, "");
    machine.server().signal(Signal::STOP);
    let mut longest = Duration::ZERO;
    wait_until("the silence to be noticed", LIMIT, || {
        let begun = Instant::now();
        let metrics = scrape(port);
        longest = longest.max(begun.elapsed());
        metrics.count("pullfs_machine_up", &[]) == 0
    });
    assert!(longest < Duration::from_secs(10), "a scrape took {longest:?}");
    machine.server().signal(Signal::CONT);
    wait_until("the machine to answer", 2 * LIMIT, || scrape(port).count("pullfs_machine_up", &[]) == 1);
    assert!(mount.unmount().success());
}

on!(a_mount_that_fails_leaves_no_file: new = New);
fn a_mount_that_fails_leaves_no_file(flavor: Flavor) {
    let machine = machine(flavor);
    let point = MountPoint::new();
    let file = machine.dir().join("failed.prom");
    // Everything works but mounting.
    let mut mount = tool("setpriv");
    mount.args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]).arg(pullfs()).args(["mount", "-f"]);
    mount
        .arg(machine.source())
        .arg(point.mnt())
        .args(["-o", &format!("metrics={},{}", file.display(), point.scratch())]);
    let failed = run(&mut mount);
    assert!(failed.code == Some(32) && failed.stderr.contains("cannot mount on"), "{failed}");
    assert!(!file.exists(), "nobody would ever remove it");
}
