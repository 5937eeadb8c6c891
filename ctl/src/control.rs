//! `pullfs begin`, `pullfs release`: a word to `control`, and what went wrong in words.

use std::io::{self, Write};
use std::path::Path;

use anyhow::anyhow;

use crate::failure::{Code, Failure, Outcome};
use crate::mounted::Mounted;

pub(crate) fn begin(mount_point: &Path) -> Outcome {
    command(mount_point, "begin")
}

pub(crate) fn release(mount_point: &Path) -> Outcome {
    command(mount_point, "release")
}

fn command(mount_point: &Path, word: &str) -> Outcome {
    let mounted = Mounted::find(mount_point)?;
    let path = mounted.path().join("control");
    let written = std::fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut control| control.write_all(format!("{word}\n").as_bytes()));
    let Err(error) = written else { return Ok(()) };
    let code = match error.kind() {
        io::ErrorKind::ResourceBusy => Code::Busy,
        _ if error.raw_os_error() == Some(rustix::io::Errno::NODATA.raw_os_error()) => Code::NotFound,
        _ => Code::System,
    };
    // The kernel passes on a number only; the daemon keeps the words.
    let noted = mounted.status().ok().and_then(|status| status.last_error);
    let words = noted.map_or_else(|| format!("writing to {} failed: {error}", path.display()), |noted| noted.message);
    Err(Failure::new(code, anyhow!("{word}: {words}")))
}
