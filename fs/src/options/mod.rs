//! Mount options: `-o name,name=value,…`; lists within a value are joined by `+`.

pub mod in_force;
pub mod settings;
pub mod table;
#[cfg(test)]
mod tests;
mod value;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use nbd_pool::Address;

use self::value::{bad, duration, formats, nbd, number, size, unknown};
use crate::error::{Error, Kind, Result};
use crate::image::qcow2::ClusterSize;
use crate::metrics::Target;

/// How points in time are to be kept (`fleece=`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fleece {
    /// The best way that is safe with this QEMU.
    #[default]
    Auto,
    /// A backup job's filter and `snapshot-access`.
    Job,
    /// Scratch with the live disk as its backing file.
    Backing,
    /// A filter under the guest's device, which stops the guest for a moment.
    Filter,
}

/// What may take a point in time (`start=`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// The first open of a file that needs one.
    #[default]
    Read,
    /// Only an explicit `begin`.
    Manual,
}

/// Whether checkpoints that pullfs did not make may be deleted (`foreign=`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Foreign {
    /// They are left alone.
    #[default]
    Ro,
    /// They may be deleted.
    Rw,
}

/// Which files appear (`formats=`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a word that the option takes")]
pub struct Formats {
    /// `disk.raw`, `delta.raw`.
    pub raw: bool,
    /// `disk.qcow2`, `delta.qcow2`.
    pub qcow2: bool,
    /// `allocated.map`, `dirty.map`, `dirty.json`.
    pub map: bool,
    /// `partitions`, `changed-files.txt`.
    pub partitions: bool,
}

impl Default for Formats {
    fn default() -> Self {
        Self { raw: true, qcow2: true, map: true, partitions: true }
    }
}

/// Before the name of a storage pool, in the option `scratch`.
pub const POOL: &str = "pool:";

/// Farthest that is read ahead of one reader, in bytes; more is of no use.
const LONGEST_AHEAD: u64 = 64 << 20;
/// Smallest rate that option takes, in bytes a second: a read of the kernel is to be answered within seconds.
const LEAST_RATE: u64 = 64 << 10;

/// All mount options with their defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a mount option")]
pub struct Options {
    /// Which files appear.
    pub formats: Formats,
    /// The name of the backing file that is written into `delta.qcow2`; `{disk}` and `{checkpoint}` stand for theirs.
    pub backing: String,
    /// Clusters of the qcow2 files.
    pub cluster_size: ClusterSize,
    /// What may take a point in time.
    pub start: Start,
    /// Directory for scratch files.
    pub scratch: PathBuf,
    /// The storage pool of a libvirt that has them instead, on its host.
    pub pool: Option<String>,
    /// What scratch files may take at most, in bytes; none for as much as there is.
    pub scratch_limit: Option<u64>,
    /// Whether what was read once is given back to the scratch space, and cannot be read again.
    pub read_once: bool,
    /// How long after the last close a point in time ends; none for never.
    pub idle_timeout: Option<Duration>,
    /// How long a point in time may be held; none for ever.
    pub hold_limit: Option<Duration>,
    /// How points in time are kept.
    pub fleece: Fleece,
    /// Whether checkpoints that pullfs did not make may be deleted.
    pub foreign: Foreign,
    /// Only these disks; none for all.
    pub disks: Option<BTreeSet<String>>,
    /// An NBD server that already runs.
    pub nbd: Option<Address>,
    /// A directory of certificates for connections over TCP, and to the server of `nbd`.
    pub tls: Option<PathBuf>,
    /// Whether TCP without TLS is meant.
    pub insecure: bool,
    /// The guest agent's socket, for quiescing.
    pub agent: Option<PathBuf>,
    /// The libvirt that a domain is of; none for the system's.
    pub uri: Option<String>,
    /// After how long a domain of a whole host that nobody uses is unmounted; none for what is usual.
    pub expire: Option<Duration>,
    /// NBD connections for each disk, at most.
    pub connections: usize,
    /// What blocks of disks may take in the daemon's memory, in bytes.
    pub cache: u64,
    /// How far is read ahead of a reader that goes on, in bytes; 0 for not at all.
    pub readahead: u64,
    /// Bytes a second that are read of all disks together, at most; none for as many as there come.
    pub max_rate: Option<u64>,
    /// Requests that the machine has at once, for all disks together, at most; none for as many as are needed.
    pub max_inflight: Option<usize>,
    /// Whether reading makes room for a busy guest.
    pub polite: bool,
    /// Where Prometheus is told of the mount; none for nowhere.
    pub metrics: Option<Target>,
    /// Owner of the files; none for the mounting user.
    pub uid: Option<u32>,
    /// Group of the files; none for the mounting user's.
    pub gid: Option<u32>,
    /// Permission bits that are taken away.
    pub umask: u16,
    /// Whether other users may come in.
    pub allow_other: bool,
    /// Whether the daemon gives up what it does not need.
    pub sandbox: bool,
    /// Whether the daemon may leave core dumps, which hold data of the guest.
    pub core_dumps: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            formats: Formats::default(),
            backing: "{disk}.{checkpoint}.qcow2".to_owned(),
            cluster_size: ClusterSize::default(),
            start: Start::default(),
            scratch: PathBuf::from("/var/tmp"),
            pool: None,
            scratch_limit: None,
            read_once: false,
            idle_timeout: None,
            hold_limit: None,
            fleece: Fleece::default(),
            foreign: Foreign::default(),
            disks: None,
            nbd: None,
            tls: None,
            insecure: false,
            agent: None,
            uri: None,
            expire: None,
            // Of one connection QEMU takes 16 requests at once (nbd/server.c): a guest's write waits for no more.
            connections: 1,
            cache: 32 << 20,
            readahead: 4 << 20,
            max_rate: None,
            max_inflight: None,
            polite: false,
            metrics: None,
            uid: None,
            gid: None,
            umask: 0o077,
            allow_other: false,
            sandbox: true,
            core_dumps: false,
        }
    }
}

impl Options {
    /// Checks what no option can see by itself.
    fn go_together(&self) -> Result<()> {
        if let Some(address @ Address::Tcp { .. }) = &self.nbd
            && self.tls.is_none()
            && !self.insecure
        {
            return Err(Error::new(
                Kind::Invalid,
                format!(
                    "mount option nbd={address} is over TCP, where everybody on the way reads the disks: give \
                     certificates with tls=DIR, or insecure if nobody else is on this network"
                ),
            ));
        }
        Ok(())
    }

    fn flag(&mut self, name: &str, on: bool) -> Result<()> {
        match name {
            // Nothing but `control` is ever written; mount(8) passes one of the two.
            "ro" | "rw" => {}
            "allow_other" => self.allow_other = on,
            "read_once" => self.read_once = on,
            "polite" => self.polite = on,
            "core_dumps" => self.core_dumps = on,
            "insecure" => self.insecure = on,
            _ => return Err(unknown(name)),
        }
        Ok(())
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        match name {
            "formats" => self.formats = formats(value)?,
            "backing" if value.is_empty() => {
                return Err(bad(name, value, "a file name, such as {disk}.{checkpoint}.qcow2"));
            }
            "backing" => value.clone_into(&mut self.backing),
            "cluster_size" => {
                let takes = "a power of two from 512 to 2M";
                self.cluster_size = value.parse().map_err(|_| bad(name, value, takes))?;
            }
            "start" => {
                self.start = match value {
                    "read" => Start::Read,
                    "manual" => Start::Manual,
                    _ => return Err(bad(name, value, "read or manual")),
                }
            }
            "scratch" => match value.strip_prefix(POOL) {
                Some(pool) if !pool.is_empty() => self.pool = Some(pool.to_owned()),
                None if value.starts_with('/') => (self.scratch, self.pool) = (PathBuf::from(value), None),
                _ => return Err(bad(name, value, "the absolute path of a directory, or pool:NAME")),
            },
            "scratch_limit" => self.scratch_limit = Some(size(name, value)?),
            "idle_timeout" => self.idle_timeout = Some(duration(name, value)?),
            "hold_limit" => self.hold_limit = Some(duration(name, value)?),
            "fleece" => {
                self.fleece = match value {
                    "auto" => Fleece::Auto,
                    "job" => Fleece::Job,
                    "backing" => Fleece::Backing,
                    "filter" => Fleece::Filter,
                    _ => return Err(bad(name, value, "auto, job, backing or filter")),
                }
            }
            "foreign" => {
                self.foreign = match value {
                    "ro" => Foreign::Ro,
                    "rw" => Foreign::Rw,
                    _ => return Err(bad(name, value, "ro or rw")),
                }
            }
            "disks" => {
                let names: BTreeSet<String> = value.split('+').map(str::to_owned).collect();
                if names.contains("") {
                    return Err(bad(name, value, "names of disks, joined by +"));
                }
                self.disks = Some(names);
            }
            "nbd" => {
                let takes = "unix:PATH or HOST:PORT, where the machine's NBD server listens";
                self.nbd = Some(nbd(value).ok_or_else(|| bad(name, value, takes))?);
            }
            "tls" if value.starts_with('/') => self.tls = Some(PathBuf::from(value)),
            "tls" => return Err(bad(name, value, "the absolute path of a directory of certificates")),
            "agent" if value.starts_with('/') => self.agent = Some(PathBuf::from(value)),
            "agent" => return Err(bad(name, value, "the absolute path of the guest agent's socket")),
            "expire" => self.expire = Some(duration(name, value)?),
            "uri" if value.contains(':') => self.uri = Some(value.to_owned()),
            "uri" => return Err(bad(name, value, "the URI of a libvirt, such as qemu:///system")),
            "sandbox" => {
                self.sandbox = match value {
                    "auto" => true,
                    "off" => false,
                    _ => return Err(bad(name, value, "auto or off")),
                }
            }
            "connections" => self.connections = number(name, value, 1, 16)?,
            "cache" => self.cache = size(name, value)?,
            "readahead" => self.readahead = if value == "0" { 0 } else { size(name, value)?.min(LONGEST_AHEAD) },
            "max_rate" => {
                let takes = "bytes a second, at least 64K, such as 20M";
                let rate = size(name, value).ok().filter(|rate| *rate >= LEAST_RATE);
                self.max_rate = Some(rate.ok_or_else(|| bad(name, value, takes))?);
            }
            "max_inflight" => self.max_inflight = Some(number(name, value, 1, 1024)?),
            "metrics" => {
                let takes = "HOST:PORT, :PORT for this host alone, or the absolute path of a file that ends in .prom";
                self.metrics = Some(Target::parse(value).ok_or_else(|| bad(name, value, takes))?);
            }
            "uid" => self.uid = Some(number(name, value, 0, u32::MAX - 1)?),
            "gid" => self.gid = Some(number(name, value, 0, u32::MAX - 1)?),
            "umask" => {
                self.umask = u16::from_str_radix(value, 8)
                    .ok()
                    .filter(|mask| *mask <= 0o777)
                    .ok_or_else(|| bad(name, value, "permission bits in octal, such as 077"))?;
            }
            _ => return Err(unknown(name)),
        }
        Ok(())
    }
}
