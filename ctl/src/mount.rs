//! `pullfs mount`: starts a daemon in the background and waits until its mount answers; `-f` is that daemon.

use std::io::{BufRead, BufReader, IsTerminal, Seek};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use pullfs_fs::fuse::mount::{check_mount_point, is_dead};
use pullfs_fs::vm::source::{Reach, Source};
use rustix::event::{PollFd, PollFlags, poll};

use crate::args::Mount;
use crate::config;
use crate::daemon::{self, READY, Task};
use crate::failure::{Code, Failure, Outcome};
use crate::waiting::waiting;

/// How long the daemon may take until its mount answers: each question to the machine has its own, shorter limit.
const READY_LIMIT: Duration = Duration::from_secs(120);

/// The mount itself answers in no time once it is there.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

pub(crate) fn run(arguments: &Mount) -> Outcome {
    let source: Source = arguments.source.parse()?;
    let resolved = config::resolve(Some(&source), &arguments.options)?;
    #[cfg(feature = "libvirt")]
    if source == Source::Host {
        return crate::host::mount(arguments, resolved);
    }
    let reach = Reach::of(&source, &resolved.options)?;
    let source = source.to_string();
    // What a dead daemon left mounted there goes with the rest of what it left.
    if is_dead(&arguments.mount_point) {
        let clean_up = || daemon::clean_up(&source, reach.uri());
        waiting("cleaning up after a dead mount", clean_up).map_err(Failure::of_mount)?;
    }
    let mount_point = check_mount_point(&arguments.mount_point).map_err(|error| Failure::from(error).of_mount())?;
    if arguments.foreground {
        let task = Task {
            source,
            reach,
            mount_point,
            resolved,
            config: config::path().context("cannot find the current directory")?,
            announce: arguments.announce,
            leashed: arguments.leashed,
            verbose: arguments.verbose,
        };
        return daemon::run(task).map_err(Failure::of_mount);
    }
    background(arguments, &source, &mount_point, answers).map_err(Failure::of_mount)
}

/// Starts the daemon, and returns when it says that its mount answers and `check` finds that it does.
pub(crate) fn background(
    arguments: &Mount,
    source: &str,
    mount_point: &Path,
    check: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> Outcome {
    // By its path, so that it is known by its name; where its file was replaced meanwhile, by what it was.
    let path = std::env::current_exe().ok().filter(|path| path.exists());
    let mut command = Command::new(path.unwrap_or_else(|| daemon::SELF.into()));
    command.args(["mount", "--foreground", "--announce"]);
    command.args(std::iter::repeat_n("-v", arguments.verbose.into()));
    for options in &arguments.options {
        command.args(["-o", options]);
    }
    command.arg("--").arg(source).arg(mount_point).stdin(Stdio::null()).stdout(Stdio::piped());
    // What it says must not meet the spinner; it is few words, unless more are asked for.
    let mut said = None;
    if arguments.verbose == 0 && std::io::stderr().is_terminal() {
        let file = tempfile::tempfile().context("cannot make a temporary file")?;
        command.stderr(file.try_clone().context("cannot make a temporary file")?);
        said = Some(file);
    }
    let mut child = command.spawn().context("cannot start the daemon")?;
    let ready = waiting(&format!("waiting for {source}"), || announced(&mut child));
    // The daemon has said why on standard error.
    let ended = matches!(ready, Ok(false)).then(|| child.wait());
    if let Some(mut said) = said {
        said.rewind().and_then(|()| std::io::copy(&mut said, &mut std::io::stderr())).ok();
    }
    let Some(status) = ended else {
        ready?;
        return check(mount_point).map_err(Failure::from);
    };
    let status = status.context("cannot wait for the daemon")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(Code::Mount as u8);
    std::process::exit(code.into())
}

/// Whether the daemon said that its mount answers, rather than ending.
fn announced(child: &mut Child) -> anyhow::Result<bool> {
    let pipe = child.stdout.take().context("the daemon has no standard output")?;
    let deadline = Instant::now() + READY_LIMIT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(&pipe, PollFlags::IN)];
        match poll(&mut fds, Some(&left.try_into()?)) {
            Ok(0) => {
                // It is told to end, and cleans up behind itself.
                let pid = rustix::process::Pid::from_child(child);
                rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
                return Err(anyhow!("the mount did not answer within {} s", READY_LIMIT.as_secs()));
            }
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for the daemon"),
        }
    }
    let mut line = String::new();
    BufReader::new(pipe).read_line(&mut line)?;
    Ok(line.trim_end() == READY)
}

fn answers(mount_point: &Path) -> anyhow::Result<()> {
    let (tell, told) = std::sync::mpsc::channel();
    let path = mount_point.join("status.json");
    // On a thread of its own: a mount that does not answer would hold it for good.
    std::thread::spawn(move || tell.send(std::fs::metadata(path)).ok());
    match told.recv_timeout(ANSWER_LIMIT) {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error).with_context(|| format!("the mount at {} does not answer", mount_point.display())),
        Err(_) => Err(anyhow!("the mount at {} does not answer", mount_point.display())),
    }
}
