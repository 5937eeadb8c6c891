//! A domain of libvirt: its library, its daemon, the domain, and whether its QEMU gets to the scratch directory.

use std::path::Path;

use pullfs_fs::error::{Error, Kind, Result, chain};
use pullfs_fs::options::Options;
use pullfs_fs::point::journal::Header;
use pullfs_fs::recovery;
use pullfs_fs::vm::libvirt::elsewhere::Way;
use pullfs_fs::vm::libvirt::examine::{Agent, Busy, Doing, Examiner, Looked, room_in, try_place};
use pullfs_fs::vm::libvirt::load;
use pullfs_fs::vm::libvirt::ssh::Relay;
use pullfs_fs::vm::source::Target;
use tempfile::TempDir;

use super::access::{User, reachable};
use super::finding::Finding;
use super::machine::{checkpoints, disks, mounted};
use super::{limited, local, local_result, scratch};
use crate::status::size;

/// What Debian's libvirt confines each QEMU by, and where it takes local additions from.
const PROFILES: &str = "/etc/apparmor.d";
const ABSTRACTION: &str = "abstractions/libvirt-qemu";
/// Read by libvirt's newer profiles; the file below by all of Debian's.
const ADDITIONS: &str = "abstractions/libvirt-qemu.d";
const LOCAL: &str = "local/abstractions/libvirt-qemu";

const HANGS: &str =
    "see journalctl -u libvirtd whether it, or the domain's QEMU, hangs; to restart it leaves domains running";

pub(super) async fn check(target: &Target, options: &Options) -> Vec<Finding> {
    let uri = target.uri.clone();
    let way = match local_result("ssh", move || BySsh::open(&uri)).await {
        Ok(way) => way,
        Err(error) => return vec![Finding::failed("libvirt", &error, HANGS)],
    };
    let by = way.as_ref().map(|way| target.clone().by(way.relay.lead()));
    let findings = check_by(by.as_ref().unwrap_or(target), options).await;
    // Waits for the end of each ssh.
    local_result("ssh", move || {
        drop(way);
        Ok(())
    })
    .await
    .ok();
    findings
}

/// The way of a mount by ssh, which asks nobody, as libvirt's own might.
struct BySsh {
    // In the order in which they go.
    relay: Relay,
    _dir: TempDir,
}

impl BySsh {
    fn open(uri: &str) -> Result<Option<Self>> {
        let unable = |error| Error::with_source(Kind::Io, "cannot make a temporary directory", error);
        let dir = tempfile::tempdir().map_err(unable)?;
        let Some(mut relay) = Relay::start(uri, dir.path())? else { return Ok(None) };
        relay.listen();
        Ok(Some(Self { relay, _dir: dir }))
    }
}

async fn check_by(target: &Target, options: &Options) -> Vec<Finding> {
    let mut findings = Vec::new();
    let looked = domain(target, options, &mut findings).await;
    if let Some(name) = &options.pool {
        findings.extend(pool(target, name, looked.as_ref()).await);
        return findings;
    }
    let dir = options.scratch.clone();
    let limit = options.scratch_limit;
    findings.extend(local("scratch", move || place(&dir, limit, looked.as_ref())).await);
    findings
}

/// The domain; none if there is no use in asking on.
async fn domain(target: &Target, options: &Options, findings: &mut Vec<Finding>) -> Option<Looked> {
    if let Err(error) = load() {
        findings.push(Finding::failed("library", &error, "apt install libvirt0"));
        return None;
    }
    findings.push(Finding::ok("library", "libvirt.so.0 can be loaded"));
    let examiner = Examiner::new(target.clone());
    let versions = match limited("libvirt", examiner.versions()).await {
        Ok(versions) => versions,
        Err(error) => {
            findings.extend(unreachable(target, &error));
            return None;
        }
    };
    findings.push(Finding::ok("libvirt", format!("{} answers at {}", versions.libvirt, target.uri)));
    let qemu = format!("this host's is {}; points in time are kept by fleece=backing", versions.qemu);
    findings.push(match versions.refused() {
        Some(error) => Finding::failed("qemu", &error, "update it; domains that run in an older one take a restart"),
        None => Finding::ok("qemu", qemu),
    });
    let doing = found(findings, "domain", limited("the domain", examiner.doing()).await)?;
    findings.push(describe(&target.domain, doing));
    if doing == Doing::Nothing {
        return None;
    }
    let busy = found(findings, "others", limited("others", examiner.busy()).await)?;
    let known = local_result("mounts", || Ok(recovery::all_headers(&recovery::state_dir()))).await;
    findings.push(others(busy.as_ref(), &target.domain, &known.unwrap_or_default()));
    let looked = limited("disks", examiner.look(options.disks.as_ref())).await;
    let looked = found(findings, "disks", looked)?;
    findings.extend(disks(&looked.inventory, looked.refused.as_ref()));
    findings.extend(checkpoints(&looked.inventory));
    findings.push(agent(looked.around.agent, &target.domain));
    Some(looked)
}

/// What was asked for; else a finding that it was not told.
fn found<T>(findings: &mut Vec<Finding>, check: &'static str, asked: Result<T>) -> Option<T> {
    asked.map_err(|error| findings.push(Finding::failed(check, &error, HANGS))).ok()
}

fn unreachable(target: &Target, error: &Error) -> Vec<Finding> {
    let Target { domain, uri, .. } = target;
    let words = chain(error);
    if error.kind() == Kind::NotFound {
        let there = Finding::ok("libvirt", format!("it answers at {uri}"));
        let cure = format!("virsh -c '{uri}' list --all shows those that there are");
        return vec![there, Finding::wrong("domain", words, cure)];
    }
    vec![Finding::wrong("libvirt", words, cure_of(error, uri, &format!("dominfo {domain}")))]
}

/// What helps where libvirt does not answer; `asks` is what virsh would have to be told.
pub(super) fn cure_of(error: &Error, uri: &str, asks: &str) -> String {
    match error.kind() {
        Kind::Denied => "adduser USER libvirt and log in again, or run it as root (polkit decides who may)".to_owned(),
        Kind::Timeout => HANGS.to_owned(),
        Kind::Gone | Kind::Io if Way::of(uri).is_ssh() => format!(
            "see that ssh(1) gets there without a question, knows the host, and finds virt-ssh-helper there (of \
             libvirt-daemon, or libvirt-daemon-common), as this user; then virsh -c '{uri}' {asks} works, too"
        ),
        Kind::Gone | Kind::Io if Way::of(uri).host.is_some() => format!(
            "see that libvirtd listens there (virtproxyd-tls.socket, or libvirtd-tls.socket), and that this user may read \
             certificates that it knows (/etc/pki/CA, /etc/pki/libvirt, or pkipath= in the URI); then virsh -c '{uri}' {asks} \
             works, too"
        ),
        Kind::Gone => format!(
            "systemctl start libvirtd (or virtqemud), or name the right one with -o uri=; a socket that this user may not \
             open takes the group libvirt, or root; then virsh -c '{uri}' {asks} works, too"
        ),
        _ => format!("see whether virsh -c '{uri}' {asks} works"),
    }
}

fn describe(domain: &str, doing: Doing) -> Finding {
    match doing {
        Doing::Runs => Finding::ok("domain", format!("{domain} runs")),
        Doing::Paused => Finding::ok("domain", format!("{domain} is paused, and can be backed up")),
        Doing::Nothing => {
            let cure = format!("virsh start {domain}; disks of a domain that is off are read with qemu-nbd");
            Finding::wrong("domain", format!("{domain} does not run"), cure)
        }
    }
}

fn others(busy: Option<&Busy>, domain: &str, known: &[Header]) -> Finding {
    const CHECK: &str = "others";
    match busy {
        None => Finding::ok(CHECK, "no other backup is in the way"),
        Some(Busy::OurBackup(mount)) => {
            // It may have been mounted by another of the domain's names.
            let cure = match known.iter().find(|header| header.mount == *mount) {
                Some(header) if recovery::has_ended(header.pid) => {
                    format!("it has died: pullfs recover {}", header.source)
                }
                Some(header) => mounted(header),
                None => format!("it is {mount}, of another user or another host: unmount it there, or pullfs recover"),
            };
            Finding::wrong(CHECK, "the domain has the backup of a mount of pullfs, and can have one", cure)
        }
        Some(Busy::Backup) => {
            let cure = format!("let it finish, or virsh domjobabort {domain}");
            Finding::wrong(CHECK, "the domain has a backup already, and can have one", cure)
        }
        Some(Busy::Job) => {
            let cure = format!("let it finish (virsh domjobinfo {domain})");
            Finding::wrong(CHECK, "another job is going on in the domain", cure)
        }
    }
}

fn agent(agent: Agent, domain: &str) -> Finding {
    const CHECK: &str = "agent";
    match agent {
        Agent::Connected => Finding::ok(CHECK, "the guest agent has its channel open"),
        Agent::Disconnected => {
            let cure = "to freeze file systems for the instant: start qemu-guest-agent in the guest";
            Finding::hint(CHECK, "the guest agent does not run in the guest", cure)
        }
        Agent::Missing => {
            let cure = format!(
                "to freeze file systems for the instant: a channel org.qemu.guest_agent.0 (virsh edit {domain}), and \
                 qemu-guest-agent in the guest"
            );
            Finding::hint(CHECK, "the domain has no channel for a guest agent", cure)
        }
    }
}

/// The storage pool, which has all scratch space reserved in it.
async fn pool(target: &Target, name: &str, looked: Option<&Looked>) -> Option<Finding> {
    const CHECK: &str = "scratch";
    let sizes: Vec<u64> = looked?.inventory.disks.iter().map(|disk| disk.size).collect();
    Some(match limited(CHECK, room_in(target, name, &sizes)).await {
        Ok((room, needed)) if room < needed => {
            let what = format!("storage pool {name} has room for {}, a backup reserves {}", size(room), size(needed));
            Finding::wrong(CHECK, what, "make room there, or name another one with -o scratch=pool:NAME")
        }
        Ok((_, needed)) => Finding::ok(CHECK, format!("storage pool {name} has room for a backup, {}", size(needed))),
        Err(error) => {
            let cure =
                format!("virsh -c '{}' pool-list --all shows those that there are; one of type dir or fs", target.uri);
            Finding::failed(CHECK, &error, cure)
        }
    })
}

/// The scratch directory, where scratch images and the socket of the NBD server go.
fn place(dir: &Path, limit: Option<u64>, looked: Option<&Looked>) -> Vec<Finding> {
    if let Err(unusable) = scratch::usable(dir) {
        return vec![unusable];
    }
    let shown = dir.display();
    let Some(looked) = looked else {
        return vec![Finding::ok("scratch", format!("{shown} can be written"))];
    };
    let sizes: Vec<u64> = looked.inventory.disks.iter().map(|disk| disk.size).collect();
    let user = looked.user.map(|(user, _)| user);
    let mut findings = vec![match try_place(dir, user) {
        Ok(()) => Finding::ok("scratch", format!("{shown} takes scratch files for QEMU's user")),
        Err(error) => {
            let cure = "name a directory of ext4, xfs, btrfs or tmpfs with -o scratch=DIR that this user may write";
            Finding::failed("scratch", &error, cure)
        }
    }];
    findings.push(scratch::space(dir, limit, &sizes));
    match looked.user {
        Some((uid, gid)) => findings.push(reachable(dir, &User::new(uid, gid))),
        None => findings.push(Finding::hint(
            "scratch-reach",
            "libvirt does not say which user QEMU runs as",
            format!("see that it gets to {shown} (user= in /etc/libvirt/qemu.conf)"),
        )),
    }
    if let Some(label) = &looked.around.apparmor {
        let read = |name: &str| std::fs::read_to_string(Path::new(PROFILES).join(name)).unwrap_or_default();
        let more = std::fs::read_dir(Path::new(PROFILES).join(ADDITIONS)).into_iter().flatten().flatten();
        let more = more.filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
        let additions: Vec<String> = more.chain([read(LOCAL)]).collect();
        findings.push(apparmor(label, dir, &read(ABSTRACTION), &additions));
    }
    findings
}

/// Whether an `AppArmor` profile of libvirt's lets QEMU make the socket in the scratch directory: libvirt adds the scratch
/// images to it, and no socket.
fn apparmor(label: &str, dir: &Path, abstraction: &str, additions: &[String]) -> Finding {
    const CHECK: &str = "apparmor";
    let place = format!("{}/pullfs-", dir.display());
    let rule = format!("{place}*.libvirt/** rwk,");
    let has = |text: &String| {
        text.lines().map(str::trim_start).any(|line| !line.starts_with('#') && line.contains(place.as_str()))
    };
    let additional = additions.iter().any(has);
    if additional {
        return Finding::ok(CHECK, format!("the local additions to the profiles of libvirt name {place}"));
    }
    let file = if abstraction.contains(ADDITIONS) { format!("{ADDITIONS}/pullfs") } else { LOCAL.to_owned() };
    let cure = format!(
        "add the line  {rule}  to {PROFILES}/{file}, then apparmor_parser -r {PROFILES}/libvirt/{label}, or start the \
         domain anew"
    );
    Finding::wrong(
        CHECK,
        format!("AppArmor's profile {label} keeps QEMU from making a socket in {}", dir.display()),
        cure,
    )
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;

    #[test]
    fn apparmors_line_goes_where_this_libvirt_reads_it() {
        let dir = Path::new("/var/tmp");
        let of = |abstraction, additions: &[&str]| {
            let additions: Vec<String> = additions.iter().map(|&text| text.to_owned()).collect();
            apparmor("libvirt-1", dir, abstraction, &additions)
        };
        let old = of("#include <local/abstractions/libvirt-qemu>", &[""]);
        let cure = old.cure.unwrap();
        assert!(cure.contains("/var/tmp/pullfs-*.libvirt/** rwk,") && cure.contains("apparmor.d/libvirt/libvirt-1"));
        assert!(cure.contains("/etc/apparmor.d/local/abstractions/libvirt-qemu,"), "{cure}");
        let new = of("include if exists <abstractions/libvirt-qemu.d>", &["# /var/tmp/pullfs-*.libvirt/** rwk,"]);
        assert!(new.cure.unwrap().contains("/etc/apparmor.d/abstractions/libvirt-qemu.d/pullfs,"));
        assert_eq!(of("", &["", "  /var/tmp/pullfs-*.libvirt/** rwk,\n"]).state, State::Ok);
        assert_eq!(of("", &["/srv/pullfs-*.libvirt/** rwk,"]).state, State::Wrong, "another directory");
    }

    #[test]
    fn why_libvirt_is_not_reached_is_told_with_what_helps() {
        let target = Target::new("vm1", "qemu:///system");
        let of = |kind| unreachable(&target, &Error::new(kind, "no"));
        assert!(of(Kind::Denied)[0].cure.as_ref().unwrap().contains("adduser USER libvirt"));
        assert!(of(Kind::Gone)[0].cure.as_ref().unwrap().contains("systemctl start libvirtd"));
        assert_eq!(of(Kind::Timeout)[0].cure.as_deref(), Some(HANGS));
        let none = of(Kind::NotFound);
        assert_eq!((none[0].state, none[1].check, none[1].state), (State::Ok, "domain", State::Wrong));
    }

    #[test]
    fn what_the_domain_does_decides() {
        assert_eq!(describe("vm1", Doing::Runs).state, State::Ok);
        assert_eq!(describe("vm1", Doing::Paused).state, State::Ok);
        assert_eq!(describe("vm1", Doing::Nothing).state, State::Wrong);
        assert_eq!(others(None, "vm1", &[]).state, State::Ok);
        let ours = Busy::OurBackup("pullfs-0a1b2c".to_owned());
        for busy in [&ours, &Busy::Backup, &Busy::Job] {
            assert_eq!(others(Some(busy), "vm1", &[]).state, State::Wrong, "{busy:?}");
        }
        let mut header = Header::new("pullfs-0a1b2c".to_owned(), "libvirt:5f0c".to_owned(), "/mnt".into());
        let cure = |header: &Header| others(Some(&ours), "vm1", std::slice::from_ref(header)).cure.unwrap();
        assert!(cure(&header).contains("mounted on /mnt"), "this process lives");
        header.pid = u32::MAX;
        assert!(cure(&header).contains("pullfs recover libvirt:5f0c"), "as it was mounted");
        assert_eq!(agent(Agent::Connected, "vm1").state, State::Ok);
        assert_eq!(agent(Agent::Missing, "vm1").state, State::Hint);
    }
}
