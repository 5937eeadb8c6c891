//! The guardian: a process of its own that cleans up after the daemon, however that ends.
//!
//! ```text
//! daemon ── socketpair ──▶ guardian ──(once the daemon is dead)──▶ QMP socket ──▶ QEMU
//!  beat, beat, beat …        waits                                 journal: undo
//!  detach ────────────────▶  unmounts                              mount: detach
//!  done ──────────────────▶  ends                                  directory: remove
//! ```
//! A point in time makes the guest's writes wait for a scratch space that only fills. Whatever happens to the daemon, it
//! must end; QEMU has no way to notice by itself that a monitor's client died. See docs/adr/014-journal-and-guardian.md.
//!
//! Invariants: the guardian acts only after the kernel says that the daemon is dead (the journal's lock), or kills it when
//! it gives no sign of life while something is held; it does nothing that the journal does not name. A guardian that dies
//! is replaced by the daemon; the new one has no more privileges than the daemon has by then, so it may have to leave the
//! dead mount to `pullfs recover`.

pub mod process;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as Socket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::error::{Error, Kind, Result, chain};
use crate::fuse::mount::Mount;
use crate::lines::Lines;

/// The subcommand of the program that is [`process::run`].
pub const SUBCOMMAND: &str = "guardian";

/// Between two signs of life.
const BEAT: Duration = Duration::from_secs(1);

/// Longest line between the two, in bytes: two paths of at most 4096, escaped.
const MAX_LINE: usize = 64 << 10;

/// How long the guardian may take to start, on a busy machine, and to unmount.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// Before a guardian that could not be replaced is replaced; doubles up to the second.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What the daemon tells the guardian.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Order {
    /// The daemon lives.
    Beat,
    /// Takes the mount out of the tree.
    Detach { path: PathBuf, device: String },
    /// Nothing is left to guard.
    Done,
}

/// What the guardian answers.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    /// It watches, and needs nobody any more to clean up. The first answer, to no order.
    Ready,
    /// The mount is out of the tree, or was already.
    Detached,
    /// It could not be done.
    Failed { why: String },
}

async fn tell(lines: &mut Lines, message: &impl Serialize) -> Result<()> {
    let gone = |error| Error::with_source(Kind::Gone, "the other end of the guardian's socket is gone", error);
    let mut line = serde_json::to_vec(message).map_err(|error| gone(error.into()))?;
    line.push(b'\n');
    lines.write(&line).await.map_err(gone)
}

/// The next message; none at the end of the stream. Giving up on it loses nothing.
async fn hear<T: for<'a> Deserialize<'a>>(lines: &mut Lines) -> Result<Option<T>> {
    let broken = |error| Error::with_source(Kind::Gone, "the guardian's socket broke", error);
    match lines.next(MAX_LINE).await.map_err(broken)? {
        None => Ok(None),
        Some(line) => serde_json::from_slice(&line).map(Some).map_err(|error| broken(error.into())),
    }
}

enum Request {
    Detach(Mount, oneshot::Sender<Result<()>>),
    Dismiss(oneshot::Sender<()>),
}

/// The daemon's handle to its guardian. When it is dropped without [`Guardian::dismiss`], the guardian waits for the
/// daemon's end and cleans up.
pub struct Guardian {
    requests: mpsc::Sender<Request>,
    pid: Pid,
}

/// The process id of the guardian there is now; 0 while there is none.
#[derive(Debug, Clone, Default)]
pub struct Pid(Arc<AtomicU32>);

impl Pid {
    /// The number.
    pub fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A guardian that was started and is not on its post yet. It is started while the daemon still has the privileges that
/// unmounting takes.
pub struct Recruit {
    post: Post,
    child: Child,
    socket: Socket,
}

impl Recruit {
    /// Starts the process of a guardian for the mount whose directory is `dir`. `program` has [`SUBCOMMAND`], which takes the
    /// directory; `quiet` keeps it from the daemon's standard error.
    ///
    /// # Errors
    /// When it cannot be started: then nothing must be held.
    pub fn start(program: &Path, dir: &Path, quiet: bool) -> Result<Self> {
        let post = Post { program: program.to_owned(), dir: dir.to_owned(), quiet, pid: Pid::default() };
        let (child, socket) = post.start()?;
        Ok(Self { post, child, socket })
    }

    /// Returns when it watches.
    ///
    /// # Errors
    /// When it does not come up: then nothing must be held.
    pub async fn on_post(self) -> Result<Guardian> {
        let Self { post, child, socket } = self;
        let pid = post.pid.clone();
        let first = post.see_up(child, socket).await?;
        let (requests, inbox) = mpsc::channel(4);
        tokio::spawn(post.keep(first, inbox));
        Ok(Guardian { requests, pid })
    }
}

impl Guardian {
    /// Its process id.
    pub fn pid(&self) -> Pid {
        self.pid.clone()
    }

    /// Takes a mount out of the tree; those who have files open on it keep them. Nothing mounted is no error.
    ///
    /// # Errors
    /// When the system refuses, or there is no guardian.
    pub async fn detach(&self, mount: &Mount) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        let gone = || Error::new(Kind::Gone, "there is no guardian to unmount");
        self.requests.send(Request::Detach(mount.clone(), reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Lets the guardian go: nothing is left that it would have to clean up.
    pub async fn dismiss(self) {
        let (reply, done) = oneshot::channel();
        if self.requests.send(Request::Dismiss(reply)).await.is_ok() {
            // A guardian that cannot be told finds nothing to do.
            done.await.ok();
        }
    }
}

/// The post of a guardian, and what a new one needs.
struct Post {
    program: PathBuf,
    dir: PathBuf,
    quiet: bool,
    pid: Pid,
}

struct Filled {
    child: Child,
    lines: Lines,
}

impl Post {
    fn start(&self) -> Result<(Child, Socket)> {
        let unable = |error| {
            Error::with_source(Kind::Io, format!("cannot start {} as the guardian", self.program.display()), error)
        };
        let (ours, theirs) = Socket::pair().map_err(unable)?;
        let mut command = Command::new(&self.program);
        // From its first moment on it knows what to clean up after: the daemon may be dead before it could tell.
        command.arg(SUBCOMMAND).arg(&self.dir).stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
        if self.quiet {
            command.stderr(Stdio::null());
        }
        // Dropping the command closes our copy of its end.
        let child = command.spawn().map_err(unable)?;
        Ok((child, ours))
    }

    /// Waits until a process that was started watches.
    async fn see_up(&self, mut child: Child, socket: Socket) -> Result<Filled> {
        let unable = |error| Error::with_source(Kind::Io, "cannot talk to the guardian", error);
        socket.set_nonblocking(true).map_err(unable)?;
        let mut lines = Lines::new(UnixStream::from_std(socket).map_err(unable)?);
        match timeout(ANSWER_LIMIT, hear(&mut lines)).await {
            Ok(Ok(Some(Answer::Ready))) => {
                self.pid.0.store(child.id(), Ordering::Relaxed);
                Ok(Filled { child, lines })
            }
            other => {
                // It may be gone already.
                child.kill().ok();
                child.wait().ok();
                Err(Error::new(Kind::Io, format!("the guardian does not come up: {other:?}")))
            }
        }
    }

    async fn fill(&self) -> Result<Filled> {
        let (child, socket) = self.start()?;
        self.see_up(child, socket).await
    }

    /// Keeps the post filled until it is dismissed.
    async fn keep(self, first: Filled, mut inbox: mpsc::Receiver<Request>) {
        let mut filled = first;
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let lives = tokio::select! {
                request = inbox.recv() => match request {
                    Some(Request::Detach(mount, reply)) => {
                        let (outcome, lives) = filled.detach(&mount).await;
                        reply.send(outcome).ok();
                        lives
                    }
                    Some(Request::Dismiss(reply)) => {
                        tell(&mut filled.lines, &Order::Done).await.ok();
                        reply.send(()).ok();
                        return;
                    }
                    None => return,
                },
                _ = beat.tick() => filled.beat().await,
                // It says nothing of its own accord.
                heard = hear::<Answer>(&mut filled.lines) => matches!(heard, Ok(Some(_))),
            };
            if !lives {
                filled = self.refill(filled).await;
            }
        }
    }

    async fn refill(&self, mut dead: Filled) -> Filled {
        tracing::warn!("the guardian died; another one takes its place");
        self.pid.0.store(0, Ordering::Relaxed);
        // Its socket is closed or of no use, so it ends or has ended.
        dead.child.kill().ok();
        dead.child.wait().ok();
        let mut pause = FIRST_PAUSE;
        loop {
            match self.fill().await {
                Ok(filled) => return filled,
                Err(error) => tracing::error!("nobody would clean up after this daemon: {}", chain(&error)),
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

impl Filled {
    /// Whether the guardian can be told. One that does not read is told when it does.
    async fn beat(&mut self) -> bool {
        !matches!(timeout(BEAT, tell(&mut self.lines, &Order::Beat)).await, Ok(Err(_)))
    }

    async fn detach(&mut self, mount: &Mount) -> (Result<()>, bool) {
        let order = Order::Detach { path: mount.path().to_owned(), device: mount.device().to_owned() };
        let exchange = async {
            tell(&mut self.lines, &order).await?;
            hear(&mut self.lines).await
        };
        match timeout(ANSWER_LIMIT, exchange).await {
            Ok(Ok(Some(Answer::Detached))) => (Ok(()), true),
            Ok(Ok(Some(Answer::Failed { why }))) => (Err(Error::new(Kind::Denied, why)), true),
            Ok(Ok(_)) => (Err(Error::new(Kind::Gone, "the guardian died")), false),
            Ok(Err(error)) => (Err(error), false),
            Err(_) => (Err(Error::new(Kind::Timeout, "the guardian does not unmount")), false),
        }
    }
}
