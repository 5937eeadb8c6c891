//! What processes cost, as the kernel counts it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pullfs_tests::tools::tool;

/// For the largest copy on a slow disk.
pub(crate) const LIMIT: Duration = Duration::from_secs(900);

/// Between looks at a command that is to end before its end.
const POLL: Duration = Duration::from_millis(20);

/// Linux tells times of processes in these, on every architecture that QEMU runs machines on.
const TICKS_PER_SECOND: f64 = 100.0;

/// The same command, which is ended when it takes too long. Waiting for it then takes no looking again and again, which
/// would be measured too.
#[track_caller]
pub(crate) fn limited(command: &Command) -> Command {
    let mut limited = tool("timeout");
    limited.arg(LIMIT.as_secs().to_string()).arg(command.get_program()).args(command.get_args());
    limited.stdin(Stdio::null()).stdout(Stdio::null());
    limited
}

/// Runs a command that must succeed, and says how long it took. What it prints is thrown away.
#[track_caller]
pub(crate) fn timed(command: &Command) -> Duration {
    let start = Instant::now();
    let output = limited(command).output().expect("a command that runs");
    let took = start.elapsed();
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    took
}

/// Takes so many bytes of memory and lets them go, so that what is timed next finds memory at hand. A virtual machine gives
/// pages that nobody used for a moment back to its host (free page reporting), and whoever uses them next pays for it.
pub(crate) fn warm(bytes: u64) {
    let bytes = usize::try_from(bytes).expect("memory that a bench can take");
    drop(std::hint::black_box(vec![1_u8; bytes]));
}

/// Has a file written to its disk; how long that took.
#[track_caller]
pub(crate) fn sync(file: &Path) -> Duration {
    timed(tool("sync").arg(file))
}

/// Has all of a file system written to its disk, so that nobody waits for what others wrote, and finds memory for `bytes`.
#[track_caller]
pub(crate) fn settle(dir: &Path, bytes: u64) {
    timed(tool("sync").arg("--file-system").arg(dir));
    warm(2 * bytes);
}

/// Runs a command again and again while something is done, and ends it then; how long each of its runs took that came to
/// its end. They must succeed.
#[track_caller]
pub(crate) fn again_and_again<R>(command: &Command, work: impl FnOnce() -> R) -> (R, Vec<Duration>) {
    let enough = AtomicBool::new(false);
    thread::scope(|scope| {
        let runs = scope.spawn(|| {
            let mut took = Vec::new();
            while let Some(run) = unless(&enough, command) {
                took.push(run);
            }
            took
        });
        let done = work();
        enough.store(true, Ordering::Relaxed);
        (done, runs.join().expect("a command that runs again and again"))
    })
}

/// Runs a command to its end; `None` when it was ended because it is enough.
fn unless(enough: &AtomicBool, command: &Command) -> Option<Duration> {
    let start = Instant::now();
    let mut child = tool("setpriv");
    child.args(["--pdeathsig", "KILL"]).arg(command.get_program()).args(command.get_args());
    let mut child = child.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("a command that runs");
    loop {
        if let Some(status) = child.try_wait().expect("waiting for a child") {
            assert!(status.success(), "{command:?}: {status}");
            return Some(start.elapsed());
        }
        if enough.load(Ordering::Relaxed) {
            child.kill().and_then(|()| child.wait()).expect("the end of a child");
            return None;
        }
        thread::sleep(POLL);
    }
}

/// CPU seconds of a process so far.
#[track_caller]
pub(crate) fn cpu(pid: u32) -> f64 {
    let fields = stat(&pid.to_string());
    (fields[11] + fields[12]) / TICKS_PER_SECOND
}

/// CPU time of a process' threads so far, to the nanosecond. What ended threads used is not in it.
#[track_caller]
pub(crate) fn cpu_to_now(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("a process of ours");
    // One that ends meanwhile is gone.
    let told = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("schedstat")).ok());
    Duration::from_nanos(told.filter_map(|told| told.split(' ').next()?.parse::<u64>().ok()).sum())
}

/// CPU seconds so far of all our children that have ended.
#[track_caller]
pub(crate) fn cpu_of_ended() -> f64 {
    let fields = stat("self");
    (fields[13] + fields[14]) / TICKS_PER_SECOND
}

/// The processes that a process has started and that run.
#[track_caller]
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let numbers = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|child: &u32| parent(*child) == Some(pid)).collect()
}

/// None of one that ended meanwhile.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}

/// What a process had in memory at most, in MiB.
#[track_caller]
pub(crate) fn most_resident(pid: u32) -> f64 {
    status(pid, "VmHWM:") / 1024.0
}

/// What a process has in memory, in MiB.
#[track_caller]
pub(crate) fn resident_now(pid: u32) -> f64 {
    status(pid, "VmRSS:") / 1024.0
}

/// How many threads a process has.
#[track_caller]
pub(crate) fn threads(pid: u32) -> f64 {
    status(pid, "Threads:")
}

#[track_caller]
fn status(pid: u32, key: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process of ours");
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    number.expect("what the kernel tells of a process")
}

/// The numbers of /proc/PID/stat from the third field on, which is the state and counts as 0 here.
#[track_caller]
fn stat(pid: &str) -> Vec<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process of ours");
    let rest = stat.rsplit(')').next().expect("fields");
    rest.split_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_run_until_it_is_enough() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut command = Command::new("sh");
        command.args(["-c", "echo >>$0"]).arg(&log);
        let runs = || fs::read(&log).map_or(0, |log| log.len());
        let start = Instant::now();
        let ((), took) = again_and_again(&command, || {
            while runs() < 3 {
                assert!(start.elapsed() < Duration::from_secs(60), "{} runs", runs());
                thread::yield_now();
            }
        });
        assert!((2..=runs()).contains(&took.len()), "{took:?}");
    }

    #[test]
    fn our_children_are_those_that_run() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let found = children(std::process::id());
        child.kill().and_then(|()| child.wait()).unwrap();
        assert!(found.contains(&child.id()) && !children(std::process::id()).contains(&child.id()), "{found:?}");
    }

    #[test]
    fn our_own_cost_is_told() {
        let pid = std::process::id();
        let start = Instant::now();
        while cpu(pid) <= 0.0 {
            assert!(start.elapsed() < Duration::from_secs(60), "no CPU time of a busy process");
        }
        // The kernel counts each a little late: which is larger is not told.
        assert!(most_resident(pid) > 0.0 && resident_now(pid) > 0.0);
        assert!(cpu_to_now(pid) > Duration::ZERO && threads(pid) >= 1.0);
    }
}
