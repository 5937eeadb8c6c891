//! Backups that are read from another host: over TCP, with TLS, and with scratch images in a storage pool of the libvirt's host
//! (`scratch=pool:NAME`). Nothing of such a one is on this host.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use nbd_pool::{Address, tls};
use tokio::time::timeout;

use super::ssh::Call;
use crate::error::{Error, Kind, Result};
use crate::options::Options;

/// The port of NBD (IANA), and how many from there on are tried: one for each domain that has a backup.
const PORT: u16 = 10809;
const PORTS: u16 = 64;

/// The port of libvirt's TLS.
const LIBVIRT_PORT: u16 = 16514;

/// Where libvirt's library looks for certificates (libvirt.org/kbase/tlscerts.html).
const PKI: [&str; 2] = ["/etc/pki/CA", "/etc/pki/libvirt"];

/// How long finding the address of a host may take.
const RESOLVE_LIMIT: Duration = Duration::from_secs(10);

/// What a libvirt's URI says of the way to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way<'a> {
    /// What stands behind the driver's name: `tls`, `ssh`.
    transport: Option<&'a str>,
    /// Whom one is there.
    pub(super) user: Option<&'a str>,
    /// Where it is; none for this host, as far as the URI says.
    pub host: Option<&'a str>,
    pub(super) port: Option<u16>,
    /// There is something in the place of the port that is none.
    odd_port: bool,
    /// Which of its libvirts, with a slash before it.
    pub path: &'a str,
    query: &'a str,
}

impl<'a> Way<'a> {
    /// Reads a URI (libvirt.org/uri.html).
    pub fn of(uri: &'a str) -> Self {
        let (scheme, rest) = uri.split_once("://").unwrap_or((uri, ""));
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (user, place) = authority.rsplit_once('@').map_or((None, authority), |(user, place)| (Some(user), place));
        let (host, port) = match place.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, rest)) => (host, rest.strip_prefix(':')),
            None => place.split_once(':').map_or((place, None), |(host, port)| (host, Some(port))),
        };
        Self {
            transport: scheme.split_once('+').map(|(_, transport)| transport),
            user,
            host: Some(host).filter(|host| !host.is_empty()),
            port: port.and_then(|port| port.parse().ok()),
            odd_port: port.is_some_and(|port| port.parse::<u16>().is_err()),
            path,
            query,
        }
    }

    /// Whether two URIs lead to one libvirt, over whichever transport and as whomever: by the driver, the host, and which of its
    /// libvirts it is.
    pub fn is_to_one(uri: &str, other: &str) -> bool {
        fn end(uri: &str) -> (Option<&str>, Option<&str>, &str) {
            let Way { host, path, .. } = Way::of(uri);
            (uri.split([':', '+']).next(), host, path)
        }
        end(uri) == end(other)
    }

    /// Refuses a way to another host that is not safe, or that pullfs cannot go.
    ///
    /// # Errors
    /// [`Kind::Unsupported`].
    pub fn check(&self, uri: &str) -> Result<()> {
        let refused = |why: String| Err(Error::new(Kind::Unsupported, format!("uri={uri}: {why}")));
        let (Some(host), transport) = (self.host, self.transport) else { return Ok(()) };
        match transport {
            _ if self.odd_port => refused(format!("the port of {host} is no number up to 65535")),
            None | Some("tls") if self.parameter("no_verify").is_some_and(|value| value != "0") => {
                refused("with no_verify nobody knows who answers; give libvirt the CA's certificate".to_owned())
            }
            None | Some("tls") => Ok(()),
            Some("ssh") => Call::of(self).map(drop).or_else(refused),
            Some("libssh" | "libssh2" | "ext") => refused(format!("take qemu+ssh://{host}/system, by ssh(1)")),
            Some(_) => {
                refused(format!("the way to {host} is not protected; take qemu+ssh or qemu+tls://{host}/system"))
            }
        }
    }

    /// Whether ssh(1) goes it.
    pub fn is_ssh(&self) -> bool {
        self.host.is_some() && self.transport == Some("ssh")
    }

    fn parameter(&self, name: &str) -> Option<&'a str> {
        self.parameters().find_map(|(other, value)| (other == name).then_some(value))
    }

    /// What the URI says behind its question mark.
    pub(super) fn parameters(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let pairs = self.query.split(['&', ';']).filter(|pair| !pair.is_empty());
        pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
    }

    /// The TCP port that libvirt's library connects to, if it does.
    pub fn library_port(&self) -> Option<u16> {
        self.host.filter(|_| !self.is_ssh()).map(|_| self.port.unwrap_or(LIBVIRT_PORT))
    }

    /// Where it looks for certificates each time that it connects.
    pub fn certificates(&self) -> Vec<PathBuf> {
        match (self.host, self.parameter("pkipath")) {
            _ if self.is_ssh() => Vec::new(),
            (None, _) => Vec::new(),
            (Some(_), Some(dir)) => vec![PathBuf::from(dir)],
            (Some(_), None) => {
                let own = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".pki/libvirt"));
                PKI.map(PathBuf::from).into_iter().chain(own).collect()
            }
        }
    }
}

/// How backups are had from another host.
#[derive(Debug, Clone)]
pub struct Elsewhere {
    /// The storage pool for scratch images.
    pub pool: String,
    host: String,
    /// The NBD server's port; none for one that is free.
    port: Option<u16>,
    /// What protects the way to it.
    pub tls: tls::Client,
}

impl Elsewhere {
    /// What the options say; none for backups on this host.
    ///
    /// # Errors
    /// [`Kind::Invalid`] when something is missing, or the certificates cannot be used.
    pub fn of(uri: &str, options: &Options) -> Result<Option<Self>> {
        let way = Way::of(uri);
        let missing = |what: &str| Err(Error::new(Kind::Invalid, format!("uri={uri}: {what}")));
        let Some(pool) = options.pool.clone() else {
            return match way.host {
                None => Ok(None),
                Some(host) => missing(&format!(
                    "scratch images of a backup are on {host}: name a storage pool that it has for them, scratch=pool:NAME"
                )),
            };
        };
        let (host, port) = match (&options.nbd, way.host) {
            (Some(Address::Tcp { host, port }), _) => (host.clone(), Some(*port)),
            (Some(Address::Unix(_)), _) => {
                return missing("nbd=unix: means nothing with scratch=pool:; take HOST:PORT");
            }
            (None, Some(host)) => (host.to_owned(), None),
            (None, None) => {
                return missing("with scratch=pool: disks are read over TCP: say where with nbd=HOST:PORT");
            }
        };
        let Some(dir) = &options.tls else {
            return missing(
                "with scratch=pool: disks are read over TCP, and only with TLS: give certificates, tls=DIR",
            );
        };
        let tls = tls::Client::load(dir).map_err(|error| {
            let message = "the certificates of the mount option tls= cannot be used";
            Error::with_source(Kind::Invalid, message, error)
        })?;
        Ok(Some(Self { pool, host, port, tls }))
    }

    /// The ports of the NBD server, in the order in which they are tried.
    pub fn ports(&self) -> Vec<u16> {
        self.port.map_or_else(|| (PORT..PORT + PORTS).collect(), |port| vec![port])
    }

    /// The server at one of its ports, as it is reached from here.
    pub(super) fn address(&self, port: u16) -> Address {
        Address::Tcp { host: self.host.clone(), port }
    }

    /// The address that the server is to listen on: that which it is reached by, and no other. By name it may have another one
    /// on its own host.
    pub(super) async fn listens(&self) -> Result<IpAddr> {
        let unknown = |why: String| Error::with_source(Kind::Io, format!("host {} has no address", self.host), why);
        let found = timeout(RESOLVE_LIMIT, tokio::net::lookup_host((self.host.as_str(), PORT))).await;
        let found = found.map_err(|_| unknown("no answer in time".to_owned()))?;
        let mut found = found.map_err(|error| unknown(error.to_string()))?;
        found.next().map(|address| address.ip()).ok_or_else(|| unknown("nobody knows it".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_are_read() {
        let of = |uri: &'static str| (Way::of(uri).host, Way::of(uri).library_port());
        assert_eq!(of("qemu+tls://host/system"), (Some("host"), Some(LIBVIRT_PORT)));
        assert_eq!(of("qemu+tls://user@[::1]:5/system?x=1"), (Some("::1"), Some(5)));
        assert_eq!(of("qemu://10.0.0.1:7/system"), (Some("10.0.0.1"), Some(7)));
        for here in ["qemu:///system", "qemu+unix:///system?socket=/run/a@b:5", "test:///default"] {
            assert_eq!(of(here), (None, None));
            assert!(Way::of(here).certificates().is_empty() && Way::of(here).check(here).is_ok());
        }
        let ssh = "qemu+ssh://root@host:22/system";
        assert!(Way::of(ssh).is_ssh() && Way::of(ssh).certificates().is_empty() && Way::of(ssh).check(ssh).is_ok());
        assert_eq!(of(ssh), (Some("host"), None), "libvirt's library connects to nobody");
        assert!(!Way::of("qemu+ssh:///system").is_ssh());
        let own = Way::of("qemu+tls://host/system?a=b&pkipath=/srv/pki").certificates();
        assert_eq!(own, [PathBuf::from("/srv/pki")]);
        assert!(Way::of("qemu+tls://host/system").certificates().contains(&PathBuf::from(PKI[0])));
    }

    #[test]
    fn only_ways_that_are_safe_are_taken() {
        let check = |uri: &str| Way::of(uri).check(uri);
        assert!(check("qemu+tls://host/system").is_ok() && check("qemu://host/system?no_verify=0").is_ok());
        for (uri, word) in [
            ("qemu+ssh://host/system?no_verify=1", "~/.ssh/config"),
            ("qemu+ssh://host:ssh/system", "the port of host"),
            ("qemu+libssh2://host/system", "qemu+ssh://host/system"),
            ("qemu+tcp://host/system", "qemu+tls://host/system"),
            ("qemu+tls://host/system?no_verify=1", "CA's certificate"),
            ("qemu+unix://host/system", "not protected"),
        ] {
            let error = check(uri).unwrap_err();
            assert_eq!(error.kind(), Kind::Unsupported);
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn what_is_missing_is_said() {
        let of = |uri: &str, options: &str| Elsewhere::of(uri, &Options::parse(options).unwrap());
        let (tls, unix) = ("qemu+tls://host/system", "qemu+unix:///system?socket=/run/x");
        assert!(of(unix, "").unwrap().is_none());
        for (uri, options, word) in [
            (tls, "", "scratch=pool:NAME"),
            (tls, "scratch=pool:p", "tls=DIR"),
            (tls, "scratch=pool:p,insecure", "tls=DIR"),
            (unix, "scratch=pool:p,tls=/none", "nbd=HOST:PORT"),
            (tls, "scratch=pool:p,nbd=unix:/a,tls=/none", "HOST:PORT"),
            (tls, "scratch=pool:p,tls=/none", "certificates"),
        ] {
            let error = of(uri, options).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
