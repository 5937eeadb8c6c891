//! A guest's file system that is open.
//!
//! ```text
//! callers ─▶ queue ─▶ owner ─┬─ no child ──(a call)──▶ starts one, opens ──┐
//!                            │      ▲                                      ▼
//!                            │      └─(idle, or its place is needed)─── child ──▶ answers
//!                            └──(it died, took too long, spoke nonsense: callers get an error)──┘
//! ```
//! The owner is one task, and the child is its alone. A file system is opened again without its callers noticing: the disk
//! does not change, and [`Id`]s stay what they are. A caller that gives up loses nothing but its answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use inside::wire::{Answer, Described, MAX_ANSWERS, MAX_NAME, Names, Request};
use inside::{Attributes, Extent, Id, Summary, Xattr};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use super::children::Shared;
use super::process::{Fault, Process};
use super::slots::Slot;
use super::{Blocks, Reader};
use crate::error::{Error, Kind, Result};

/// How many calls may wait in line; the next wait for their place in it.
const QUEUE: usize = 64;

/// The pause before a child is started again that died twice in a row; doubles up to the second.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// So long without a death, and the next is the first one.
const FORGIVEN: Duration = Duration::from_secs(60);

struct Call {
    request: Request,
    reply: oneshot::Sender<Result<Answer>>,
}

/// The [`Reader`].
pub(super) struct Volume {
    calls: mpsc::Sender<Call>,
    summary: Summary,
    root: Id,
    deaths: Arc<AtomicU64>,
    name: String,
    limit: Duration,
    owner: AbortHandle,
}

impl Drop for Volume {
    fn drop(&mut self) {
        // With the task goes the child.
        self.owner.abort();
    }
}

impl Volume {
    pub(super) async fn open(shared: Arc<Shared>, blocks: Arc<dyn Blocks>) -> Result<Self> {
        let (running, summary, root) = Running::open(&shared, blocks.as_ref()).await?;
        let (calls, inbox) = mpsc::channel(QUEUE);
        let limit = shared.limits.call;
        let name = blocks.name().to_owned();
        let owner = Owner { shared, blocks, root, inbox, deaths: Deaths::default() };
        let deaths = Arc::clone(&owner.deaths.all);
        let owner = tokio::spawn(owner.live(running)).abort_handle();
        Ok(Self { calls, summary, root, deaths, name, limit, owner })
    }

    async fn call(&self, request: Request) -> Result<Answer> {
        let (reply, answer) = oneshot::channel();
        let gone = || Error::new(Kind::Io, format!("nobody reads {} any more", self.name));
        let exchange = async {
            self.calls.send(Call { request, reply }).await.map_err(|_| gone())?;
            answer.await.map_err(|_| gone())?
        };
        let late = || Error::new(Kind::Timeout, format!("no answer about {} came within {:?}", self.name, self.limit));
        timeout(self.limit, exchange).await.unwrap_or_else(|_| Err(late()))
    }
}

/// The answer to a request, whose kind was checked when it was read.
macro_rules! answer {
    ($volume:ident, $request:expr, $answer:pat => $value:expr) => {
        match $volume.call($request).await? {
            $answer => Ok($value),
            other => unreachable!("an answer to something else: {other:?}"),
        }
    };
}

#[async_trait]
impl Reader for Volume {
    fn summary(&self) -> &Summary {
        &self.summary
    }

    fn root(&self) -> Id {
        self.root
    }

    fn deaths(&self) -> u64 {
        self.deaths.load(Ordering::Relaxed)
    }

    async fn attributes(&self, file: Id) -> Result<Attributes> {
        answer!(self, Request::Attributes(file), Answer::Attributes(attributes) => attributes)
    }

    async fn lookup(&self, directory: Id, name: &[u8]) -> Result<Option<(Id, Attributes)>> {
        // What no directory has would not be believed by the child.
        if name.len() > MAX_NAME {
            return Ok(None);
        }
        answer!(self, Request::Lookup(directory, name.to_vec()), Answer::Lookup(found) => found)
    }

    async fn list(&self, directory: Id, from: u64) -> Result<Names> {
        answer!(self, Request::List(directory, place(from)?, MAX_ANSWERS), Answer::List(names) => names)
    }

    async fn describe(&self, directory: Id, from: u64, most: usize) -> Result<Vec<Described>> {
        let request = Request::Describe(directory, place(from)?, most.min(MAX_ANSWERS));
        answer!(self, request, Answer::Describe(files) => files)
    }

    async fn parent(&self, directory: Id) -> Result<Id> {
        answer!(self, Request::Parent(directory), Answer::Parent(id) => id)
    }

    async fn link_target(&self, file: Id) -> Result<Vec<u8>> {
        answer!(self, Request::LinkTarget(file), Answer::LinkTarget(target) => target)
    }

    async fn xattrs(&self, file: Id) -> Result<Vec<Xattr>> {
        answer!(self, Request::Xattrs(file), Answer::Xattrs(xattrs) => xattrs)
    }

    async fn extents(&self, file: Id, from: u64) -> Result<Vec<Extent>> {
        answer!(self, Request::Extents(file, place(from)?, MAX_ANSWERS), Answer::Extents(extents) => extents)
    }
}

/// What a child would not believe is not sent to it.
fn place(from: u64) -> Result<u64> {
    i64::try_from(from)
        .map(|_| from)
        .map_err(|_| Error::new(Kind::Invalid, format!("there is no place {from} in a file")))
}

/// A child that has a file system open. The process goes before its place is free.
struct Running {
    process: Process,
    slot: Arc<Slot>,
}

impl Running {
    async fn start(shared: &Shared, blocks: &dyn Blocks) -> Result<Self> {
        let slot = shared.slots.take(shared.limits.place).await?;
        let process = Process::start(&shared.nursery, blocks.name()).await?;
        slot.set_pid(process.pid());
        shared.started.fetch_add(1, Ordering::Relaxed);
        Ok(Self { process, slot })
    }

    /// The inner error is an answer.
    async fn ask(
        &mut self,
        shared: &Shared,
        request: &Request,
        blocks: &dyn Blocks,
    ) -> std::result::Result<Result<Answer>, Fault> {
        let answer = self.process.ask(request, blocks, &shared.limits).await?;
        shared.answers.fetch_add(1, Ordering::Relaxed);
        Ok(answer)
    }

    async fn open(shared: &Shared, blocks: &dyn Blocks) -> Result<(Self, Summary, Id)> {
        let mut running = Self::start(shared, blocks).await?;
        let request = Request::Open { size: blocks.size() };
        match running.ask(shared, &request, blocks).await {
            Ok(Ok(Answer::Open(summary, root))) => Ok((running, summary, root)),
            Ok(Ok(other)) => unreachable!("an answer to something else: {other:?}"),
            Ok(Err(error)) => Err(error),
            Err(fault) => Err(running.end(shared, &fault).await),
        }
    }

    /// Ends what is of no use any more, and says so in the log.
    async fn end(self, shared: &Shared, fault: &Fault) -> Error {
        shared.failed.fetch_add(1, Ordering::Relaxed);
        let error = self.process.end(fault).await;
        tracing::warn!("{error}");
        error
    }
}

/// What a disk is divided into.
pub(super) async fn table(shared: &Shared, disk: &dyn Blocks) -> Result<inside::table::Table> {
    match alone(shared, disk, &Request::Table { size: disk.size() }).await? {
        Answer::Table(table) => Ok(table),
        other => unreachable!("an answer to something else: {other:?}"),
    }
}

/// The logical volumes of disks of these sizes, which come one after the other.
pub(super) async fn volumes(shared: &Shared, disks: &dyn Blocks, sizes: Vec<u64>) -> Result<inside::lvm::Found> {
    match alone(shared, disks, &Request::Volumes(sizes)).await? {
        Answer::Volumes(found) => Ok(found),
        other => unreachable!("an answer to something else: {other:?}"),
    }
}

/// Which of these are members of arrays that have missed writes.
pub(super) async fn mirrors(shared: &Shared, disks: &dyn Blocks, sizes: Vec<u64>) -> Result<Vec<usize>> {
    match alone(shared, disks, &Request::Mirrors(sizes)).await? {
        Answer::Mirrors(outdated) => Ok(outdated),
        other => unreachable!("an answer to something else: {other:?}"),
    }
}

/// One question to a child that is there for nothing else.
async fn alone(shared: &Shared, disk: &dyn Blocks, request: &Request) -> Result<Answer> {
    let mut running = Running::start(shared, disk).await?;
    match running.ask(shared, request, disk).await {
        Ok(outcome) => outcome,
        Err(fault) => Err(running.end(shared, &fault).await),
    }
}

struct Owner {
    shared: Arc<Shared>,
    blocks: Arc<dyn Blocks>,
    root: Id,
    inbox: mpsc::Receiver<Call>,
    deaths: Deaths,
}

impl Owner {
    async fn live(mut self, first: Running) {
        first.slot.set_idle(true);
        let mut running = Some(first);
        while let Some(Call { request, reply }) = self.next(&mut running).await {
            if reply.is_closed() {
                continue;
            }
            let outcome = self.answer(&mut running, &request).await;
            if running.is_none() {
                self.refuse_waiting(&outcome);
            }
            // Who gave up meanwhile needs no answer.
            reply.send(outcome).ok();
        }
    }

    /// The next call; meanwhile the child may end.
    async fn next(&mut self, running: &mut Option<Running>) -> Option<Call> {
        loop {
            let Some(Running { process, slot }) = running else { return self.inbox.recv().await };
            tokio::select! {
                biased;
                call = self.inbox.recv() => {
                    slot.set_idle(false);
                    return call;
                }
                () = slot.is_needed() => *running = None,
                () = sleep(self.shared.limits.idle) => *running = None,
                () = process.speaks() => {
                    if let Some(dead) = running.take() {
                        dead.end(&self.shared, &Fault::Ended(std::io::ErrorKind::UnexpectedEof.into())).await;
                        self.deaths.add();
                    }
                }
            }
        }
    }

    /// Answers a call, by a new child if there is none. There is none afterwards if it became useless.
    async fn answer(&mut self, running: &mut Option<Running>, request: &Request) -> Result<Answer> {
        let mut child = match running.take() {
            Some(child) => child,
            None => self.open().await?,
        };
        match child.ask(&self.shared, request, self.blocks.as_ref()).await {
            Ok(outcome) => {
                child.slot.set_idle(true);
                *running = Some(child);
                outcome
            }
            Err(fault) => {
                self.deaths.add();
                Err(child.end(&self.shared, &fault).await)
            }
        }
    }

    async fn open(&mut self) -> Result<Running> {
        sleep(self.deaths.pause()).await;
        let (child, _, root) = Running::open(&self.shared, self.blocks.as_ref()).await.inspect_err(|error| {
            if error.kind() == Kind::Io {
                self.deaths.add();
            }
        })?;
        if root == self.root {
            return Ok(child);
        }
        Err(Error::new(Kind::Io, format!("{} has another root than when it was opened before", self.blocks.name())))
    }

    /// Who waits in line when a child dies gets the error too; what took too long is no matter of theirs.
    fn refuse_waiting(&mut self, outcome: &Result<Answer>) {
        let Err(error) = outcome else { return };
        if error.kind() != Kind::Io {
            return;
        }
        while let Ok(call) = self.inbox.try_recv() {
            call.reply.send(Err(Error::new(error.kind(), error.to_string()))).ok();
        }
    }
}

/// How often a child died lately: a disk that kills its reader must not be a way to start processes all the time.
#[derive(Debug, Default)]
struct Deaths {
    count: u32,
    last: Option<Instant>,
    /// Those that are forgiven too.
    all: Arc<AtomicU64>,
}

impl Deaths {
    fn add(&mut self) {
        self.forgive();
        self.count = self.count.saturating_add(1);
        self.last = Some(Instant::now());
        self.all.fetch_add(1, Ordering::Relaxed);
    }

    fn forgive(&mut self) {
        if self.last.is_some_and(|last| last.elapsed() > FORGIVEN) {
            self.count = 0;
        }
    }

    /// Before the next is started.
    fn pause(&mut self) -> Duration {
        self.forgive();
        let Some(doublings) = self.count.checked_sub(2) else { return Duration::ZERO };
        FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(doublings)).min(LONGEST_PAUSE)
    }
}
