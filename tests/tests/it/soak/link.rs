//! The way from pullfs to QEMU's NBD server, and how it breaks: a unix socket behind a relay that stalls and cuts
//! connections, or TCP over a network that loses and delays packets, is unplugged, and resets connections.

use std::fmt;
use std::path::PathBuf;
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use pullfs_tests::machine::Machine;
use pullfs_tests::network::{Closed, Network};
use pullfs_tests::proxy::{Injected, Proxy};
use pullfs_tests::random::Random;
use serde_json::json;

/// NBD's own, in a namespace of its own.
const PORT: u16 = 10809;

/// Milliseconds without a network.
const LONGEST_UNPLUGGED: u64 = 1500;

pub(super) enum Link {
    Relay { server: PathBuf, listens: PathBuf, proxy: Proxy },
    Tcp { network: Network, unplugged: AtomicU64, resets: AtomicU64 },
}

/// As long as it lives, nobody shakes hands with the server.
#[expect(dead_code, reason = "held, never looked at")]
pub(super) enum NobodyNew<'a> {
    Relay(MutexGuard<'a, ()>),
    Tcp(Closed<'a>),
}

impl Link {
    pub(super) fn to(machine: &Machine, network: Option<Network>, seed: u64) -> Self {
        if let Some(network) = network {
            return Self::Tcp { network, unplugged: AtomicU64::new(0), resets: AtomicU64::new(0) };
        }
        let [server, listens] = ["server.nbd", "relay.nbd"].map(|name| machine.dir().join(name));
        let proxy = Proxy::before(&server, &listens, seed);
        Self::Relay { server, listens, proxy }
    }

    /// The mount options that lead pullfs this way.
    pub(super) fn options(&self) -> String {
        match self {
            Self::Relay { listens, .. } => format!("nbd=unix:{}", listens.display()),
            Self::Tcp { network, .. } => format!("nbd={},insecure", network.port(PORT)),
        }
    }

    /// Starts QEMU's NBD server at the far end.
    #[track_caller]
    pub(super) fn start_server(&self, machine: &Machine) {
        let address = match self {
            Self::Relay { server, .. } => json!({"type": "unix", "data": {"path": server}}),
            Self::Tcp { network, .. } => {
                let at = network.port(PORT);
                json!({"type": "inet", "data": {"host": at.ip().to_string(), "port": at.port().to_string()}})
            }
        };
        machine.qmp().must("nbd-server-start", json!({"addr": address, "max-connections": 0}));
    }

    pub(super) fn nobody_new(&self) -> NobodyNew<'_> {
        match self {
            Self::Relay { proxy, .. } => NobodyNew::Relay(proxy.nobody_new()),
            Self::Tcp { network, .. } => NobodyNew::Tcp(network.nobody_new(PORT)),
        }
    }

    /// Breaks a network in a way that it does not break by itself.
    pub(super) fn disturb(&self, random: &mut Random) {
        let Self::Tcp { network, unplugged, resets } = self else { return };
        if random.chance(50) {
            network.reset(PORT);
            resets.fetch_add(1, Ordering::Relaxed);
        } else {
            network.plugged(false);
            thread::sleep(Duration::from_millis(random.below(LONGEST_UNPLUGGED)));
            network.plugged(true);
            unplugged.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// From now on nothing breaks that need not.
    pub(super) fn calm(&self) {
        if let Self::Relay { proxy, .. } = self {
            proxy.calm();
        }
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        match self {
            Self::Relay { proxy, .. } => {
                let Injected { connections, cut_requests, cut_replies, stalls } = proxy.injected();
                let [made, requests, replies, stalls] = [connections, cut_requests, cut_replies, stalls].map(count);
                write!(
                    f,
                    "relayed connections    {made}; {requests} cut in requests, {replies} in replies; {stalls} stalls"
                )
            }
            Self::Tcp { network, unplugged, resets } => {
                let (lost, unplugged, resets) = (network.lost(), count(unplugged), count(resets));
                write!(
                    f,
                    "network                {lost} packets lost, unplugged {unplugged} times, {resets} times all reset"
                )
            }
        }
    }
}
