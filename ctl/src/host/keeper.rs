//! Does what the policy says: the one task that owns the directories, the processes of the domains, and the answers.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use autofs::{Autofs, Kind, Request};
use pullfs_fs::error::{Result, chain};
use pullfs_fs::fuse::mount::{find, is_there, unmount};
use pullfs_fs::recovery::{holds, state_dir};
use pullfs_fs::vm::libvirt::roster::Member;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::Signal;
use tokio::net::unix::pipe::Receiver;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use super::child::{self, Child, News};
use super::names::directories;
use super::policy::{Id, Order, Policy};
use super::shown::{self, Host};

/// News that wait to be looked at; who has more to tell waits.
const QUEUED: usize = 64;

/// Between two looks for mounts that nobody uses: a part of the time after which they expire, within these.
const SELDOM: Duration = Duration::from_secs(60);
const OFTEN: Duration = Duration::from_secs(1);

/// What libvirt says of its domains.
pub(super) type Told = Result<Vec<Member>>;

/// What is said of the whole mount.
pub(super) struct About {
    pub(super) uri: String,
    /// Mount options of the domains' mounts, each in the form of `-o`.
    pub(super) options: Vec<String>,
    pub(super) verbose: u8,
    pub(super) expire: Duration,
    /// The directory of the mount.
    pub(super) dir: PathBuf,
}

/// The task.
pub(super) struct Keeper {
    autofs: Arc<Autofs>,
    about: About,
    policy: Policy,
    children: BTreeMap<Id, Child>,
    unreachable: Option<String>,
    news: (mpsc::Sender<News>, mpsc::Receiver<News>),
    /// Told whenever something is mounted or unmounted, from the beginning: whoever hears of the mount may unmount it at once.
    mounts: mpsc::Receiver<()>,
    /// What was written last.
    written: Option<Host>,
}

impl Keeper {
    /// Begins with these domains.
    pub(super) fn new(autofs: Autofs, about: About, members: &[Member]) -> anyhow::Result<Self> {
        autofs.expire_after(about.expire).context("cannot set the time after which a domain is unmounted")?;
        let mut keeper = Self {
            autofs: Arc::new(autofs),
            about,
            policy: Policy::default(),
            children: BTreeMap::new(),
            unreachable: None,
            news: mpsc::channel(QUEUED),
            mounts: watch_mounts()?,
            written: None,
        };
        keeper.policy.list(Instant::now(), &directories(members));
        keeper.obey();
        Ok(keeper)
    }

    /// Goes on until somebody unmounts it or `end` comes; then ends all processes.
    pub(super) async fn run(
        &mut self,
        requests: OwnedFd,
        mut roster: mpsc::Receiver<Told>,
        end: impl Future<Output = ()>,
    ) -> anyhow::Result<()> {
        let requests = Receiver::from_owned_fd(requests).context("cannot read the kernel's requests")?;
        let mut children = signal(SignalKind::child()).context("cannot listen to signals")?;
        let mut look_for_unused = interval((self.about.expire / 4).clamp(OFTEN, SELDOM));
        look_for_unused.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looking: Option<JoinHandle<()>> = None;
        let mut told = true;
        let mut ending = false;
        tokio::pin!(end);
        loop {
            if ending && self.policy.is_empty() {
                return Ok(());
            }
            let due = self.policy.due();
            tokio::select! {
                ready = requests.readable() => {
                    ready.context("cannot wait for the kernel's requests")?;
                    self.take(&requests)?;
                }
                Some(news) = self.news.1.recv() => self.hear(news),
                members = roster.recv(), if told && !ending => match members {
                    Some(members) => self.learn(members),
                    None => told = false,
                },
                () = wait_until(due) => self.policy.tick(Instant::now()),
                _ = look_for_unused.tick(), if !ending && looking.is_none() && self.policy.any_mounted() => {
                    let autofs = self.autofs.clone();
                    // Each answer lets the kernel look for another one.
                    looking = Some(spawn_blocking(move || while matches!(autofs.expire(), Ok(true)) {}));
                }
                () = ended(&mut looking) => looking = None,
                Some(()) = children.recv() => self.bury(),
                Some(()) = self.mounts.recv(), if !ending => {
                    if !is_there(self.autofs.path(), &self.autofs.device())? {
                        tracing::info!("it was unmounted");
                        ending = true;
                        self.policy.close(Instant::now());
                    }
                }
                () = &mut end, if !ending => {
                    ending = true;
                    self.policy.close(Instant::now());
                }
            }
            self.obey();
        }
    }

    /// Has nobody wait for what nobody does any more, also in a mount that was taken out of the tree.
    pub(super) fn abandon(&self) {
        if let Err(error) = self.autofs.abandon() {
            tracing::warn!("cannot let go of those who wait for {}: {error}", self.autofs.path().display());
        }
    }

    /// Takes the requests that there are.
    fn take(&mut self, requests: &Receiver) -> anyhow::Result<()> {
        let mut packet = [0; Request::LONGEST];
        loop {
            let length = match requests.try_read(&mut packet) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                other => other.context("cannot read the kernel's requests")?,
            };
            // The kernel closes its end when the file system is gone, which it is not as long as its root is open.
            let request =
                packet.get(..length).and_then(Request::parse).context("the kernel's request is not understood")?;
            tracing::debug!("{request:?}");
            let name = request.name.to_string_lossy();
            match request.kind {
                Kind::Missing => self.policy.look(Instant::now(), &name, request.token),
                Kind::Expire => self.policy.expire(&name, request.token),
            }
        }
    }

    /// Looks which processes have ended.
    fn bury(&mut self) {
        let ended = |(id, child): (&Id, &mut Child)| Some((*id, child.ended()?));
        let ended: Vec<_> = self.children.iter_mut().filter_map(ended).collect();
        for (id, how) in ended {
            if let Some(child) = self.children.remove(&id) {
                child.bury(how);
            }
        }
    }

    fn hear(&mut self, news: News) {
        let now = Instant::now();
        match news {
            News::Mounted(id) => self.policy.mounted(now, id),
            News::Unmounted(id, done) => self.policy.unmounted(now, id, done),
            News::Ended(id, why) => {
                if let Some(why) = &why {
                    tracing::warn!("the mount of a domain ended: {why}");
                }
                self.policy.ended(now, id, why);
            }
        }
    }

    fn learn(&mut self, told: Told) {
        match told {
            Ok(members) => {
                self.unreachable = None;
                self.policy.list(Instant::now(), &directories(&members));
            }
            Err(error) => {
                let why = chain(&error);
                if self.unreachable.as_ref() != Some(&why) {
                    tracing::warn!("{why}");
                }
                self.unreachable = Some(why);
            }
        }
    }

    /// Does what the policy says, and tells what there is now.
    fn obey(&mut self) {
        loop {
            let orders = self.policy.orders();
            if orders.is_empty() {
                break;
            }
            for order in orders {
                self.follow(order);
            }
        }
        let domains = shown::domains(&self.policy, |id| self.children.get(&id).map(Child::pid));
        let host = Host {
            pid: std::process::id(),
            source: super::SOURCE.to_owned(),
            uri: self.about.uri.clone(),
            mount_point: self.autofs.path().to_string_lossy().into_owned(),
            unreachable: self.unreachable.clone(),
            expire: self.about.expire.as_secs(),
            domains,
        };
        if self.written.as_ref() != Some(&host) {
            if let Err(error) = shown::write(&self.about.dir, &host) {
                tracing::warn!("cannot write the status: {error:#}");
            }
            self.written = Some(host);
        }
    }

    fn follow(&mut self, order: Order) {
        let done = match order {
            Order::Make { name } => match self.autofs.make(OsStr::new(&name)) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
                other => other.with_context(|| format!("cannot make the directory of {name}")),
            },
            Order::Remove { name } => self.remove(&name),
            Order::Start { id, name, uuid } => {
                let source = format!("{}{uuid}", super::SOURCE);
                let mount_point = self.autofs.path().join(&name);
                tracing::info!("{name}: its mount begins");
                let command = child::command(&self.about.options, self.about.verbose, &source, &mount_point);
                match Child::start(id, command, source, mount_point, self.news.0.clone()) {
                    Ok(child) => drop(self.children.insert(id, child)),
                    Err(error) => {
                        self.policy.ended(Instant::now(), id, Some(format!("cannot start its daemon: {error}")));
                    }
                }
                Ok(())
            }
            Order::End { id } => self.signal(id, Signal::TERM),
            Order::Kill { id } => self.signal(id, Signal::KILL),
            Order::Unmount { id, name } => {
                self.unmount(id, &name);
                Ok(())
            }
            // Who asked may have been killed.
            Order::Ready(token) => self.autofs.ready(token).context("the kernel takes no answer"),
            Order::Fail(token, why) => self.autofs.fail(token, why).context("the kernel takes no answer"),
        };
        if let Err(error) = done {
            tracing::warn!("{error:#}");
        }
    }

    fn remove(&self, name: &str) -> anyhow::Result<()> {
        let removed = match self.autofs.remove(OsStr::new(name)) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy => {
                // Its process has ended, so whatever lies there is not its.
                unmount(&self.autofs.path().join(name), true)?;
                self.autofs.remove(OsStr::new(name))
            }
            other => other,
        };
        removed.with_context(|| format!("cannot remove the directory of {name}"))
    }

    #[expect(clippy::unnecessary_wraps, reason = "as what else follows an order")]
    fn signal(&self, id: Id, signal: Signal) -> anyhow::Result<()> {
        if let Some(child) = self.children.get(&id) {
            child.signal(signal);
        }
        Ok(())
    }

    /// Unmounts a domain that holds nothing and that nobody uses.
    fn unmount(&self, id: Id, name: &str) {
        let path = self.autofs.path().join(name);
        let pid = self.children.get(&id).map(Child::pid);
        let tell = self.news.0.clone();
        tokio::spawn(async move {
            let done = spawn_blocking(move || {
                let held = pid.is_none_or(|pid| holds(&state_dir(), pid));
                !held && matches!(find(&path), Ok(Some(_))) && unmount(&path, false).is_ok()
            });
            tell.send(News::Unmounted(id, done.await.unwrap_or(false))).await.ok();
        });
    }
}

/// Returns when the task has ended; never without one.
async fn ended(task: &mut Option<JoinHandle<()>>) {
    match task {
        Some(task) => drop(task.await),
        None => std::future::pending().await,
    }
}

/// Tells whenever something is mounted or unmounted.
fn watch_mounts() -> anyhow::Result<mpsc::Receiver<()>> {
    let file = File::open("/proc/self/mountinfo").context("cannot open /proc/self/mountinfo")?;
    let (tell, told) = mpsc::channel(1);
    let watch = move || {
        // The kernel says so of a file that was polled before (proc_pid_mounts(5)).
        while matches!(poll(&mut [PollFd::new(&file, PollFlags::PRI)], None), Ok(_) | Err(Errno::INTR)) {
            // One that waits says the same.
            if let Err(TrySendError::Closed(())) = tell.try_send(()) {
                return;
            }
        }
    };
    std::thread::Builder::new().name("mounts".to_owned()).spawn(watch).context("cannot start a thread")?;
    Ok(told)
}

async fn wait_until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
