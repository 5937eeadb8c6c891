//! A mount's status for people: grouped, aligned, the warnings in colour.

use std::fmt::Write as _;
use std::time::SystemTime;

use anstyle::{AnsiColor, Style};
use bytesize::ByteSize;
use textwrap::core::display_width;

use crate::mounted::{Bitmap, Checkpoint, Point, Scratch, Status};

/// What must not be overlooked.
pub(crate) const WARNING: Style = AnsiColor::Red.on_default().bold();

/// What may become a warning.
pub(crate) const NOTICE: Style = AnsiColor::Yellow.on_default();

const TITLE: Style = Style::new().bold();

/// Where the text of a line begins.
const INDENT: usize = 15;

/// Below this nothing can be read; lines run over.
const NARROWEST: usize = 40;

/// Between two readings.
pub(super) struct Rates {
    /// Bytes a second.
    pub(super) read: u64,
    /// Bytes a second.
    pub(super) fetched: u64,
    pub(super) reads_per_second: u64,
}

pub(crate) fn size(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

/// The status as lines of at most `width` columns, with the escapes of colours.
pub(super) fn describe(status: &Status, rates: Option<&Rates>, width: Option<usize>) -> String {
    let mut lines = Lines { text: String::new(), width: width.map(|width| width.max(NARROWEST)) };
    let machine = &status.machine;
    let name = machine.name.as_ref().map(|name| format!("{name}, ")).unwrap_or_default();
    let about = format!("{name}{}, QEMU {}, fleece={}", machine.source, machine.qemu, machine.fleece);
    lines.add("machine", TITLE, &about);
    if let Some(why) = &status.unreachable {
        lines.add("UNREACHABLE", WARNING, why);
    }
    lines.add("point in time", Style::new(), &describe_point(&status.point));
    if let Some(scratch) = &status.point.scratch {
        let (style, text) = describe_scratch(scratch);
        lines.add("scratch", style, &text);
    }
    if let Some(rates) = rates {
        let Rates { read, fetched, reads_per_second } = rates;
        let (read, fetched) = (size(*read), size(*fetched));
        let text = format!("{read}/s read in {reads_per_second} reads/s, {fetched}/s from the machine");
        lines.add("rates", Style::new(), &text);
    }
    if let Some(end) = &status.last_end {
        lines.add("last ended", Style::new(), &format!("{}: {}", when(&end.time), end.reason));
    }
    if let Some(error) = &status.last_error {
        lines.add("last error", NOTICE, &format!("{}: {}", when(&error.time), error.message));
    }
    let disks = status.disks.iter().map(|disk| vec![plain(&disk.name), plain(&disk.format), size(disk.size)]).collect();
    lines.add_table("disks", &table(disks));
    for skipped in &status.skipped {
        lines.add("not shown", NOTICE, &format!("{}: {}", skipped.name, skipped.reason));
    }
    let row = |checkpoint: &Checkpoint| {
        let [name, made, changed] = cells(checkpoint);
        let unusable = checkpoint.disks.values().any(|bitmap| bitmap.unusable.is_some());
        vec![name, made, if unusable { paint(WARNING, &changed) } else { changed }]
    };
    lines.add_table("checkpoints", &table(status.checkpoints.iter().map(row).collect()));
    lines.text
}

struct Lines {
    text: String,
    width: Option<usize>,
}

impl Lines {
    fn add(&mut self, name: &str, style: Style, text: &str) {
        self.push(name, style, &plain(text));
    }

    /// Lines that are plain already.
    fn add_table(&mut self, name: &str, table: &str) {
        for (row, line) in table.lines().enumerate() {
            self.push(if row == 0 { name } else { "" }, Style::new(), line);
        }
    }

    fn push(&mut self, name: &str, style: Style, text: &str) {
        let columns = self.width.map_or(usize::MAX, |width| width - INDENT);
        // A width without bound would be added to.
        let wrapped = if display_width(text) <= columns { vec![text.into()] } else { textwrap::wrap(text, columns) };
        for (number, line) in wrapped.iter().enumerate() {
            let name = if number == 0 { name } else { "" };
            let gap = " ".repeat(INDENT - name.len());
            // Into a String, which takes everything.
            writeln!(self.text, "{}{gap}{}", paint(TITLE, name), paint(style, line)).ok();
        }
    }
}

/// The text in a style; nothing around nothing.
pub(crate) fn paint(style: Style, text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("{style}{text}{style:#}") }
}

fn describe_point(point: &Point) -> String {
    if point.state != "held" {
        return point.state.clone();
    }
    let time = point.time.as_deref().unwrap_or_default();
    let since = age(time).map(|age| format!(" for {age},")).unwrap_or_default();
    let at = point.checkpoint.as_ref().map(|name| format!(", at checkpoint {name}")).unwrap_or_default();
    let files = if point.open_files == 1 { "file" } else { "files" };
    format!("held{since} since {}{at}; {} {files} open", short(time), point.open_files)
}

fn describe_scratch(scratch: &Scratch) -> (Style, String) {
    let Scratch { used, free, limit } = *scratch;
    let left = limit.map_or(free, |limit| limit.saturating_sub(used).min(free));
    let total = used.saturating_add(left);
    // The daemon gives the point in time up some way before the end.
    let nearly_full = left < total / 5;
    let full = if nearly_full { ", NEARLY FULL" } else { "" };
    let text = format!("{} used, room for {} more{full}", size(used), size(left));
    (if nearly_full { WARNING } else { Style::new() }, text)
}

/// One line about a checkpoint.
pub(crate) fn describe_checkpoint(checkpoint: &Checkpoint) -> String {
    cells(checkpoint).join("  ")
}

fn cells(checkpoint: &Checkpoint) -> [String; 3] {
    let disk = |(name, bitmap): (&String, &Bitmap)| match (&bitmap.unusable, &bitmap.whole) {
        (Some(why), _) => format!("{name} UNUSABLE, {why}"),
        (None, Some(_)) => format!("{name} all of it (it does not have this checkpoint)"),
        (None, None) if bitmap.persistent => format!("{name} {}", size(bitmap.dirty_bytes)),
        (None, None) => format!("{name} {} (transient)", size(bitmap.dirty_bytes)),
    };
    let disks: Vec<String> = checkpoint.disks.iter().map(disk).collect();
    let made = checkpoint.created.as_deref().map_or_else(|| "foreign".to_owned(), short);
    let changed = format!("{} changed since: {}", size(checkpoint.dirty_bytes), disks.join(", "));
    [&checkpoint.name, &made, &changed].map(|cell| plain(cell))
}

/// Rows with their columns below each other, whatever is wide in them.
pub(crate) fn table(rows: Vec<Vec<String>>) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| display_width(cell)).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let padded =
            row.iter().zip(&widths).map(|(cell, width)| cell.clone() + &" ".repeat(width - display_width(cell)));
        let line = padded.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A time of status.json without its fractions.
fn short(time: &str) -> String {
    time.split('.').next().unwrap_or(time).replace('T', " ")
}

fn when(time: &str) -> String {
    age(time).map_or_else(|| time.to_owned(), |age| format!("{age} ago"))
}

/// How long ago a time of status.json is; none if it is no time, or to come.
pub(super) fn age(time: &str) -> Option<String> {
    let seconds = SystemTime::now().duration_since(humantime::parse_rfc3339(time).ok()?).ok()?.as_secs();
    Some(match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86400),
    })
}

/// Without what a terminal would obey or turn round: names are whatever was written into an image.
pub(crate) fn plain(text: &str) -> String {
    let turns =
        |c| matches!(c, '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.replace(|c: char| c.is_control() || turns(c), "?")
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
