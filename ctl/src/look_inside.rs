//! `pullfs look-inside`, which pullfs starts for itself to read what a guest has written on its disks: see
//! `pullfs_fs::guest`. The conversation is at standard input; what goes wrong is said on standard error, which the daemon puts
//! into its log.

#[cfg(test)]
mod tests;

use std::io::{self, Read, Write};
use std::process::ExitCode;

use anyhow::Context;
use inside::serve::{Parsers, serve};
use inside::{Disk, lvm, raid, table};
use pullfs_fs::guest::SUBCOMMAND;
use rustix::net::SocketType;
use rustix::net::sockopt::socket_type;
use rustix::stdio::stdin;

use crate::harden::reader;

/// What it reads.
pub(crate) const PARSERS: Parsers = Parsers {
    table: |disk| table::read(&disk),
    volumes: |disks| lvm::read(disks),
    mirrors: |disks| raid::outdated(disks),
    open: inside::open::<Box<dyn Disk>>,
};

pub(crate) fn run(parsers: Parsers) -> ExitCode {
    match live(parsers) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody may be there to read it.
            writeln!(io::stderr(), "{error:#}").ok();
            ExitCode::FAILURE
        }
    }
}

fn live(parsers: Parsers) -> anyhow::Result<()> {
    let of_socket = socket_type(stdin()).ok().filter(|kind| *kind == SocketType::STREAM);
    of_socket.with_context(|| format!("{SUBCOMMAND} is for pullfs itself to start"))?;
    die_in_a_line();
    reader::restrict()?;
    Ok(serve(Conversation, parsers)?)
}

/// A defect ends the process, and the daemon's log says where it is.
fn die_in_a_line() {
    std::panic::set_hook(Box::new(|panic| {
        writeln!(io::stderr(), "{}", panic.to_string().replace('\n', " ")).ok();
        std::process::abort();
    }));
}

/// Standard input in both directions, by the two system calls that are left.
struct Conversation;

impl Read for Conversation {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(stdin(), buffer)?)
    }
}

impl Write for Conversation {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(stdin(), bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
