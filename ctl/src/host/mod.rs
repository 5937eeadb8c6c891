//! `pullfs mount libvirt:`: a whole host, one directory for each domain that runs, each a mount of its own.
//!
//! ```text
//! libvirt ──(who runs)──▶ keeper ◀──(somebody looks into vm1; nobody used vm2 for a while)── the kernel's autofs on MNT
//!                           │ policy: what is to be done
//!                           └──▶ pullfs mount libvirt:UUID MNT/vm1       a process, as of any mount, on a leash
//! ```
//! A directory costs nothing until somebody looks into it; then the mount is made, and the look goes on in it. The
//! kernel says which ones nobody uses ([`autofs`]). [`policy`] decides, [`keeper`] acts, [`found`] is how other commands see
//! it; docs/adr/033-a-whole-host.md says why it is done so.
//!
//! Whoever dies when: the processes of the domains end with this one ([`crate::leash`]), each lets go of its machine and is
//! watched by its guardian; this one's guardian takes the mount away. If that died as well, nobody waits for the directory
//! either, and `pullfs umount` or the next mount removes it.

mod child;
mod found;
mod keeper;
mod names;
mod policy;
mod shown;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use autofs::{Access, Autofs};
use pullfs_fs::fuse::mount::check_mount_point;
use pullfs_fs::guardian::Recruit;
use pullfs_fs::options::Options;
use pullfs_fs::options::settings::{Origin, Resolved, Setting};
use pullfs_fs::options::table::TABLE;
use pullfs_fs::point::journal::{Header, Journal};
use pullfs_fs::vm::libvirt::mounted::detach_host;
use pullfs_fs::vm::libvirt::roster;
use pullfs_fs::vm::qmp::ids::MountId;
use pullfs_fs::vm::source::{self, Source, libvirt_of};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use self::keeper::{About, Keeper, Told};
use crate::args::Mount;
use crate::config::GENERAL;
use crate::daemon::{self, SELF};
use crate::failure::{Failure, Outcome};
use crate::log::{self, Fields};
use crate::mount::background;
use crate::runtime_dir::RuntimeDir;
use crate::service;

pub(crate) use found::Found;

/// The source, which those of the domains begin with.
const SOURCE: &str = source::HOST;

/// After how long a domain that nobody uses is unmounted.
const EXPIRE: Duration = Duration::from_secs(600);

/// What libvirt told and nobody has looked at.
const TOLD: usize = 4;

/// What still blocks when all is done is left behind.
const REST_LIMIT: Duration = Duration::from_secs(1);

/// `pullfs mount libvirt: MNT`.
pub(crate) fn mount(arguments: &Mount, resolved: Resolved) -> Outcome {
    source::fit(&Source::Host, &resolved.options)?;
    let uri = libvirt_of(resolved.options.uri.as_deref())?;
    if !rustix::process::geteuid().is_root() {
        let why = "mounting a whole host takes root, because the kernel's automounter does; mount single domains";
        return Err(Failure::from(anyhow::anyhow!(why)).of_mount());
    }
    if let Some(found) = Found::find(&arguments.mount_point)?
        && found.is_dead()
    {
        found.bury().map_err(Failure::of_mount)?;
    }
    let mount_point = check_mount_point(&arguments.mount_point).map_err(|error| Failure::from(error).of_mount())?;
    let task = Task { mount_point, uri, resolved, announce: arguments.announce, verbose: arguments.verbose };
    if arguments.foreground {
        return run(&task).map_err(Failure::of_mount);
    }
    // What the kernel answers for says nothing of the daemon.
    background(arguments, SOURCE, &task.mount_point, |_| Ok(())).map_err(Failure::of_mount)
}

/// What the daemon is to do.
struct Task {
    /// Absolute, checked.
    mount_point: PathBuf,
    uri: String,
    resolved: Resolved,
    announce: bool,
    verbose: u8,
}

fn run(task: &Task) -> Outcome {
    let level = ["warn", "info", "debug"][usize::from(task.verbose.min(2))];
    let id = MountId::random();
    let fields = Fields::of("host").of_mount(SOURCE, &task.mount_point);
    log::start(level, task.announce, &fields.with("PULLFS_MOUNT_ID", &id.to_string()));
    daemon::end_with_a_panic();
    pullfs_fs::vm::libvirt::load()?;
    let runtime_dir = RuntimeDir::create(&id)?;
    let header = Header::new(id.to_string(), SOURCE.to_owned(), task.mount_point.clone());
    let journal = Journal::create(runtime_dir.path(), header.through(Some(task.uri.clone())))?;
    let recruit = Recruit::start(Path::new(SELF), runtime_dir.path(), task.announce)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    let outcome = runtime.block_on(live(task, runtime_dir, recruit));
    runtime.shutdown_timeout(REST_LIMIT);
    drop(journal);
    outcome
}

async fn live(task: &Task, runtime_dir: RuntimeDir, recruit: Recruit) -> Outcome {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let guardian = recruit.on_post().await?;
    let (tell, mut told) = mpsc::channel::<Told>(TOLD);
    roster::watch(task.uri.clone(), move |news| tell.blocking_send(news).is_ok())?;
    let members = told.recv().await.context("the thread that asks libvirt is gone")??;
    let (autofs, requests) = Autofs::mount(SOURCE, &task.mount_point, access(&task.resolved.options))
        .with_context(|| format!("cannot mount the kernel's automounter on {}", task.mount_point.display()))?;
    // From here on nothing that this process does itself waits for it. Not before: see `daemon::live`.
    let led = lead(task.announce);
    let about = About {
        uri: task.uri.clone(),
        options: options(&task.resolved, &task.uri),
        verbose: task.verbose,
        expire: task.resolved.options.expire.unwrap_or(EXPIRE),
        dir: runtime_dir.path().to_owned(),
    };
    let mut kept_by = None;
    let kept = match led.and_then(|()| Keeper::new(autofs, about, &members)) {
        Ok(mut keeper) => {
            tracing::info!("{SOURCE} is mounted on {}", task.mount_point.display());
            if task.announce {
                daemon::announce()?;
            }
            if let Err(error) = service::ready(std::env::var_os(service::SOCKET).as_deref()) {
                tracing::warn!("{error:#}");
            }
            let end = async {
                tokio::select! {
                    _ = terminate.recv() => tracing::info!("told to end"),
                    _ = interrupt.recv() => tracing::info!("interrupted"),
                }
            };
            let ended = keeper.run(requests, told, end).await;
            kept_by = Some(keeper);
            ended
        }
        Err(error) => Err(error),
    };
    let detached = detach_host(&task.mount_point, std::process::id());
    // Not before: who looked meanwhile would be shown an empty directory.
    if let Some(keeper) = kept_by {
        keeper.abandon();
    }
    if kept.is_ok() && detached.is_ok() {
        drop(runtime_dir);
        guardian.dismiss().await;
    } else {
        runtime_dir.keep();
    }
    kept?;
    Ok(detached?)
}

/// Makes this process the first of its group, and lets go of the terminal in the background.
fn lead(background: bool) -> anyhow::Result<()> {
    if rustix::process::getpgrp() == rustix::process::getpid() {
        return Ok(());
    }
    let led = if background { rustix::process::setsid().map(drop) } else { rustix::process::setpgid(None, None) };
    led.context("cannot begin a process group")
}

/// Who may look into the directory. Without `allow_other` nobody else gets into what is mounted in it.
fn access(options: &Options) -> Access {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    if options.allow_other {
        let mode = 0o555 & !options.umask;
        Access { uid: options.uid.unwrap_or(uid), gid: options.gid.unwrap_or(gid), mode }
    } else {
        Access { uid, gid, mode: 0o500 }
    }
}

/// The options of the domains' mounts: what was said for this one. What is said for all mounts they find out by themselves.
fn options(resolved: &Resolved, uri: &str) -> Vec<String> {
    let of_section = |setting: &&Setting| matches!(&setting.origin, Origin::File { section, .. } if section != GENERAL);
    let in_file = TABLE.iter().filter_map(|option| resolved.decided(option.name())).filter(of_section);
    let given = in_file.chain(resolved.over_files()).map(|setting| match &setting.value {
        Some(value) => format!("{}={}", setting.name, value.replace(',', "\\,")),
        None => setting.name.clone(),
    });
    given.chain([format!("uri={}", uri.replace(',', "\\,"))]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_mounted_with_what_was_said_for_the_host() {
        let section = |section: &str| Origin::File { file: "f".to_owned(), section: section.to_owned(), line: 1 };
        let setting = |text: &str, origin| Setting::one(text.to_owned(), origin);
        let settings = [
            setting("cache=1M", section(GENERAL)),
            setting("max_rate=1M", section("source.\"libvirt:\"")),
            setting("disks=a,b", Origin::Given),
            setting("polite", Origin::Given),
            setting("metrics=default", Origin::Given),
        ];
        let resolved = Resolved::of(settings).unwrap();
        let options = options(&resolved, "qemu:///system");
        assert_eq!(options, ["max_rate=1M", "disks=a\\,b", "metrics=default", "polite", "uri=qemu:///system"]);
    }

    #[test]
    fn others_come_in_only_where_they_may() {
        let owner = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let alone = access(&Options { uid: Some(7), umask: 0, ..Options::default() });
        assert_eq!((alone.uid, alone.mode), (owner.0, 0o500), "the mounts in it are for nobody else");
        let others = access(&Options { uid: Some(7), umask: 0o027, allow_other: true, ..Options::default() });
        assert_eq!(others, Access { uid: 7, gid: owner.1, mode: 0o550 });
    }
}
