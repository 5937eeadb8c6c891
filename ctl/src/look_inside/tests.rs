//! Readers as processes, as the daemon has them, and what becomes of one that a disk has taken over. The file system that
//! they read is a toy: asking for the attributes of file `n` is telling it to do [`ACTS`]`[n]`.
//!
//! The process is this test program again, told to run [`toy`] alone.

use std::ffi::OsString;
use std::hint::black_box;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use inside::serve::Parsers;
use inside::{Attributes, Disk, Entry, Extent, FileKind, FileSystem, Id, Result, Summary, Time, Xattr};
use pullfs_fs::error::{self, Kind};
use pullfs_fs::guest::{Blocks, Children, Limits, Reader, Readers};
use rustix::fs::MemfdFlags;
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::run;
use crate::harden::{self, Needs};

/// What a file system may be told to do; the outcome does not matter to it.
type Act = (&'static str, fn());

/// What came of it does not matter.
fn tried<T>(_outcome: T) {}

/// What no reader survives.
const FORBIDDEN: [Act; 14] = [
    ("open a file", || tried(std::fs::File::open("/etc/hostname"))),
    ("look at a file", || tried(std::fs::metadata("/"))),
    ("look at its descriptors", || tried(std::fs::read_dir("/proc/self/fd"))),
    ("make a descriptor", || tried(rustix::io::dup(rustix::stdio::stdin()))),
    ("make a pipe", || tried(rustix::pipe::pipe())),
    ("make a file in memory", || tried(rustix::fs::memfd_create("x", MemfdFlags::empty()))),
    ("make a socket", || tried(rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None))),
    ("connect", || tried(std::net::TcpStream::connect("127.0.0.1:1"))),
    ("start a program", || tried(Command::new("/bin/true").spawn())),
    ("start a thread", || tried(std::thread::Builder::new().spawn(|| ()))),
    ("send a signal", || tried(rustix::process::test_kill_process(rustix::process::getpid()))),
    ("take more", || {
        let all = Rlimit { current: None, maximum: None };
        tried(rustix::process::setrlimit(Resource::Nofile, all));
    }),
    ("write to standard output", || tried(rustix::io::write(rustix::stdio::stdout(), b"x"))),
    ("read what it says", || tried(rustix::io::read(rustix::stdio::stderr(), &mut [0; 1]))),
];

const MEMORY: u64 = 100;
const LOOP: u64 = 101;
const PANIC: u64 = 102;
const STACK: u64 = 103;
const FLOOD: u64 = 104;
const SPEAK: u64 = 105;
const LEAVE: u64 = 106;
const READ: u64 = 1000;

fn act(number: u64) {
    match number {
        MEMORY => drop(black_box(vec![1_u8; 1 << 30])),
        LOOP => loop {
            black_box(0);
        },
        PANIC => panic!("a disk found a defect"),
        STACK => drop(black_box(deeper(0))),
        // Two thousand lines to a daemon that listens to eight KiB.
        FLOOD => (0..2000)
            .for_each(|line| tried(rustix::io::write(rustix::stdio::stderr(), format!("{line:>99}\n").as_bytes()))),
        SPEAK => tried(rustix::io::write(rustix::stdio::stdin(), &[0, 0, 0, 1, 77])),
        LEAVE => std::process::exit(3),
        number => {
            if let Some((_, act)) = usize::try_from(number).ok().and_then(|number| FORBIDDEN.get(number)) {
                act();
            }
        }
    }
}

#[expect(unconditional_recursion, reason = "it is to end where the stack does")]
fn deeper(level: u64) -> u64 {
    let here = black_box([level; 100]);
    deeper(level + 1) + here[black_box(7)]
}

struct Toy(Box<dyn Disk>);

impl FileSystem for Toy {
    fn summary(&self) -> Summary {
        Summary { kind: "ext4", block_size: 4096, blocks: 1, free_blocks: 0, files: None, unclean: None }
    }

    fn root(&self) -> Id {
        Id(2)
    }

    fn attributes(&self, file: Id) -> Result<Attributes> {
        act(file.0);
        let block = file.0.saturating_sub(READ);
        self.0.read_at(block << 20, &mut [0; 10])?;
        let time = Time::default();
        Ok(Attributes {
            kind: FileKind::File,
            mode: 0o600,
            uid: 0,
            gid: 0,
            links: 1,
            size: file.0,
            allocated: 0,
            accessed: time,
            modified: time,
            changed: time,
            device: (0, 0),
        })
    }

    fn lookup(&self, _directory: Id, _name: &[u8]) -> Result<Option<Id>> {
        Ok(None)
    }

    fn list(&self, _directory: Id, _from: u64, _each: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>) -> Result<()> {
        Ok(())
    }

    fn parent(&self, directory: Id) -> Result<Id> {
        Ok(directory)
    }

    fn link_target(&self, _file: Id) -> Result<Vec<u8>> {
        Err(inside::Error::new(inside::Kind::WrongKind, "no link"))
    }

    fn xattrs(&self, _file: Id) -> Result<Vec<Xattr>> {
        Ok(Vec::new())
    }

    fn extents(&self, _file: Id, _from: u64, _limit: usize) -> Result<Vec<Extent>> {
        Ok(Vec::new())
    }
}

#[test]
#[ignore = "it is the process that the others start"]
fn toy() {
    let parsers = Parsers { open: |disk| Ok(Box::new(Toy(disk))), ..super::PARSERS };
    // Past the test program, which would do what no reader may.
    let code = run(parsers);
    std::process::exit(i32::from(code != std::process::ExitCode::SUCCESS));
}

const MIB: u64 = 1 << 20;

/// A disk of zeroes that can be made to behave badly.
#[derive(Default)]
struct Zeroes {
    reads: AtomicU64,
    /// How long a read takes, in milliseconds.
    slow: AtomicU64,
    /// No read ends while it is.
    stuck: AtomicBool,
    ended: bool,
}

#[async_trait]
impl Blocks for Zeroes {
    fn size(&self) -> u64 {
        1 << 40
    }

    fn name(&self) -> &'static str {
        "vda"
    }

    async fn read(&self, range: Range<u64>) -> error::Result<Bytes> {
        assert!(range.end <= self.size() && range.end - range.start <= MIB, "{range:?}");
        self.reads.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_millis(self.slow.load(Ordering::Relaxed))).await;
        while self.stuck.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(5)).await;
        }
        if self.ended {
            return Err(error::Error::new(Kind::Stale, "the point in time was released"));
        }
        Ok(vec![0; usize::try_from(range.end - range.start).unwrap()].into())
    }
}

fn arguments(test: &str) -> Vec<OsString> {
    let name = format!("{}::{test}", module_path!().split_once("::").unwrap().1);
    ["--exact", &name, "--ignored", "--nocapture", "--test-threads=1"].map(OsString::from).to_vec()
}

fn children(limits: Limits) -> Children {
    // A test is a thread, and the C library shrinks the heap of one only after it opened a file; a reader has one thread.
    let mut command = vec![OsString::from("MALLOC_ARENA_MAX=1"), std::env::current_exe().unwrap().into()];
    command.extend(arguments("toy"));
    Children::with(Path::new("/usr/bin/env"), command, limits)
}

async fn open(children: &Children) -> Arc<dyn Reader> {
    children.open(Arc::new(Zeroes::default())).await.unwrap()
}

/// Waits until a process is gone, and not a zombie either.
async fn gone(pid: u32) {
    let process = format!("/proc/{pid}");
    let gone = async {
        while std::fs::exists(&process).unwrap() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(10), gone).await.unwrap_or_else(|_| {
        panic!("{pid} is still there: {}", std::fs::read_to_string(format!("{process}/status")).unwrap_or_default())
    });
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::KILL).unwrap();
}

async fn error_of(reader: &dyn Reader, act: u64) -> error::Error {
    reader.attributes(Id(act)).await.unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_was_taken_over_can_do_nothing() {
    let children = children(Limits::default());
    for (number, (what, _)) in (0..).zip(FORBIDDEN) {
        let reader = open(&children).await;
        let pid = children.pids()[0];
        let error = error_of(reader.as_ref(), number).await;
        assert_eq!(error.kind(), Kind::Io);
        assert!(error.to_string().starts_with("the reader of vda died (signal: 31 (SIGSYS)"), "to {what}: {error}");
        gone(pid).await;
        assert_eq!(reader.attributes(Id(READ)).await.unwrap().size, READ, "another one takes its place");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_takes_too_much_ends() {
    let thinking = Duration::from_secs(1);
    let children = children(Limits { thinking, ..Limits::default() });
    let expected = [
        (MEMORY, "memory allocation of 1073741824 bytes failed"),
        (LOOP, "was ended: it thought about one question for more than 1s"),
        (PANIC, "a disk found a defect"),
        (STACK, "died (signal: 6 (SIGABRT)"),
        (SPEAK, "was ended: the answer in a message cannot be right"),
        (LEAVE, "died (exit status: 3)"),
    ];
    for (act, words) in expected {
        let reader = open(&children).await;
        let pid = children.pids()[0];
        let began = Instant::now();
        let error = error_of(reader.as_ref(), act).await;
        assert!(error.to_string().contains(words), "{act}: {error}");
        assert!(began.elapsed() < Duration::from_secs(10), "{act}: {:?}", began.elapsed());
        gone(pid).await;
        reader.attributes(Id(READ)).await.unwrap();
    }
    let reader = open(&children).await;
    reader.attributes(Id(FLOOD)).await.expect("nobody listens to all of it, which is no reason to end");
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_a_slow_disk_is_not_thinking() {
    let thinking = Duration::from_millis(800);
    let children = children(Limits { thinking, ..Limits::default() });
    let disk = Arc::new(Zeroes::default());
    let reader = children.open(disk.clone()).await.unwrap();
    disk.slow.store(1500, Ordering::Relaxed);
    reader.attributes(Id(READ + 1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_killed_while_eight_ask_is_replaced() {
    let children = children(Limits::default());
    let disk = Arc::new(Zeroes::default());
    let reader = children.open(disk.clone()).await.unwrap();
    disk.slow.store(200, Ordering::Relaxed);
    for round in 0..3_u64 {
        let pid = children.pids()[0];
        let reads = disk.reads.load(Ordering::Relaxed);
        let mut asking = JoinSet::new();
        for file in 0..8 {
            let reader = Arc::clone(&reader);
            asking.spawn(async move { reader.attributes(Id(READ + 1 + round * 10 + file)).await });
        }
        while disk.reads.load(Ordering::Relaxed) == reads {
            sleep(Duration::from_millis(1)).await;
        }
        kill(pid);
        let outcomes = timeout(Duration::from_secs(5), asking.join_all()).await.expect("all of them get an answer");
        for outcome in outcomes {
            let error = outcome.unwrap_err();
            assert!(error.kind() == Kind::Io && error.to_string().contains("signal: 9 (SIGKILL)"), "{error}");
        }
        gone(pid).await;
        assert_eq!(reader.attributes(Id(READ)).await.unwrap().size, READ, "at the next look");
        assert_eq!(children.pids().len(), 1);
    }
    // One that dies while nobody asks is nobody's error.
    let pid = children.pids()[0];
    kill(pid);
    gone(pid).await;
    reader.attributes(Id(READ)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_does_not_answer_keeps_nobody() {
    let call = Duration::from_secs(1);
    let children = children(Limits { call, ..Limits::default() });
    let disk = Arc::new(Zeroes { stuck: true.into(), ..Zeroes::default() });
    let reader = children.open(disk.clone()).await.unwrap();
    let began = Instant::now();
    let mut asking = JoinSet::new();
    for file in 0..8 {
        let reader = Arc::clone(&reader);
        asking.spawn(async move { reader.attributes(Id(READ + file)).await });
    }
    for outcome in asking.join_all().await {
        assert_eq!(outcome.unwrap_err().kind(), Kind::Timeout);
    }
    assert!(began.elapsed() < 3 * call, "{:?}", began.elapsed());
    disk.stuck.store(false, Ordering::Relaxed);
    reader.attributes(Id(READ)).await.expect("a disk that answers again");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_disk_says_is_what_the_caller_hears() {
    let children = children(Limits::default());
    let reader = children.open(Arc::new(Zeroes { ended: true, ..Zeroes::default() })).await.unwrap();
    let error = error_of(reader.as_ref(), READ).await;
    assert_eq!((error.kind(), error.to_string().as_str()), (Kind::Stale, "the point in time was released"));
    let error = reader.link_target(Id(1)).await.unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (Kind::Invalid, "no link"));
    let pids = children.pids();
    assert_eq!(reader.lookup(Id(1), &[b'x'; 2000]).await.unwrap(), None);
    assert_eq!(reader.list(Id(1), u64::MAX).await.unwrap_err().kind(), Kind::Invalid);
    let names = reader.list(Id(1), 7).await.unwrap();
    assert_eq!((names.all, names.is_last, children.pids()), (Vec::new(), true, pids), "it hears nothing odd");
    let error = children.table(Arc::new(Zeroes { ended: true, ..Zeroes::default() })).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Stale);
    assert_eq!(children.table(Arc::new(Zeroes::default())).await.unwrap().partitions, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_has_nothing_to_do_ends_and_comes_back() {
    let children = children(Limits { idle: Duration::from_millis(100), ..Limits::default() });
    let reader = open(&children).await;
    let pid = children.pids()[0];
    gone(pid).await;
    assert_eq!(children.pids(), [0; 0]);
    reader.attributes(Id(READ)).await.unwrap();
    let second = children.pids()[0];
    assert_ne!(pid, second);
    drop(reader);
    gone(second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_never_more_than_may_be() {
    let children = children(Limits { children: 2, ..Limits::default() });
    let mut readers = Vec::new();
    for _ in 0..4 {
        readers.push(open(&children).await);
        assert!(children.pids().len() <= 2);
    }
    for reader in readers.iter().chain(&readers) {
        reader.attributes(Id(READ)).await.unwrap();
        assert!(children.pids().len() <= 2);
    }
    let [one, other] = children.pids()[..] else { panic!("{:?}", children.pids()) };
    drop(readers);
    gone(one).await;
    gone(other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gives_up_loses_nothing_but_the_answer() {
    let children = children(Limits::default());
    let disk = Arc::new(Zeroes::default());
    let reader = children.open(disk.clone()).await.unwrap();
    let pid = children.pids();
    disk.slow.store(20, Ordering::Relaxed);
    for file in 0..50 {
        let patience = Duration::from_millis(file % 30);
        if let Ok(outcome) = timeout(patience, reader.attributes(Id(READ + file))).await {
            assert_eq!(outcome.unwrap().size, READ + file, "its own answer");
        }
    }
    assert_eq!(reader.attributes(Id(READ + 77)).await.unwrap().size, READ + 77);
    assert_eq!(children.pids(), pid, "and it is still the same one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_kills_its_readers_does_not_start_them_all_the_time() {
    let children = children(Limits::default());
    let reader = open(&children).await;
    let began = Instant::now();
    let mut deaths = 0;
    while began.elapsed() < Duration::from_secs(4) {
        error_of(reader.as_ref(), LEAVE).await;
        deaths += 1;
    }
    assert!((3..=8).contains(&deaths), "{deaths} deaths in {:?}", began.elapsed());
}

/// A daemon whose reader is busy for ever.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "it is the process that the next one starts"]
async fn daemon() {
    if std::env::var_os(DAEMON).is_none() {
        return;
    }
    let children = children(Limits::default());
    let reader = open(&children).await;
    println!("\nreader {}", children.pids()[0]);
    error_of(reader.as_ref(), LOOP).await;
}

/// Set for [`daemon`].
const DAEMON: &str = "PULLFS_TEST_DAEMON";

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_does_not_outlive_its_daemon() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(arguments("daemon")).env(DAEMON, "yes").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut daemon = command.spawn().unwrap();
    let said = std::io::BufReader::new(daemon.stdout.take().unwrap());
    let line =
        std::io::BufRead::lines(said).map_while(std::result::Result::ok).find(|line| line.starts_with("reader "));
    let pid = line.and_then(|line| line["reader ".len()..].parse().ok()).expect("its reader");
    // It is thinking by now, and would not notice the end of its conversation.
    sleep(Duration::from_millis(300)).await;
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    gone(pid).await;
}

#[test]
fn a_daemon_that_has_given_everything_up_still_has_readers() {
    let (runtime, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let confined = || {
        let needs = Needs {
            runtime: runtime.path(),
            scratch: scratch.path(),
            textfiles: None,
            ports: Vec::new(),
            certificates: Vec::new(),
            libvirt: false,
            // These are the whole process's.
            core_dumps: true,
            sandbox: true,
        };
        let sandbox = harden::apply(&needs).unwrap();
        assert_eq!(sandbox.missing, [""; 0]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            // It may start itself, and nothing else.
            let itself = std::env::current_exe().unwrap();
            let children = Children::with(&itself, arguments("toy"), Limits::default());
            let reader = open(&children).await;
            reader.attributes(Id(READ)).await.unwrap();
            let pid = children.pids()[0];
            assert!(error_of(reader.as_ref(), 0).await.to_string().contains("SIGSYS"));
            gone(pid).await;
            reader.attributes(Id(READ)).await.unwrap();
            // It may kill it, too.
            let pid = children.pids()[0];
            drop(reader);
            gone(pid).await;
        });
    };
    std::thread::scope(|scope| scope.spawn(confined).join().expect("the confined thread"));
}
