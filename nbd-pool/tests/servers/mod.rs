//! Real NBD servers and the foreign tools that judge what the pool reads from them.
//!
//! Each server has a directory of its own, with its socket in it, and is killed when dropped.
//! A tool that is missing fails the test that needs it.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Seek};
use std::net::TcpStream;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nbd_pool::{Address, Extent};
use pullfs_tests::ports::free_port;
use tempfile::TempDir;

/// How long a server may take to listen, on a machine that is busy with other things.
const START: Duration = Duration::from_secs(30);

/// A directory for the files of one test.
pub(crate) struct Place {
    directory: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a temporary directory") }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The name of a file here, as an argument.
    pub(crate) fn arg(&self, name: &str) -> String {
        self.path(name).to_str().expect("a temporary directory in UTF-8").to_owned()
    }
}

/// A running server.
pub(crate) struct Server {
    child: Child,
    address: Address,
}

impl Server {
    /// Starts `tool` with its arguments and waits until it listens at `address`.
    pub(crate) fn start(tool: &str, arguments: &[&str], address: Address) -> Self {
        if let Address::Unix(path) = &address {
            // What a killed server left would be taken for the new one.
            let _ = fs::remove_file(path);
        }
        let mut log = tempfile::tempfile().expect("a file for the log");
        let stderr = log.try_clone().expect("a second descriptor");
        let mut command = Command::new(tool);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let child = command.spawn().unwrap_or_else(|error| missing(tool, &error));
        let mut server = Self { child, address };
        let began = Instant::now();
        while !server.listens() {
            if let Some(status) = server.child.try_wait().expect("a child to wait for") {
                let mut said = String::new();
                log.rewind().expect("a file");
                log.read_to_string(&mut said).expect("UTF-8");
                panic!("{tool} {arguments:?} did not stay: {status}, {said}");
            }
            assert!(began.elapsed() < START, "{tool} does not listen at {}", server.address);
            sleep(Duration::from_millis(5));
        }
        server
    }

    /// `qemu-nbd` for one image, read-only, at `nbd.sock` in `place`.
    pub(crate) fn qemu_nbd(place: &Place, arguments: &[&str]) -> Self {
        let socket = place.arg("nbd.sock");
        let common = ["--persistent", "--read-only", "-k", &socket];
        let arguments = [&common, arguments].concat();
        Self::start("qemu-nbd", &arguments, Address::Unix(place.path("nbd.sock")))
    }

    /// `qemu-storage-daemon`, whose NBD server is at `nbd.sock` in `place`.
    pub(crate) fn storage_daemon(place: &Place, nbd_server: &str, arguments: &[&str]) -> Self {
        let socket = place.arg("nbd.sock");
        let nbd_server = format!("addr.type=unix,addr.path={socket}{nbd_server}");
        let arguments = [&["--nbd-server", &nbd_server], arguments].concat();
        Self::start("qemu-storage-daemon", &arguments, Address::Unix(place.path("nbd.sock")))
    }

    /// `nbdkit` at `nbd.sock` in `place`.
    pub(crate) fn nbdkit(place: &Place, arguments: &[&str]) -> Self {
        let socket = place.arg("nbd.sock");
        let arguments = [&["-f", "-U", &socket], arguments].concat();
        Self::start("nbdkit", &arguments, Address::Unix(place.path("nbd.sock")))
    }

    /// `nbdkit` on a TCP port of the loopback interface.
    pub(crate) fn nbdkit_tcp(arguments: &[&str]) -> Self {
        Self::on_tcp("nbdkit", &["-f", "-i", "127.0.0.1", "-p"], arguments)
    }

    /// `qemu-nbd` for one image, read-only, on a TCP port of the loopback interface.
    pub(crate) fn qemu_nbd_tcp(arguments: &[&str]) -> Self {
        Self::on_tcp("qemu-nbd", &["--persistent", "--read-only", "-b", "127.0.0.1", "-p"], arguments)
    }

    /// A tool whose first arguments want a port number behind them.
    fn on_tcp(tool: &str, first: &[&str], arguments: &[&str]) -> Self {
        let port = free_port();
        let number = port.to_string();
        let arguments = [first, &[&number], arguments].concat();
        Self::start(tool, &arguments, Address::Tcp { host: "localhost".to_owned(), port })
    }

    fn listens(&self) -> bool {
        match &self.address {
            Address::Unix(path) => UnixStream::connect(path).is_ok(),
            Address::Tcp { port, .. } => TcpStream::connect(("127.0.0.1", *port)).is_ok(),
        }
    }

    pub(crate) fn address(&self) -> Address {
        self.address.clone()
    }

    /// Where the foreign tools find an export.
    pub(crate) fn uri(&self, export: &str) -> String {
        match &self.address {
            Address::Unix(path) => format!("nbd+unix:///{export}?socket={}", path.display()),
            Address::Tcp { port, .. } => format!("nbd://127.0.0.1:{port}/{export}"),
        }
    }

    /// Kills the server as a crash would.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("a child to kill");
        self.child.wait().expect("a child to wait for");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn missing(tool: &str, error: &std::io::Error) -> ! {
    panic!("this test needs {tool}, which cannot be run: {error}")
}

/// Runs a tool to its end; gives what it printed.
pub(crate) fn run<S: AsRef<OsStr>>(tool: &str, arguments: &[S]) -> String {
    let output =
        Command::new(tool).args(arguments).stdin(Stdio::null()).output().unwrap_or_else(|error| missing(tool, &error));
    let printed = String::from_utf8(output.stdout).expect("UTF-8");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool} failed: {printed}{errors}");
    printed
}

/// Asserts by `cmp` that two files are the same.
pub(crate) fn assert_same(one: &Path, other: &Path) {
    run("cmp", &[one, other]);
}

/// What `nbdinfo` says of a metadata context.
pub(crate) fn nbdinfo_map(uri: &str, context: &str) -> Vec<Extent> {
    let listing = run("nbdinfo", &[&format!("--map={context}"), uri]);
    let extents = listing.lines().map(|line| {
        let mut numbers = line.split_whitespace().map(|word| word.parse::<u64>().expect(line));
        let mut next = || numbers.next().expect(line);
        Extent { offset: next(), length: next(), flags: next() }
    });
    merged(extents)
}

/// Extents in order, adjacent ones of equal flags as one, which is how maps can be compared.
pub(crate) fn merged(extents: impl IntoIterator<Item = Extent>) -> Vec<Extent> {
    let mut merged: Vec<Extent> = Vec::new();
    for extent in extents {
        match merged.last_mut() {
            Some(last) if last.flags == extent.flags && last.end() == extent.offset => {
                last.length += extent.length;
            }
            _ => merged.push(extent),
        }
    }
    merged
}

/// The part of a map within `range`.
pub(crate) fn within(extents: &[Extent], range: &Range<u64>) -> Vec<Extent> {
    merged(extents.iter().filter_map(|extent| extent.clamp(range)))
}
