//! Programs with a time limit, and servers that do not outlive their value.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

/// How long a program may take unless the caller says otherwise: far more than any of them needs on a slow machine.
pub const LIMIT: Duration = Duration::from_secs(60);

/// How long a server may take to its orderly end.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// What a program did.
#[derive(Debug)]
pub struct Finished {
    /// The command line, for messages.
    pub command: String,
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// Panics with all that the program said unless it succeeded; its standard output otherwise.
    #[track_caller]
    pub fn success(self) -> String {
        assert!(self.code == Some(0), "{self}");
        self.stdout
    }

    /// Panics unless the exit code is `code` and standard error is exactly one line, which is returned.
    #[track_caller]
    pub fn refused(self, code: i32) -> String {
        assert!(self.code == Some(code), "expected exit code {code}: {self}");
        let lines: Vec<&str> = self.stderr.lines().collect();
        assert!(lines.len() == 1, "expected one line of error: {self}");
        assert!(lines[0].starts_with("pullfs: "), "an error starts with the program's name: {self}");
        lines[0].to_owned()
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "`{}` ended with {:?}\n--- stdout\n{}\n--- stderr\n{}",
            self.command, self.code, self.stdout, self.stderr
        )
    }
}

/// Runs `command` to its end, or panics after [`LIMIT`].
#[track_caller]
pub fn run(command: &mut Command) -> Finished {
    run_within(command, LIMIT)
}

/// Runs `command` and panics unless it succeeds; its standard output.
#[track_caller]
pub fn ok(command: &mut Command) -> String {
    run(command).success()
}

/// Writes a script that can be run at once. By a process of its own: one that another test starts just now would have the file
/// open for writing, and nobody may run such a one.
#[track_caller]
pub fn write_script(path: &Path, text: &str) {
    let write = r#"printf %s "$1" >"$0" && chmod 755 "$0""#;
    ok(Command::new("sh").args(["-c", write]).arg(path).arg(text));
}

/// Runs `command` to its end, or kills it and panics after `limit`.
#[track_caller]
pub fn run_within(command: &mut Command, limit: Duration) -> Finished {
    let line = describe(command);
    // Files rather than pipes: a daemon that a program leaves behind must not keep us waiting for the end of a pipe.
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (out, err) = (dir.path().join("out"), dir.path().join("err"));
    command.stdin(Stdio::null()).stdout(create(&out)).stderr(create(&err));
    let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot run `{line}`: {e}"));
    let status = wait_for(&mut child, limit);
    let done = |code| Finished { command: line, code, stdout: lossy(&out), stderr: lossy(&err) };
    match status {
        Some(status) => done(status.code()),
        None => panic!("not done after {limit:?}: {}", done(None)),
    }
}

/// Waits for the child's end; kills it after `limit` and answers `None`.
pub fn wait_for(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait().expect("waiting for a child") {
            return Some(status);
        }
        if Instant::now() >= end {
            // By process id, which is ours until it is waited for.
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Asks until `condition` holds; panics with `what` after `limit`.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Does `work` on a thread of its own; panics after `limit`, and leaves the thread where it is.
#[track_caller]
pub fn within<T: Send + 'static>(what: &str, limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || tell.send(work()));
    told.recv_timeout(limit).unwrap_or_else(|e| panic!("not within {limit:?}: {what}: {e}"))
}

/// A server: it runs until its value is dropped. Its output is kept in a file.
#[derive(Debug)]
pub struct Running {
    name: String,
    process: Process,
    log: PathBuf,
}

#[derive(Debug)]
enum Process {
    Child(Child),
    /// Somebody else's child, with its process id.
    Adopted(u32, OwnedFd),
}

impl Running {
    /// Starts `command`; what it writes goes to `log`. It ends with this process, whatever ends this process.
    #[track_caller]
    pub fn start(command: &Command, log: &Path) -> Self {
        let name = describe(command);
        let mut guarded = Command::new("setpriv");
        // Line by line, so that what a monitor command prints can be read while the server runs.
        guarded.args(["--pdeathsig", "TERM", "stdbuf", "-oL", "-eL"]);
        guarded.arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            guarded.env(key, value.unwrap_or_default());
        }
        let out = create(log);
        guarded.stdin(Stdio::null()).stderr(out.try_clone().expect("a second handle of the log")).stdout(out);
        let child = guarded.spawn().unwrap_or_else(|e| panic!("cannot run `{name}`: {e}"));
        Self { name, process: Process::Child(child), log: log.to_owned() }
    }

    /// Takes over a process that somebody else has started, and whose output is in `log`.
    #[track_caller]
    pub fn adopt(name: &str, pid: u32, log: &Path) -> Self {
        let handle = pidfd_open(process_id(pid), PidfdFlags::empty()).unwrap_or_else(|e| panic!("`{name}`: {e}"));
        Self { name: name.to_owned(), process: Process::Adopted(pid, handle), log: log.to_owned() }
    }

    /// Panics with the server's output unless it still runs.
    #[track_caller]
    pub fn check(&mut self) {
        if let Some(status) = self.ended() {
            panic!("`{}` ended with {status}\n{}", self.name, self.log());
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        match &self.process {
            Process::Child(child) => child.id(),
            Process::Adopted(pid, _) => *pid,
        }
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        lossy(&self.log)
    }

    /// How many bytes it has written so far.
    pub fn log_length(&self) -> u64 {
        fs::metadata(&self.log).map_or(0, |log| log.len())
    }

    /// What it has written since it had written `length` bytes. A server that runs for hours has written a lot.
    #[track_caller]
    pub fn log_since(&self, length: u64) -> String {
        let mut said = Vec::new();
        let mut log = File::open(&self.log).expect("the log");
        log.seek(SeekFrom::Start(length)).and_then(|_| log.read_to_end(&mut said)).expect("reading the log");
        String::from_utf8_lossy(&said).into_owned()
    }

    /// Sends `signal`.
    pub fn signal(&self, signal: Signal) {
        match &self.process {
            Process::Child(child) => signal_child(child, signal),
            Process::Adopted(_, handle) => drop(pidfd_send_signal(handle, signal)),
        }
    }

    /// Asks it to end, and kills it if it does not.
    pub fn stop(&mut self) {
        if self.ended().is_none() {
            self.signal(Signal::TERM);
            let _ = self.ended_within(STOP_LIMIT);
        }
    }

    /// Waits for it to end by itself; panics after `limit`. How somebody else's child ended is not known: as if it were well.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        self.ended_within(limit).unwrap_or_else(|| {
            panic!("`{}` did not end within {limit:?}\n{}", self.name, self.log());
        })
    }

    /// How it ended, if it has.
    #[track_caller]
    fn ended(&mut self) -> Option<ExitStatus> {
        match &mut self.process {
            Process::Child(child) => child.try_wait().expect("waiting for a child"),
            // A handle of a process that has ended can be read.
            Process::Adopted(_, handle) => {
                let ready = poll(&mut [PollFd::new(handle, PollFlags::IN)], Some(&Timespec::default()));
                (ready == Ok(1)).then(ExitStatus::default)
            }
        }
    }

    /// Waits for its end; kills it after `limit` and answers `None`.
    fn ended_within(&mut self, limit: Duration) -> Option<ExitStatus> {
        if let Process::Child(child) = &mut self.process {
            return wait_for(child, limit);
        }
        let end = Instant::now() + limit;
        while Instant::now() < end {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.signal(Signal::KILL);
        None
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
        if thread::panicking() {
            eprintln!("--- {}\n{}", self.name, self.log());
        }
    }
}

/// Sends `signal` to a child that has not been waited for.
pub fn signal_child(child: &Child, signal: Signal) {
    let _ = kill_process(Pid::from_child(child), signal);
}

/// Sends `signal` to a process of that id, if there is one.
pub fn signal_pid(pid: u32, signal: Signal) {
    let _ = kill_process(process_id(pid), signal);
}

fn process_id(pid: u32) -> Pid {
    i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id")
}

/// Kills processes as if at one instant: none of them can do anything about the death of another.
pub fn kill_at_once(pids: &[u32]) {
    for signal in [Signal::STOP, Signal::KILL] {
        for &pid in pids {
            signal_pid(pid, signal);
        }
    }
}

/// The processes that a process has started and that run, and whose command line has `word` in it.
pub fn children(pid: u32, word: &str) -> Vec<u32> {
    let is_one = |child: &u32| {
        let status = fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
        let line = fs::read_to_string(format!("/proc/{child}/cmdline")).unwrap_or_default();
        status.lines().any(|line| line == format!("PPid:\t{pid}")) && line.contains(word)
    };
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    processes.filter_map(|process| process.file_name().to_str()?.parse().ok()).filter(is_one).collect()
}

/// Whether a process that is not our child has ended: it is gone, or a zombie until whoever inherited it looks.
pub fn has_ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_none_or(|rest| rest.trim_start().starts_with('Z') || rest.is_empty())
}

fn describe(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        let _ = write!(line, " {}", argument.to_string_lossy());
    }
    line
}

fn create(path: &Path) -> File {
    File::create(path).unwrap_or_else(|e| panic!("cannot create {}: {e}", path.display()))
}

fn lossy(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
