//! What happens to the machine: it is paused, reset, and robbed of points in time that somebody else ends.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use pullfs_tests::machine::Machine;
use pullfs_tests::process::wait_until;
use pullfs_tests::random::Random;
use serde_json::json;

use super::load::{EndOnPanic, Load, Now, OPERATION_LIMIT};

/// Between two of them.
const LONGEST_PAUSE: u64 = 1500;

pub(super) fn run(load: &Load<'_>, seed: u64) {
    let _end = EndOnPanic(load);
    let mut random = Random::new(seed);
    while !load.over() {
        thread::sleep(Duration::from_millis(random.below(LONGEST_PAUSE)));
        load.link.disturb(&mut random);
        match random.below(100) {
            0..50 => {
                tell(load, "stop");
                load.figures.pauses.add(1);
                thread::sleep(Duration::from_millis(random.below(400)));
                tell(load, "cont");
            }
            50..80 => {
                tell(load, "system_reset");
                load.figures.resets.add(1);
            }
            80..92 => take_away(load, |machine| {
                let jobs = machine.qmp().must("query-jobs", json!({}));
                let jobs = jobs.as_array().expect("a list of jobs");
                let job = &jobs[random.index(jobs.len())]["id"];
                machine.qmp().must("job-cancel", json!({ "id": job }));
                load.figures.cancelled.add(1);
            }),
            _ => take_away(load, |machine| {
                machine.qmp().must("nbd-server-stop", json!({}));
                load.link.start_server(machine);
                load.figures.stopped.add(1);
            }),
        }
    }
}

fn tell(load: &Load<'_>, command: &str) {
    let world = load.world();
    let _nobody_new = load.link.nobody_new();
    let began = Instant::now();
    world.machine.qmp().must(command, json!({}));
    load.figures.longest_monitor.note(began.elapsed());
}

/// Ends the point in time behind pullfs's back, if one is held, and waits until that is known.
fn take_away(load: &Load<'_>, end: impl FnOnce(&Machine)) {
    let world = load.world();
    let (_, Now::Held(held)) = load.now() else { return };
    load.change(Now::Changing);
    held.lost.store(true, Ordering::SeqCst);
    held.ended.store(true, Ordering::SeqCst);
    {
        let _nobody_new = load.link.nobody_new();
        end(&world.machine);
    }
    wait_until("the loss to be noticed", OPERATION_LIMIT, || load.mount.state() == "none");
    load.change(Now::Nothing);
}
