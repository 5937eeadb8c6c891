//! The relay's own process.

use std::io::{self, Write};
use std::os::unix::net::UnixStream as Socket;
use std::path::Path;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::super::elsewhere::Way;
use super::Call;
use crate::beside::{leave, signals, socket_at_stdin};
use crate::error::{Error, Kind, Result, chain, printable};

/// Connections at once; more wait. A daemon has at most twenty for calls and errands, and as many that take leave.
const MAX_CONNECTIONS: usize = 48;

/// How long ssh may take to end once one of its ends is closed.
const LEAVE_LIMIT: Duration = Duration::from_secs(5);

/// What one ssh says that is listened to, in bytes.
const WORDS: u64 = 4096;

/// Before connections are taken again when that failed.
const PAUSE: Duration = Duration::from_millis(200);

/// The process: listens at `socket`, and leads whoever connects to the libvirt at `uri`, until the process at standard input has
/// ended.
pub fn run(uri: &str, socket: &Path) -> ExitCode {
    match live(uri, socket) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn live(uri: &str, socket: &Path) -> Result<()> {
    let unable = |what: &'static str| move |error| Error::with_source(Kind::Io, what, error);
    let daemon = socket_at_stdin(super::SUBCOMMAND)?;
    let way = Way::of(uri);
    let call = Call::of(&way).map_err(|why| Error::new(Kind::Unsupported, format!("uri={uri}: {why}")))?;
    leave()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(unable("cannot start the runtime"))?.block_on(async {
        let _never_heard = signals()?;
        let host = way.host.unwrap_or_default();
        serve(call, host, socket, daemon).await.map_err(unable("cannot listen for the daemon"))
    })
}

/// The whole life of a relay; whoever has the other end of `daemon` is told when it listens.
pub(super) async fn serve(call: Call, host: &str, socket: &Path, daemon: Socket) -> io::Result<()> {
    let mut daemon = UnixStream::from_std(daemon)?;
    // Of a relay of the same process that was killed.
    std::fs::remove_file(socket).ok();
    let listener = UnixListener::bind(socket)?;
    daemon.write_all(b"\n").await?;
    let call = Arc::new(call);
    let host: Arc<str> = host.into();
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut led = JoinSet::new();
    let mut nothing = [0; 16];
    let next = || async {
        let permit = room.clone().acquire_owned().await.map_err(io::Error::other)?;
        listener.accept().await.map(|(stream, _)| (stream, permit))
    };
    loop {
        tokio::select! {
            // It says nothing more, and is gone when this ends.
            read = daemon.read(&mut nothing) => if matches!(read, Ok(0) | Err(_)) { break },
            accepted = next() => match accepted {
                Ok((stream, permit)) => {
                    let (call, host) = (call.clone(), host.clone());
                    led.spawn(async move {
                        lead(&call, &host, stream).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    report(&format!("nobody is led to {host}: {error}"));
                    sleep(PAUSE).await;
                }
            },
            // Those that have ended need no room.
            Some(_) = led.join_next() => {}
        }
    }
    std::fs::remove_file(socket).ok();
    // Each takes its ssh along.
    led.shutdown().await;
    Ok(())
}

/// Leads one connection, to its end or that of ssh.
async fn lead(call: &Call, host: &str, mut stream: UnixStream) {
    let mut command = Command::new(&call.program);
    command.args(&call.arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A terminal's signals are not for it.
    command.process_group(0).kill_on_drop(true);
    let mut ssh = match command.spawn() {
        Ok(ssh) => ssh,
        Err(error) => return report(&format!("cannot start {}, which leads to {host}: {error}", call.program)),
    };
    let (Some(mut input), Some(mut output), Some(errors)) = (ssh.stdin.take(), ssh.stdout.take(), ssh.stderr.take())
    else {
        return;
    };
    let words = tokio::spawn(async move {
        let mut words = Vec::new();
        errors.take(WORDS).read_to_end(&mut words).await.map(|_| words)
    });
    let (mut from, mut to) = stream.split();
    let left = tokio::select! {
        // How it ends is seen by its end.
        _ = copy(&mut from, &mut input) => true,
        _ = copy(&mut output, &mut to) => false,
    };
    drop((input, output));
    let ended = end(&mut ssh).await;
    if !left {
        let words = timeout(LEAVE_LIMIT, words).await.ok().and_then(std::result::Result::ok);
        sum_up(host, ended, &words.and_then(io::Result::ok).unwrap_or_default());
    }
    // Whoever connected learns of it when the words are said.
    drop(stream);
}

/// Waits for the end of an ssh that has nothing more to do, or ends it.
async fn end(ssh: &mut Child) -> Option<ExitStatus> {
    if let Ok(status) = timeout(LEAVE_LIMIT, ssh.wait()).await {
        return status.ok();
    }
    ssh.kill().await.ok();
    None
}

/// What became of an ssh that ended by itself.
fn sum_up(host: &str, status: Option<ExitStatus>, words: &[u8]) {
    let words = String::from_utf8_lossy(words);
    let mut lines = words.lines().map(str::trim).filter(|line| !line.is_empty()).peekable();
    match status {
        _ if lines.peek().is_some() => lines.for_each(|line| report(&format!("ssh to {host}: {line}"))),
        Some(status) => report(&format!("ssh to {host} ended ({status})")),
        None => report(&format!("ssh to {host} did not end, and was killed")),
    }
}

/// Tells the daemon, which may be gone.
fn report(words: &str) {
    writeln!(io::stderr(), "{}", printable(words)).ok();
}
