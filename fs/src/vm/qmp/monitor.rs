//! Where a machine's monitor is, and what protects the way there.
//!
//! Over TCP a monitor is the whole machine to whoever can reach it, without any authentication: it is connected by TLS, or
//! in plain text only where the user says that this is meant ([`Monitor::new`]).

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nbd_pool::{Address, tls};

use crate::error::{Error, Kind, Result};

/// Where QEMU listens for QMP. `Display` is the canonical form of the source, which parses to the same again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A unix socket, its path absolute.
    Unix(PathBuf),
    /// A TCP port.
    Tcp {
        /// Host name or numeric address, an IPv6 one without brackets.
        host: String,
        /// Port number.
        port: u16,
    },
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "qmp:{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "qmp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "qmp:{host}:{port}"),
        }
    }
}

impl Endpoint {
    /// Whether it surely is on this host.
    pub fn is_of_this_host(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp { host, .. } => host.parse().map_or(host == "localhost", |address: IpAddr| address.is_loopback()),
        }
    }
}

impl FromStr for Endpoint {
    type Err = Error;

    /// Takes `qmp:PATH`, relative to the current directory, or `qmp:HOST:PORT`. What has a slash is a path.
    fn from_str(source: &str) -> Result<Self> {
        let takes = "it takes qmp:PATH, the path of the machine's QMP socket, or qmp:HOST:PORT";
        let bad = || Error::new(Kind::Invalid, format!("source {source}: {takes}"));
        let place = source.strip_prefix("qmp:").ok_or_else(bad)?;
        if place.contains('/') || !place.contains(':') {
            let path = std::path::absolute(place)
                .map_err(|error| Error::with_source(Kind::Invalid, format!("source {source}: {takes}"), error))?;
            return Ok(Self::Unix(path));
        }
        match Address::tcp(place) {
            Some(Address::Tcp { host, port }) => Ok(Self::Tcp { host, port }),
            _ => Err(bad()),
        }
    }
}

/// A monitor as it may be connected to, again and again.
#[derive(Debug, Clone)]
pub struct Monitor {
    endpoint: Endpoint,
    tls: Option<tls::Client>,
}

impl Monitor {
    /// Reads the credentials in the directory `tls`, if there is one. `insecure` allows TCP without them.
    ///
    /// # Errors
    /// [`Kind::Invalid`]: TCP without TLS where that is not allowed, credentials that are not what they should be.
    pub fn new(endpoint: Endpoint, tls: Option<&Path>, insecure: bool) -> Result<Self> {
        let tls = tls.map(tls::Client::load).transpose().map_err(|error| {
            let message = "the certificates of the mount option tls= cannot be used";
            Error::with_source(Kind::Invalid, message, error)
        })?;
        if matches!(endpoint, Endpoint::Tcp { .. }) && tls.is_none() && !insecure {
            return Err(Error::new(
                Kind::Invalid,
                format!(
                    "{endpoint} is over TCP, where QMP is the whole machine to whoever listens in: give certificates \
                     with the mount option tls=DIR, or insecure if nobody else is on this network"
                ),
            ));
        }
        Ok(Self { endpoint, tls })
    }

    /// A monitor of this host, by the path of its socket.
    pub fn unix(path: &Path) -> Self {
        Self { endpoint: Endpoint::Unix(path.to_owned()), tls: None }
    }

    /// Where it is.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// What protects connections over TCP, if anything does; good for the machine's NBD server as well.
    pub fn tls(&self) -> Option<&tls::Client> {
        self.tls.as_ref()
    }

    /// Whether descriptors can travel there.
    pub fn passes_descriptors(&self) -> bool {
        matches!(self.endpoint, Endpoint::Unix(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(source: &str) -> String {
        source.parse::<Endpoint>().expect(source).to_string()
    }

    #[test]
    fn sources_are_told_apart_and_are_stable() {
        for source in ["qmp:/run/vm.qmp", "qmp:/run/a:1", "qmp:vm.example:4444", "qmp:127.0.0.1:1", "qmp:[::1]:4444"] {
            assert_eq!(parsed(source), source);
        }
        let here = std::env::current_dir().expect("a directory");
        assert_eq!(parsed("qmp:pull.qmp"), format!("qmp:{}/pull.qmp", here.display()));
        assert_eq!(parsed("qmp:./a:1"), format!("qmp:{}/a:1", here.display()));
        for source in ["/run/vm.qmp", "vmware:/x", "qmp:", "qmp:host:", "qmp:host:0", "qmp:::1:4444", "qmp::4444"] {
            let error = source.parse::<Endpoint>().expect_err(source);
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.to_string().contains("qmp:HOST:PORT"), "{error}");
        }
    }

    #[test]
    fn what_is_of_this_host_is_known() {
        let local = |source: &str| source.parse::<Endpoint>().expect(source).is_of_this_host();
        for source in ["qmp:/run/vm.qmp", "qmp:localhost:1", "qmp:127.0.0.2:1", "qmp:[::1]:1"] {
            assert!(local(source), "{source}");
        }
        assert!(!local("qmp:192.0.2.1:1") && !local("qmp:vm.example:1"));
    }

    #[test]
    fn plain_text_over_tcp_is_meant_or_refused() {
        let tcp = || "qmp:127.0.0.1:4444".parse::<Endpoint>().expect("an endpoint");
        let error = Monitor::new(tcp(), None, false).expect_err("refused");
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.to_string().contains("tls=DIR") && error.to_string().contains("insecure"), "{error}");
        assert!(!Monitor::new(tcp(), None, true).expect("meant").passes_descriptors());
        let unix = "qmp:/run/vm.qmp".parse().expect("an endpoint");
        assert!(Monitor::new(unix, None, false).expect("a socket of this host").passes_descriptors());
        let error = Monitor::new(tcp(), Some(Path::new("/nonexistent")), true).expect_err("no credentials");
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(crate::error::chain(&error).contains("/nonexistent/ca-cert.pem"), "{error}");
    }
}
