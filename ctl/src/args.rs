//! The command line, as one plain value. The manual pages are made from the same definitions (`manuals/`).

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use pullfs_fs::options::table::{TABLE, live_names};

const SYNC: &str = "\
A copy fits the checkpoint that was made together with the point in time it was copied from; sync refuses any other. \
It may be interrupted at any moment and run again.";

const RECOVER: &str = "\
A mount that dies is cleaned up by its guardian process, and by the next mount of the same machine. This is for when both \
were killed. It undoes what the journals of dead mounts name; a mount that lives is left alone.";

const DOCTOR: &str = "\
Each line is ok, a hint (a mount works, and may be less than expected) or WRONG (a mount, or a point in time, would fail), \
with what to do. Nothing is made in the machine and no point in time is taken. Whoever does not answer is a finding after \
half a minute at most. The exit code is 0 when nothing is wrong, 2 when something is, 1 for a source that is none.";

const CONFIG: &str = "\
Of several who set an option the last one decides: /etc/pullfs/config.toml (or the file that the environment variable \
PULLFS_CONFIG names) with its section [options] and that of the machine, an environment variable such as PULLFS_MAX_RATE, \
-o. What is shown may be given to -o; name=default takes a setting back.";

const SET: &str = "\
Readers who are under way have it from their next request on. The point in time that is held stays: what would end it at once \
is refused (exit code 4). It counts until the next set, pullfs reload or the end of the mount; name=default takes the option \
back to what is built in.";

const RELOAD: &str = "\
Reads the configuration file that the mount was made with, and the options and environment that it was given then, as a new \
mount would. What differs from what is in force and can be changed is, also what pullfs set has changed. For each option \
that differs and cannot, a line on standard error says so, and the exit code is 0. With a mistake in the file nothing is \
changed (exit code 1); what would end the point in time that is held at once is left as it is (exit code 4).";

const STATUS: &str = "\
--watch ends with Ctrl-C, or when the mount goes away (exit code 3). On a terminal it redraws in place; elsewhere it prints \
one block, with --json one line, for each reading. Rates are between two readings. Of a whole host (libvirt:) it shows each \
domain that runs: idle, mounted, or why it is not.";

const LIST: &str = "\
One line for each running domain: what pullfs mount takes, the UUID, disks (drives with a medium among them) and their sizes \
together, checkpoints, whether it has a backup now, and where it is mounted. Nothing is waited for that goes on in a domain: \
what it would take for that is not told. Machines that libvirt does not know are not found.";

const SAVE: &str = "\
libvirt forgets the checkpoints of a transient domain when that ends, and knows none of a domain whose disks came from another \
host; the bitmaps are in the images. Save this after each mkdir or rmdir of a checkpoint, beside the backups: of two that had \
the same name nobody can tell which one is described.";

const REDEFINE: &str = "\
The files are what save printed, or descriptions as virsh checkpoint-dumpxml prints them and virtnbdbackup keeps them. The \
domain must run. A checkpoint is left out, with the reason, if a bitmap of it is missing or broken, or if it did not come \
after the one that it is said to have come after. Those that libvirt knows are left alone, and nothing is made in the \
machine. The exit code is 0 when libvirt knows all that are described, else 2.";

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 wrong usage; 2 the system or the machine failed; 3 nothing held, or not found; 4 busy; \
32 mount failed.";

/// Mount the backups of running QEMU virtual machines as plain files.
#[derive(Debug, Parser)]
#[command(name = "pullfs", version, after_help = EXIT_CODES, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Mount a machine; returns when the mount answers
    #[command(after_help = mount_options())]
    Mount(Mount),
    /// Unmount, and wait until nothing of it is left in the machine
    #[command(alias = "unmount")]
    Umount(MountPoint),
    /// Show the machine, its disks and checkpoints, and the point in time; without MNT, all mounts
    #[command(after_help = STATUS)]
    Status(Status),
    /// List the machines of libvirt that can be mounted
    #[command(after_help = LIST)]
    List(List),
    /// Take a point in time of all disks now
    Begin(Begin),
    /// Let go of the point in time; files still open on it become stale
    Release(MountPoint),
    /// Make, list and delete checkpoints
    #[command(subcommand)]
    Checkpoint(Checkpoint),
    /// Show a map for people: totals, and a picture of where a disk changed
    Map(Map),
    /// Bring a full raw copy of a disk up to date in place
    #[command(after_help = SYNC)]
    Sync(Sync),
    /// Show the mount options that are in force, and who says so
    #[command(after_help = CONFIG)]
    Config(Config),
    /// Change a mount option of a machine that is mounted
    #[command(after_help = set_options())]
    Set(Set),
    /// Read the configuration anew, and change the options of a mount that can be changed
    #[command(after_help = RELOAD)]
    Reload(MountPoint),
    /// Remove what mounts that were killed have left in a machine; touches nothing else
    #[command(after_help = RECOVER)]
    Recover(Recover),
    /// Check all that a mount needs, and say what to do about what is wrong; changes nothing
    #[command(after_help = DOCTOR)]
    Doctor(Doctor),
    /// Start a small machine and show what pullfs does with it
    Demo,
    /// Clean up after a daemon that dies; pullfs starts this for itself
    #[command(hide = true)]
    Guardian {
        /// The mount's own directory, with its journal
        dir: PathBuf,
    },
    /// Keep a guest frozen for a moment; pullfs starts this for itself
    #[command(hide = true)]
    ThawGuard {
        /// The guest agent's socket
        agent: PathBuf,
    },
    /// Lead to a libvirt by ssh; pullfs starts this for itself
    #[command(hide = true)]
    SshRelay {
        /// The libvirt, `qemu+ssh://HOST/system`
        uri: String,
        /// Where to listen
        socket: PathBuf,
    },
    /// Read partitions and file systems of a guest; pullfs starts this for itself
    #[command(hide = true)]
    LookInside,
}

#[derive(Debug, Args)]
pub(crate) struct Mount {
    /// The machine: qmp:PATH, its QMP socket, qmp:HOST:PORT with the mount option tls=, or libvirt:DOMAIN; libvirt: for all
    /// domains that run
    pub(crate) source: String,
    /// An empty directory
    pub(crate) mount_point: PathBuf,
    /// Mount options, see below; may be given several times
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub(crate) options: Vec<String>,
    /// Stay in the foreground, messages on standard error
    #[arg(short, long)]
    pub(crate) foreground: bool,
    /// More messages; twice for all (the environment variable `RUST_LOG` takes precedence)
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Say on standard output when the mount answers, then leave the terminal alone
    #[arg(long, hide = true, requires = "foreground")]
    pub(crate) announce: bool,
    /// End when standard input is closed
    #[arg(long, hide = true, requires = "foreground")]
    pub(crate) leashed: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Config {
    /// A machine, for the section that the configuration file may have for it
    pub(crate) source: Option<String>,
    /// Mount options, as they would be given to mount
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub(crate) options: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Set {
    /// Where the machine is mounted
    pub(crate) mount_point: PathBuf,
    /// The option: NAME=VALUE, or NAME for one that is on or off
    pub(crate) option: String,
}

#[derive(Debug, Args)]
pub(crate) struct Recover {
    /// The machine, as it was mounted: qmp:PATH, qmp:HOST:PORT or libvirt:DOMAIN
    pub(crate) source: String,
    /// For HOST:PORT the mount options tls= or insecure; for libvirt uri=, or else it is for mounts through any libvirt
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub(crate) options: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// The machine, as it would be mounted: qmp:PATH, qmp:HOST:PORT, libvirt:DOMAIN or libvirt:
    pub(crate) source: String,
    /// Mount options, as they would be given to mount
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub(crate) options: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// When to use colours; `auto`: on a terminal, unless `NO_COLOR` or `TERM=dumb` is set
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: clap::ColorChoice,
}

#[derive(Debug, Args)]
pub(crate) struct MountPoint {
    /// Where the machine is mounted
    pub(crate) mount_point: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Where the machine is mounted
    pub(crate) mount_point: Option<PathBuf>,
    /// Print JSON; without `MOUNT_POINT`, an array
    #[arg(long)]
    pub(crate) json: bool,
    /// Show it again and again, with rates, so many seconds apart
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "2",
          value_parser = clap::value_parser!(u32).range(1..=86400), requires = "mount_point")]
    pub(crate) watch: Option<u32>,
    /// When to use colours; `auto`: on a terminal, unless `NO_COLOR` or `TERM=dumb` is set
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: clap::ColorChoice,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// The mount option uri=, which libvirt
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub(crate) options: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Shown {
    /// Where the machine is mounted
    pub(crate) mount_point: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Begin {
    /// Where the machine is mounted
    pub(crate) mount_point: PathBuf,
    /// Make a checkpoint of this name at the same instant
    #[arg(long, value_name = "NAME")]
    pub(crate) checkpoint: Option<String>,
    /// Of a libvirt machine: have the changes since this checkpoint, and not since the newest
    #[arg(long, value_name = "NAME", conflicts_with = "checkpoint")]
    pub(crate) since: Option<String>,
    /// Freeze the guest's file systems for the instant, through its agent (mount option agent=)
    #[arg(long)]
    pub(crate) quiesce: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Named {
    /// Where the machine is mounted
    pub(crate) mount_point: PathBuf,
    /// The checkpoint
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct Map {
    /// A dirty.map, dirty.json or allocated.map, on a mount or copied; what `nbdinfo --map` prints
    pub(crate) file: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Draw the picture into this file as well
    #[arg(long, value_name = "OUT")]
    pub(crate) svg: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Sync {
    /// MNT/current/DISK for a full copy, MNT/checkpoints/NAME/DISK for what changed since
    pub(crate) source: PathBuf,
    /// The copy: a file, which a full copy creates if need be, or a block device
    pub(crate) dest: PathBuf,
    /// Where it is noted what DEST is a copy of (a file: DEST.pullfs.json; required for block devices)
    #[arg(long, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// Say nothing unless something fails
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    #[command(flatten)]
    pub(crate) checkpoint: Named,
    /// Freeze the guest's file systems for the instant, through its agent (mount option agent=)
    #[arg(long)]
    pub(crate) quiesce: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Checkpoint {
    /// Make a checkpoint and take the point in time at the same instant, as mkdir does
    Create(Create),
    /// List checkpoints and how much changed since
    List(Shown),
    /// Delete a checkpoint, as rmdir does
    Delete(Named),
    /// Print what libvirt knows of the checkpoints of a domain, for redefine
    #[command(after_help = SAVE)]
    Save(Save),
    /// Make libvirt know checkpoints again that it has forgotten, whose bitmaps are in the images
    #[command(after_help = REDEFINE)]
    Redefine(Redefine),
}

#[derive(Debug, Args)]
pub(crate) struct Save {
    /// The domain: libvirt:DOMAIN
    pub(crate) source: String,
    /// The mount option uri=, which libvirt
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub(crate) options: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Redefine {
    #[command(flatten)]
    pub(crate) of: Save,
    /// What save printed, or descriptions of libvirt's
    #[arg(required = true)]
    pub(crate) files: Vec<PathBuf>,
}

fn set_options() -> String {
    let names: Vec<&str> = live_names().collect();
    format!("Options that can be changed: {}.\n\n{SET}", names.join(", "))
}

/// The mount options as help shows them.
fn mount_options() -> String {
    let options = TABLE.map(|option| format!("\n  {:<19}  {}", option.usage, option.text));
    format!("Mount options (-o name=value,…; lists are joined by +):{}", options.concat())
}
