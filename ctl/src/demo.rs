//! `pullfs demo`: a small machine, a full copy, a change, a copy of the change, and the proof that they fit.
//!
//! The machine is a paused QEMU without an operating system; what a guest would write is written by QEMU's own
//! `qemu-io`. Everything is in a temporary directory, and everything it starts it also ends.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use pullfs_fs::vm::qmp::monitor::Monitor;
use pullfs_fs::vm::qmp::transport::Qmp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::failure::Outcome;
use crate::waiting::waiting;

/// How long QEMU may take to open its sockets.
const START_LIMIT: Duration = Duration::from_secs(20);

/// How long QEMU may take to quit when asked to.
const QUIT_LIMIT: Duration = Duration::from_secs(5);

pub(crate) fn run() -> Outcome {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    runtime.block_on(show())?;
    Ok(())
}

async fn show() -> Result<()> {
    let dir = tempfile::Builder::new().prefix("pullfs-demo-").tempdir().context("cannot make a temporary directory")?;
    std::env::set_current_dir(dir.path())?;
    say("A disk with a checkpoint, and a machine (paused, without an operating system) that uses it:");
    shell("qemu-img create -q -f qcow2 vda.qcow2 64M")?;
    shell("qemu-img bitmap --add vda.qcow2 monday")?;
    let _machine = Machine::start()?;
    let guest = Qmp::connect(&Monitor::unix(Path::new("guest.qmp"))).await?;
    guest_writes(&guest, "write -P 0x11 0 8M").await?;

    say("\nIts disk as a file. Nothing happens in the machine until the first byte is read:");
    std::fs::create_dir("mnt")?;
    let mount = Mount::new()?;
    shell("ls -l mnt/current/vda mnt/checkpoints/monday/vda")?;
    shell("cp --sparse=always mnt/current/vda/disk.raw full.raw")?;
    shell("$PULLFS status mnt")?;

    say("\nThe guest goes on writing; the point in time stays what it was until it is released:");
    guest_writes(&guest, "write -P 0x22 4M 1M").await?;
    shell("cmp mnt/current/vda/disk.raw full.raw")?;
    shell("$PULLFS release mnt")?;

    say("\nWhat changed since monday, now, and only that:");
    shell("cat mnt/checkpoints/monday/vda/dirty.map")?;
    shell("cp --sparse=always mnt/checkpoints/monday/vda/delta.raw delta.raw")?;
    shell("cp mnt/checkpoints/monday/vda/dirty.json .")?;
    say("\nThe first copy with the changed extents put into it is the disk as it is now:");
    apply(Path::new("dirty.json"), Path::new("delta.raw"), Path::new("full.raw"))?;
    shell("cmp mnt/current/vda/disk.raw full.raw")?;

    say("\nUnmounted, nothing is left in the machine:");
    mount.end()?;
    let jobs = guest.execute("query-jobs", json!({})).await?;
    let exports = guest.execute("query-block-exports", json!({})).await?;
    say(&format!("query-jobs: {jobs}\nquery-block-exports: {exports}"));
    ensure!(jobs == json!([]) && exports == json!([]), "something is left in the machine");
    say("\nDone. On your own machine: pullfs mount qmp:/path/to/its/qmp/socket /mnt");
    Ok(())
}

fn say(text: &str) {
    println!("{text}");
}

/// Prints a command and runs it.
fn shell(command: &str) -> Result<()> {
    println!("$ {}", command.replace("$PULLFS", "pullfs"));
    let status = Command::new("sh")
        .args(["-c", command])
        // This very program, also if its file was replaced meanwhile.
        .env("PULLFS", format!("/proc/{}/exe", std::process::id()))
        .status()
        .with_context(|| format!("cannot run {command}"))?;
    ensure!(status.success(), "{command} failed ({status}); are qemu-system-x86 and qemu-utils installed?");
    Ok(())
}

async fn guest_writes(qmp: &Qmp, command: &str) -> Result<()> {
    say(&format!("  (the guest: {command})"));
    let line = format!("qemu-io -d /machine/peripheral/vda/virtio-backend \"{command}\"");
    let reply: Value = qmp.execute("human-monitor-command", json!({"command-line": line})).await?;
    match reply.as_str() {
        Some("") => Ok(()),
        other => bail!("the guest could not write: {other:?}"),
    }
}

#[derive(Deserialize)]
struct Extent {
    offset: u64,
    length: u64,
}

/// Copies the extents of a map from one image into another.
fn apply(map: &Path, from: &Path, into: &Path) -> Result<()> {
    let extents: Vec<Extent> = serde_json::from_slice(&std::fs::read(map)?)?;
    let (from, into) = (File::open(from)?, File::options().write(true).open(into)?);
    let mut buffer = vec![0; 1 << 20];
    for extent in extents {
        let end = extent.offset + extent.length;
        let mut at = extent.offset;
        while at < end {
            let length = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
            from.read_exact_at(&mut buffer[..length], at)?;
            into.write_all_at(&buffer[..length], at)?;
            at += u64::try_from(length)?;
        }
    }
    Ok(())
}

/// The demo's QEMU; killed when dropped.
struct Machine(Child);

impl Machine {
    fn start() -> Result<Self> {
        let arguments = [
            "-name",
            "demo",
            "-S",
            "-nodefaults",
            "-display",
            "none",
            "-accel",
            "tcg",
            "-m",
            "64",
            "-qmp",
            "unix:pull.qmp,server=on,wait=off",
            "-qmp",
            "unix:guest.qmp,server=on,wait=off",
            "-blockdev",
            "qcow2,node-name=disk,file.driver=file,file.filename=vda.qcow2",
            "-device",
            "virtio-blk-pci,id=vda,drive=disk",
        ];
        println!("$ qemu-system-x86_64 {} &", arguments.join(" "));
        let child = Command::new("qemu-system-x86_64")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start qemu-system-x86_64; is the package qemu-system-x86 installed?")?;
        let mut machine = Self(child);
        waiting("waiting for QEMU to start", || machine.opens_its_sockets())?;
        Ok(machine)
    }

    fn opens_its_sockets(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        while !(Path::new("pull.qmp").exists() && Path::new("guest.qmp").exists()) {
            if let Some(status) = self.0.try_wait()? {
                bail!("QEMU ended at once ({status})");
            }
            ensure!(Instant::now() < deadline, "QEMU opened no sockets within {} s", START_LIMIT.as_secs());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).ok();
        let deadline = Instant::now() + QUIT_LIMIT;
        waiting("waiting for QEMU to end", || {
            while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The demo's mount; unmounted when dropped.
struct Mount {
    mounted: bool,
}

impl Mount {
    fn new() -> Result<Self> {
        shell("$PULLFS mount qmp:pull.qmp mnt -o scratch=$PWD")?;
        Ok(Self { mounted: true })
    }

    fn end(mut self) -> Result<()> {
        self.mounted = false;
        shell("$PULLFS umount mnt")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.mounted
            && let Err(error) = shell("$PULLFS umount mnt").map_err(|error| anyhow!("{error:#}"))
        {
            eprintln!("pullfs: {error}");
        }
    }
}
