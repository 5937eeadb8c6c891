//! The guest comes first: whatever happens to scratch space, readers and pullfs, it neither fails nor waits for long.
//!
//! The guest overwrites its disk with `O_DIRECT` all the time and says how long its slowest write took.

mod ends;
mod monitors;
mod readers;
mod scratch;

use std::time::Duration;

use pullfs_tests::mount::Mount;
use pullfs_tests::process::wait_until;
use pullfs_tests::stalls::Stalls;

/// How long the guest's slowest write may take on a busy machine where everything is emulated.
const STALL_LIMIT: Duration = Duration::from_secs(5);

/// How long it may take until something is noticed.
const NOTICE_LIMIT: Duration = Duration::from_secs(30);

/// Waits until no point in time is held; why.
#[track_caller]
fn why_it_ended(mount: &Mount) -> String {
    wait_until("the end of the point in time", NOTICE_LIMIT, || mount.state() == "none");
    let status = mount.status();
    status["last_end"]["reason"].as_str().unwrap_or_else(|| panic!("no reason in {status}")).to_owned()
}

/// Panics unless the guest goes on and never waited for long; says how long it did.
#[track_caller]
fn goes_on(guest: &Stalls, test: &str) {
    guest.wait_more(8);
    assert_eq!(guest.status(), "running");
    let longest = guest.longest();
    eprintln!("{test}: the guest's slowest write took {} ms, of {} MiB", longest.as_millis(), guest.written());
    assert!(longest < STALL_LIMIT, "{test}: the guest waited for {longest:?}");
}
