//! `pullfs status`.

use std::io::Write;
use std::path::Path;

use bytesize::ByteSize;

use crate::failure::Outcome;
use crate::mounted::{Checkpoint, Mounted, Status};

pub(crate) fn run(mount_point: &Path, json: bool) -> Outcome {
    let mounted = Mounted::find(mount_point)?;
    let text = if json { mounted.status_text()? } else { describe(&mounted.status()?) };
    print(&text)
}

/// Prints; whoever closes the pipe early has read enough.
pub(crate) fn print(text: &str) -> Outcome {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

pub(crate) fn size(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

fn describe(status: &Status) -> String {
    let machine = &status.machine;
    let mut lines = Vec::new();
    let mut line = |name: &str, text: String| lines.push(format!("{name:<15}{text}\n"));
    let name = machine.name.as_ref().map(|name| format!("{name}, ")).unwrap_or_default();
    line("machine", format!("{name}{}, QEMU {}, fleece={}", machine.source, machine.qemu, machine.fleece));
    if let Some(why) = &status.unreachable {
        line("UNREACHABLE", why.clone());
    }
    let point = &status.point;
    let since = point.time.as_ref().map(|time| format!(" since {time}")).unwrap_or_default();
    let open = if point.state == "held" { format!(", {} files open", point.open_files) } else { String::new() };
    line("point in time", format!("{}{since}{open}", point.state));
    if let Some(end) = &status.last_end {
        line("last ended", format!("{}: {}", end.time, end.reason));
    }
    if let Some(error) = &status.last_error {
        line("last error", format!("{}: {}", error.time, error.message));
    }
    for disk in &status.disks {
        line("disk", format!("{:<12} {:<6} {}", disk.name, disk.format, size(disk.size)));
    }
    for skipped in &status.skipped {
        line("not shown", format!("{}: {}", skipped.name, skipped.reason));
    }
    for checkpoint in &status.checkpoints {
        line("checkpoint", describe_checkpoint(checkpoint));
    }
    lines.concat()
}

/// One line about a checkpoint.
pub(crate) fn describe_checkpoint(checkpoint: &Checkpoint) -> String {
    let disks: Vec<String> = checkpoint
        .disks
        .iter()
        .map(|(name, bitmap)| match &bitmap.unusable {
            Some(why) => format!("{name}: {why}"),
            None if bitmap.persistent => format!("{name} {}", size(bitmap.dirty_bytes)),
            None => format!("{name} {} (transient)", size(bitmap.dirty_bytes)),
        })
        .collect();
    format!("{:<12} {} changed since: {}", checkpoint.name, size(checkpoint.dirty_bytes), disks.join(", "))
}
