//! `mount.pullfs`: what mount(8), fstab and systemd call to mount with `-t pullfs`.
//!
//! It turns their conventions into a call of `pullfs mount` and becomes that process, so its exit code, which is one of
//! mount(8)'s, goes straight back. Options that are for mount(8) itself are left out; all others are `pullfs`'s to
//! accept or refuse.

mod translate;

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::translate::{Request, translate};

/// Exit code of mount(8) for wrong usage.
const USAGE: u8 = 1;
/// Exit code of mount(8) for a system error.
const SYSTEM: u8 = 2;

fn main() -> ExitCode {
    match translate(std::env::args_os().skip(1)) {
        Ok(Request::Nothing) => ExitCode::SUCCESS,
        Ok(Request::Mount(arguments)) => {
            let program = pullfs();
            let error = Command::new(&program).args(arguments).exec();
            eprintln!("mount.pullfs: cannot run {}: {error}; is pullfs installed?", program.display());
            ExitCode::from(SYSTEM)
        }
        Err(message) => {
            eprintln!("mount.pullfs: {message}");
            ExitCode::from(USAGE)
        }
    }
}

/// The `pullfs` that was installed with this helper: beside it, or in the `bin` beside its `sbin`. Else the path
/// decides, which mount(8) reduces to the system's directories.
fn pullfs() -> PathBuf {
    let own = std::env::current_exe().unwrap_or_default();
    let dir = own.parent().unwrap_or(Path::new("/"));
    let near = [dir.join("pullfs"), dir.join("../bin/pullfs")];
    near.into_iter().find(|path| path.is_file()).unwrap_or_else(|| PathBuf::from("pullfs"))
}
