//! A child process, and the conversation with it.
//!
//! It is started by a thread that does nothing else and lives as long as [`Nursery`]: the kernel kills a child when the
//! *thread* that started it ends (`PR_SET_PDEATHSIG`). It is killed and waited for when [`Process`] is dropped, so that there
//! is neither a child nor a zombie that nobody knows of.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as Socket;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use inside::wire::{Answer, Given, Invalid, Request, Said, frame_length};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::Blocks;
use crate::error::{Error, Kind, Result, printable};

/// How much a child may say on its standard error, in bytes. Nobody listens to more.
const WORDS: u64 = 8 << 10;

/// How long a program may take to start, on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(20);

/// How long the words of a child that is dead may take to arrive.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// What a child is.
#[derive(Debug, Clone)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) arguments: Vec<OsString>,
}

struct Started {
    child: Reaped,
    socket: Socket,
}

/// A child that is killed and waited for when this is dropped.
struct Reaped(Child);

impl Reaped {
    fn end(&mut self) -> Option<ExitStatus> {
        // Who is dead already says how.
        self.0.kill().ok();
        self.0.wait().ok()
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        self.end();
    }
}

impl Program {
    /// Its standard input is its end of the conversation; it gets nothing else, and no environment.
    fn start(&self) -> io::Result<Started> {
        let (ours, theirs) = Socket::pair()?;
        let mut command = Command::new(&self.path);
        command.args(&self.arguments).env_clear();
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).stderr(Stdio::piped());
        // Dropping the command closes our copy of its end.
        let child = command.spawn().map(Reaped)?;
        Ok(Started { child, socket: ours })
    }
}

/// An order for a child.
type Order = oneshot::Sender<io::Result<Started>>;

/// Where children are born.
pub(super) struct Nursery {
    program: Program,
    /// Started with the first child: it has to be as confined as the daemon is by then.
    thread: Mutex<Option<Sender<Order>>>,
}

impl Nursery {
    pub(super) fn new(program: Program) -> Self {
        Self { program, thread: Mutex::default() }
    }

    async fn start(&self) -> io::Result<Started> {
        let (order, started) = oneshot::channel();
        self.thread()?.send(order).map_err(|_| io::ErrorKind::BrokenPipe)?;
        let started = timeout(START_LIMIT, started).await?;
        started.map_err(|_| io::ErrorKind::BrokenPipe)?
    }

    fn thread(&self) -> io::Result<Sender<Order>> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(orders) = thread.as_ref() {
            return Ok(orders.clone());
        }
        let (orders, inbox) = channel::<Order>();
        let program = self.program.clone();
        let work = move || {
            for order in inbox {
                // A child that nobody waits for any more is dropped, and so killed.
                order.send(program.start()).ok();
            }
        };
        std::thread::Builder::new().name("nursery".to_owned()).spawn(work)?;
        Ok(thread.insert(orders).clone())
    }
}

/// Why a child cannot be used any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// The conversation ended, mostly because it did.
    #[error(transparent)]
    Ended(#[from] io::Error),
    /// It took too long to think.
    #[error("it thought about one question for more than {0:?}")]
    Slow(Duration),
    /// It says what cannot be.
    #[error(transparent)]
    Nonsense(#[from] Invalid),
    /// All of it took too long, which may be the disk's fault.
    #[error("one question took more than {0:?}")]
    Late(Duration),
}

/// A child that reads.
pub(super) struct Process {
    child: Reaped,
    stream: UnixStream,
    words: JoinHandle<String>,
    name: String,
}

impl Process {
    /// Starts one; `name` is what it reads.
    pub(super) async fn start(nursery: &Nursery, name: &str) -> Result<Self> {
        let unable = |error| Error::with_source(Kind::Io, format!("cannot start the reader of {name}"), error);
        let Started { mut child, socket } = nursery.start().await.map_err(unable)?;
        socket.set_nonblocking(true).map_err(unable)?;
        let stream = UnixStream::from_std(socket).map_err(unable)?;
        let stderr = child.0.stderr.take().ok_or_else(|| unable(io::ErrorKind::BrokenPipe.into()))?;
        let stderr = pipe::Receiver::from_owned_fd(OwnedFd::from(stderr)).map_err(unable)?;
        let words = tokio::spawn(listen(stderr, name.to_owned()));
        Ok(Self { child, stream, words, name: name.to_owned() })
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// Asks, and gives the blocks that the answer takes. The inner error is the answer.
    pub(super) async fn ask(
        &mut self,
        request: &Request,
        blocks: &dyn Blocks,
        limits: &super::Limits,
    ) -> std::result::Result<Result<Answer>, Fault> {
        let all = self.converse(request, blocks, limits.thinking);
        timeout(limits.call, all).await.unwrap_or(Err(Fault::Late(limits.call)))
    }

    async fn converse(
        &mut self,
        request: &Request,
        blocks: &dyn Blocks,
        thinking: Duration,
    ) -> std::result::Result<Result<Answer>, Fault> {
        let mut left = thinking;
        let mut say = Ok(framed(&request.encode()));
        let mut disk = None;
        loop {
            let began = Instant::now();
            let exchange = async {
                self.say(&say).await?;
                self.hear().await
            };
            let frame = timeout(left, exchange).await.map_err(|_| Fault::Slow(thinking))??;
            left = left.saturating_sub(began.elapsed());
            match Said::decode(&frame, request, blocks.size())? {
                Said::Answered(answer) => return Ok(Ok(answer)),
                Said::Failed(error) => return Ok(Err(disk.unwrap_or_else(|| told(&error)))),
                Said::Blocks(offset, length) => {
                    say = match read(blocks, offset, length).await {
                        Ok(bytes) => Err(bytes),
                        Err(error) => {
                            let errno = error.kind().errno().raw_os_error();
                            // The first is the cause of those that follow.
                            disk.get_or_insert(error);
                            Ok(framed(&Given::failed(errno)))
                        }
                    };
                }
            }
        }
    }

    /// A frame, or blocks.
    async fn say(&mut self, what: &std::result::Result<Vec<u8>, Bytes>) -> io::Result<()> {
        match what {
            Ok(frame) => self.stream.write_all(frame).await,
            Err(blocks) => {
                self.stream.write_all(&Given::header(blocks)).await?;
                self.stream.write_all(blocks).await
            }
        }
    }

    async fn hear(&mut self) -> std::result::Result<Vec<u8>, Fault> {
        let mut header = [0; 4];
        self.stream.read_exact(&mut header).await?;
        let length = frame_length(header)?;
        let mut frame = Vec::new();
        // Memory grows with what has come, not with what was announced.
        (&mut self.stream).take(u64::try_from(length).unwrap_or(0)).read_to_end(&mut frame).await?;
        if frame.len() < length { Err(Fault::Ended(io::ErrorKind::UnexpectedEof.into())) } else { Ok(frame) }
    }

    /// Returns when it says something, or ends, while nobody asked it.
    pub(super) async fn speaks(&self) {
        // It is said to be readable before the last read has found that it is not. Whatever comes, and every error, is its end.
        while self.stream.readable().await.is_ok() {
            match self.stream.try_read(&mut [0]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// Ends it; what became of it, in words.
    pub(super) async fn end(mut self, fault: &Fault) -> Error {
        let status = self.child.end().map(|status| status.to_string()).unwrap_or_default();
        let status = match fault {
            Fault::Ended(_) => format!("the reader of {} died ({status})", self.name),
            _ => format!("the reader of {} was ended: {fault}", self.name),
        };
        let words = timeout(LAST_WORDS, &mut self.words).await;
        let words = words.ok().and_then(std::result::Result::ok).filter(|words| !words.is_empty());
        let what = words.map_or_else(|| status.clone(), |words| format!("{status}; it said: {words}"));
        let kind = if matches!(fault, Fault::Late(_)) { Kind::Timeout } else { Kind::Io };
        Error::new(kind, what)
    }
}

fn framed(frame: &[u8]) -> Vec<u8> {
    let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes(), frame].concat()
}

async fn read(blocks: &dyn Blocks, offset: u64, length: u64) -> Result<Bytes> {
    let bytes = blocks.read(offset..offset.saturating_add(length)).await?;
    if u64::try_from(bytes.len()).is_ok_and(|got| got == length) {
        return Ok(bytes);
    }
    Err(Error::new(Kind::Io, format!("{} gave another number of bytes than was asked for", blocks.name())))
}

/// What a reader says of a disk, to whoever asked.
fn told(error: &inside::Error) -> Error {
    let kind = match error.kind() {
        inside::Kind::Corrupt | inside::Kind::Disk => Kind::Io,
        inside::Kind::Unsupported | inside::Kind::Unclean => Kind::Unsupported,
        inside::Kind::NotFound => Kind::NotFound,
        inside::Kind::WrongKind => Kind::Invalid,
        inside::Kind::TooLarge => Kind::TooLarge,
    };
    Error::new(kind, printable(&error.to_string()))
}

/// Puts what a child says on its standard error into the log; its first line.
async fn listen(stderr: pipe::Receiver, name: String) -> String {
    let mut lines = BufReader::new(stderr.take(WORDS)).split(b'\n');
    let mut first = String::new();
    while let Ok(Some(line)) = lines.next_segment().await {
        let line = printable(String::from_utf8_lossy(&line).trim());
        tracing::warn!("the reader of {name}: {line}");
        if first.is_empty() {
            first = line;
        }
    }
    first
}
