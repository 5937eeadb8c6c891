//! The guardian's own process.
//!
//! ```text
//! started ─▶ waits ──done──▶ ends
//!              │ the daemon's socket closes, or no sign of life while something is held: SIGKILL
//!              ▼
//!          takes over: waits for the journal's lock ─▶ undoes ─▶ detaches ─▶ removes the directory ─▶ ends
//! ```
//! It is told nothing but where the journal is, allocates next to nothing while it waits, and asks
//! the kernel not to be killed first when memory runs out.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as Socket;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};

use super::{Answer, Order, hear, tell};
use crate::beside::{leave, signals, socket_at_stdin};
use crate::error::{Error, Kind, Result, chain};
use crate::fuse::mount::Mount;
use crate::lines::Lines;
use crate::patience::Patience;
use crate::point::journal;
use crate::recovery::{Dead, remove_dir};

/// A daemon that gives no sign of life for so long while something is held is killed: it cannot look after its scratch
/// space any more. It gives one each second.
const SILENCE_LIMIT: Duration = Duration::from_secs(10);

/// Between two looks at a daemon that gives none.
const LOOK: Duration = Duration::from_secs(1);

/// How long the guardian tries on. A machine whose monitor is occupied for longer is for `pullfs recover`.
const PATIENCE: Duration = Duration::from_secs(600);

/// Between two tries; doubles up to the second.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The process: waits for the end of the daemon at standard input, and cleans up behind it. `dir` is the mount's directory.
pub fn run(dir: &Path) -> ExitCode {
    match live(dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn live(dir: &Path) -> Result<()> {
    let unable = |what: &'static str| move |error| Error::with_source(Kind::Io, what, error);
    let socket = socket_at_stdin(super::SUBCOMMAND)?;
    leave()?;
    // Only root may; without it the guardian is small enough not to be the first choice.
    std::fs::write("/proc/self/oom_score_adj", "-1000").ok();
    let daemon = process(&socket);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(unable("cannot start the runtime"))?.block_on(async {
        let _never_heard = signals()?;
        let lines = UnixStream::from_std(socket).map(Lines::new).map_err(unable("cannot use standard input"))?;
        match wait(dir, lines, daemon).await {
            End::Dead => take_over(dir).await,
            End::Dismissed => Ok(()),
        }
    })
}

/// The process at the other end of a socketpair is the one that made it (unix(7), `SO_PEERCRED`). None if it is dead.
fn process(socket: &Socket) -> Option<OwnedFd> {
    let pid = rustix::net::sockopt::socket_peercred(socket).ok()?.pid;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// How the daemon ended.
enum End {
    /// It is dead, or about to be.
    Dead,
    /// It has let the guardian go.
    Dismissed,
}

/// Waits for the daemon's end.
async fn wait(dir: &Path, mut lines: Lines, daemon: Option<OwnedFd>) -> End {
    // A daemon that is dead already is noticed below, and cleaned up after.
    tell(&mut lines, &Answer::Ready).await.ok();
    let patience = || Patience::new(SILENCE_LIMIT, 2 * LOOK);
    let mut left = patience();
    loop {
        let order = tokio::select! {
            // What came while nobody looked counts.
            biased;
            order = hear(&mut lines) => order,
            () = sleep(LOOK) => {
                if !left.is_over() {
                    continue;
                }
                if is_holding(dir) {
                    tracing::error!("the daemon gives no sign of life while a point in time is held: it is killed");
                    daemon.as_ref().map(|daemon| pidfd_send_signal(daemon, Signal::KILL));
                    return End::Dead;
                }
                left = patience();
                continue;
            }
        };
        left = patience();
        match order {
            Ok(Some(Order::Beat)) => {}
            Ok(Some(Order::Detach { path, device })) => {
                let answer = match detach(Mount::known(path, device)).await {
                    Ok(()) => Answer::Detached,
                    Err(error) => Answer::Failed { why: chain(&error) },
                };
                // A daemon that died meanwhile is noticed at the next turn.
                tell(&mut lines, &answer).await.ok();
            }
            Ok(Some(Order::Done)) => return End::Dismissed,
            Ok(None) | Err(_) => return End::Dead,
        }
    }
}

fn is_holding(dir: &Path) -> bool {
    journal::has_notes(dir)
}

async fn detach(mount: Mount) -> Result<()> {
    let detached = tokio::task::spawn_blocking(move || mount.detach()).await;
    detached.map_err(|error| Error::with_source(Kind::Io, "unmounting failed", error))?
}

/// Cleans up after a daemon that is dead, or about to be.
async fn take_over(dir: &Path) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = FIRST_PAUSE;
    let mut dead = None;
    loop {
        let outcome = bury(dir, &mut dead).await;
        match outcome {
            Ok(true) => return Ok(()),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context("pullfs recover can try again later"));
            }
            Ok(false) => {}
            Err(error) => {
                tracing::warn!("not cleaned up yet: {}", chain(&error));
                if error.kind() == Kind::Denied {
                    // A guardian that took the place of another one is as confined as the daemon: it keeps the journal
                    // from nobody who may do more.
                    dead = None;
                }
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Whether there is nothing left to do. `dead` keeps the journal's lock from one try to the next.
async fn bury(dir: &Path, dead: &mut Option<Dead>) -> Result<bool> {
    if dead.is_none() {
        *dead = Dead::in_dir(dir)?;
    }
    if let Some(dead) = dead {
        return dead.bury().await.map(|()| true);
    }
    // It is not quite dead yet; or it has removed it, in good order, and died before it had removed the directory.
    let done = !dir.join(journal::NAME).exists();
    if done {
        remove_dir(dir)?;
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use tempfile::TempDir;
    use tokio::task::JoinHandle;
    use tokio::time::{Instant, advance};

    use super::*;
    use crate::point::journal::{Header, Journal};

    /// A guardian of a mount that holds something, and the daemon's end of the socket, whose first line has come.
    async fn guardian() -> (JoinHandle<End>, Lines, (TempDir, Journal)) {
        let dir = tempfile::tempdir().unwrap();
        let header = Header::new("pullfs-000001".to_owned(), "qmp:/x".to_owned(), "/mnt".into());
        let kept = Journal::create(dir.path(), header).unwrap();
        let mut file = File::options().append(true).open(dir.path().join(journal::NAME)).unwrap();
        file.write_all(b"{\"note\":1,\"of\":\"something\"}\n").unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut ours, theirs) = (Lines::new(ours), Lines::new(theirs));
        let place = dir.path().to_owned();
        let waits = tokio::spawn(async move { wait(&place, theirs, None).await });
        assert!(matches!(hear(&mut ours).await, Ok(Some(Answer::Ready))));
        (waits, ours, (dir, kept))
    }

    #[tokio::test(start_paused = true)]
    async fn who_holds_something_and_is_silent_is_taken_for_dead() {
        let (guardian, _daemon, _held) = guardian().await;
        let began = Instant::now();
        assert!(matches!(guardian.await, Ok(End::Dead)));
        let waited = began.elapsed();
        assert!(waited + 2 * LOOK > SILENCE_LIMIT && waited < SILENCE_LIMIT + 2 * LOOK, "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_both_slept_through_is_not_silence() {
        let (guardian, mut daemon, _held) = guardian().await;
        advance(10 * SILENCE_LIMIT).await;
        tell(&mut daemon, &Order::Done).await.unwrap();
        assert!(matches!(guardian.await, Ok(End::Dismissed)));
    }
}
