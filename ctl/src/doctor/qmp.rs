//! A machine behind its monitor: the socket, QEMU, its disks, who else is there, the guest agent.

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use pullfs_fs::error::{Error, Kind, chain};
use pullfs_fs::options::Options;
use pullfs_fs::point::journal::Header;
use pullfs_fs::quiesce;
use pullfs_fs::vm::Fleece;
use pullfs_fs::vm::qmp::examine::{Able, Examiner, Others};
use pullfs_fs::vm::qmp::monitor::{Endpoint, Monitor};

use super::finding::Finding;
use super::machine::{checkpoints, disks, mounted};
use super::{limited, local, scratch};

const HANGS: &str = "see whether QEMU hangs, or waits for a disk that does";

pub(super) async fn check(monitor: &Monitor, options: &Options, living: &[Header]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let examined = machine(monitor, options, living, &mut findings).await;
    let sizes = examined.as_ref().map(|examined| examined.sizes.clone()).unwrap_or_default();
    let by_path = examined.as_ref().is_some_and(|examined| !examined.able.descriptors);
    let (dir, limit) = (options.scratch.clone(), options.scratch_limit);
    let place = monitor.endpoint().clone();
    findings.extend(
        local("scratch", move || {
            if let Err(unusable) = scratch::usable(&dir) {
                return vec![unusable];
            }
            let own = rustix::process::geteuid().as_raw();
            let reached = by_path.then(|| by_its_path(user_of(&place), own));
            let usable = Finding::ok("scratch", format!("{} can be written", dir.display()));
            [usable, scratch::space(&dir, limit, &sizes)].into_iter().chain(reached).collect()
        })
        .await,
    );
    findings.push(agent(options).await);
    findings
}

struct Examined {
    able: Able,
    /// Of the disks, in bytes.
    sizes: Vec<u64>,
}

/// The machine itself; none if there is no use in asking on.
async fn machine(
    monitor: &Monitor,
    options: &Options,
    living: &[Header],
    findings: &mut Vec<Finding>,
) -> Option<Examined> {
    let endpoint = monitor.endpoint();
    let examiner = match limited("the monitor", Examiner::connect(monitor)).await {
        Ok(examiner) => examiner,
        Err(error) => {
            findings.push(unreachable(endpoint, &error, living));
            return None;
        }
    };
    findings.push(Finding::ok("socket", format!("{endpoint} greets")));
    let able = match limited("QEMU", examiner.able(options.fleece)).await {
        Ok(able) => able,
        Err(error) => {
            let cure = if error.kind() == Kind::Timeout { HANGS } else { "update QEMU, or give another fleece=" };
            findings.push(Finding::failed("qemu", &error, cure));
            return None;
        }
    };
    findings.push(told(&able, options));
    let looked = match limited("disks", examiner.disks(&able, options.disks.as_ref())).await {
        Ok(looked) => looked,
        Err(error) => {
            findings.push(Finding::failed("disks", &error, HANGS));
            return None;
        }
    };
    findings.extend(disks(&looked.inventory, looked.refused.as_ref()));
    findings.extend(checkpoints(&looked.inventory));
    match limited("others", examiner.others()).await {
        Ok(found) => findings.extend(others(&found, options, endpoint)),
        Err(error) => findings.push(Finding::failed("others", &error, HANGS)),
    }
    Some(Examined { able, sizes: looked.inventory.disks.iter().map(|disk| disk.size).collect() })
}

fn unreachable(endpoint: &Endpoint, error: &Error, living: &[Header]) -> Finding {
    let cure = match (error.kind(), endpoint, living.first().map(mounted)) {
        (_, _, Some(mounted)) => mounted,
        (Kind::Busy, ..) => {
            let cure = "end that client, or give QEMU a socket for pullfs alone (-qmp unix:PATH,server=on,wait=off)";
            format!("{cure}; if none is there, QEMU hangs")
        }
        (Kind::Gone, Endpoint::Unix(path), _) => match std::fs::metadata(path) {
            Ok(found) if found.file_type().is_socket() => {
                "if the machine runs, see its command line for the socket it has; else start it".to_owned()
            }
            Ok(_) => "it is no socket: name the one of QEMU's -qmp".to_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                "run it as root or as the machine's user".to_owned()
            }
            Err(_) => "name the socket of QEMU's -qmp, and see that the machine runs".to_owned(),
        },
        (Kind::Denied, Endpoint::Tcp { .. }, _) => "give certificates that fit with -o tls=DIR".to_owned(),
        (Kind::Denied, ..) => "run it as root or as the machine's user".to_owned(),
        _ => "see that QEMU runs, and that this is its monitor (-qmp, not -monitor)".to_owned(),
    };
    Finding::wrong("socket", chain(error), cure)
}

fn told(able: &Able, options: &Options) -> Finding {
    let way = match able.fleece {
        Fleece::Job => "job",
        Fleece::Backing => "backing",
        Fleece::Filter => "filter",
    };
    if options.read_once && able.fleece == Fleece::Backing {
        let what = format!("read_once needs fleece=job or filter, which QEMU {} cannot do safely", able.version);
        return Finding::wrong("qemu", what, "leave read_once out, or update QEMU to 9.0 or later");
    }
    let handed = if able.descriptors { "is handed files (add-fd)" } else { "opens files by their paths" };
    Finding::ok("qemu", format!("{}, keeps points in time by fleece={way}, {handed}", able.version))
}

fn others(found: &Others, options: &Options, source: &Endpoint) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let (false, None) = (found.exports.is_empty(), &options.nbd) {
        let what = format!("the machine's only NBD server is in use (exports {})", found.exports.join(", "));
        findings.push(Finding::wrong("others", what, "let that finish, or name its socket with -o nbd=unix:PATH"));
    }
    if !found.backups.is_empty() {
        let what = format!("other backup jobs run ({})", found.backups.join(", "));
        findings.push(Finding::wrong("others", what, "let them finish, or cancel them"));
    }
    for mount in &found.mounts {
        let what = format!("{mount} has things in the machine");
        let cure = format!("if no other monitor has a mount that lives: pullfs recover {source}");
        findings.push(Finding::hint("others", what, cure));
    }
    if findings.is_empty() {
        findings.push(Finding::ok("others", "no other backup is in the way"));
    }
    findings
}

/// Who QEMU runs as, as far as its socket tells.
fn user_of(endpoint: &Endpoint) -> Option<u32> {
    match endpoint {
        Endpoint::Unix(path) => std::fs::metadata(path).ok().map(|found| found.uid()),
        Endpoint::Tcp { .. } => None,
    }
}

/// Whether a QEMU that is handed no files, and runs as `user`, gets at those of the user `own`.
fn by_its_path(user: Option<u32>, own: u32) -> Finding {
    const CHECK: &str = "scratch-reach";
    match user {
        Some(user) if user == 0 || user == own => {
            Finding::ok(CHECK, format!("QEMU is handed no files, and gets at those of user {own} by their paths"))
        }
        Some(user) => {
            let what = format!("QEMU is handed no files, runs as user {user}, and does not get at those of user {own}");
            Finding::wrong(CHECK, what, "run pullfs as that user, or QEMU as root")
        }
        None => {
            let what = "over TCP QEMU is handed no files";
            Finding::hint(CHECK, what, "it has to see this host's directories, and to run as root or as this user")
        }
    }
}

async fn agent(options: &Options) -> Finding {
    const CHECK: &str = "agent";
    let Some(path) = &options.agent else {
        let what = "no guest agent is named";
        return Finding::hint(CHECK, what, "to freeze file systems for the instant: -o agent=PATH (docs/quiesce.md)");
    };
    match limited("the guest agent", quiesce::examine(path)).await {
        Ok(()) => Finding::ok(CHECK, format!("{} answers, and may freeze", path.display())),
        Err(error) => {
            let cure = "start qemu-guest-agent in the guest, or mount without agent= and --quiesce (docs/quiesce.md)";
            Finding::failed(CHECK, &error, cure)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;

    fn endpoint() -> Endpoint {
        "qmp:/run/vm.qmp".parse().unwrap()
    }

    #[test]
    fn what_others_do_is_in_the_way_or_not() {
        let states = |found: &Others, options: &Options| {
            others(found, options, &endpoint()).iter().map(|finding| finding.state).collect::<Vec<_>>()
        };
        let options = Options::default();
        assert_eq!(states(&Others::default(), &options), [State::Ok]);
        let all = Others {
            exports: vec!["a".to_owned()],
            backups: vec!["b".to_owned()],
            mounts: vec!["pullfs-0a1b2c".to_owned()],
        };
        assert_eq!(states(&all, &options), [State::Wrong, State::Wrong, State::Hint]);
        let given = Options { nbd: Some(nbd_pool::Address::Unix("/n".into())), ..options };
        assert_eq!(states(&Others { backups: Vec::new(), mounts: Vec::new(), ..all }, &given), [State::Ok]);
    }

    #[test]
    fn why_the_socket_is_of_no_use_is_told_with_what_helps() {
        let cure = |kind, living: &[Header]| {
            let found = unreachable(&endpoint(), &Error::new(kind, "no"), living);
            assert_eq!((found.check, found.state), ("socket", State::Wrong));
            found.cure.unwrap()
        };
        assert!(cure(Kind::Busy, &[]).contains("for pullfs alone"));
        assert!(cure(Kind::Denied, &[]).contains("as root"));
        assert!(cure(Kind::Gone, &[]).contains("see that the machine runs"));
        let header = Header::new("pullfs-0a1b2c".into(), "qmp:/run/vm.qmp".into(), "/mnt/a".into());
        assert!(cure(Kind::Busy, &[header]).contains("pullfs umount /mnt/a"));
    }

    #[test]
    fn who_opens_files_by_their_paths_must_be_let_in() {
        assert_eq!(by_its_path(Some(0), 1000).state, State::Ok);
        assert_eq!(by_its_path(Some(1000), 1000).state, State::Ok);
        assert_eq!(by_its_path(Some(64055), 0).state, State::Wrong);
        assert_eq!(by_its_path(None, 0).state, State::Hint);
    }
}
