//! The daemon's side of a guard: a task that starts it, waits for what it tells, and thaws in its place when it is
//! killed or hangs. The task is never cancelled by those who wait for it; when the daemon's runtime ends it closes the
//! guard's socket, and the guard thaws.

#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as Socket;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use super::report::{Report, THAW};
use super::thaw::Thawing;
use super::{Limits, Quiesce, SUBCOMMAND};
use crate::error::{Error, Kind, Result, chain};
use crate::lines::Lines;

/// Beyond the guard's own limits, for starting a process on a busy machine and for what it tells to arrive.
const SLACK: Duration = Duration::from_secs(2);

/// A guard and the end of its socket.
pub(super) struct Keeper {
    guard: Child,
    lines: Lines,
    agent: PathBuf,
    limits: Limits,
}

/// That the guest is frozen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Since {
    /// When the daemon heard of it.
    heard: Instant,
    /// How long freezing took.
    pub(super) took: Duration,
    pub(super) filesystems: u64,
}

impl Keeper {
    /// Starts the guard.
    pub(super) fn start(quiesce: &Quiesce) -> Result<Self> {
        let unable = |error| {
            let program = quiesce.program.display();
            Error::with_source(Kind::Io, format!("cannot start {program} as the guard of a frozen guest"), error)
        };
        let agent = std::path::absolute(&quiesce.agent).map_err(unable)?;
        let (ours, theirs) = Socket::pair().map_err(unable)?;
        ours.set_nonblocking(true).map_err(unable)?;
        let lines = Lines::new(UnixStream::from_std(ours).map_err(unable)?);
        let guard = Command::new(&quiesce.program)
            .arg(SUBCOMMAND)
            .arg(&agent)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .map_err(unable)?;
        Ok(Self { guard, lines, agent, limits: quiesce.limits })
    }

    /// The guard's process id.
    pub(super) fn guard(&self) -> u32 {
        self.guard.id()
    }

    /// `frozen` is told that the guest is; whoever has the other end of `asked` sends to it, or drops it, when the guest
    /// is to be thawed; `thawed` is told how long it was frozen.
    pub(super) async fn keep(
        mut self,
        frozen: oneshot::Sender<Result<Since>>,
        asked: oneshot::Receiver<()>,
        thawed: oneshot::Sender<Result<Duration>>,
    ) {
        // Those who wait may have given up at any of these.
        let mut thawing = None;
        match self.until_frozen(&mut thawing).await {
            Err(error) => {
                frozen.send(Err(error)).ok();
            }
            Ok(since) => {
                frozen.send(Ok(since)).ok();
                let outcome = self.until_thawed(since, asked, &mut thawing).await;
                thawed.send(outcome).ok();
            }
        }
        if let Some(thawing) = thawing {
            thawing.finish().await;
        }
        // The end of its socket is the end of the process, so that waiting for it takes no time.
        while Report::receive(&mut self.lines).await.is_ok() {}
        tokio::task::spawn_blocking(move || self.guard.wait()).await.ok();
    }

    async fn until_frozen(&mut self, thawing: &mut Option<Thawing>) -> Result<Since> {
        let Limits { answer, freeze, .. } = self.limits;
        // Connecting, synchronising and two questions.
        match self.hear(4 * answer + SLACK).await {
            Ok(Report::Freezing) => {}
            Ok(Report::Failed { cause, why }) => return Err(Error::new(cause.kind(), why)),
            other => {
                let why = self.stop(other);
                // It may have gone on just before it was stopped.
                return match self.hear(SLACK).await {
                    Ok(_) => Err(self.thaw_after(why, thawing).await),
                    Err(_) => Err(why),
                };
            }
        }
        match self.hear(freeze + 3 * answer + SLACK).await {
            Ok(Report::Frozen { filesystems, took }) => Ok(Since { heard: Instant::now(), took, filesystems }),
            Ok(Report::Failed { cause, why }) => Err(Error::new(cause.kind(), why)),
            other => {
                let why = self.stop(other);
                Err(self.thaw_after(why, thawing).await)
            }
        }
    }

    async fn until_thawed(
        &mut self,
        since: Since,
        asked: oneshot::Receiver<()>,
        thawing: &mut Option<Thawing>,
    ) -> Result<Duration> {
        let Limits { answer, hold, .. } = self.limits;
        let mut in_time = false;
        let mut report = tokio::select! {
            biased;
            report = Report::receive(&mut self.lines) => report,
            asked = asked => {
                in_time = asked.is_ok();
                self.ask(in_time).await;
                self.hear(SLACK).await
            }
            // The guard's own limit comes first, unless it hangs.
            () = sleep(hold + SLACK) => Err(Error::new(Kind::Timeout, "it let its limit pass")),
        };
        if let Ok(Report::Thawing) = report {
            report = self.hear(3 * answer + SLACK).await;
        }
        let (thawed, early, frozen) = match report {
            Ok(Report::Thawed { filesystems, early, frozen }) => (filesystems, early, frozen),
            Ok(Report::Failed { cause, why }) => return Err(Error::new(cause.kind(), why)),
            other => {
                let why = self.stop(other);
                tracing::warn!("the guest is thawed without its guard: {}", chain(&why));
                let thawed = self.thaw_in_its_place(thawing).await?;
                (thawed, (!in_time).then(|| chain(&why)), since.took + since.heard.elapsed())
            }
        };
        if let Some(why) = early {
            let context = format!("the guest was thawed before the point in time was complete: {why}");
            return Err(Error::new(Kind::Timeout, context));
        }
        if thawed < since.filesystems {
            let context = format!(
                "of the {} file systems that the guest froze, {thawed} were still frozen at the end: somebody else thawed \
                 them before the point in time was complete",
                since.filesystems
            );
            return Err(Error::new(Kind::Busy, context));
        }
        Ok(frozen)
    }

    /// That it thaws: by the word if the point in time is complete, else by the end of the stream.
    async fn ask(&mut self, complete: bool) {
        let word = [THAW, b"\n"].concat();
        if !complete || self.lines.write(&word).await.is_err() {
            self.lines.finish().await;
        }
    }

    async fn hear(&mut self, limit: Duration) -> Result<Report> {
        let hangs = || Err(Error::new(Kind::Timeout, format!("it told nothing for {limit:?}")));
        timeout(limit, Report::receive(&mut self.lines)).await.unwrap_or_else(|_| hangs())
    }

    /// Makes sure that the guard does nothing any more, after it told what it should not have.
    fn stop(&mut self, told: Result<Report>) -> Error {
        // It may be gone already.
        self.guard.kill().ok();
        let what = "the process that guards a frozen guest failed";
        match told {
            Ok(report) => Error::new(Kind::Io, format!("{what}: it told {report:?} out of order")),
            Err(error) => Error::with_source(Kind::Gone, what, error),
        }
    }

    async fn thaw_after(&mut self, why: Error, thawing: &mut Option<Thawing>) -> Error {
        match self.thaw_in_its_place(thawing).await {
            Ok(_) => why,
            Err(left) => Error::with_source(why.kind(), chain(&why), left),
        }
    }

    /// How many file systems were still frozen. The kernel has closed the guard's connection, so the agent has time.
    async fn thaw_in_its_place(&mut self, thawing: &mut Option<Thawing>) -> Result<u64> {
        thawing.insert(Thawing::new(&self.agent, None, self.limits)).soon().await
    }
}
