//! What the mount of a whole host tells of itself: a file in its own directory, written whenever something changed. So whoever
//! asks waits for nobody, and learns how it was when its daemon died.

use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::policy::{Id, Policy, Shown};
use crate::status::{WARNING, paint, plain, table};

/// Its name.
const NAME: &str = "host.json";

/// All of it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Host {
    pub(crate) pid: u32,
    pub(crate) source: String,
    pub(crate) uri: String,
    pub(crate) mount_point: String,
    /// Why libvirt does not tell which domains run; those shown did when it last did.
    pub(crate) unreachable: Option<String>,
    /// After so many seconds a domain that nobody uses is unmounted.
    pub(crate) expire: u64,
    pub(crate) domains: Vec<Domain>,
}

/// A domain.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Domain {
    /// Its directory.
    pub(crate) name: String,
    pub(crate) uuid: String,
    /// `idle`, `failed`, `waiting`, `starting`, `mounted` or `ending`.
    pub(crate) state: String,
    /// Why it failed.
    pub(crate) reason: Option<String>,
    /// The process of its mount.
    pub(crate) pid: Option<u32>,
}

/// The domains; `pid` tells those of their processes.
pub(super) fn domains(policy: &Policy, pid: impl Fn(Id) -> Option<u32>) -> Vec<Domain> {
    let shown = policy.shown().map(|(name, uuid, shown)| {
        let (state, reason, id) = match shown {
            Shown::Idle => ("idle", None, None),
            Shown::Failed(why) => ("failed", Some(why.to_owned()), None),
            Shown::Waiting => ("waiting", None, None),
            Shown::Starting(id) => ("starting", None, Some(id)),
            Shown::Mounted(id) => ("mounted", None, Some(id)),
            Shown::Ending(id) => ("ending", None, Some(id)),
        };
        let pid = id.and_then(&pid);
        Domain { name: name.to_owned(), uuid: uuid.to_owned(), state: state.to_owned(), reason, pid }
    });
    shown.collect()
}

/// Writes it into the mount's directory; whoever reads finds all of it, as it was before or as it is.
pub(super) fn write(dir: &Path, host: &Host) -> anyhow::Result<()> {
    let (new, path) = (dir.join("host.json.new"), dir.join(NAME));
    let text = serde_json::to_string_pretty(host)? + "\n";
    std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &path))?;
    Ok(())
}

/// Reads it.
pub(super) fn read(dir: &Path) -> anyhow::Result<Host> {
    let path = dir.join(NAME);
    let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is of another version of pullfs", path.display()))
}

/// For people, with the escapes of colours; `dead` is whether nobody looks after it any more.
pub(super) fn text(host: &Host, dead: bool) -> String {
    let mut text = format!("libvirt at {}, {} running\n", plain(&host.uri), count(host.domains.len()));
    if dead {
        let cure = format!("its daemon has died: pullfs umount {}, and mount it again", plain(&host.mount_point));
        text += &(paint(WARNING, &cure) + "\n");
    }
    if let Some(why) = &host.unreachable {
        text += &(paint(WARNING, &plain(why)) + "\n");
    }
    let row = |domain: &Domain| {
        let state = match &domain.reason {
            Some(why) => paint(WARNING, &plain(&format!("{}: {why}", domain.state))),
            None => domain.state.clone(),
        };
        vec![plain(&domain.name), domain.uuid.clone(), state]
    };
    text + &table(host.domains.iter().map(row).collect())
}

fn count(domains: usize) -> String {
    format!("{domains} domain{}", if domains == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        let domain = |name: &str, state: &str, reason: Option<&str>| Domain {
            name: name.to_owned(),
            uuid: "5f0c".to_owned(),
            state: state.to_owned(),
            reason: reason.map(str::to_owned),
            pid: None,
        };
        Host {
            pid: 7,
            source: "libvirt:".to_owned(),
            uri: "qemu:///system".to_owned(),
            mount_point: "/mnt".to_owned(),
            unreachable: None,
            expire: 600,
            domains: vec![domain("a\nb", "idle", None), domain("db", "failed", Some("no such disk"))],
        }
    }

    #[test]
    fn it_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).unwrap_err().to_string().contains("host.json"));
        write(dir.path(), &host()).unwrap();
        assert_eq!(read(dir.path()).unwrap(), host());
    }

    #[test]
    fn people_get_a_line_for_each_domain() {
        let plain = |text: String| anstream::adapter::strip_str(&text).to_string();
        let text = plain(super::text(&host(), false));
        assert_eq!(
            text,
            "libvirt at qemu:///system, 2 domains running\na?b  5f0c  idle\ndb   5f0c  failed: no such disk\n"
        );
        let down = Host { unreachable: Some("no answer".to_owned()), domains: Vec::new(), ..host() };
        let text = plain(super::text(&down, true));
        assert!(
            text.contains("\nits daemon has died: pullfs umount /mnt") && text.ends_with("\nno answer\n"),
            "{text}"
        );
    }
}
