//! Bacula's incremental jobs, which look for times since the last job began, in whole seconds. What they read otherwise is in
//! `matrix`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pullfs_tests::bacula::Bacula;
use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::oracle;
use pullfs_tests::process::{ok, wait_until};
use pullfs_tests::tools::tool;

/// For a job.
const LIMIT: Duration = Duration::from_secs(60);

/// How often a change is tried to be of the second in which a job began.
const TRIES: u8 = 20;

struct Bench {
    machine: Machine,
    mount: Mount,
    bacula: Bacula,
    jobs: usize,
}

impl Bench {
    fn new(flavor: Flavor) -> Self {
        let machine = Machine::build(flavor).disk(Disk::qcow2("vda", 16 * MIB).filled(&[(MIB, MIB)])).start();
        let mount = Mount::of(&machine);
        let backup = machine.dir().join("backup");
        fs::create_dir(&backup).expect("a directory");
        let bacula = Bacula::start(&backup, &mount.mnt());
        Self { machine, mount, bacula, jobs: 0 }
    }

    fn begin(&mut self, level: &str) {
        self.bacula.say(&format!("run job=vm1 level={level} yes"));
        self.jobs += 1;
    }

    /// Waits for the job's end; when it began.
    fn end(&self) -> String {
        self.bacula.finished(self.jobs)
    }

    /// Makes a checkpoint as soon as nothing is open; whether it was made.
    fn checkpoint(&self, name: &str) -> bool {
        fs::create_dir(self.mount.path("checkpoints").join(name)).is_ok()
    }

    fn release(&self) {
        self.mount.command(&["release"]).success();
    }

    /// QEMU's own copy of the disk.
    fn copy(&self, name: &str) -> PathBuf {
        self.machine.copy("vda", name)
    }

    /// Whether the last job left what the disk was at `right`.
    fn has(&self, right: &Path) {
        oracle::same(&self.bacula.restore(&self.mount.disk("vda")), right);
    }
}

on!(what_changed_since_the_point_in_time_is_read_by_the_next_job: new = New);
fn what_changed_since_the_point_in_time_is_read_by_the_next_job(flavor: Flavor) {
    let mut bench = Bench::new(flavor);
    // It is older than the change, which is older than the first job: that does not see it, the next one must.
    assert!(bench.checkpoint("monday"));
    let monday = bench.copy("monday");
    bench.machine.write("vda", 0, 65536, 0x11);
    bench.begin("Full");
    bench.end();
    bench.release();
    bench.has(&monday);
    let changed = bench.copy("changed");
    bench.begin("Incremental");
    bench.end();
    bench.release();
    bench.has(&changed);
    assert!(bench.mount.unmount().success());
}

on!(what_changed_in_the_second_of_a_job_is_read_by_the_next: new = New);
fn what_changed_in_the_second_of_a_job_is_read_by_the_next(flavor: Flavor) {
    let mut bench = Bench::new(flavor);
    let mut level = "Full";
    for byte in 1..=TRIES {
        bench.begin(level);
        level = "Incremental";
        wait_until("the job to read", LIMIT, || bench.mount.state() == "held");
        bench.machine.write("vda", 0, 65536, byte);
        // The disk's time is this checkpoint's from now on.
        wait_until("the job to have read", LIMIT, || bench.checkpoint(&byte.to_string()));
        let made = ok(tool("date").arg("+%F %T"));
        bench.release();
        if bench.end() == made.trim() {
            let right = bench.copy("right");
            bench.begin(level);
            bench.end();
            bench.release();
            bench.has(&right);
            assert!(bench.mount.unmount().success());
            return;
        }
    }
    panic!("none of {TRIES} changes was of the second in which a job began");
}
