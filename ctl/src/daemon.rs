//! The daemon of one mount: starts the guardian, gives up what it does not need itself, brings up the machine's connection,
//! the file system and the mount, in this order, and takes them down in the reverse one. What it cannot take down is left to
//! the guardian.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use nbd_pool::Address;
use pullfs_fs::error::chain;
use pullfs_fs::fs::{Fs, Sandbox};
use pullfs_fs::fuse::mount::Mount;
use pullfs_fs::fuse::{Forgetter, serve};
use pullfs_fs::guardian::Recruit;
use pullfs_fs::guest::Children;
use pullfs_fs::metrics::{Exporter, Identity, Outlet, Target};
use pullfs_fs::options::Options;
use pullfs_fs::options::settings::Resolved;
use pullfs_fs::point::journal::{Header, Journal};
use pullfs_fs::recovery;
use pullfs_fs::tree::inode::Inodes;
#[cfg(feature = "libvirt")]
use pullfs_fs::vm::libvirt::elsewhere::{Elsewhere, Way};
#[cfg(feature = "libvirt")]
use pullfs_fs::vm::libvirt::ssh::Relay;
use pullfs_fs::vm::qmp::ids::MountId;
use pullfs_fs::vm::qmp::monitor::Endpoint;
use pullfs_fs::vm::source::Reach;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::failure::{Code, Failure, Outcome};
use crate::harden::{self, Needs};
use crate::leash::Leash;
use crate::log::{self, Fields};
use crate::machine::{self, Connected};
use crate::mounter::Mounter;
use crate::runtime_dir::RuntimeDir;
use crate::service;

/// What the daemon says when the mount answers.
pub(crate) const READY: &str = "ready";

/// How long letting go of the machine may take at the end. Each step has its own limit; this is for all of them.
const END_LIMIT: Duration = Duration::from_secs(120);

/// How long readers may take to notice that the mount is gone.
const SESSION_LIMIT: Duration = Duration::from_secs(5);

/// What the daemon is to do.
pub(crate) struct Task {
    pub(crate) source: String,
    pub(crate) reach: Reach,
    /// Absolute, checked.
    pub(crate) mount_point: PathBuf,
    pub(crate) resolved: Resolved,
    /// The configuration file that was asked.
    pub(crate) config: PathBuf,
    /// Whether somebody waits for [`READY`] on standard output.
    pub(crate) announce: bool,
    /// Whether it ends with whoever holds the other end of standard input.
    pub(crate) leashed: bool,
    pub(crate) verbose: u8,
}

pub(crate) fn run(task: Task) -> Outcome {
    let level = ["warn", "info", "debug"][usize::from(task.verbose.min(2))];
    let mount_id = MountId::random();
    let fields = Fields::of("daemon").of_mount(&task.source, &task.mount_point);
    log::start(level, task.announce, &fields.with("PULLFS_MOUNT_ID", &mount_id.to_string()));
    end_with_a_panic();
    let runtime_dir = RuntimeDir::create(&mount_id)?;
    clean_up(&task.source, task.reach.uri())?;
    let options = &task.resolved.options;
    let Options { tls, insecure, .. } = options;
    let header = Header::new(mount_id.to_string(), task.source.clone(), task.mount_point.clone())
        .reached_with(tls.clone(), *insecure)
        .through(task.reach.uri().map(str::to_owned))
        .with_textfile(options.metrics.as_ref().and_then(Target::file).cloned());
    // A port below 1024 takes privileges, and listening anywhere more than the daemon keeps.
    let outlet = options.metrics.as_ref().map(|target| Outlet::open(target, &mount_id.to_string())).transpose()?;
    let journal = Journal::create(runtime_dir.path(), header)?;
    // The last of what is here to end, when everything has been taken back.
    #[cfg(feature = "libvirt")]
    let (task, mut relay) = lead(task, &runtime_dir)?;
    // These two keep the privileges that mounting and unmounting take.
    let recruit = Recruit::start(Path::new(SELF), runtime_dir.path(), task.announce)?;
    let mounter = Mounter::start()?;
    #[cfg(feature = "libvirt")]
    if matches!(task.reach, Reach::Libvirt(_)) {
        pullfs_fs::vm::libvirt::load()?;
    }
    let sandbox = harden::apply(&needs(&task, &runtime_dir))?;
    #[cfg(feature = "libvirt")]
    relay.iter_mut().for_each(Relay::listen);
    let start = Start { mount_id, runtime_dir, journal, recruit, mounter, sandbox, outlet };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("pullfs")
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let outcome = runtime.block_on(live(task, start));
    // A read of a machine that hangs must not keep the process.
    runtime.shutdown_timeout(SESSION_LIMIT);
    outcome
}

/// Starts what leads to a libvirt by ssh, which the daemon may not do later, and sends it that way.
#[cfg(feature = "libvirt")]
fn lead(task: Task, runtime_dir: &RuntimeDir) -> Outcome<(Task, Option<Relay>)> {
    let Reach::Libvirt(target) = &task.reach else { return Ok((task, None)) };
    let Some(relay) = Relay::start(&target.uri, runtime_dir.path())? else { return Ok((task, None)) };
    let reach = Reach::Libvirt(target.clone().by(relay.lead()));
    Ok((Task { reach, ..task }, Some(relay)))
}

/// A daemon of which a part has died must not go on holding a point in time: the guardian cleans up after all of it.
pub(crate) fn end_with_a_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        // In the background that goes nowhere.
        tracing::error!("{panic}");
        std::process::abort();
    }));
}

/// The program itself, even after its file was replaced.
pub(crate) const SELF: &str = "/proc/self/exe";

/// Removes what dead mounts of the same source, through the same libvirt, have left, with the privileges that this takes; the
/// machine must be as it was before them.
pub(crate) fn clean_up(source: &str, uri: Option<&str>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    let (dead, _) = runtime.block_on(recovery::of_source(&recovery::state_dir(), source, uri))?;
    for dead in dead {
        if let Some(uri) = uri {
            // libvirt's library starts a thread that lives on; what is born in this process before it gives up its
            // privileges would keep them.
            drop(dead);
            return clean_up_elsewhere(source, uri);
        }
        let mount = dead.header().mount.clone();
        let buried = runtime.block_on(dead.bury());
        buried.map_err(|error| error.context(format!("cannot remove what the dead mount {mount} left")))?;
        tracing::info!("removed what the dead mount {mount} left");
    }
    Ok(())
}

/// The same, by a process of its own.
fn clean_up_elsewhere(source: &str, uri: &str) -> Outcome {
    let option = format!("uri={}", uri.replace(',', "\\,"));
    let output = std::process::Command::new(SELF)
        .args(["recover", "-o", &option, "--", source])
        .stdin(std::process::Stdio::null())
        .output();
    let output = output.context("cannot start pullfs recover")?;
    let code = output.status.code();
    // Another mount of the source that lives is no failure of this.
    if code != Some(0) && code != Some(Code::Busy as i32) {
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(anyhow!("cannot remove what a dead mount of {source} left: {why}").into());
    }
    Ok(())
}

/// What was made while the daemon still had its privileges.
struct Start {
    mount_id: MountId,
    runtime_dir: RuntimeDir,
    journal: Journal,
    recruit: Recruit,
    mounter: Mounter,
    sandbox: Sandbox,
    outlet: Option<Outlet>,
}

async fn live(task: Task, start: Start) -> Outcome {
    let Start { mount_id, runtime_dir, journal, recruit, mounter, sandbox, outlet } = start;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let leash = Leash::new(task.leashed)?;
    let guardian = recruit.on_post().await?;
    let Connected { vm, throttle, meter } = machine::connect(&task, &mount_id, runtime_dir.path(), journal).await?;

    let inodes = Arc::new(Inodes::new(&task.source));
    let forgetter = Arc::new(Forgetter::default());
    let (told, forgets) = (inodes.clone(), forgetter.clone());
    let invalidate = Arc::new(move || forgets.forget(&told));
    let owner = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let options = task.resolved.options.clone();
    let allow_other = options.allow_other;
    let fs = Fs::new(vm.clone(), options, mount_id.to_string(), owner, inodes, invalidate, guardian.pid());
    let fs = fs.configured(task.resolved, task.config).sandboxed(sandbox).throttled(throttle);
    let fs = fs.mounted_on(task.mount_point.clone()).reading_inside(Arc::new(Children::new(Path::new(SELF))));
    let fs = Arc::new(if outlet.is_some() { fs.metered(meter) } else { fs });
    let exporter = match outlet {
        Some(outlet) => {
            let identity = Identity { source: task.source.clone(), mount: task.mount_point.display().to_string() };
            Some(Exporter::start(outlet, fs.clone(), identity).await?)
        }
        None => None,
    };
    let (mount, device) = {
        let (source, mount_point) = (task.source.clone(), task.mount_point.clone());
        mounter.run(move || Mount::new(&source, &mount_point, allow_other)).await??
    };
    // A terminal that closes must not take the mount with it. Not before: under an automounter only its own process group gets
    // past the placeholder while the mount is being made.
    if task.announce
        && let Err(error) = rustix::process::setsid()
    {
        guardian.detach(&mount).await.ok();
        return Err(anyhow::Error::new(error).context("cannot leave the terminal").into());
    }
    let serving = {
        let fs = fs.clone();
        let forgetter = forgetter.clone();
        let runtime = tokio::runtime::Handle::current();
        // Shaking hands waits for the kernel.
        tokio::task::spawn_blocking(move || {
            let _inside = runtime.enter();
            serve(fs, device, allow_other, &forgetter)
        })
        .await
        .context("the FUSE session panicked")?
    };
    let serving = match serving {
        Ok(serving) => serving,
        Err(error) => {
            guardian.detach(&mount).await.ok();
            return Err(error.into());
        }
    };

    let (ended, mut session) = oneshot::channel();
    std::thread::Builder::new()
        .name("fuse".to_owned())
        .spawn(move || ended.send(serving.run()))
        .context("cannot start the FUSE thread")?;
    tracing::info!("{} is mounted on {}", task.source, task.mount_point.display());
    if task.announce {
        announce()?;
    }
    if let Err(error) = service::ready(std::env::var_os(service::SOCKET).as_deref()) {
        // It ends the mount in its own way when it has waited long enough.
        tracing::warn!("{error:#}");
    }

    tokio::select! {
        outcome = &mut session => {
            if let Ok(Err(error)) = outcome {
                tracing::warn!("the FUSE session broke: {error}");
            }
        }
        _ = terminate.recv() => tracing::info!("told to end"),
        _ = interrupt.recv() => tracing::info!("interrupted"),
        () = leash.cut() => tracing::info!("the mount of the whole host has ended"),
    }
    // Detached first, so that nobody begins anything new; a mount that was unmounted is not there any more.
    let detached = guardian.detach(&mount).await;
    if let Err(error) = &detached {
        tracing::warn!("{}", chain(error));
    }
    let released = timeout(END_LIMIT, fs.points().end()).await;
    if let Some(exporter) = exporter {
        exporter.end().await;
    }
    vm.disconnect().await;
    if !session.is_terminated() && timeout(SESSION_LIMIT, session).await.is_err() {
        tracing::info!("files are still open; their readers get errors from now on");
    }
    if vm.is_clean() && detached.is_ok() {
        drop(runtime_dir);
        guardian.dismiss().await;
    } else {
        // The guardian tries on when this process has ended, and `recover` may do what it may not.
        runtime_dir.keep();
    }
    match released {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Failure::from(error)),
        Err(_) => Err(anyhow!("the machine did not let go within {} s", END_LIMIT.as_secs()).into()),
    }
}

fn needs<'a>(task: &'a Task, runtime_dir: &'a RuntimeDir) -> Needs<'a> {
    let options = &task.resolved.options;
    let mut ports = match &options.nbd {
        Some(Address::Tcp { port, .. }) => vec![*port],
        Some(Address::Unix(_)) | None => Vec::new(),
    };
    let (libvirt, certificates) = match &task.reach {
        Reach::Qmp(monitor) => {
            if let Endpoint::Tcp { port, .. } = monitor.endpoint() {
                ports.push(*port);
            }
            (false, Vec::new())
        }
        #[cfg(feature = "libvirt")]
        Reach::Libvirt(target) => {
            let way = Way::of(&target.uri);
            ports.extend(way.library_port());
            // Whatever is wrong with it is said when it is used.
            if let Ok(Some(elsewhere)) = Elsewhere::of(&target.uri, options) {
                ports.extend(elsewhere.ports());
            }
            (true, way.certificates())
        }
    };
    Needs {
        runtime: runtime_dir.base(),
        scratch: &options.scratch,
        textfiles: options.metrics.as_ref().and_then(Target::file).and_then(|file| file.parent()),
        ports,
        certificates: options.tls.iter().cloned().chain(certificates).collect(),
        libvirt,
        core_dumps: options.core_dumps,
        sandbox: options.sandbox,
    }
}

/// Tells who waits, and lets go of the terminal: what is written there from now on would come as a surprise.
pub(crate) fn announce() -> anyhow::Result<()> {
    std::env::set_current_dir("/").context("cannot leave the current directory")?;
    let mut out = std::io::stdout();
    // Whoever waited may have given up; the mount stays.
    writeln!(out, "{READY}").and_then(|()| out.flush()).ok();
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").context("cannot open /dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use rustix::process::{Resource, Rlimit, Signal, setrlimit};

    use super::*;

    /// Set for the process that is to die.
    const DIES: &str = "PULLFS_TEST_DIES";

    #[test]
    fn a_panic_in_any_thread_ends_the_daemon() {
        if std::env::var_os(DIES).is_some() {
            setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).unwrap();
            end_with_a_panic();
            std::thread::spawn(|| panic!("a part of it dies")).join().ok();
            return;
        }
        let name = "daemon::tests::a_panic_in_any_thread_ends_the_daemon";
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(DIES, "yes")
            .output()
            .unwrap();
        assert_eq!(output.status.signal(), Some(Signal::ABORT.as_raw()), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("a part of it dies"), "it says why");
    }
}
