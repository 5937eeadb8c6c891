//! `pullfs list`: the domains of libvirt that can be mounted.

use crate::args::List;
use crate::failure::Outcome;

/// Without libvirt there is nothing to be found, and its sources say what is missing.
#[cfg(not(feature = "libvirt"))]
pub(crate) fn run(_: &List) -> Outcome {
    "libvirt:".parse::<pullfs_fs::vm::source::Source>()?;
    Ok(())
}

#[cfg(feature = "libvirt")]
pub(crate) use domains::run;

#[cfg(feature = "libvirt")]
mod domains {
    use std::path::{Path, PathBuf};

    use pullfs_fs::fuse::mount::{self, Mounted};
    use pullfs_fs::point::journal::Header;
    use pullfs_fs::recovery;
    use pullfs_fs::vm::libvirt::elsewhere::Way;
    use pullfs_fs::vm::libvirt::host::{Running, RunningDisk, running};
    use pullfs_fs::vm::source::{Source, any_libvirt_of};
    use serde_json::{Value, json};

    use super::{List, Outcome};
    use crate::config;
    use crate::status::{plain, print, size, table};
    use crate::waiting::waiting;

    pub(crate) fn run(arguments: &List) -> Outcome {
        let options = config::resolve(None, &arguments.options)?.options;
        let uri = any_libvirt_of(options.uri.as_deref())?;
        let domains = waiting("waiting for libvirt", || running(&uri))?;
        let mounts = Mounts { all: mount::all()?, known: recovery::all_headers(&recovery::state_dir()), uri };
        if arguments.json {
            let all: Vec<Value> = domains.iter().map(|domain| document(domain, &mounts.of(domain))).collect();
            return print(&format!("{:#}\n", Value::Array(all)));
        }
        print(&table(domains.iter().map(|domain| row(domain, &mounts.of(domain))).collect()))
    }

    /// The pullfs mounts of this computer, and the libvirt that is asked.
    struct Mounts {
        all: Vec<Mounted>,
        /// What this user's mounts have noted.
        known: Vec<Header>,
        uri: String,
    }

    impl Mounts {
        /// Where a domain is mounted. A mount of another user does not tell its libvirt, and is taken to be of this one.
        fn of(&self, domain: &Running) -> Vec<PathBuf> {
            let is_of = |mounted: &&Mounted| {
                let name = mounted.source.to_str().and_then(|source| source.strip_prefix("libvirt:"));
                name.is_some_and(|name| name == domain.name || name == domain.uuid) && self.is_of_this_libvirt(mounted)
            };
            self.all.iter().filter(is_of).map(|mounted| mounted.path.clone()).collect()
        }

        fn is_of_this_libvirt(&self, mounted: &Mounted) -> bool {
            let is_its =
                |header: &&Header| header.mount_point == mounted.path && Path::new(&header.source) == mounted.source;
            let uri = self.known.iter().find(is_its).and_then(|header| header.uri.as_deref());
            uri.is_none_or(|uri| Way::is_to_one(uri, &self.uri))
        }
    }

    /// What `pullfs mount` takes.
    fn source(domain: &Running) -> String {
        // A slash in a name is a mistake elsewhere.
        let is_taken = |name: &str| format!("libvirt:{name}").parse::<Source>().is_ok();
        format!("libvirt:{}", if is_taken(&domain.name) { &domain.name } else { &domain.uuid })
    }

    fn document(domain: &Running, mounts: &[PathBuf]) -> Value {
        let disk = |disk: &RunningDisk| json!({ "name": disk.name, "size": disk.size });
        let disks = domain.disks.as_ref().map(|disks| disks.iter().map(disk).collect::<Vec<_>>());
        let mounts: Vec<_> = mounts.iter().map(|path| path.to_string_lossy()).collect();
        json!({
            "source": source(domain), "name": domain.name, "uuid": domain.uuid, "disks": disks,
            "checkpoints": domain.checkpoints, "backup": domain.backup, "mounts": mounts,
        })
    }

    /// One line: what to mount, and how it is.
    fn row(domain: &Running, mounts: &[PathBuf]) -> Vec<String> {
        let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let disks = domain.disks.as_ref().map_or_else(
            || "disks not told".to_owned(),
            |disks| {
                let total = disks.iter().fold(0, |total: u64, disk| total.saturating_add(disk.size));
                format!("{}, {}", count(disks.len(), "disk"), size(total))
            },
        );
        let checkpoints =
            domain.checkpoints.map_or_else(|| "checkpoints not told".to_owned(), |has| count(has, "checkpoint"));
        let backup = if domain.backup == Some(true) { "in backup" } else { "" };
        let mounts: Vec<String> = mounts.iter().map(|path| plain(&path.to_string_lossy())).collect();
        let mounted = if mounts.is_empty() { String::new() } else { format!("on {}", mounts.join(", ")) };
        vec![plain(&source(domain)), domain.uuid.clone(), disks, checkpoints, backup.to_owned(), mounted]
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn domain(name: &str) -> Running {
            let disk = RunningDisk { name: "vda".to_owned(), size: 1 << 30 };
            Running {
                name: name.to_owned(),
                uuid: "5f0c".to_owned(),
                disks: Some(vec![disk]),
                checkpoints: Some(2),
                backup: Some(true),
            }
        }

        #[test]
        fn a_row_has_what_mount_takes() {
            let row = row(&domain("vm\n1"), &["/mnt/a".into(), "/b".into()]);
            assert_eq!(row, ["libvirt:vm?1", "5f0c", "1 disk, 1.0 GiB", "2 checkpoints", "in backup", "on /mnt/a, /b"]);
            assert_eq!(source(&domain("a/b")), "libvirt:5f0c", "its name cannot be given");
            let untold = Running { disks: None, checkpoints: None, backup: None, ..domain("vm") };
            let row = super::row(&untold, &[]);
            assert_eq!(row[2..], ["disks not told", "checkpoints not told", "", ""]);
            assert_eq!(document(&untold, &[])["disks"], Value::Null);
        }

        #[test]
        fn a_mount_is_of_the_libvirt_that_it_was_made_with() {
            let mounted = |path: &str, source: &str| Mounted {
                device: "0:50".to_owned(),
                path: path.into(),
                kind: "fuse.pullfs".to_owned(),
                source: source.into(),
            };
            let header = |path: &str, uri: &str| {
                Header::new("pullfs-1".into(), "libvirt:vm".into(), path.into()).through(Some(uri.to_owned()))
            };
            let mounts = Mounts {
                all: vec![
                    mounted("/system", "libvirt:vm"),
                    mounted("/session", "libvirt:vm"),
                    mounted("/other", "libvirt:vm2"),
                    mounted("/by-uuid", "libvirt:5f0c"),
                    mounted("/qmp", "qmp:/vm"),
                ],
                known: vec![
                    header("/system", "qemu+unix:///system?socket=/run/x"),
                    header("/session", "qemu:///session"),
                ],
                uri: "qemu:///system".to_owned(),
            };
            assert_eq!(mounts.of(&domain("vm")), [Path::new("/system"), Path::new("/by-uuid")]);
        }
    }
}
