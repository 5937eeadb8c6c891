//! `pullfs status`.

use std::io::Write;
use std::path::Path;

use bytesize::ByteSize;

use crate::failure::Outcome;
use crate::mounted::{Bitmap, Checkpoint, Mounted, Status};

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
    let mut line = |name: &str, text: String| lines.push(format!("{name:<15}{}\n", plain(&text)));
    let name = machine.name.as_ref().map(|name| format!("{name}, ")).unwrap_or_default();
    line("machine", format!("{name}{}, QEMU {}, fleece={}", machine.source, machine.qemu, machine.fleece));
    if let Some(why) = &status.unreachable {
        line("UNREACHABLE", why.clone());
    }
    let point = &status.point;
    let since = point.time.as_ref().map(|time| format!(" since {time}")).unwrap_or_default();
    let at = point.checkpoint.as_ref().map(|name| format!(", at checkpoint {name}")).unwrap_or_default();
    let open = if point.state == "held" { format!(", {} files open", point.open_files) } else { String::new() };
    line("point in time", format!("{}{since}{at}{open}", point.state));
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
    let disk = |(name, bitmap): (&String, &Bitmap)| match (&bitmap.unusable, &bitmap.whole) {
        (Some(why), _) => format!("{name}: UNUSABLE, {why}"),
        (None, Some(_)) => format!("{name} all of it (it does not have this checkpoint)"),
        (None, None) if bitmap.persistent => format!("{name} {}", size(bitmap.dirty_bytes)),
        (None, None) => format!("{name} {} (transient)", size(bitmap.dirty_bytes)),
    };
    let disks: Vec<String> = checkpoint.disks.iter().map(disk).collect();
    let made = checkpoint.created.as_ref().map_or("foreign", |time| time.split('.').next().unwrap_or(time));
    let changed = size(checkpoint.dirty_bytes);
    plain(&format!("{:<12} {made:<19}  {changed} changed since: {}", checkpoint.name, disks.join(", ")))
}

/// Without what a terminal would obey: names are whatever was written into an image.
fn plain(text: &str) -> String {
    text.replace(char::is_control, "?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_write_on_the_terminal() {
        let checkpoint = Checkpoint {
            name: "a\x1b[2J\nb".into(),
            created: None,
            dirty_bytes: 0,
            disks: std::collections::BTreeMap::default(),
        };
        assert!(describe_checkpoint(&checkpoint).starts_with("a?[2J?b"));
    }
}
