//! `pullfs begin`, `release`, `set`, `checkpoint create` and `delete`: a line to `control`, and what went wrong in words.

use std::io::Write;
use std::path::Path;

use crate::failure::{Code, Failure, Outcome};
use crate::mounted::Mounted;
use crate::waiting::waiting;

/// `named` is a word of `begin` with the checkpoint that it names.
pub(crate) fn begin(mount_point: &Path, quiesce: bool, named: Option<(&str, &str)>) -> Outcome {
    let mut line = "begin".to_owned();
    if quiesce {
        line.push_str(" quiesce");
    }
    if let Some((word, name)) = named {
        line = format!("{line} {word}={}", one_line(name)?);
    }
    command(mount_point, "begin", &line)
}

pub(crate) fn delete_checkpoint(mount_point: &Path, name: &str) -> Outcome {
    command(mount_point, "delete", &format!("delete {}", one_line(name)?))
}

/// A command is a line: a name that would be read back otherwise is refused here.
fn one_line(name: &str) -> Outcome<&str> {
    if name.is_empty() || name.trim() != name || name.contains(char::is_control) {
        return Err(Failure::message(Code::Usage, format!("{name:?} cannot be the name of a checkpoint")));
    }
    Ok(name)
}

pub(crate) fn release(mount_point: &Path) -> Outcome {
    command(mount_point, "release", "release")
}

pub(crate) fn set(mount_point: &Path, option: &str) -> Outcome {
    // It names its option, and what is not one says that.
    command(mount_point, "set", &format!("set {}", option.replace(char::is_control, " ")))
}

fn command(mount_point: &Path, what: &str, line: &str) -> Outcome {
    written(&Mounted::find(mount_point)?, what, line)
}

/// Writes a command to the `control` of a mount.
pub(crate) fn written(mounted: &Mounted, what: &str, line: &str) -> Outcome {
    let path = mounted.path().join("control");
    waiting(&format!("waiting for the machine: {line}"), || {
        let control = std::fs::OpenOptions::new().write(true).open(&path);
        let mut control = control.map_err(|error| mounted.failed(what, &error))?;
        control.write_all(format!("{line}\n").as_bytes()).map_err(|error| mounted.refused(what, &error))
    })
}
