//! Keeps the guest from waiting for a point in time: gives it up before its scratch space is full, and when something
//! went wrong all the same.
//!
//! ```text
//! QEMU: a scratch image grows past its mark ─┐
//! every quarter of a second ─────────────────┼─▶ look: [`Marks::left`] ──▶ new marks, or
//!                                            │                             give up: cancel the jobs, tell
//! QEMU: a write under our filter failed ─────┼───────────────────────────▶ give up, and let the guest go on
//! QEMU does not answer for ten seconds ──────┘
//! ```
//! The marks are `block-set-write-threshold` on the files below the scratch images: qcow2 grows at its end, so QEMU itself
//! says at once when the guest has overwritten more than is left. Looking again and again is for what others write into
//! the file system. With `fleece=job` and `backing` a guest's write waits until the old data is in the scratch image, and
//! QEMU stops the guest where there is no room for it; once the job is cancelled the write goes on without.
//!
//! While it drains the requests of its disks, QEMU waits for NBD clients that do not read, or just shake hands, and with it
//! the guest waits. So a QEMU that is silent loses its clients: the owner of the point in time hangs them up first of all.
//!
//! One task does it, which neither readers nor the owner of the point in time can hold up.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use super::room::{Full, LEAST, Marks, Room};
use super::{Event, Scratch};
use crate::error::{Error, Kind, Result, chain};
use crate::patience::Patience;
use crate::point::overlap;
use crate::point::reason::Reason;

/// Between two looks as a rule.
const PERIOD: Duration = Duration::from_millis(250);

/// Between two looks when the room shrinks fast.
const HURRY: Duration = Duration::from_millis(20);

/// If what is left would last for fewer periods than this, it shrinks fast.
const FEW_PERIODS: u64 = 16;

/// How often it is asked whether the machine migrates: QEMU tells of it only where somebody has asked for that.
const MIGRATION_PERIOD: Duration = PERIOD;

/// A QEMU that does not answer for so long may be waiting for us.
const SILENCE_LIMIT: Duration = Duration::from_secs(10);

/// What the time from one look to the next counts for at most.
const LONGEST_LOOK: Duration = Duration::from_millis(500);

/// For how long after its end a point in time may still be why a guest stops.
const AFTERMATH: Duration = Duration::from_secs(10);

/// Signals that wait; what does not fit is seen by the next look.
const MAX_SIGNALS: usize = 64;

/// Who runs the guest, as far as its writes wait for scratch space.
#[async_trait]
pub(super) trait Guest: Send + Sync {
    /// Who answers.
    fn whom(&self) -> &'static str {
        "QEMU"
    }

    /// Has it told when the file of a scratch image is written to beyond so many bytes from its start. No if that cannot be
    /// before the point in time begins: [`Alarm::grew`] is to ask again.
    async fn warn_beyond(&self, node: &str, offset: u64) -> Result<bool>;

    /// Whether the machine is migrated. It is asked again and again: who does not answer is taken for dead.
    async fn migrates(&self) -> Result<bool>;

    /// Ends the jobs that the guest's writes wait for; whether it stood still because of them, and goes on.
    async fn let_go(&self, jobs: &[String]) -> Result<bool>;

    /// Lets a guest go on that has stopped because a write failed just before those jobs ended; whether it had.
    async fn go_on(&self) -> Result<bool> {
        Ok(false)
    }
}

/// The scratch image of a disk.
pub(super) struct ScratchFile {
    /// The node of the file below the image, or the disk's target where libvirt knows it by that.
    pub(super) node: String,
    /// Our own descriptor of it.
    pub(super) file: File,
}

/// What is watched over.
pub(super) struct Held {
    pub(super) number: u64,
    /// The jobs that the guest's writes wait for; none with `fleece=filter`.
    pub(super) jobs: Vec<String>,
    /// Those that are looked at; none if their room is reserved: then only what QEMU tells counts.
    pub(super) scratch: Arc<Vec<ScratchFile>>,
}

enum Signal {
    Hold(Held, oneshot::Sender<Result<()>>),
    /// Another `scratch_limit=`, in bytes.
    Limit(Option<u64>, oneshot::Sender<Result<()>>),
    Ended,
    /// A scratch image grew past its mark.
    Grew,
    /// A guest's write failed under a filter of ours.
    Failed,
}

/// A handle to the task; it ends when this is dropped.
pub(super) struct Warden {
    signals: mpsc::Sender<Signal>,
    shown: Shown,
    task: JoinHandle<()>,
}

/// The scratch files that are watched over, and their limit, for whoever asks. Held for a moment only.
type Shown = Arc<Mutex<Option<(Arc<Vec<ScratchFile>>, Option<u64>)>>>;

/// How QEMU's events reach the task.
#[derive(Clone)]
pub(super) struct Alarm(mpsc::Sender<Signal>);

impl Alarm {
    /// A scratch image grew past its mark.
    pub(super) fn grew(&self) {
        // Where there is no room for a signal, as many tell the same.
        self.0.try_send(Signal::Grew).ok();
    }

    /// A guest's write failed under a filter of ours. Waits for room: this must not be lost.
    pub(super) async fn failed(&self) {
        self.0.send(Signal::Failed).await.ok();
    }
}

impl Warden {
    /// Starts the task; what it gives up is told as an [`Event`]. `limit` is `scratch_limit=`, in bytes.
    pub(super) fn start(guest: Arc<dyn Guest>, events: broadcast::Sender<Event>, limit: Option<u64>) -> Self {
        let (signals, inbox) = mpsc::channel(MAX_SIGNALS);
        let shown = Shown::default();
        let watching = Watching { guest, events, shown: Arc::clone(&shown), limit, held: None, ended: None };
        Self { signals, shown, task: tokio::spawn(watching.run(inbox)) }
    }

    pub(super) fn alarm(&self) -> Alarm {
        Alarm(self.signals.clone())
    }

    /// Watches from now on; to be called before the guest's writes are held up.
    ///
    /// # Errors
    /// [`Kind::NoSpace`] when there is no room to begin with; when QEMU does not take the marks.
    pub(super) async fn hold(&self, held: Held) -> Result<()> {
        self.ask(|reply| Signal::Hold(held, reply)).await
    }

    /// Another limit from now on, also for what is watched over.
    ///
    /// # Errors
    /// [`Kind::Busy`] when that takes more already: the limit stays as it was.
    pub(super) async fn limit(&self, limit: Option<u64>) -> Result<()> {
        self.ask(|reply| Signal::Limit(limit, reply)).await
    }

    async fn ask(&self, signal: impl FnOnce(oneshot::Sender<Result<()>>) -> Signal) -> Result<()> {
        let ended = || Error::new(Kind::Gone, "nobody watches over the scratch space");
        let (reply, answer) = oneshot::channel();
        self.signals.send(signal(reply)).await.map_err(|_| ended())?;
        answer.await.map_err(|_| ended())?
    }

    /// There is nothing to watch over any more.
    pub(super) async fn end(&self) {
        self.signals.send(Signal::Ended).await.ok();
    }

    /// The scratch space as it is now; none if nothing is watched over, or it cannot be measured.
    pub(super) fn scratch(&self) -> Option<Scratch> {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (files, limit) = shown?;
        let Room { used, free } = measure(&files).ok()?;
        Some(Scratch { used, free, limit })
    }
}

impl Drop for Warden {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What is watched over, and how far each scratch image may grow until QEMU says so.
struct Marked {
    held: Held,
    marks: Marks,
    /// By scratch image: the mark, in bytes from its start; 0 if there is none.
    warned: Vec<u64>,
    /// What was left when the marks were set, in bytes.
    granted: u64,
    last: Room,
    next: Instant,
    /// When migration is asked for next.
    migration: Instant,
}

struct Watching {
    guest: Arc<dyn Guest>,
    events: broadcast::Sender<Event>,
    shown: Shown,
    /// `scratch_limit=`, in bytes.
    limit: Option<u64>,
    held: Option<Marked>,
    /// When there was something held for the last time.
    ended: Option<Instant>,
}

impl Watching {
    async fn run(mut self, mut inbox: mpsc::Receiver<Signal>) {
        loop {
            let next = self.held.as_ref().map_or_else(Instant::now, |marked| marked.next);
            tokio::select! {
                biased;
                signal = inbox.recv() => match signal {
                    None => return,
                    Some(Signal::Hold(held, reply)) => {
                        let begun = self.begin(held).await;
                        reply.send(begun).ok();
                    }
                    Some(Signal::Limit(limit, reply)) => {
                        let limited = self.limit(limit).await;
                        reply.send(limited).ok();
                    }
                    Some(Signal::Ended) => self.forget(),
                    Some(Signal::Grew) => self.look(true).await,
                    Some(Signal::Failed) if self.held.is_none() => self.go_on().await,
                    Some(Signal::Failed) => self.give_up(Reason::Scratch, "its scratch space failed, or was full").await,
                },
                () = sleep_until(next), if self.has_to_look() => self.look(false).await,
            }
        }
    }

    async fn begin(&mut self, held: Held) -> Result<()> {
        let room = measure(&held.scratch)?;
        let least = LEAST.saturating_mul(u64::try_from(held.scratch.len()).unwrap_or(u64::MAX));
        if room.free < least || self.limit.is_some_and(|limit| limit < least) {
            return Err(Error::new(
                Kind::NoSpace,
                format!(
                    "the scratch directory has {} KiB of room, {} KiB are needed at least; make room, choose another \
                     one with -o scratch=, or raise scratch_limit=",
                    room.free.min(self.limit.unwrap_or(u64::MAX)) >> 10,
                    least >> 10
                ),
            ));
        }
        let marks = Marks::new(room, self.limit);
        let now = Instant::now();
        let warned = vec![0; held.scratch.len()];
        self.show(Some((Arc::clone(&held.scratch), self.limit)));
        self.held = Some(Marked { held, marks, warned, granted: 0, last: room, next: now + HURRY, migration: now });
        self.mark(room).await
    }

    async fn limit(&mut self, limit: Option<u64>) -> Result<()> {
        if let Some(marked) = &mut self.held {
            let room = measure(&marked.held.scratch)?;
            let marks = marked.marks.limited(limit);
            if let Err(Full::Limit(limit)) = marks.left(room) {
                return Err(Error::new(
                    Kind::Busy,
                    format!(
                        "the point in time that is held would end at once: its scratch space takes {} MiB, and \
                         scratch_limit= would be {} MiB; release it first, or allow for more",
                        room.used >> 20,
                        limit >> 20
                    ),
                ));
            }
            marked.marks = marks;
            let scratch = Arc::clone(&marked.held.scratch);
            self.show(Some((scratch, limit)));
            self.try_mark(room).await;
        }
        self.limit = limit;
        Ok(())
    }

    /// A guest's write failed, and nothing is held: what was held may have been in its way, and be heard of late.
    async fn go_on(&mut self) {
        if self.ended.is_none_or(|ended| ended.elapsed() >= AFTERMATH) {
            return;
        }
        let went_on = self.guest.go_on().await;
        told_of(went_on);
    }

    fn forget(&mut self) {
        if self.held.take().is_some() {
            self.ended = Some(Instant::now());
        }
        self.show(None);
    }

    fn show(&self, what: Option<(Arc<Vec<ScratchFile>>, Option<u64>)>) {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }

    fn has_to_look(&self) -> bool {
        self.held.as_ref().is_some_and(|marked| !marked.held.scratch.is_empty())
    }

    async fn look(&mut self, grew: bool) {
        if !self.has_to_look() {
            return;
        }
        let Some(marked) = &mut self.held else { return };
        let (room, left) = match marked.left() {
            Ok(left) => left,
            Err(why) => return self.give_up(Reason::Scratch, &why).await,
        };
        let shrunk = marked.last.free.saturating_sub(room.free).max(room.used.saturating_sub(marked.last.used));
        marked.last = room;
        // What is not marked is only seen by looking.
        let fast = shrunk.saturating_mul(FEW_PERIODS) > left || marked.warned.contains(&0);
        marked.next = Instant::now() + if fast { HURRY } else { PERIOD };
        // Others may have taken what the marks allow for.
        let outdated = left < marked.granted / 2;
        if grew {
            // One of the marks is gone, and its image may not have grown yet: QEMU tells of a write before it is done.
            marked.warned.fill(0);
        }
        if grew || outdated {
            self.try_mark(room).await;
        }
        self.ask_for_migration().await;
    }

    /// As [`Watching::mark`]; the scratch space is looked at meanwhile, and also if that fails.
    async fn try_mark(&mut self, room: Room) {
        let Some(marking) = self.marking(room) else { return };
        let Some((warned, outcome)) = self.while_there_is_room(marking, None).await else { return };
        self.marked(warned);
        if let Err(error) = outcome {
            tracing::warn!("the scratch space is looked at, but QEMU does not tell of it: {}", chain(&error));
        }
    }

    /// Sets the marks so that, all of them together, no more is written than is left.
    async fn mark(&mut self, room: Room) -> Result<()> {
        let Some(marking) = self.marking(room) else { return Ok(()) };
        let (warned, outcome) = marking.await;
        self.marked(warned);
        outcome
    }

    /// What sets the marks; what they are then comes out of it.
    fn marking(&mut self, room: Room) -> Option<impl Future<Output = (Vec<u64>, Result<()>)> + use<>> {
        let marked = self.held.as_mut()?;
        let disks = u64::try_from(marked.held.scratch.len().max(1)).unwrap_or(u64::MAX);
        marked.granted = marked.marks.left(room).unwrap_or(0);
        let share = marked.granted / disks;
        Some(set_marks(Arc::clone(&self.guest), Arc::clone(&marked.held.scratch), marked.warned.clone(), share))
    }

    fn marked(&mut self, warned: Vec<u64>) {
        if let Some(marked) = &mut self.held {
            marked.warned = warned;
        }
    }

    /// Waits for an answer, and looks meanwhile: who answers late, as a libvirt does that is busy with the domain, must not hide
    /// that the room comes to its end. None if it has, or there is no patience left; then nobody waits for the answer any more.
    async fn while_there_is_room<T>(
        &mut self,
        answer: impl Future<Output = T>,
        mut patience: Option<Patience>,
    ) -> Option<T> {
        let (reason, why) = {
            let mut answer = std::pin::pin!(answer);
            loop {
                tokio::select! {
                    biased;
                    answer = &mut answer => return Some(answer),
                    () = sleep(HURRY) => {}
                }
                if let Err(full) = self.held.as_ref()?.left() {
                    break (Reason::Scratch, full);
                }
                if patience.as_mut().is_some_and(Patience::is_over) {
                    break (
                        Reason::Silent,
                        format!("{} did not answer for {} s", self.guest.whom(), SILENCE_LIMIT.as_secs()),
                    );
                }
            }
        };
        self.give_up(reason, &why).await;
        None
    }

    async fn ask_for_migration(&mut self) {
        let Some(marked) = &mut self.held else { return };
        if marked.migration > Instant::now() {
            return;
        }
        marked.migration = Instant::now() + MIGRATION_PERIOD;
        let guest = Arc::clone(&self.guest);
        let answer = async move { guest.migrates().await };
        let patience = Patience::new(SILENCE_LIMIT, LONGEST_LOOK);
        // The end of the connection is heard of by others.
        if let Some(Ok(true)) = self.while_there_is_room(answer, Some(patience)).await {
            self.give_up(Reason::Migration, "the machine is being migrated").await;
        }
    }

    /// The guest goes on at once; the owner of the point in time hears of it and tidies up.
    async fn give_up(&mut self, reason: Reason, why: &str) {
        let Some(Marked { held, .. }) = self.held.take() else { return };
        tracing::warn!("the point in time is given up for the guest's sake: {why}");
        // Before the jobs end, which is heard of as well: this is the reason, that is what follows. Nobody listens only
        // when the mount is ending.
        let words = format!("given up so that the guest does not wait: {why}");
        self.events.send(Event::Lost { number: held.number, reason, words }).ok();
        told_of(self.guest.let_go(&held.jobs).await);
        self.ended = Some(Instant::now());
    }
}

/// What became of a guest that was let go of.
fn told_of(outcome: Result<bool>) {
    match outcome {
        Ok(false) => {}
        Ok(true) => tracing::warn!("the guest stood still until the point in time was given up, and goes on"),
        Err(error) => tracing::error!("cannot let go of the guest: {}", chain(&error)),
    }
}

impl Marked {
    /// The room as it is now, and what is left of it, in bytes.
    ///
    /// # Errors
    /// Why there is none, in words.
    fn left(&self) -> std::result::Result<(Room, u64), String> {
        let room = measure(&self.held.scratch).map_err(|error| chain(&error))?;
        match self.marks.left(room) {
            Ok(left) => Ok((room, left)),
            Err(Full::FileSystem) => {
                Err(format!("the file system of its scratch space is nearly full ({} MiB free)", room.free >> 20))
            }
            Err(Full::Limit(limit)) => Err(format!("its scratch space reached scratch_limit= ({} MiB)", limit >> 20)),
        }
    }
}

/// Sets the marks that are missing or too far off, each `share` bytes beyond the end of its image; what all of them are then, and
/// whether it could be done.
async fn set_marks(
    guest: Arc<dyn Guest>,
    scratch: Arc<Vec<ScratchFile>>,
    mut warned: Vec<u64>,
    share: u64,
) -> (Vec<u64>, Result<()>) {
    let set = async {
        let mut marks = Vec::new();
        for (scratch, warned) in scratch.iter().zip(&mut warned) {
            let size = scratch.file.metadata().map_err(unmeasured)?.len();
            let mark = size.saturating_add(share).max(1);
            // One that is far off lets too much through.
            if *warned <= size || *warned > mark {
                marks.push(set_mark(&*guest, &scratch.node, warned, mark));
            }
        }
        overlap::until_one_fails(marks).await
    };
    let outcome = set.await;
    (warned, outcome)
}

async fn set_mark(guest: &dyn Guest, node: &str, warned: &mut u64, mark: u64) -> Result<()> {
    if guest.warn_beyond(node, mark).await? {
        *warned = mark;
    }
    Ok(())
}

fn measure(scratch: &[ScratchFile]) -> Result<Room> {
    let mut room = Room { used: 0, free: u64::MAX };
    for ScratchFile { file, .. } in scratch {
        let stat = rustix::fs::fstat(file).map_err(|error| unmeasured(error.into()))?;
        // st_blocks counts 512 bytes each (stat(2)).
        room.used = room.used.saturating_add(u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512));
    }
    if let Some(ScratchFile { file, .. }) = scratch.first() {
        let space = rustix::fs::fstatvfs(file).map_err(|error| unmeasured(error.into()))?;
        room.free = space.f_bavail.saturating_mul(space.f_frsize);
    }
    Ok(room)
}

fn unmeasured(error: std::io::Error) -> Error {
    Error::with_source(Kind::Io, "its scratch space cannot be measured", error)
}
