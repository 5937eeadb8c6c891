//! Looking at a domain before it is mounted, step by step: what a mount would find. Nothing is changed in it.

use std::collections::BTreeSet;
use std::path::Path;

use libvirt::{Code, State};

use super::link::{LIMIT, Link, Target};
use super::pool::{self, Store};
use super::{check, inventory, is_recent, place, version, xml};
use crate::error::{Error, Result, printable};
use crate::vm::Inventory;
use crate::vm::qmp::ids::MountId;

/// The agent's port in the guest (libvirt.org/formatdomain.html, "channel").
const AGENT: &str = "org.qemu.guest_agent.0";

/// A way to the domain.
pub struct Examiner(Link);

/// Versions, as libvirt tells them.
#[derive(Debug, PartialEq, Eq)]
pub struct Versions {
    /// The daemon's.
    pub libvirt: String,
    /// That of the host's QEMU; a domain may run in another one.
    pub qemu: String,
    number: u64,
}

impl Versions {
    /// Why a mount would refuse the host's QEMU, if it would.
    pub fn refused(&self) -> Option<Error> {
        is_recent(self.number).err()
    }
}

/// What the domain does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// It runs.
    Runs,
    /// It was paused, and can be backed up all the same.
    Paused,
    /// It does not run.
    Nothing,
}

/// What goes on in the domain that a backup cannot begin beside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Busy {
    /// A backup of the mount of pullfs that has this id.
    OurBackup(String),
    /// A backup of somebody else.
    Backup,
    /// Another job, such as a migration.
    Job,
}

/// What there is of a domain that runs.
#[derive(Debug)]
pub struct Looked {
    /// Its disks and checkpoints.
    pub inventory: Inventory,
    /// Why a mount would be refused, if it would.
    pub refused: Option<Error>,
    /// The user and group that QEMU runs as, where libvirt says so.
    pub user: Option<(u32, u32)>,
    /// What is said of it beside.
    pub around: Around,
}

/// What of a domain's description matters to backups beside its disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Around {
    /// The `AppArmor` profile that confines its QEMU.
    pub apparmor: Option<String>,
    /// Whether the guest agent has a channel.
    pub agent: Agent,
}

/// The guest agent, as libvirt sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agent {
    /// It has a channel, and has it open.
    Connected,
    /// It has a channel, but does not run in the guest.
    Disconnected,
    /// It has no channel.
    Missing,
}

impl Examiner {
    /// Connects at the first question.
    pub fn new(target: Target) -> Self {
        Self(Link::start(target, Box::new(|_| {})))
    }

    /// Whether libvirt is there and has the domain, and the versions.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::error::Kind::NotFound) when it has no such domain;
    /// [`Kind::Denied`](crate::error::Kind::Denied), [`Kind::Timeout`](crate::error::Kind::Timeout),
    /// [`Kind::Gone`](crate::error::Kind::Gone) when it cannot be reached.
    pub async fn versions(&self) -> Result<Versions> {
        let (libvirt, qemu) = self.0.call("tell its version", LIMIT, libvirt::Domain::versions).await?;
        Ok(Versions { libvirt: version(libvirt), qemu: version(qemu), number: qemu })
    }

    /// What the domain does.
    ///
    /// # Errors
    /// When libvirt does not answer. The same goes for all that follow.
    pub async fn doing(&self) -> Result<Doing> {
        Ok(match self.0.call("describe the domain", LIMIT, libvirt::Domain::state).await? {
            State::Running => Doing::Runs,
            State::Paused(_) => Doing::Paused,
            State::Other => Doing::Nothing,
        })
    }

    /// What goes on in it.
    ///
    /// # Errors
    /// As [`Examiner::doing`].
    pub async fn busy(&self) -> Result<Option<Busy>> {
        let told = self.0.call("tell of the backup", LIMIT, |domain| match domain.backup_xml() {
            Ok(xml) => Ok((Some(xml), None)),
            Err(error) if error.code() == Code::NoBackup => Ok((None, domain.job_stats()?)),
            Err(error) => Err(error),
        });
        Ok(match told.await? {
            (Some(told), _) => {
                let mount = xml::marks(&told)?.iter().find_map(|mark| mount_of(mark));
                Some(mount.map_or(Busy::Backup, Busy::OurBackup))
            }
            (None, job) => job.map(|_| Busy::Job),
        })
    }

    /// What a mount of these disks (none: of all) would find.
    ///
    /// # Errors
    /// As [`Examiner::doing`].
    pub async fn look(&self, only: Option<&BTreeSet<String>>) -> Result<Looked> {
        let found = inventory::query(&self.0, only).await?;
        let described = self.0.call("describe the domain", LIMIT, libvirt::Domain::xml).await?;
        Ok(Looked {
            refused: check(only, &found).err(),
            user: found.domain.user,
            inventory: found.inventory,
            around: around(&described)?,
        })
    }
}

/// The id of a mount of pullfs, if the socket of an NBD server is where they have theirs, or an export has a name of theirs.
fn mount_of(mark: &str) -> Option<String> {
    let dir = Path::new(mark).parent().and_then(|dir| dir.file_name()).and_then(|name| name.to_str());
    let export = || mark.starts_with("pullfs-").then(|| mark.splitn(3, '-').take(2).collect::<Vec<_>>().join("-"));
    dir.and_then(|name| name.strip_suffix(place::SUFFIX)).map(str::to_owned).or_else(export)
}

/// Reads what else the description of a domain says.
///
/// # Errors
/// [`Kind::Invalid`](crate::error::Kind::Invalid) when it is not understood.
pub fn around(described: &str) -> Result<Around> {
    let document = xml::document("the domain", described)?;
    let root = document.root_element();
    let label = root
        .children()
        .filter(|node| node.has_tag_name("seclabel") && node.attribute("model") == Some("apparmor"))
        .find(|node| node.attribute("type") != Some("none"));
    let channels = xml::children(root, "devices", "channel");
    let mut targets = channels.into_iter().filter_map(|channel| xml::child(channel, "target"));
    let agent = match targets.find(|target| target.attribute("name") == Some(AGENT)) {
        Some(target) if target.attribute("state") == Some("connected") => Agent::Connected,
        Some(_) => Agent::Disconnected,
        None => Agent::Missing,
    };
    let apparmor = label.map(|label| printable(&xml::text(label, "label").unwrap_or_default()));
    Ok(Around { apparmor, agent })
}

/// How many bytes a storage pool of this libvirt has for scratch images, and how many those of disks of these sizes take.
///
/// # Errors
/// When there is no such pool, it is of another type or not active, or libvirt does not answer.
pub async fn room_in(target: &Target, name: &str, disks: &[u64]) -> Result<(u64, u64)> {
    let needed = disks.iter().map(|disk| pool::size(*disk)).fold(0, u64::saturating_add);
    Ok((Store::new(target.clone()).room(name).await?, needed))
}

/// Makes what a mount makes in the scratch directory for QEMU's user, and removes it.
///
/// # Errors
/// When that cannot be made, or the file system has no access control lists and they are needed.
pub fn try_place(scratch: &Path, user: Option<u32>) -> Result<()> {
    let dir = place::dir(scratch, &MountId::random().to_string());
    place::check(&dir)?;
    let made = place::make(&dir, &[1 << 20], user).map(drop);
    // What was there before is not ours, and not removed: an id is not met twice.
    place::remove(&dir).and(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_confines_qemu_and_the_agents_channel_are_read() {
        let domain = |label: &str, state: &str| {
            let channel = format!("<channel type='unix'><target type='virtio' name='{AGENT}' {state}/></channel>");
            format!("<domain><devices><channel><target name='other'/></channel>{channel}</devices>{label}</domain>")
        };
        let dac = "<seclabel type='dynamic' model='dac'><label>+1:+1</label></seclabel>";
        let label = format!("{dac}<seclabel type='dynamic' model='apparmor'><label>libvirt-1</label></seclabel>");
        let found = around(&domain(&label, "state='connected'")).unwrap();
        assert_eq!(found, Around { apparmor: Some("libvirt-1".to_owned()), agent: Agent::Connected });
        let none = format!("{dac}<seclabel type='none' model='apparmor'/>");
        let found = around(&domain(&none, "state='disconnected'")).unwrap();
        assert_eq!(found, Around { apparmor: None, agent: Agent::Disconnected });
        assert_eq!(around("<domain/>").unwrap(), Around { apparmor: None, agent: Agent::Missing });
        assert!(around("<domain>").is_err());
    }

    #[test]
    fn trying_leaves_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        try_place(scratch.path(), None).unwrap();
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
        assert!(try_place(&scratch.path().join("none"), None).is_err());
        let long = scratch.path().join("x".repeat(100));
        std::fs::create_dir(&long).unwrap();
        let error = try_place(&long, None).unwrap_err();
        assert!(error.to_string().contains("too long"), "{error}");
        assert_eq!(std::fs::read_dir(long).unwrap().count(), 0);
    }

    #[test]
    fn a_backup_of_a_mount_is_known() {
        for ours in ["/var/tmp/pullfs-0a1b2c.libvirt/nbd.sock", "pullfs-0a1b2c-3-0"] {
            assert_eq!(mount_of(ours).as_deref(), Some("pullfs-0a1b2c"), "{ours}");
        }
        for other in ["/var/lib/libvirt/backup.sock", "vda", ""] {
            assert_eq!(mount_of(other), None, "{other}");
        }
    }
}
