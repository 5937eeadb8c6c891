//! Sources: which machine is mounted, and the way to it.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use super::qmp::monitor::{Endpoint, Monitor};
use crate::error::{Error, Kind, Result};
use crate::options::Options;

#[cfg(feature = "libvirt")]
use super::libvirt::elsewhere::{Elsewhere, Way};
#[cfg(feature = "libvirt")]
pub use super::libvirt::link::Target;

/// A whole host: all domains of a libvirt that run.
pub const HOST: &str = "libvirt:";

/// The libvirt that is meant where nobody says which.
#[cfg(feature = "libvirt")]
const SYSTEM: &str = "qemu:///system";

/// A source as the user gives it. `Display` is its canonical form, which parses to the same again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `qmp:PATH` or `qmp:HOST:PORT`.
    Qmp(Endpoint),
    /// `libvirt:DOMAIN`, a name or a UUID.
    #[cfg(feature = "libvirt")]
    Libvirt(String),
    /// `libvirt:`, all that run, each with a mount of its own.
    #[cfg(feature = "libvirt")]
    Host,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Qmp(endpoint) => endpoint.fmt(f),
            #[cfg(feature = "libvirt")]
            Self::Libvirt(domain) => write!(f, "libvirt:{domain}"),
            #[cfg(feature = "libvirt")]
            Self::Host => f.write_str(HOST),
        }
    }
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(source: &str) -> Result<Self> {
        match source.strip_prefix("libvirt:") {
            #[cfg(feature = "libvirt")]
            Some("") => Ok(Self::Host),
            #[cfg(feature = "libvirt")]
            Some(domain) if !domain.contains('/') => Ok(Self::Libvirt(domain.to_owned())),
            #[cfg(feature = "libvirt")]
            Some(_) => {
                let takes = "it takes libvirt:DOMAIN, the name or UUID of a domain, or libvirt: for all that run";
                Err(Error::new(Kind::Invalid, format!("source {source}: {takes}")))
            }
            #[cfg(not(feature = "libvirt"))]
            Some(_) => Err(Error::new(
                Kind::Unsupported,
                format!("source {source}: this pullfs was built without libvirt; give the machine's monitor, qmp:PATH"),
            )),
            None => source.parse().map(Self::Qmp),
        }
    }
}

/// A machine as it may be connected to, again and again.
#[derive(Debug, Clone)]
pub enum Reach {
    /// By its monitor.
    Qmp(Monitor),
    /// Through libvirt.
    #[cfg(feature = "libvirt")]
    Libvirt(Target),
}

impl Reach {
    /// With what options say of the way: certificates in the directory `tls`, whether TCP without them is meant, which
    /// libvirt.
    ///
    /// # Errors
    /// [`Kind::Invalid`] as of [`Monitor::new`], and for a whole host; [`Kind::Unsupported`] for a way to another host's libvirt
    /// that is not taken.
    #[cfg_attr(not(feature = "libvirt"), expect(unused_variables, reason = "no source goes through a libvirt"))]
    pub fn new(source: &Source, tls: Option<&Path>, insecure: bool, uri: Option<&str>) -> Result<Self> {
        match source {
            Source::Qmp(endpoint) => Monitor::new(endpoint.clone(), tls, insecure).map(Self::Qmp),
            #[cfg(feature = "libvirt")]
            Source::Libvirt(domain) => Ok(Self::Libvirt(Target::new(domain, any_libvirt_of(uri)?))),
            #[cfg(feature = "libvirt")]
            Source::Host => {
                let takes = "it is a whole host; name one of its domains, libvirt:DOMAIN";
                Err(Error::new(Kind::Invalid, format!("source {source}: {takes}")))
            }
        }
    }

    /// The same, of a mount's options, which must fit the source.
    ///
    /// # Errors
    /// As [`Reach::new`]; [`Kind::Invalid`] for an option that means nothing to such a source, or is missing.
    pub fn of(source: &Source, options: &Options) -> Result<Self> {
        fit(source, options)?;
        let Options { tls, insecure, uri, .. } = options;
        let reach = Self::new(source, tls.as_deref(), *insecure, uri.as_deref())?;
        #[cfg(feature = "libvirt")]
        if let Self::Libvirt(target) = &reach {
            Elsewhere::of(&target.uri, options)?;
        }
        Ok(reach)
    }

    /// The source, in its canonical form.
    pub fn source(&self) -> String {
        match self {
            Self::Qmp(monitor) => monitor.endpoint().to_string(),
            #[cfg(feature = "libvirt")]
            Self::Libvirt(target) => Source::Libvirt(target.domain.clone()).to_string(),
        }
    }

    /// The monitor, if it is reached by one.
    pub fn monitor(&self) -> Option<&Monitor> {
        match self {
            Self::Qmp(monitor) => Some(monitor),
            #[cfg(feature = "libvirt")]
            Self::Libvirt(_) => None,
        }
    }

    /// Which libvirt, if it goes through one.
    pub fn uri(&self) -> Option<&str> {
        match self {
            Self::Qmp(_) => None,
            #[cfg(feature = "libvirt")]
            Self::Libvirt(target) => Some(&target.uri),
        }
    }
}

/// Whether a mount's options mean anything to such a source.
///
/// # Errors
/// [`Kind::Invalid`] for one that does not.
pub fn fit(source: &Source, options: &Options) -> Result<()> {
    let wrong = match source {
        Source::Qmp(_) => {
            [("uri=", options.uri.is_some()), ("expire=", options.expire.is_some()), (POOL, options.pool.is_some())]
                .into_iter()
                .find(|(_, given)| *given)
        }
        #[cfg(feature = "libvirt")]
        Source::Libvirt(_) | Source::Host => {
            use crate::options::Fleece;
            let host = matches!(source, Source::Host);
            // Whose scratch images are in a pool of libvirt's, is read over TCP.
            let elsewhere = options.pool.is_some() || Way::of(&named(options.uri.as_deref())).host.is_some();
            let elsewhere = elsewhere && !host;
            [
                ("agent=", options.agent.is_some()),
                ("nbd=", options.nbd.is_some() && !elsewhere),
                ("tls=", options.tls.is_some() && !elsewhere),
                (POOL, options.pool.is_some() && host),
                ("read_once", options.read_once),
                ("fleece=", !matches!(options.fleece, Fleece::Auto | Fleece::Backing)),
                // Each of the mounts would want the place for itself.
                ("metrics=", host && options.metrics.is_some()),
            ]
            .into_iter()
            .find(|(_, given)| *given)
        }
    };
    if let Some((option, _)) = wrong {
        return Err(Error::new(Kind::Invalid, format!("mount option {option} means nothing to {source}")));
    }
    if options.pool.is_some() && options.scratch_limit.is_some() {
        let why =
            "mount option scratch_limit= means nothing with scratch=pool:, where all space is reserved beforehand";
        return Err(Error::new(Kind::Invalid, why));
    }
    Ok(())
}

/// What `scratch=` says that only some sources have a use for.
const POOL: &str = "scratch=pool:";

/// The URI of the libvirt that is meant: what is given, else what `LIBVIRT_DEFAULT_URI` says, else the system's.
#[cfg(feature = "libvirt")]
fn named(uri: Option<&str>) -> String {
    let named = || std::env::var("LIBVIRT_DEFAULT_URI").ok().filter(|uri| !uri.is_empty());
    uri.map(str::to_owned).or_else(named).unwrap_or_else(|| SYSTEM.to_owned())
}

/// The URI of the libvirt that is meant, on whichever host.
///
/// # Errors
/// [`Kind::Unsupported`] for a way to another host that is not taken.
#[cfg(feature = "libvirt")]
pub fn any_libvirt_of(uri: Option<&str>) -> Result<String> {
    let uri = named(uri);
    Way::of(&uri).check(&uri)?;
    Ok(uri)
}

/// The URI of the libvirt that is meant, which must be of this host.
///
/// # Errors
/// [`Kind::Unsupported`] for a libvirt of another host.
#[cfg(feature = "libvirt")]
pub fn libvirt_of(uri: Option<&str>) -> Result<String> {
    let uri = named(uri);
    match Way::of(&uri).host {
        Some(host) => Err(Error::new(
            Kind::Unsupported,
            format!(
                "uri={uri}: a whole host is mounted there, on {host}; from here, domains one by one (pullfs list -o uri=…)"
            ),
        )),
        None => Ok(uri),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_told_apart() {
        assert!(matches!("qmp:/run/vm.qmp".parse().unwrap(), Source::Qmp(_)));
        assert!("vmware:x".parse::<Source>().is_err());
    }

    #[cfg(feature = "libvirt")]
    #[test]
    fn domains_are_reached_on_this_host() {
        let source: Source = "libvirt:vm 1:a".parse().unwrap();
        assert_eq!(source.to_string(), "libvirt:vm 1:a");
        assert_eq!("libvirt:a/b".parse::<Source>().unwrap_err().kind(), Kind::Invalid);
        let host: Source = "libvirt:".parse().unwrap();
        assert_eq!((host.to_string(), &host), ("libvirt:".to_owned(), &Source::Host));
        assert_eq!(Reach::new(&host, None, false, None).unwrap_err().kind(), Kind::Invalid);
        let reach = |uri| Reach::new(&source, None, false, Some(uri));
        let ssh = "qemu+ssh://host/system";
        for way in ["qemu:///system", "qemu+unix:///session", "qemu+unix:///system?socket=/run/x/y", ssh] {
            assert_eq!(reach(way).unwrap().uri(), Some(way));
        }
        for there in ["qemu+libssh2://host/system", "qemu+tcp://host"] {
            assert_eq!(reach(there).unwrap_err().kind(), Kind::Unsupported, "{there}");
        }
        let tls = "qemu+tls://[::1]:16514/system?x";
        assert_eq!(reach(tls).unwrap().uri(), Some(tls), "as it may have been mounted");
        assert_eq!(libvirt_of(Some(tls)).unwrap_err().kind(), Kind::Unsupported, "a whole host");
        assert_eq!(any_libvirt_of(Some(tls)).unwrap(), tls);
        let wrong = |options: Options| Reach::of(&source, &options).unwrap_err().to_string();
        assert!(wrong(Options { read_once: true, ..Options::default() }).contains("read_once"));
        let pool = || Options { pool: Some("p".to_owned()), ..Options::default() };
        assert!(wrong(Options { scratch_limit: Some(1), ..pool() }).contains("scratch_limit="));
        assert!(wrong(Options { tls: Some("/a".into()), ..Options::default() }).contains("tls="));
        assert!(fit(&host, &pool()).is_err() && fit(&"qmp:/a".parse().unwrap(), &pool()).is_err());
        assert!(wrong(Options { uri: Some(tls.to_owned()), ..Options::default() }).contains("scratch=pool:NAME"));
        assert!(wrong(Options { agent: Some("/a".into()), ..Options::default() }).contains("agent="));
        let metrics = Options { metrics: crate::metrics::Target::parse(":9500"), ..Options::default() };
        assert!(fit(&source, &metrics).is_ok() && fit(&host, &metrics).is_err());
        let uri = Options { uri: Some("qemu:///system".to_owned()), ..Options::default() };
        let error = Reach::of(&"qmp:/a".parse().unwrap(), &uri).unwrap_err();
        assert!(error.to_string().contains("uri="), "{error}");
    }
}
