//! The domains of a libvirt that run, for those who choose what to mount.
//!
//! One call tells of all domains and the sizes of their disks; libvirt asks each QEMU for it, unless something else is going
//! on in its domain. A short question or two to each domain follow, which libvirt answers by itself. One whose QEMU does not
//! answer holds nobody up: what is not told in time is not known.

use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use libvirt::{BlockStats, Code, Connection, Domain};

use super::elsewhere::Way;
use super::link::explain;
use crate::error::{Error, Kind, Result};

/// How long connecting, and listing the domains, may take.
const LIMIT: Duration = Duration::from_secs(5);

/// How long connecting to another host may take.
const FAR_LIMIT: Duration = Duration::from_secs(20);

/// How long the domains' QEMUs may take for all of their sizes: each does in a millisecond as a rule.
const SIZES_LIMIT: Duration = Duration::from_secs(2);

/// How long the questions to each domain may take, all together.
const DETAILS_LIMIT: Duration = Duration::from_secs(3);

/// A domain that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// Its disks, and drives with a medium; none if libvirt does not tell, because something else is going on in the domain.
    pub disks: Option<Vec<RunningDisk>>,
    /// How many checkpoints libvirt has of it; none if it does not tell.
    pub checkpoints: Option<usize>,
    /// Whether it has a backup now; none if libvirt does not tell.
    pub backup: Option<bool>,
}

/// A disk of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningDisk {
    /// Its target, such as `vda`.
    pub name: String,
    /// In bytes.
    pub size: u64,
}

/// The domains that run, by their names. Blocks for a quarter of a minute at most, and as long again for another host.
///
/// # Errors
/// [`Kind::Gone`] when libvirt is not there, [`Kind::Denied`], [`Kind::Timeout`]; [`Kind::Unsupported`] where its library is
/// not installed.
pub fn running(uri: &str) -> Result<Vec<Running>> {
    let what = format!("cannot list the domains of libvirt at {uri}");
    let slow = |limit: Duration| Error::new(Kind::Timeout, format!("{what}: no answer within {} s", limit.as_secs()));
    let limit = if Way::of(uri).host.is_some() { FAR_LIMIT } else { LIMIT };
    let failed = |error| explain(&what, error);
    let opened = uri.to_owned();
    let connection =
        within(limit, move || Connection::open(Some(&opened))).ok_or_else(|| slow(limit))?.map_err(failed)?;
    let asked = connection.clone();
    let told: Vec<(Domain, Option<Vec<BlockStats>>)> = match within(SIZES_LIMIT, move || asked.running_stats()) {
        Some(Ok(told)) => told.into_iter().map(|stats| (stats.domain, Some(stats.blocks))).collect(),
        Some(Err(error)) if error.code() != Code::Unsupported => return Err(failed(error)),
        // A QEMU that hangs, or a driver that has no such call.
        _ => {
            let domains =
                within(LIMIT, move || connection.running_domains()).ok_or_else(|| slow(LIMIT))?.map_err(failed)?;
            domains.into_iter().map(|domain| (domain, None)).collect()
        }
    };
    let details =
        ask_each(told.iter().map(|(domain, blocks)| (domain.clone(), may_have_backup(blocks.as_deref()))).collect());
    let deadline = Instant::now() + DETAILS_LIMIT;
    let mut running = Vec::with_capacity(told.len());
    for (domain, blocks) in told {
        let left = deadline.saturating_duration_since(Instant::now());
        let (checkpoints, backup) = details.recv_timeout(left).unwrap_or_default();
        let uuid = domain.uuid().map_err(failed)?;
        running.push(Running { name: domain.name(), uuid, disks: blocks.and_then(disks), checkpoints, backup });
    }
    // The thread has let go of them all: the last one takes leave of libvirt.
    details.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok();
    running.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(running)
}

/// Does it on a thread of its own: a call of libvirt may never return.
fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (tell, told) = channel();
    // Nobody may be waiting any more.
    std::thread::spawn(move || tell.send(work()).ok());
    told.recv_timeout(limit).ok()
}

/// Whether a domain may have a backup, which is an image more than the disk has; none if that is not told. libvirt answers the
/// question itself with an error where there is none, and writes a line of its log.
fn may_have_backup(blocks: Option<&[BlockStats]>) -> Option<bool> {
    blocks.map(|blocks| blocks.iter().any(|block| block.images > 1))
}

/// Asks one domain after the other, in their order, for the number of its checkpoints, and, where it may have one, for its
/// backup.
fn ask_each(domains: Vec<(Domain, Option<bool>)>) -> Receiver<(Option<usize>, Option<bool>)> {
    let (tell, told) = channel();
    std::thread::spawn(move || {
        for (domain, may_have_backup) in domains {
            let backup = match may_have_backup {
                Some(true) => has_backup(&domain),
                other => other,
            };
            if tell.send((domain.checkpoint_count().ok(), backup)).is_err() {
                return;
            }
        }
    });
    told
}

fn has_backup(domain: &Domain) -> Option<bool> {
    match domain.backup_xml() {
        Ok(_) => Some(true),
        Err(error) => (error.code() == Code::NoBackup).then_some(false),
    }
}

/// Those that have a size; none if there are some, and none of them has.
fn disks(blocks: Vec<BlockStats>) -> Option<Vec<RunningDisk>> {
    let untold = !blocks.is_empty();
    let with_sizes =
        blocks.into_iter().filter_map(|block| Some(RunningDisk { size: block.capacity?, name: block.target }));
    let disks: Vec<RunningDisk> = with_sizes.collect();
    (!(untold && disks.is_empty())).then_some(disks)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn hundreds_of_domains_are_listed_in_no_time() {
        let mut xml = String::from("<node>");
        for number in 0..400 {
            write!(
                xml,
                "<domain type='test'><name>vm{number:03}</name><memory>1024</memory><os><type>hvm</type></os></domain>"
            )
            .unwrap();
        }
        xml.push_str("</node>");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), xml).unwrap();
        let begun = Instant::now();
        let listed = running(&format!("test://{}", file.path().display())).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        assert_eq!((listed.len(), &*listed[0].name, &*listed[399].name), (400, "vm000", "vm399"));
        assert_eq!((listed[0].checkpoints, listed[0].backup), (Some(0), Some(false)));
    }

    #[test]
    fn a_libvirt_that_is_not_there_is_said() {
        let error = running("qemu+unix:///system?socket=/nowhere/socket").unwrap_err();
        assert_eq!(error.kind(), Kind::Gone);
        assert!(error.to_string().contains("/nowhere/socket"), "{error}");
    }

    #[test]
    fn sizes_that_are_not_told_are_not_known() {
        let block = |target: &str, capacity| BlockStats { target: target.to_owned(), capacity, images: 1 };
        assert_eq!(disks(Vec::new()), Some(Vec::new()), "it has none");
        assert_eq!(disks(vec![block("vda", None)]), None, "busy");
        assert_eq!(may_have_backup(None), None);
        assert_eq!(may_have_backup(Some(&[block("vda", None)])), Some(false), "nobody is asked");
        let two = BlockStats { images: 2, ..block("vdb", None) };
        assert_eq!(may_have_backup(Some(&[block("vda", None), two])), Some(true));
        let vda = RunningDisk { name: "vda".to_owned(), size: 512 };
        assert_eq!(
            disks(vec![block("vda", Some(512)), block("sda", None)]),
            Some(vec![vda]),
            "a drive without a medium"
        );
    }
}
