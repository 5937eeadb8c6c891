//! The end of a backup, which lets go of the guest.

use std::time::Duration;

use libvirt::{Code, PauseReason, State};
use tokio::time::{Instant, sleep};

use super::link::{LIMIT, Link};
use super::xml;
use crate::error::{Error, Kind, Result};

/// How long a backup may take to end once it was aborted.
const END_LIMIT: Duration = Duration::from_secs(30);

/// After this long it is aborted again. libvirt forgets a disk that left the machine by itself, and its job: a backup of such
/// a one ends only when it is aborted while no other job is left.
const AGAIN: Duration = Duration::from_secs(1);

/// Between two looks at whether it has.
const PAUSE: Duration = Duration::from_millis(20);

/// Aborts the domain's backup if it is known by this, waits for its end, and lets a guest go on that stands still for it;
/// whether it did. None if there is no such backup.
pub(super) async fn end_backup(link: &Link, mark: &str) -> Result<Option<bool>> {
    if !ours_after(link, mark, true).await? {
        return Ok(None);
    }
    let begun = Instant::now();
    let mut again = begun + AGAIN;
    while ours_after(link, mark, Instant::now() >= again).await? {
        let now = Instant::now();
        if now >= begun + END_LIMIT {
            let limit = END_LIMIT.as_secs();
            return Err(Error::new(Kind::Timeout, format!("libvirt did not end the backup within {limit} s")));
        }
        if now >= again {
            again = now + AGAIN;
        }
        sleep(PAUSE).await;
    }
    // libvirt removes the last scratch image from QEMU after it has told that there is no backup any more, while it lets
    // no other question to QEMU pass: the answer comes when it is gone.
    link.call("tell of the backup", LIMIT, |domain| Ok(domain.job_stats().is_ok())).await?;
    resume(link).await.map(Some)
}

/// Whether the domain has a backup that is known by this, which may be aborted at once: the guest may be waiting for that.
async fn ours_after(link: &Link, mark: &str, abort: bool) -> Result<bool> {
    let mark = mark.to_owned();
    let told = link.call("end the backup", LIMIT, move |domain| {
        let told = match domain.backup_xml() {
            Ok(told) => xml::is_marked(&told, &mark),
            Err(error) if error.code() == Code::NoBackup => Ok(false),
            Err(error) => return Err(error),
        };
        match told {
            Ok(true) if abort => match domain.abort_job() {
                // It ended by itself in between, or ends already.
                Err(error) if matches!(error.code(), Code::Invalid | Code::NoDomain) => Ok(told),
                other => other.map(|()| told),
            },
            told => Ok(told),
        }
    });
    match told.await {
        // What is not there has no backup.
        Err(error) if error.kind() == Kind::NotFound => Ok(false),
        other => other?,
    }
}

/// Lets the guest go on if it stands still because a write of it failed; whether it did.
pub(super) async fn resume(link: &Link) -> Result<bool> {
    let resumed = link.call("let the guest go on", LIMIT, |domain| match domain.state()? {
        State::Paused(PauseReason::IoError) => match domain.resume() {
            // Somebody else was as quick.
            Err(error) if error.code() == Code::Invalid => Ok(false),
            other => other.map(|()| true),
        },
        _ => Ok(false),
    });
    match resumed.await {
        Err(error) if error.kind() == Kind::NotFound => Ok(false),
        other => other,
    }
}
