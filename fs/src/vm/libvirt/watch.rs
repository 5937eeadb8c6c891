//! Watching over a backup that libvirt keeps for a point in time.
//!
//! libvirt tells when a backup ends, and when the domain does. That is not enough: the scratch images of a backup show the
//! live disk once its jobs are gone ([`crate::vm::confirm`]). So before data is given out libvirt is asked for the job's
//! figures, which count the disks whose jobs QEMU has and libvirt has not begun to end, and then whose backup it is: ours,
//! by its mark, if it was ours all the time, because a domain has one at a time. What somebody does to QEMU's jobs behind
//! libvirt's back, by commands to its monitor, is not seen in the moment until libvirt notices.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use libvirt::{Event as Told, Lifecycle, State};
use tokio::sync::{broadcast, mpsc};
use tokio::time::{Instant, sleep};

use super::link::{LIMIT, Link};
use super::undo::Context;
use super::xml;
use crate::error::{Kind, Result, chain};
use crate::point::reason::Reason;
use crate::vm::Event;
use crate::vm::confirm::{Answer, Keeper};
use crate::vm::warden::Alarm;

/// How long a reader waits for a libvirt that was restarted.
const RECONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(200);

const SHUTDOWN: &str = "the machine shuts down";

/// What is held, and by what it is known.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) number: u64,
    /// What no other backup has: the NBD server's socket, or the name of the first export.
    pub(super) mark: String,
    /// The bytes of all its disks; none until the backup began.
    pub(super) total: Option<u64>,
    /// The guest's devices, by libvirt's names.
    pub(super) aliases: Vec<String>,
}

/// The newest point in time. Held for a moment only.
pub(super) type Shared = Arc<Mutex<Option<Held>>>;

pub(super) fn now(held: &Shared) -> Option<Held> {
    held.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// What an event says about the point in time that is held.
pub(super) fn lost(held: &Shared, event: &Told) -> Option<Event> {
    let Held { number, aliases, .. } = now(held)?;
    let (reason, words) = match event {
        Told::Lifecycle { change: Lifecycle::Stopped | Lifecycle::Crashed, .. } => (Reason::Shutdown, SHUTDOWN),
        Told::Lifecycle { change: Lifecycle::Migrated, .. } => (Reason::Migration, "the machine is being migrated"),
        Told::DeviceRemoved { alias, .. } if aliases.contains(alias) => {
            (Reason::Unplugged, "one of its disks was unplugged")
        }
        _ => return None,
    };
    Some(Event::Lost { number, reason, words: words.to_owned() })
}

/// What an event may mean, and has to be looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Suspicion {
    /// A backup ended. It may have been the last one: its end is told late.
    Ended,
    /// The guest stands still because a write of it failed, maybe into scratch space.
    Stopped,
}

impl Suspicion {
    /// Of an event.
    pub(super) fn of(event: &Told) -> Option<Self> {
        match event {
            Told::JobCompleted { backup: true, .. } => Some(Self::Ended),
            Told::Lifecycle { change: Lifecycle::SuspendedByError, .. } => Some(Self::Stopped),
            _ => None,
        }
    }
}

/// Looks into suspicions, one after another, until nobody has any more.
pub(super) async fn look_into(keep: Arc<Keep>, alarm: Alarm, mut suspicions: mpsc::Receiver<Suspicion>) {
    while let Some(suspicion) = suspicions.recv().await {
        match suspicion {
            // Also if nothing is held any more: it may be heard of late.
            Suspicion::Stopped => alarm.failed().await,
            // One that cannot be asked now is asked again by the scratch space's warden.
            Suspicion::Ended => drop(keep.check(&keep.context.link).await),
        }
    }
}

/// Who keeps the backup.
pub(super) struct Keep {
    pub(super) context: Arc<Context>,
    pub(super) held: Shared,
    pub(super) events: broadcast::Sender<Event>,
}

impl Keep {
    /// Tells that what is held is lost, if it is.
    ///
    /// # Errors
    /// When libvirt cannot be asked.
    pub(super) async fn check(&self, link: &Link) -> Result<()> {
        // What is only about to be held looks for itself when it has begun.
        let Some(held) = now(&self.held).filter(|held| held.total.is_some()) else { return Ok(()) };
        let Err(words) = asked(link, &held).await? else { return Ok(()) };
        // The end of a domain's backup may be told before that of the domain.
        let state = link.call("tell of the domain", LIMIT, libvirt::Domain::state).await;
        let (reason, words) = match state {
            Ok(State::Other) => (Reason::Shutdown, SHUTDOWN.to_owned()),
            _ => (Reason::Ended, words),
        };
        self.events.send(Event::Lost { number: held.number, reason, words }).ok();
        Ok(())
    }
}

/// Whether libvirt keeps it at a moment after this call; else why not.
async fn asked(link: &Link, held: &Held) -> Result<Answer> {
    let told = link.call("tell of the backup", LIMIT, |domain| {
        // In this order: what the figures say is of the backup that is there after them.
        let stats = domain.job_stats()?;
        Ok((stats, domain.backup_xml()))
    });
    let (stats, backup) = told.await?;
    let ours = match backup {
        Ok(backup) => xml::is_marked(&backup, &held.mark)?,
        Err(_) => false,
    };
    Ok(match stats {
        _ if !ours => Err("libvirt's backup that kept it ended: somebody aborted it, or it failed".to_owned()),
        Some(stats) if stats.backup && held.total.is_none_or(|total| stats.scratch_total == total) => Ok(()),
        _ => Err("libvirt's backup that kept it ends, or a part of it did".to_owned()),
    })
}

#[async_trait]
impl Keeper for Keep {
    async fn keeps(&self) -> (u64, Answer) {
        let Some(held) = now(&self.held) else { return (0, Err("no point in time is held".to_owned())) };
        let deadline = Instant::now() + RECONNECT_LIMIT;
        loop {
            match asked(&self.context.link, &held).await {
                Ok(answer) => return (held.number, answer),
                Err(error) if error.kind() == Kind::Gone && Instant::now() < deadline => sleep(PAUSE).await,
                Err(error) => return (held.number, Err(chain(&error))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_that_end_a_point_in_time_are_told_apart() {
        let uuid = || "u".to_owned();
        let held = Held { number: 3, mark: "s".to_owned(), total: Some(1), aliases: vec!["ua-vda".to_owned()] };
        let some: Shared = Arc::new(Mutex::new(Some(held)));
        let none = Shared::default();
        let change = |change| Told::Lifecycle { uuid: uuid(), change };
        let removed = |alias: &str| Told::DeviceRemoved { uuid: uuid(), alias: alias.to_owned() };
        for (event, expected) in [
            (Told::JobCompleted { uuid: uuid(), backup: true }, None),
            (change(Lifecycle::Stopped), Some(Reason::Shutdown)),
            (change(Lifecycle::Crashed), Some(Reason::Shutdown)),
            (change(Lifecycle::Migrated), Some(Reason::Migration)),
            (change(Lifecycle::Suspended), None),
            (removed("ua-vda"), Some(Reason::Unplugged)),
            (removed("net0"), None),
            (Told::Closed, None),
        ] {
            let reason = match lost(&some, &event) {
                Some(Event::Lost { number: 3, reason, .. }) => Some(reason),
                None => None,
                other => panic!("{other:?}"),
            };
            assert_eq!(reason, expected, "{event:?}");
            assert_eq!(lost(&none, &event), None, "nothing is held");
        }
        let suspicion = |event: &Told| Suspicion::of(event);
        assert_eq!(suspicion(&change(Lifecycle::SuspendedByError)), Some(Suspicion::Stopped));
        assert_eq!(suspicion(&change(Lifecycle::Suspended)), None);
        assert_eq!(suspicion(&Told::JobCompleted { uuid: uuid(), backup: true }), Some(Suspicion::Ended));
        assert_eq!(suspicion(&Told::JobCompleted { uuid: uuid(), backup: false }), None);
    }
}
