//! What was measured on, by which versions.

use std::fs;
use std::process::Command;
use std::thread;

use pullfs_tests::process::ok;
use pullfs_tests::tools::tool;

use crate::args::Args;
use crate::units::MIB;

/// A name and its value each.
pub(crate) type Facts = Vec<(&'static str, String)>;

/// Asks the machine and the tools.
#[track_caller]
pub(crate) fn tell(args: &Args) -> Facts {
    let first_line = |command: &mut Command| ok(command).lines().next().unwrap_or_default().trim().to_owned();
    let version = |name: &str| first_line(tool(name).arg("--version"));
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    let processors = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    vec![
        ("date", first_line(tool("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]))),
        ("processors", format!("{processors} × {}", model.unwrap_or("unknown"))),
        // What a distribution appends says nothing to others.
        ("kernel", first_line(tool("uname").arg("-sr")).split('-').next().unwrap_or_default().to_owned()),
        ("QEMU", version("qemu-system-x86_64")),
        ("nbdfuse, nbdcopy", version("nbdcopy")),
        ("rounds", args.rounds.to_string()),
        ("size", format!("{} MiB", args.size / MIB)),
    ]
}
