//! `pullfs status`: one mount, all of them, or one again and again.

mod list;
mod text;
mod watch;

use std::io::Write;

use anstream::{AutoStream, ColorChoice};

use crate::args;
use crate::failure::Outcome;
use crate::mounted::Mounted;
use crate::waiting::waiting;

pub(crate) use text::{NOTICE, WARNING, describe_checkpoint, paint, plain, size, table};

pub(crate) fn run(arguments: &args::Status) -> Outcome {
    let Some(mount_point) = &arguments.mount_point else { return list::run(arguments.json, arguments.color) };
    #[cfg(feature = "libvirt")]
    if let Some(host) = crate::host::Found::find(mount_point)? {
        return host.status(arguments);
    }
    let mounted = Mounted::find(mount_point)?;
    if let Some(seconds) = arguments.watch {
        return watch::run(&mounted, seconds, arguments.json, arguments.color);
    }
    if arguments.json {
        return print(&waiting("waiting for the machine", || mounted.status_text())?);
    }
    let status = waiting("waiting for the machine", || mounted.status())?;
    show(&text::describe(&status, None, width()), arguments.color)
}

/// Prints; whoever closes the pipe early has read enough.
pub(crate) fn print(text: &str) -> Outcome {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Prints what has colours in it, with them or without.
pub(crate) fn show(text: &str, color: clap::ColorChoice) -> Outcome {
    print(&painted(text, color))
}

/// The text as standard output wants it.
fn painted(text: &str, color: clap::ColorChoice) -> String {
    let wanted = match color {
        clap::ColorChoice::Always => ColorChoice::Always,
        clap::ColorChoice::Never => ColorChoice::Never,
        // anstream paints such a terminal, too, where `CI` is set.
        clap::ColorChoice::Auto if std::env::var_os("TERM").is_some_and(|term| term == "dumb") => ColorChoice::Never,
        clap::ColorChoice::Auto => AutoStream::choice(&std::io::stdout()),
    };
    match wanted {
        ColorChoice::Never => anstream::adapter::strip_str(text).to_string(),
        _ => text.to_owned(),
    }
}

/// How many columns standard output has, if it is a terminal.
fn width() -> Option<usize> {
    terminal_size::terminal_size_of(std::io::stdout()).map(|(width, _)| usize::from(width.0))
}
