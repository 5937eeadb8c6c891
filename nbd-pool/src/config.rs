//! Where the server is and within which bounds the pool works.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::meter::Meter;
use crate::tls;

/// Where an NBD server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP port.
    Tcp {
        /// Host name or numeric address, an IPv6 one without brackets.
        host: String,
        /// Port number.
        port: u16,
    },
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

impl Address {
    /// A TCP address as people write it: `HOST:PORT`, an IPv6 address in brackets. None for anything else.
    pub fn tcp(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let fits = match bare {
            Some(address) => address.parse::<Ipv6Addr>().is_ok(),
            None => !host.is_empty() && !host.contains([':', '[', ']', '/']),
        };
        let port = port.parse().ok().filter(|port| *port != 0)?;
        fits.then(|| Self::Tcp { host: bare.unwrap_or(host).to_owned(), port })
    }
}

/// Longest limit that makes a difference to anybody: a year.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Bounds and time limits of a [`crate::Pool`]; counts of 0 are raised to 1 and
/// durations cut to a year.
#[derive(Clone, Debug)]
pub struct Config {
    /// At most this many connections to the export, if the server says that it may have several
    /// (`NBD_FLAG_CAN_MULTI_CONN`); otherwise one.
    pub connections: usize,
    /// Preferred size of one read request in bytes; brought within the server's block sizes.
    pub request_size: u32,
    /// At most this many bytes asked for and not yet answered, over the whole pool.
    pub max_in_flight_bytes: usize,
    /// At most this many requests sent and not yet answered, over the whole pool.
    pub max_in_flight_requests: usize,
    /// Limit of connecting the socket, name resolution included.
    pub connect_timeout: Duration,
    /// Limit of the whole handshake. A server with no free slot accepts and then says nothing.
    pub handshake_timeout: Duration,
    /// Limit of one [`crate::Pool::read`] or one round of [`crate::Pool::block_status`], queueing
    /// and reconnects included, and of the oldest request on a connection. All rounds of a range get
    /// as often as much as they are requests of 4 GiB, and once more.
    pub request_timeout: Duration,
    /// Least time between the loss of a connection and the next attempt.
    pub backoff_min: Duration,
    /// Most time between two attempts.
    pub backoff_max: Duration,
    /// Whether connections are protected by TLS, and how; the handshake's limit covers that of TLS.
    pub tls: Option<tls::Client>,
    /// Where the pool counts; shared by all pools that have clones of this configuration.
    pub meter: Arc<Meter>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            connections: 4,
            // Large enough that the cost of a request vanishes, small enough to pipeline.
            request_size: 256 << 10,
            max_in_flight_bytes: 32 << 20,
            max_in_flight_requests: 64,
            connect_timeout: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
            tls: None,
            meter: Arc::default(),
        }
    }
}

impl Config {
    /// Raises what is 0 and what contradicts itself.
    pub(crate) fn normalised(mut self) -> Self {
        self.connections = self.connections.max(1);
        self.request_size = self.request_size.max(1);
        self.max_in_flight_bytes = self.max_in_flight_bytes.max(1);
        // A permit is an index into tokio's semaphore, which has an upper bound of its own.
        self.max_in_flight_requests = self.max_in_flight_requests.clamp(1, 1 << 16);
        self.backoff_min = self.backoff_min.clamp(Duration::from_millis(1), FOR_EVER);
        self.backoff_max = self.backoff_max.clamp(self.backoff_min, FOR_EVER);
        // A point in time this far off can still be computed.
        self.connect_timeout = self.connect_timeout.min(FOR_EVER);
        self.handshake_timeout = self.handshake_timeout.min(FOR_EVER);
        self.request_timeout = self.request_timeout.min(FOR_EVER);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_people_write_them() {
        let tcp = |host: &str| Address::Tcp { host: host.into(), port: 10809 }.to_string();
        assert_eq!(tcp("localhost"), "localhost:10809");
        assert_eq!(tcp("::1"), "[::1]:10809");
        assert_eq!(Address::Unix("/run/x.sock".into()).to_string(), "unix:/run/x.sock");
        for text in ["localhost:10809", "127.0.0.1:1", "[::1]:65535"] {
            assert_eq!(Address::tcp(text).expect(text).to_string(), text);
        }
        for text in ["", "localhost", ":1", "x:", "x:0", "x:65536", "::1:5", "[::1]", "[x]:1", "[]:1", "a/b:1", "x:+y"]
        {
            assert_eq!(Address::tcp(text), None, "{text:?}");
        }
    }
}
