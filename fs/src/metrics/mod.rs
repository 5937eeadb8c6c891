//! What Prometheus is told of a mount (mount option `metrics=`), and how: over HTTP, or in a file for `node_exporter`.
//!
//! ```text
//! fuse ──▶ requests ─┐                       ┌─▶ http ◀── GET /metrics
//! nbd-pool ─▶ Meter ─┼─▶ Fs::figures ─▶ text ┤
//! cache, point, … ───┘                       └─▶ textfile, each 15 s
//! ```
//! Counting is atomics alone, and only with the option is a clock read for each request. A scrape gathers what is known: it
//! never starts anything in the machine, which it asks at most what `status.json` asks and for a bounded time, and the
//! counters are read where they are, so nothing waits for it.
//!
//! What is made for it (the listening socket, the file) is made before the daemon gives its privileges up; the file is in
//! the journal, so that who cleans up after a dead daemon removes it.

mod http;
pub mod requests;
mod text;
pub mod textfile;

use std::net::{Ipv4Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nbd_pool::{Address, Latencies, Metered};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use self::requests::Count;
pub use self::text::render;
use self::textfile::Textfile;
use crate::block::cache::Usage;
use crate::block::throttle;
use crate::error::{Error, Kind, Result, chain};
use crate::fs::Fs;
use crate::guest::Tally;
use crate::point::reason::Reason;
use crate::vm::{Inventory, Machine, Scratch};

/// How long the machine is waited for; then the figures are without what only it knows.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// How long the end may take: a file on a file system that hangs must not keep the mount.
const END_LIMIT: Duration = Duration::from_secs(5);

/// Where metrics go (`metrics=`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Whoever asks there by HTTP.
    Http {
        /// Host name or address.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// A file, again and again.
    File(PathBuf),
}

impl Target {
    /// `HOST:PORT`, `:PORT` on loopback, or the absolute path of a file that ends in `.prom`. None for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        if text.starts_with('/') {
            let path = PathBuf::from(text);
            let named = path.file_stem().is_some() && path.extension().is_some_and(|end| end == "prom");
            return named.then_some(Self::File(path));
        }
        let local = text.strip_prefix(':').map(|port| format!("{}:{port}", Ipv4Addr::LOCALHOST));
        match Address::tcp(local.as_deref().unwrap_or(text)) {
            Some(Address::Tcp { host, port }) => Some(Self::Http { host, port }),
            _ => None,
        }
    }

    /// The file.
    pub fn file(&self) -> Option<&PathBuf> {
        match self {
            Self::File(path) => Some(path),
            Self::Http { .. } => None,
        }
    }
}

/// A place that is ready to be served.
#[derive(Debug)]
pub enum Outlet {
    /// A socket that listens.
    Http(TcpListener),
    /// A file that may be written.
    File(Textfile),
}

impl Outlet {
    /// Makes it ready, for the mount of this id.
    ///
    /// # Errors
    /// When the address cannot be listened on, or the file is another's.
    pub fn open(target: &Target, mount_id: &str) -> Result<Self> {
        match target {
            Target::File(path) => Ok(Self::File(Textfile::new(path, mount_id)?)),
            Target::Http { host, port } => {
                let failed = |error| {
                    Error::with_source(Kind::Denied, format!("cannot listen on {host}:{port} for metrics="), error)
                };
                let addresses: Vec<SocketAddr> = (host.as_str(), *port).to_socket_addrs().map_err(failed)?.collect();
                let listener = TcpListener::bind(&addresses[..]).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                Ok(Self::Http(listener))
            }
        }
    }
}

/// What tells a mount from others, in the labels of each metric.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The source as the user gave it.
    pub source: String,
    /// Where it is mounted.
    pub mount: String,
}

/// Everything that is told, at one moment.
pub struct Figures {
    /// By operation, what the kernel asked.
    pub requests: Vec<Count>,
    /// Bytes that reads of the kernel were answered with.
    pub read_bytes: u64,
    /// What was asked of NBD servers.
    pub nbd: Metered,
    /// The block cache, and what it may take, in bytes.
    pub cache: (Usage, u64),
    /// What spares the guest's disks.
    pub throttle: Option<throttle::Now>,
    /// The machine.
    pub machine: Machine,
    /// What it is now; none if it does not answer.
    pub inventory: Option<Arc<Inventory>>,
    /// The age of the point in time that is held, and files open on it.
    pub held: Option<(Duration, usize)>,
    /// File systems of guests that were looked into at it.
    pub file_systems: usize,
    /// What readers of guests' disks did.
    pub readers: Tally,
    /// Its scratch space.
    pub scratch: Option<Scratch>,
    /// How many points in time were taken, and how many could not be.
    pub attempts: (u64, u64),
    /// How many ended, by reason.
    pub ends: Vec<(Reason, u64)>,
}

/// Tells until it is ended. Dropped without that, as by a mount that fails, it leaves no file either.
#[derive(Debug)]
pub struct Exporter {
    end: watch::Sender<bool>,
    task: JoinHandle<()>,
    file: Option<Textfile>,
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.task.abort();
        // Not by the runtime, which may be ending too.
        if let Some(Err(error)) = self.file.as_ref().map(Textfile::remove_now) {
            tracing::warn!("{}", chain(&error));
        }
    }
}

impl Exporter {
    /// Begins to serve. A file is written once before this returns.
    ///
    /// # Errors
    /// When the file cannot be written, or the socket not be served.
    pub async fn start(outlet: Outlet, fs: Arc<Fs>, identity: Identity) -> Result<Self> {
        let (end, ended) = watch::channel(false);
        let mut written = None;
        let task = match outlet {
            Outlet::Http(listener) => {
                let listener = tokio::net::TcpListener::from_std(listener)
                    .map_err(|error| Error::with_source(Kind::Io, "cannot serve the socket of metrics=", error))?;
                tokio::spawn(http::serve(listener, fs, identity, ended))
            }
            Outlet::File(file) => {
                file.write(now(&fs, &identity).await).await?;
                written = Some(file.clone());
                tokio::spawn(again_and_again(file, fs, identity, ended))
            }
        };
        Ok(Self { end, task, file: written })
    }

    /// Stops, and removes the file.
    pub async fn end(mut self) {
        self.end.send_replace(true);
        if timeout(END_LIMIT, &mut self.task).await.is_err() {
            tracing::warn!("what metrics= started does not end");
        }
    }
}

/// The text of this moment.
async fn now(fs: &Fs, identity: &Identity) -> Vec<u8> {
    render(&fs.figures().await, identity).unwrap_or_else(|error| {
        tracing::warn!("cannot put metrics into words: {error}");
        Vec::new()
    })
}

async fn again_and_again(file: Textfile, fs: Arc<Fs>, identity: Identity, mut ended: watch::Receiver<bool>) {
    let mut failing = false;
    loop {
        tokio::select! {
            _ = ended.wait_for(|ended| *ended) => break,
            () = tokio::time::sleep(textfile::PERIOD) => {}
        }
        let written = file.write(now(&fs, &identity).await).await;
        // Once: a full disk would fill the log too.
        if let (Err(error), false) = (&written, failing) {
            tracing::warn!("{}", chain(error));
        }
        failing = written.is_err();
    }
    if let Err(error) = file.remove().await {
        tracing::warn!("{}", chain(&error));
    }
}

/// A histogram of nothing is no metric.
fn is_used(latencies: &Latencies) -> bool {
    latencies.count() > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_told_apart() {
        let http = |host: &str, port| Some(Target::Http { host: host.to_owned(), port });
        assert_eq!(Target::parse(":9500"), http("127.0.0.1", 9500), "nobody else is meant unless he is named");
        assert_eq!(Target::parse("[::1]:9500"), http("::1", 9500));
        assert_eq!(Target::parse("/var/lib/x.prom"), Some(Target::File("/var/lib/x.prom".into())));
        for text in ["", "9500", "/x", "/x.prom.txt", "x.prom", "/.prom", "host", "host:0", "unix:/x"] {
            assert_eq!(Target::parse(text), None, "{text}");
        }
    }
}
