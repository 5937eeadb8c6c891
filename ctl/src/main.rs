//! `pullfs`: mounts the backups of running QEMU machines as plain files.
//!
//! `args` turns the command line into one plain value; each command has a file of its own and gives back a
//! [`failure::Failure`] at worst, whose chain is printed here, once, in one line.

mod args;
mod checkpoint;
mod config;
mod control;
mod daemon;
mod demo;
mod doctor;
mod failure;
mod guardian;
mod harden;
#[cfg(feature = "libvirt")]
mod host;
mod leash;
mod list;
mod log;
mod look_inside;
mod machine;
mod map;
mod mount;
mod mounted;
mod mounter;
mod recover;
mod redefine;
mod reload;
mod runtime_dir;
mod service;
mod status;
mod sync;
mod thaw_guard;
mod umount;
mod waiting;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};
use crate::failure::Code;

fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => {
            // Standard error may be closed; the exit code still tells.
            error.print().ok();
            return if error.use_stderr() { ExitCode::from(Code::Usage as u8) } else { ExitCode::SUCCESS };
        }
    };
    let outcome = match command {
        Command::Mount(arguments) => mount::run(&arguments),
        Command::Umount(arguments) => umount::run(&arguments.mount_point),
        Command::Status(arguments) => status::run(&arguments),
        Command::List(arguments) => list::run(&arguments),
        Command::Begin(arguments) => {
            let args::Begin { mount_point, checkpoint, since, quiesce } = arguments;
            let named = match (&checkpoint, &since) {
                (Some(name), _) => Some(("checkpoint", name.as_str())),
                (None, Some(name)) => Some(("since", name.as_str())),
                (None, None) => None,
            };
            control::begin(&mount_point, quiesce, named)
        }
        Command::Release(arguments) => control::release(&arguments.mount_point),
        Command::Checkpoint(args::Checkpoint::Create(arguments)) => {
            let args::Create { checkpoint, quiesce } = arguments;
            control::begin(&checkpoint.mount_point, quiesce, Some(("checkpoint", &checkpoint.name)))
        }
        Command::Checkpoint(args::Checkpoint::Delete(arguments)) => {
            control::delete_checkpoint(&arguments.mount_point, &arguments.name)
        }
        Command::Checkpoint(args::Checkpoint::List(arguments)) => {
            checkpoint::list(&arguments.mount_point, arguments.json)
        }
        Command::Checkpoint(args::Checkpoint::Save(arguments)) => redefine::save(&arguments),
        Command::Checkpoint(args::Checkpoint::Redefine(arguments)) => redefine::run(&arguments),
        Command::Map(arguments) => map::run(&arguments),
        Command::Sync(arguments) => sync::run(&arguments),
        Command::Config(arguments) => config::run(&arguments),
        Command::Set(arguments) => control::set(&arguments.mount_point, &arguments.option),
        Command::Reload(arguments) => reload::run(&arguments.mount_point),
        Command::Recover(arguments) => recover::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Demo => demo::run(),
        Command::Guardian { dir } => return guardian::run(&dir),
        Command::ThawGuard { agent } => return thaw_guard::run(&agent),
        #[cfg(feature = "libvirt")]
        Command::SshRelay { uri, socket } => return pullfs_fs::vm::libvirt::ssh::process::run(&uri, &socket),
        // Without libvirt nobody starts it, and its sources say what is missing.
        #[cfg(not(feature = "libvirt"))]
        Command::SshRelay { .. } => "libvirt:".parse::<pullfs_fs::vm::source::Source>().map(drop).map_err(Into::into),
        Command::LookInside => return look_inside::run(look_inside::PARSERS),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("pullfs: {failure}");
            failure.exit_code()
        }
    }
}
