//! The task that owns the point in time of a mount.
//!
//! Requests are served one after another, so no two of them see a state in between. The task is never cancelled while
//! it works on the machine: whoever asks waits outside and may give up at any time.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use super::policy::{self, Decision, Due, Terms, Wish, decide, due};
use super::reason::{Reason, Tally};
use super::{Ended, Lease, PointInTime};
use crate::block::cache::Cache;
use crate::error::{Error, Kind, Result, chain};
use crate::vm::{Base, Event, Inventory, Taken, Vm, Wanted};

/// Requests that wait for their turn; more wait for room.
const MAX_QUEUED: usize = 1024;

/// After a failure, how long further opens get its error at once: a tool that walks the tree opens every file, and the
/// machine is not to be bothered for each.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Before what could not be removed is tried again; doubles up to the second. Nobody may open a file for days.
const TIDY_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_TIDY_PAUSE: Duration = Duration::from_secs(60);

/// How long NBD connections may take leave before the machine is told to let go, where the guest may be waiting.
const CLOSE_LIMIT: Duration = Duration::from_millis(500);

/// How long dropping the kernel's pages may take; a page that is just being read is waited for.
const INVALIDATE_LIMIT: Duration = Duration::from_secs(10);

/// Where the point in time stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Phase {
    /// None is held.
    #[default]
    None,
    /// One is being taken.
    Taking,
    /// One is held.
    Held,
    /// One is ending.
    Releasing,
}

/// How and when the last point in time ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// Why, by kind.
    pub kind: Reason,
    /// Why, in words for the user.
    pub reason: String,
    /// When.
    pub time: SystemTime,
}

/// What everybody may see without asking.
#[derive(Clone, Default)]
pub struct View {
    /// Where it stands.
    pub phase: Phase,
    /// The number of the newest point in time that was begun; 0 before the first.
    pub number: u64,
    /// The one that is held.
    pub held: Option<Arc<PointInTime>>,
    /// How the last one ended.
    pub last_end: Option<End>,
}

impl View {
    /// The number of the point in time that the next open will get, unless something comes in between.
    pub fn upcoming(&self) -> u64 {
        match self.phase {
            Phase::Taking | Phase::Held => self.number,
            Phase::None | Phase::Releasing => self.number + 1,
        }
    }
}

/// Called when a point in time has ended: drops what the kernel cached of it. May block.
pub type Invalidate = Arc<dyn Fn() + Send + Sync>;

enum Request {
    Point {
        wish: Wish,
        wanted: Wanted,
        reply: oneshot::Sender<Result<Option<Lease>>>,
    },
    Delete {
        checkpoint: String,
        foreign: bool,
        reply: oneshot::Sender<Result<()>>,
    },
    /// Other terms from now on.
    Change(Terms, oneshot::Sender<Result<()>>),
    /// The machine broke the point in time of this number.
    Broken(u64),
}

/// A handle to the owner.
#[derive(Clone)]
pub struct Points {
    requests: mpsc::Sender<Request>,
    view: watch::Receiver<View>,
    tally: Arc<Tally>,
}

impl Points {
    /// Starts the task. The disks of its points in time are read through `cache`.
    pub fn start(vm: Arc<dyn Vm>, cache: Arc<Cache>, terms: Terms, invalidate: Invalidate) -> Self {
        let (requests, inbox) = mpsc::channel(MAX_QUEUED);
        let (tell, view) = watch::channel(View::default());
        let events = vm.events();
        let tally = Arc::<Tally>::default();
        let owner = Owner {
            vm,
            cache,
            terms,
            invalidate,
            tell,
            tally: tally.clone(),
            events,
            failed: None,
            tidy: None,
            ending: false,
        };
        tokio::spawn(owner.run(inbox));
        Self { requests, view, tally }
    }

    /// What stands now.
    pub fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// Whether files that are open on the one that is held are all that is in the way of a wish for it.
    pub(crate) fn waits_for_closes(&self, wish: Wish, since: Option<&Arc<str>>) -> bool {
        let view = self.view.borrow();
        view.held.as_ref().is_some_and(|point| policy::waits_for_closes(wish, point.stands(since)))
    }

    /// What became of those that there were.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// A share in the point in time, to open a file of this checkpoint or of none; takes one if none is held.
    ///
    /// # Errors
    /// [`Kind::NothingHeld`] with `start=manual`; [`Kind::Busy`] when the one that is held does not have the changes since
    /// that checkpoint, and cannot be replaced; any failure of taking it.
    pub async fn open(&self, checkpoint: Option<&Arc<str>>) -> Result<Lease> {
        let lease = self.ask(Wish::Open, Wanted { since: checkpoint.cloned(), ..Wanted::default() }).await?;
        lease.ok_or_else(|| Error::new(Kind::Io, "the point in time ended before the file was open"))
    }

    /// Takes a new point in time.
    ///
    /// # Errors
    /// [`Kind::Busy`] while files are open on the one that is held; any failure of taking it.
    pub async fn begin(&self, wanted: Wanted) -> Result<()> {
        self.ask(Wish::Begin, wanted).await.map(drop)
    }

    /// Lets go of the point in time; open files of it become stale.
    ///
    /// # Errors
    /// [`Kind::NothingHeld`]; any failure that may have left something in the machine.
    pub async fn release(&self) -> Result<()> {
        self.ask(Wish::Release, Wanted::default()).await.map(drop)
    }

    /// Makes sure that nothing is left in the machine, and that nothing is taken any more.
    ///
    /// # Errors
    /// Any failure that may have left something in the machine.
    pub async fn end(&self) -> Result<()> {
        self.ask(Wish::End, Wanted::default()).await.map(drop)
    }

    /// Deletes a checkpoint; see [`Vm::delete_checkpoint`].
    ///
    /// # Errors
    /// As there.
    pub async fn delete_checkpoint(&self, checkpoint: String, foreign: bool) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Delete { checkpoint, foreign, reply }).await?;
        answer.await.map_err(|_| ended())?
    }

    /// Sets other terms, also for the point in time that is held.
    ///
    /// # Errors
    /// [`Kind::Busy`] if they would end that one at once; then they stay as they were.
    pub async fn change(&self, terms: Terms) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Change(terms, reply)).await?;
        answer.await.map_err(|_| ended())?
    }

    /// A read found that the machine broke the point in time of this number, so that the guest need not wait.
    pub fn broken(&self, number: u64) {
        // Where there is no room, the next read tells the same.
        self.requests.try_send(Request::Broken(number)).ok();
    }

    async fn ask(&self, wish: Wish, wanted: Wanted) -> Result<Option<Lease>> {
        let (reply, answer) = oneshot::channel();
        self.send(Request::Point { wish, wanted, reply }).await?;
        answer.await.map_err(|_| ended())?
    }

    async fn send(&self, request: Request) -> Result<()> {
        self.requests.send(request).await.map_err(|_| ended())
    }
}

fn ended() -> Error {
    Error::new(Kind::Gone, "the mount is ending")
}

/// Why a file of a checkpoint cannot be opened on a point in time that has the changes since another one.
fn other_base(wanted: &Wanted, held: Option<&PointInTime>) -> Error {
    let since = wanted.since.as_deref().unwrap_or_default();
    let base = match held.map(PointInTime::base) {
        Some(Base::One(Some(base))) => format!("checkpoint {base}"),
        _ => "no checkpoint".to_owned(),
    };
    Error::new(
        Kind::Busy,
        format!(
            "the point in time has the changes since {base}, and libvirt tells those of one at a time: to read checkpoint \
             {since}, close what is open and release it, or begin one with since={since}"
        ),
    )
}

struct Owner {
    vm: Arc<dyn Vm>,
    cache: Arc<Cache>,
    terms: Terms,
    invalidate: Invalidate,
    tell: watch::Sender<View>,
    tally: Arc<Tally>,
    events: broadcast::Receiver<Event>,
    failed: Option<(Instant, Kind, String)>,
    /// When what is left in the machine is tried to be removed again, and how long after the last try that is.
    tidy: Option<(tokio::time::Instant, Duration)>,
    /// Set for good by [`Wish::End`].
    ending: bool,
}

impl Owner {
    async fn run(mut self, mut inbox: mpsc::Receiver<Request>) {
        loop {
            let due = self.due(&self.terms);
            let then = if let Due::At(then) = due { then } else { tokio::time::Instant::now() };
            tokio::select! {
                // What the machine says comes first: no lease on a point in time that it said was lost.
                biased;
                event = self.events.recv() => match event {
                    Ok(event) => self.heard(event).await,
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        self.lost(Reason::Gone, "too much happened in the machine at once").await;
                    }
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                () = sleep_until(then), if due != Due::Never => self.check_due().await,
                () = sleep_until(self.tidy.map_or(then, |(at, _)| at)), if self.tidy.is_some() => self.tidy_up().await,
                request = inbox.recv() => match request {
                    // Who asked may have given up; then a lease goes with the answer.
                    Some(Request::Point { wish, wanted, reply }) => {
                        let outcome = self.serve(wish, &wanted).await;
                        reply.send(outcome).ok();
                    }
                    Some(Request::Delete { checkpoint, foreign, reply }) => {
                        let outcome = self.delete(&checkpoint, foreign).await;
                        reply.send(outcome).ok();
                    }
                    Some(Request::Change(terms, reply)) => {
                        let outcome = self.change(terms);
                        reply.send(outcome).ok();
                    }
                    Some(Request::Broken(number)) if self.held().is_some_and(|point| point.number() == number) => {
                        self.lost(Reason::Scratch, "QEMU broke it: the guest would have had to wait for its scratch space").await;
                    }
                    Some(Request::Broken(_)) => {}
                    None => return,
                },
            }
        }
    }

    fn due(&self, terms: &Terms) -> Due {
        let now = tokio::time::Instant::now();
        self.held().map_or(Due::Never, |point| due(terms, now, point.used()))
    }

    fn change(&mut self, terms: Terms) -> Result<()> {
        if let Due::Now(_, words) = self.due(&terms) {
            return Err(Error::new(
                Kind::Busy,
                format!(
                    "the point in time that is held would end at once: {words}; release it first, or give a longer time"
                ),
            ));
        }
        self.terms = terms;
        Ok(())
    }

    async fn check_due(&mut self) {
        if let Due::Now(reason, words) = self.due(&self.terms)
            && let Err(error) = self.end(Ended::Released, reason, words).await
        {
            tracing::warn!("what is left of it is removed at the next chance: {}", chain(&error));
        }
    }

    /// Something may be left in the machine, and nobody may come for long.
    fn tidy_later(&mut self) {
        if !self.vm.is_clean() {
            self.tidy = Some((tokio::time::Instant::now() + TIDY_PAUSE, TIDY_PAUSE));
        }
    }

    async fn tidy_up(&mut self) {
        let Some((_, pause)) = self.tidy.take().filter(|_| self.held().is_none() && !self.vm.is_clean()) else {
            return;
        };
        match self.vm.release().await {
            Ok(()) => tracing::info!("what was left in the machine is removed"),
            Err(error) => {
                tracing::debug!("still left in the machine: {}", chain(&error));
                let pause = (pause * 2).min(LONGEST_TIDY_PAUSE);
                self.tidy = Some((tokio::time::Instant::now() + pause, pause));
            }
        }
    }

    fn held(&self) -> Option<Arc<PointInTime>> {
        self.tell.borrow().held.clone()
    }

    async fn serve(&mut self, wish: Wish, wanted: &Wanted) -> Result<Option<Lease>> {
        self.ending |= wish == Wish::End;
        if wish == Wish::Begin {
            self.vm.admit(wanted).await?;
        }
        let held = self.held();
        let state = held.as_ref().map(|point| point.stands(wanted.since.as_ref()));
        match decide(wish, state, self.terms.start) {
            Decision::Share => Ok(held.map(Lease::new)),
            Decision::Take => self.take(wish, wanted).await,
            Decision::Replace => {
                let words = match &wanted.since {
                    Some(since) if wish == Wish::Open => {
                        format!("checkpoint {since} was opened, whose changes it does not have")
                    }
                    _ => "a new one was begun".to_owned(),
                };
                self.end(Ended::Released, Reason::Replaced, &words).await?;
                self.take(wish, wanted).await
            }
            Decision::LetGo => {
                let reason = if wish == Wish::End { Reason::Unmounted } else { Reason::Released };
                self.end(Ended::Released, reason, reason.word()).await?;
                Ok(None)
            }
            Decision::Nothing => self.vm.end().await.map(|()| None),
            Decision::Busy if wish == Wish::Open => Err(other_base(wanted, held.as_deref())),
            Decision::Busy => Err(Error::new(
                Kind::Busy,
                "files are open on the point in time that is held; close them or release it first",
            )),
            Decision::NothingHeld if wish == Wish::Open => Err(Error::new(
                Kind::NothingHeld,
                "no point in time is held, and with start=manual only `pullfs begin` takes one",
            )),
            Decision::NothingHeld => Err(Error::new(Kind::NothingHeld, "no point in time is held")),
        }
    }

    /// What the machine is right after the instant, for what did not change; asked only if something may not have.
    async fn after(&self, taken: &Taken) -> Inventory {
        if taken.inventory.disks.iter().all(|disk| disk.unchanged_since().is_none()) {
            return Inventory::default();
        }
        self.vm.inventory().await.unwrap_or_else(|error| {
            tracing::warn!("all disks count as changed, as the machine does not tell of them: {}", chain(&error));
            Inventory::default()
        })
    }

    async fn take(&mut self, wish: Wish, wanted: &Wanted) -> Result<Option<Lease>> {
        if self.ending {
            return Err(ended());
        }
        if let Some((when, kind, why)) = &self.failed
            && wish == Wish::Open
            && when.elapsed() < RETRY_AFTER
        {
            return Err(Error::new(*kind, why.clone()));
        }
        self.tell.send_modify(|view| {
            view.phase = Phase::Taking;
            view.number += 1;
        });
        let number = self.tell.borrow().number;
        match self.vm.take(number, wanted).await {
            Ok(taken) => {
                let after = self.after(&taken).await;
                let point =
                    Arc::new(PointInTime::new(taken, &after, wish == Wish::Begin, self.vm.clone(), &self.cache));
                tracing::info!(number, disks = point.disks.len(), "point in time taken");
                self.failed = None;
                self.tally.taken(true);
                let lease = Lease::new(point.clone());
                self.tell.send_modify(|view| {
                    view.phase = Phase::Held;
                    view.held = Some(point);
                });
                Ok(Some(lease))
            }
            Err(error) => {
                self.tidy_later();
                self.tally.taken(false);
                self.tell.send_modify(|view| view.phase = Phase::None);
                let error = error.context("cannot take a point in time");
                if wish == Wish::Open {
                    self.failed = Some((Instant::now(), error.kind(), chain(&error)));
                }
                Err(error)
            }
        }
    }

    async fn delete(&mut self, checkpoint: &str, foreign: bool) -> Result<()> {
        self.vm.delete_checkpoint(checkpoint, foreign).await?;
        if let Some(point) = self.held() {
            point.forget_checkpoint(checkpoint);
        }
        Ok(())
    }

    async fn heard(&mut self, event: Event) {
        match event {
            Event::Lost { number, reason, words } if self.held().is_some_and(|point| point.number() == number) => {
                self.lost(reason, &words).await;
            }
            Event::Lost { .. } => {}
            Event::Gone(words) => self.lost(Reason::Gone, &words).await,
        }
    }

    async fn lost(&mut self, reason: Reason, words: &str) {
        if self.held().is_none() {
            return;
        }
        tracing::warn!("the point in time is lost: {words}");
        if let Err(error) = self.end(Ended::Lost, reason, words).await {
            tracing::warn!("what is left of it is removed at the next chance: {}", chain(&error));
        }
    }

    /// Ends the point in time that is held: readers are told first, then the machine lets go, then the kernel forgets.
    async fn end(&mut self, how: Ended, reason: Reason, words: &str) -> Result<()> {
        let Some(point) = self.held() else { return Ok(()) };
        point.end(how);
        self.tell.send_modify(|view| {
            view.phase = Phase::Releasing;
            view.held = None;
        });
        // QEMU 10.0 waits, and the guest with it, for a client that shakes hands while a job ends: nobody is to be left.
        let mut closing = JoinSet::new();
        for disk in &point.disks {
            let source = disk.source.clone();
            closing.spawn(async move { source.close().await });
        }
        if tokio::time::timeout(CLOSE_LIMIT, closing.join_all()).await.is_err() {
            tracing::debug!("an NBD connection does not end by itself; it was hung up");
        }
        let released = if self.ending { self.vm.end().await } else { self.vm.release().await };
        self.tidy_later();
        let invalidate = self.invalidate.clone();
        let forgotten = tokio::task::spawn_blocking(move || invalidate());
        if tokio::time::timeout(INVALIDATE_LIMIT, forgotten).await.is_err() {
            tracing::warn!("the kernel takes long to drop what it cached of the point in time");
        }
        tracing::info!(number = point.number, "point in time ended: {words}");
        self.tally.ended(reason);
        self.tell.send_modify(|view| {
            view.phase = Phase::None;
            view.last_end = Some(End { kind: reason, reason: words.to_owned(), time: SystemTime::now() });
        });
        released
            .map_err(|error| error.context("the point in time ended, but something of it may be left in the machine"))
    }
}
