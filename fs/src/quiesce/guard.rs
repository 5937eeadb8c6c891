//! The guard: a process of its own that has the agent's connection while the guest is frozen, so that the guest is
//! thawed whatever becomes of the daemon.
//!
//! ```text
//! connect ─ thawed now? ─ may freeze and thaw? ─▶ FREEZE ─▶ frozen ─┬─ the daemon asks ───┐
//!    │            nothing was changed yet            │              ├─ the daemon is gone ├─▶ THAW, until it is done
//!    └────────────────────▶ failed                   │              ├─ the limit passed   │
//!                             ▲                      │              └─ told to end ───────┘
//!                             └────── THAW ◀─────────┴─ it failed, or took too long
//! ```
//! Its standard input is a socket whose other end the daemon has; the kernel closes that when the daemon ends.

#[cfg(test)]
mod tests;

use std::path::Path;
use std::process::ExitCode;

use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};

use super::Limits;
use super::agent::{Agent, FREEZE, THAW};
use super::report::{Report, is_asked};
use super::thaw::Thawing;
use crate::beside::{leave, signals, socket_at_stdin};
use crate::error::{Error, Kind, Result, chain};
use crate::lines::Lines;

/// The process: freezes, and thaws when the daemon at standard input says so, is gone, or takes too long.
pub fn run(agent: &Path) -> ExitCode {
    match live(agent) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn live(agent: &Path) -> Result<()> {
    let unable = |what: &'static str| move |error| Error::with_source(Kind::Io, what, error);
    let socket = socket_at_stdin(super::SUBCOMMAND)?;
    let agent = std::path::absolute(agent).map_err(unable("there is no current directory"))?;
    leave()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(unable("cannot start the runtime"))?.block_on(async {
        let [mut terminate, mut interrupt, mut hangup] = signals()?;
        let told = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hangup.recv() => {}
            }
        };
        let daemon = UnixStream::from_std(socket).map_err(unable("cannot use standard input"))?;
        serve(&agent, Lines::new(daemon), Limits::default(), told).await;
        Ok(())
    })
}

/// The whole life of a guard; `told` is when it is told to end.
pub(super) async fn serve(path: &Path, mut daemon: Lines, limits: Limits, told: impl Future<Output = ()>) {
    tokio::pin!(told);
    let prepared = tokio::select! {
        prepared = prepare(path, limits) => prepared,
        _ = is_asked(&mut daemon) => return,
        () = &mut told => return,
    };
    let mut agent = match prepared {
        Ok(agent) => agent,
        Err(error) => return tell(&mut daemon, &Report::failed(&error)).await,
    };
    let began = Instant::now();
    // The daemon has to know before it is so: it thaws in our place only what we may have frozen.
    if Report::Freezing.send(&mut daemon).await.is_err() {
        return;
    }
    let frozen = tokio::select! {
        frozen = agent.freeze(limits.freeze) => frozen,
        _ = is_asked(&mut daemon) => Err(Error::new(Kind::Gone, "pullfs gave up while the guest was freezing")),
        () = &mut told => Err(Error::new(Kind::Gone, "the guard process was told to end")),
    };
    let filesystems = match frozen {
        Ok(0) => {
            let none = "the guest has no file system that its agent can freeze";
            return tell(&mut daemon, &Report::failed(&Error::new(Kind::Unsupported, none))).await;
        }
        Ok(filesystems) => filesystems,
        Err(error) if error.kind() == Kind::Unsupported => {
            return tell(&mut daemon, &Report::failed(&error)).await;
        }
        Err(error) => {
            // Some file systems may be frozen, or may yet be.
            let error = error.context("the guest could not be frozen");
            return thaw_after(error, Thawing::new(path, Some(agent), limits), &mut daemon).await;
        }
    };
    // If nobody hears it, nobody will ask either.
    tell(&mut daemon, &Report::Frozen { filesystems, took: began.elapsed() }).await;
    let early = tokio::select! {
        biased;
        asked = is_asked(&mut daemon) => (!asked).then(|| "pullfs is gone".to_owned()),
        () = sleep(limits.hold) => Some(format!("the limit of {:?} passed", limits.hold)),
        () = &mut told => Some("the guard process was told to end".to_owned()),
    };
    tell(&mut daemon, &Report::Thawing).await;
    match agent.thaw(limits.answer).await {
        Ok(filesystems) => {
            tell(&mut daemon, &Report::Thawed { filesystems, early, frozen: began.elapsed() }).await;
        }
        Err(error) => {
            let error = error.context("the guest could not be thawed at once");
            thaw_after(error, Thawing::new(path, Some(agent), limits), &mut daemon).await;
        }
    }
}

/// Connects and makes sure that freezing will work, and thawing after it. Changes nothing.
pub(super) async fn prepare(path: &Path, limits: Limits) -> Result<Agent> {
    let mut agent = Agent::open(path, limits.answer).await?;
    if agent.is_frozen(limits.answer).await? {
        return Err(Error::new(
            Kind::Busy,
            "the guest's file systems are frozen already, by somebody else; they are left so",
        ));
    }
    agent.require(&[FREEZE, THAW], limits.answer).await?;
    Ok(agent)
}

async fn thaw_after(error: Error, mut thawing: Thawing, daemon: &mut Lines) {
    let told = match thawing.soon().await {
        Ok(_) => error,
        Err(left) => Error::with_source(error.kind(), chain(&error), left),
    };
    tell(daemon, &Report::failed(&told)).await;
    thawing.finish().await;
}

async fn tell(daemon: &mut Lines, report: &Report) {
    if report.send(daemon).await.is_err() {
        tracing::debug!("nobody hears: {report:?}");
    }
}
