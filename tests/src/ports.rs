//! Ports for the servers of tests, which want to be told a number.

use std::fs;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process;
use std::sync::{LazyLock, Mutex, PoisonError};

/// Where the kernel begins to give ports to whoever asks for any, if it does not say.
const EPHEMERAL: u16 = 32768;

/// The first port that is handed out.
const FIRST: u16 = 10_000;

struct Ports {
    next: u16,
    end: u16,
    /// Other processes see by these names which ports are taken.
    taken: Vec<UnixListener>,
}

static PORTS: LazyLock<Mutex<Ports>> = LazyLock::new(|| {
    // Documentation/networking/ip-sysctl.rst, ip_local_port_range: no client has a port below it by chance.
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let end = range.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(EPHEMERAL);
    let end = if end > FIRST { end } else { EPHEMERAL };
    let next = FIRST + u16::try_from(process::id() % u32::from(end - FIRST)).expect("less than a port");
    Mutex::new(Ports { next, end, taken: Vec::new() })
});

/// A port of the loopback interface that no other call gets, in whatever process of these tests, until this process ends.
///
/// A port that was merely free a moment ago may be another test's by the time its server wants it, and who waits for the
/// server then talks to the wrong one.
///
/// # Panics
/// When none is left.
pub fn free_port() -> u16 {
    let mut ports = PORTS.lock().unwrap_or_else(PoisonError::into_inner);
    for _ in FIRST..ports.end {
        let port = ports.next;
        ports.next = if port + 1 < ports.end { port + 1 } else { FIRST };
        let name = SocketAddr::from_abstract_name(format!("pullfs-test-port-{port}")).expect("a short name");
        let Ok(reserved) = UnixListener::bind_addr(&name) else { continue };
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            ports.taken.push(reserved);
            return port;
        }
    }
    panic!("no port is free");
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_is_handed_out_once_and_is_nobodys() {
        let some = free_port();
        let _busy = TcpListener::bind(("127.0.0.1", some + 1));
        let ports: Vec<u16> = (0..200).map(|_| free_port()).collect();
        assert_eq!(ports.iter().collect::<HashSet<_>>().len(), 200);
        assert!(!ports.contains(&some) && !ports.contains(&(some + 1)), "{some} in {ports:?}");
        let name = SocketAddr::from_abstract_name(format!("pullfs-test-port-{some}")).expect("a short name");
        UnixListener::bind_addr(&name).expect_err("other processes see that it is taken");
    }
}
