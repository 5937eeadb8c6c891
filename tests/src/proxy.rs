//! A relay before an NBD server whose connections break.
//!
//! Each direction of a connection has a fate of its own: after so many bytes, wherever in a message that is, it stalls for
//! a while or the whole connection is cut. The numbers come from a seed; which request they hit does not.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::net::{Shutdown as How, shutdown};

use crate::random::Random;

/// Bytes relayed at once.
const CHUNK: usize = 64 << 10;

/// A stall is far shorter than any time limit of a request.
const LONGEST_STALL: u64 = 3000;

/// Who has sent more than this is past the handshake, which takes fewer bytes.
const HANDSHAKE: u64 = 512;

/// What was done to connections so far.
#[derive(Debug, Default)]
pub struct Injected {
    /// Connections that were relayed.
    pub connections: AtomicU64,
    /// Cuts after bytes from the client.
    pub cut_requests: AtomicU64,
    /// Cuts after bytes from the server.
    pub cut_replies: AtomicU64,
    /// Stalls.
    pub stalls: AtomicU64,
}

/// A relay; it ends, with its connections, when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    listener: Arc<UnixListener>,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    upstream: PathBuf,
    faulty: AtomicBool,
    random: Mutex<Random>,
    injected: Injected,
    /// Held by whoever makes a connection to the server. Locked before `open`.
    dialling: Mutex<()>,
    open: Mutex<Vec<Weak<Connection>>>,
}

/// A client and its server.
#[derive(Debug)]
struct Connection {
    client: UnixStream,
    server: UnixStream,
    /// Bytes from the client so far.
    asked: AtomicU64,
}

/// What happens to a direction after some bytes.
enum Fate {
    Stall(Duration),
    Cut,
}

impl Proxy {
    /// Listens at `listens` for clients of the server at `upstream`.
    #[track_caller]
    pub fn before(upstream: &Path, listens: &Path, seed: u64) -> Self {
        let listener = Arc::new(UnixListener::bind(listens).expect("a socket"));
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            faulty: AtomicBool::new(true),
            random: Mutex::new(Random::new(seed)),
            injected: Injected::default(),
            dialling: Mutex::default(),
            open: Mutex::default(),
        });
        let accepting = thread::spawn({
            let (shared, listener) = (Arc::clone(&shared), Arc::clone(&listener));
            move || shared.accept(&listener)
        });
        Self { listener, shared, accepting: Some(accepting) }
    }

    /// From now on it breaks nothing any more.
    pub fn calm(&self) {
        self.shared.faulty.store(false, Ordering::SeqCst);
    }

    /// Lets nobody shake hands until the value is dropped; who is just doing so is cut.
    ///
    /// QEMU 10.0 has a fault: it waits, until all clients have gone, when one becomes known to an export while the export's
    /// requests are being drained. `stop`, `system_reset` and transactions drain.
    pub fn nobody_new(&self) -> MutexGuard<'_, ()> {
        let gate = self.shared.dialling.lock().unwrap_or_else(PoisonError::into_inner);
        let open = self.shared.open.lock().unwrap_or_else(PoisonError::into_inner);
        let connections = open.iter().filter_map(Weak::upgrade);
        let young = connections.filter(|connection| connection.asked.load(Ordering::SeqCst) < HANDSHAKE);
        young.for_each(|connection| connection.cut());
        gate
    }

    /// What was done so far.
    pub fn injected(&self) -> &Injected {
        &self.shared.injected
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Wakes whoever accepts, also when the socket's directory is gone.
        let _ = shutdown(&*self.listener, How::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        let open = std::mem::take(&mut *self.shared.open.lock().unwrap_or_else(PoisonError::into_inner));
        open.iter().filter_map(Weak::upgrade).for_each(|connection| connection.cut());
    }
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &UnixListener) {
        while let Ok((client, _)) = listener.accept() {
            let _dialling = self.dialling.lock().unwrap_or_else(PoisonError::into_inner);
            // No server: the client finds its connection closed.
            let Ok(server) = UnixStream::connect(&self.upstream) else { continue };
            self.injected.connections.fetch_add(1, Ordering::Relaxed);
            let connection = Arc::new(Connection { client, server, asked: AtomicU64::new(0) });
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.retain(|connection| connection.strong_count() > 0);
            open.push(Arc::downgrade(&connection));
            for requests in [true, false] {
                let (shared, connection) = (Arc::clone(self), Arc::clone(&connection));
                thread::spawn(move || shared.relay(&connection, requests));
            }
        }
    }

    /// Relays one direction to its end, which is that of the connection.
    fn relay(&self, connection: &Connection, requests: bool) {
        let (mut from, mut to) = (&connection.server, &connection.client);
        if requests {
            (from, to) = (to, from);
        }
        let mut buffer = vec![0; CHUNK];
        let (mut left, mut fate) = self.fate(requests);
        loop {
            let room = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
            let Ok(read @ 1..) = from.read(&mut buffer[..room]) else { break };
            if to.write_all(&buffer[..read]).is_err() {
                break;
            }
            let read = u64::try_from(read).expect("a length");
            if requests {
                connection.asked.fetch_add(read, Ordering::SeqCst);
            }
            left -= read;
            if left > 0 {
                continue;
            }
            if self.faulty.load(Ordering::SeqCst) {
                match fate {
                    Fate::Stall(time) => {
                        self.injected.stalls.fetch_add(1, Ordering::Relaxed);
                        thread::sleep(time);
                    }
                    Fate::Cut => {
                        let injected = &self.injected;
                        let cuts = if requests { &injected.cut_requests } else { &injected.cut_replies };
                        cuts.fetch_add(1, Ordering::Relaxed);
                        break;
                    }
                }
            }
            (left, fate) = self.fate(requests);
        }
        connection.cut();
    }

    /// After how many bytes what happens: now and then in a handshake, mostly among requests.
    fn fate(&self, requests: bool) -> (u64, Fate) {
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        // A request has 28 or 32 bytes, a reply as many as were asked for.
        let scale = if requests { 1 } else { 2048 };
        let after = match random.below(100) {
            0..8 => 1 + random.below(512),
            8..40 => 1 + random.below(1024 * scale),
            _ => 1 + random.below(16 * 1024 * scale),
        };
        let fate = if random.chance(20) {
            Fate::Stall(Duration::from_millis(1 + random.below(LONGEST_STALL)))
        } else {
            Fate::Cut
        };
        (after, fate)
    }
}

impl Connection {
    fn cut(&self) {
        for side in [&self.client, &self.server] {
            // The other side may have closed it.
            let _ = side.shutdown(Shutdown::Both);
        }
    }
}
