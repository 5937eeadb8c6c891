//! A network between this machine and a namespace, which loses packets, delays them, and breaks connections.
//!
//! Two virtual devices with a namespace around one of them. The kernel's `netem` is not to be had everywhere, so packets are
//! lost by a rule of nftables that counts at random, and delayed by the queue of a token bucket, which also loses what does
//! not fit.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::process::{ok, run};
use crate::tools::tool;

/// Packets of 100 that are lost in each direction.
const LOST: u32 = 1;

/// What the token bucket lets through, and how many bytes may wait for it: 10 ms.
const RATE: &str = "200mbit";
const QUEUE: &str = "256k";

/// A network that is taken down when it is dropped.
#[derive(Debug)]
pub struct Network {
    /// The namespace; the devices are named after it.
    name: String,
    far: Ipv4Addr,
}

impl Network {
    /// Makes one, as root.
    #[expect(clippy::new_without_default, reason = "a default value does not make a network")]
    #[track_caller]
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = std::process::id() * 16 + NEXT.fetch_add(1, Ordering::Relaxed) % 16;
        let [.., third, fourth] = (number * 4).to_be_bytes();
        let network = Self { name: format!("pfs{number}"), far: Ipv4Addr::new(10, 213, third, fourth + 2) };
        let (name, near, far) = (&network.name, network.near(), network.device());
        let near_address = format!("{}/30", Ipv4Addr::new(10, 213, third, fourth + 1));
        let far_address = format!("{}/30", network.far);
        ip(&["netns", "add", name]);
        ip(&["link", "add", &near, "type", "veth", "peer", "name", &far, "netns", name]);
        ip(&["addr", "add", &near_address, "dev", &near]);
        ip(&["-n", name, "addr", "add", &far_address, "dev", &far]);
        ip(&["link", "set", &near, "up"]);
        ip(&["-n", name, "link", "set", &far, "up"]);
        for place in [&["qdisc", "add", "dev", &near][..], &["-n", name, "qdisc", "add", "dev", &far]] {
            ok(tool("tc").args(place).args(["root", "tbf", "rate", RATE, "burst", "32k", "limit", QUEUE]));
        }
        for hook in ["input", "output"] {
            let rule = format!(
                "add table inet lossy; add chain inet lossy {hook} {{ type filter hook {hook} priority 0; }}; \
                 add rule inet lossy {hook} numgen random mod 100 < {LOST} counter drop"
            );
            ok(network.inside("nft").arg(rule));
        }
        network
    }

    /// A port of the far end.
    pub fn port(&self, port: u16) -> SocketAddr {
        SocketAddr::from((self.far, port))
    }

    /// The namespace of the far end.
    pub fn namespace(&self) -> &str {
        &self.name
    }

    /// A command at the far end.
    #[track_caller]
    pub fn inside(&self, program: &str) -> Command {
        entering(&self.name, program.as_ref())
    }

    /// Resets all connections to a port of the far end.
    #[track_caller]
    pub fn reset(&self, port: u16) {
        ok(self.inside("ss").args(["--no-header", "--kill", "sport", "=", &format!(":{port}")]));
    }

    /// Lets nobody connect to a port of the far end until the value is dropped, and resets who is connected: see
    /// [`Proxy::nobody_new`](crate::proxy::Proxy::nobody_new).
    #[track_caller]
    pub fn nobody_new(&self, port: u16) -> Closed<'_> {
        let rule = format!(
            "add table inet closed; add chain inet closed input {{ type filter hook input priority 0; }}; \
             add rule inet closed input tcp dport {port} tcp flags & (syn | ack) == syn drop"
        );
        ok(self.inside("nft").arg(rule));
        let closed = Closed(self);
        self.reset(port);
        closed
    }

    /// Plugs the cable in or out.
    #[track_caller]
    pub fn plugged(&self, plugged: bool) {
        ip(&["-n", &self.name, "link", "set", &self.device(), if plugged { "up" } else { "down" }]);
    }

    /// Packets that were lost by chance so far.
    #[track_caller]
    pub fn lost(&self) -> u64 {
        let rules = ok(self.inside("nft").args(["list", "table", "inet", "lossy"]));
        let mut words = rules.split_whitespace();
        let mut lost = 0;
        while words.any(|word| word == "packets") {
            lost += words.next().and_then(|count| count.parse::<u64>().ok()).expect("a number of packets");
        }
        lost
    }

    fn near(&self) -> String {
        format!("{}n", self.name)
    }

    fn device(&self) -> String {
        format!("{}f", self.name)
    }
}

/// A command of `program` in a network namespace. `ip netns exec` would give it a mount namespace as well, with copies of all
/// mounts of other tests: unmounted here, they would be served on there.
pub(crate) fn entering(namespace: &str, program: &OsStr) -> Command {
    let mut command = tool("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).arg(program);
    command
}

impl Drop for Network {
    fn drop(&mut self) {
        // The namespace may live on for a while; its device goes with the near one.
        let _ = run(tool("ip").args(["link", "del", &self.near()]));
        let _ = run(tool("ip").args(["netns", "del", &self.name]));
    }
}

/// A port that takes no new connection.
#[derive(Debug)]
pub struct Closed<'a>(&'a Network);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        let _ = run(self.0.inside("nft").arg("delete table inet closed"));
    }
}

#[track_caller]
fn ip(arguments: &[&str]) {
    ok(tool("ip").args(arguments));
}
