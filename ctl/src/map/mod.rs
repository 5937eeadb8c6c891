//! `pullfs map`: what a map says, for people: totals, and where on the disk it is.

pub(crate) mod parse;
pub(crate) mod picture;
mod svg;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::Path;

use anyhow::Context;
use serde_json::json;

use self::parse::{Error, Header};
use self::picture::{Cell, Picture, bar};
use crate::args;
use crate::failure::{Code, Failure, Outcome};
use crate::mounted::Mounted;
use crate::status::{print, size};
use crate::waiting::waiting;

/// Where the width of the terminal is not known.
const WIDTH: u32 = 80;

/// Cells in JSON: one for each percent of the disk.
const JSON_CELLS: u32 = 100;

/// Bytes of a map that are asked for at once.
const BUFFER: usize = 1 << 20;

/// Everything about a map but its extents.
pub(crate) struct Summary {
    header: Header,
    /// Whether it tells what changed, rather than what holds data.
    dirty: bool,
    /// Of the disk; where the map ends if it does not tell.
    size: u64,
    bytes: u64,
    zero_bytes: u64,
    extents: u64,
    largest: Option<Range<u64>>,
    changed: Picture,
    zero: Picture,
}

impl Summary {
    pub(crate) fn read(input: impl BufRead) -> Result<Self, Error> {
        let mut map = parse::Map::new(input)?;
        let (mut changed, mut zero) = (Picture::default(), Picture::default());
        let (mut bytes, mut zero_bytes, mut extents) = (0, 0, 0);
        let mut largest: Option<Range<u64>> = None;
        let mut dirty = false;
        for extent in &mut map {
            let extent = extent?;
            let length = extent.range.end - extent.range.start;
            if !extent.counts || length == 0 {
                continue;
            }
            bytes += length;
            extents += 1;
            dirty |= extent.dirty;
            changed.add(&extent.range);
            if extent.zero {
                zero_bytes += length;
                zero.add(&extent.range);
            }
            if largest.as_ref().is_none_or(|largest| length > largest.end - largest.start) {
                largest = Some(extent.range);
            }
        }
        let header = map.header().clone();
        dirty |= header.get("checkpoint").is_some();
        let size = header.size.unwrap_or(map.end());
        Ok(Self { header, dirty, size, bytes, zero_bytes, extents, largest, changed, zero })
    }

    /// What the bytes are that it counts.
    fn noun(&self) -> &'static str {
        if self.dirty { "changed" } else { "data" }
    }

    fn cells(&self, count: u32) -> Vec<Cell> {
        self.changed.cells(self.size, count)
    }

    fn percent(&self) -> String {
        let part = u128::from(self.bytes) * 10_000 / u128::from(self.size.max(1));
        format!("{}.{:02} %", part / 100, part % 100)
    }

    fn text(&self, width: u32) -> String {
        let mut lines = Vec::new();
        let mut line = |name: &str, text: String| lines.push(format!("{name:<15}{text}\n"));
        for (name, value) in &self.header.facts {
            let amount = ["virtual size", "granularity"].contains(&&**name).then(|| value.parse().ok()).flatten();
            line(name, amount.map_or_else(|| value.clone(), size));
        }
        let zeroes =
            if self.zero_bytes > 0 { format!(", of it {} zeroes", size(self.zero_bytes)) } else { String::new() };
        line(self.noun(), format!("{} ({} of the disk){zeroes}", size(self.bytes), self.percent()));
        let largest = self.largest.as_ref();
        let largest =
            largest.map(|range| format!(", the largest {} at {}", size(range.end - range.start), size(range.start)));
        line("extents", format!("{}{}", self.extents, largest.unwrap_or_default()));
        if self.size > 0 {
            let inside = width.saturating_sub(2).max(1);
            lines.push(format!("\n▕{}▏\n{}\n", bar(&self.cells(inside)), self.scale(inside)));
            if self.header.size.is_none() {
                lines.push("(the map does not tell the disk's size; the picture ends where the map does)\n".to_owned());
            }
        }
        lines.concat()
    }

    /// What stands below the bar: where it begins, its middle, its end.
    fn scale(&self, width: u32) -> String {
        let width = usize::try_from(width).unwrap_or(0);
        let (middle, end) = (size(self.size / 2), size(self.size));
        let (half, rest) = (width / 2, width - width / 2);
        if half < middle.len() + 3 || rest < middle.len() + end.len() + 3 {
            return format!(" 0{end:>rest$}", rest = width.saturating_sub(1));
        }
        format!(" {:<half$}{middle:<left$}{end}", "0", left = width - half - end.len())
    }

    fn json(&self) -> String {
        let facts: serde_json::Map<String, serde_json::Value> =
            self.header.facts.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        let zeroes = self.zero.cells(self.size, JSON_CELLS);
        let cells = self.cells(JSON_CELLS).into_iter().zip(zeroes).map(|(cell, zero)| {
            let Range { start, end } = cell.range;
            json!({"offset": start, "length": end - start, "bytes": cell.bytes, "zero_bytes": zero.bytes})
        });
        let largest = self.largest.as_ref();
        let document = json!({
            "header": facts,
            "kind": if self.dirty { "dirty" } else { "data" },
            "size": self.size,
            "size_known": self.header.size.is_some(),
            "bytes": self.bytes,
            "zero_bytes": self.zero_bytes,
            "extents": self.extents,
            "largest": largest.map(|range| json!({"offset": range.start, "length": range.end - range.start})),
            "cells": cells.collect::<Vec<_>>(),
        });
        format!("{document:#}\n")
    }
}

pub(crate) fn run(arguments: &args::Map) -> Outcome {
    let path = &arguments.file;
    let summary = read(path)?;
    if let Some(out) = &arguments.svg {
        std::fs::write(out, svg::draw(&summary)).with_context(|| format!("cannot write {}", out.display()))?;
    }
    print(&if arguments.json { summary.json() } else { summary.text(terminal_width()) })
}

fn read(path: &Path) -> Outcome<Summary> {
    let failed = |error: std::io::Error| {
        if let Some(mounted) = Mounted::around(path) {
            return mounted.failed(&path.display().to_string(), &error);
        }
        let missing = error.kind() == std::io::ErrorKind::NotFound;
        let code = if missing { Code::NotFound } else { Code::System };
        Failure::message(code, format!("cannot read {}: {error}", path.display()))
    };
    // A map of a mount takes the point in time when it is opened.
    let summary = waiting("reading the map", || {
        let file = File::open(path).map_err(Error::Io)?;
        Summary::read(BufReader::with_capacity(BUFFER, file))
    });
    match summary {
        Ok(summary) => Ok(summary),
        Err(Error::Io(error)) => Err(failed(error)),
        Err(error) => Err(Failure::message(Code::System, format!("{}: {error}", path.display()))),
    }
}

fn terminal_width() -> u32 {
    let told = rustix::termios::tcgetwinsize(std::io::stdout()).ok();
    told.map(|size| u32::from(size.ws_col)).filter(|columns| *columns > 0).unwrap_or(WIDTH)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: &str = "# machine: vm1\n# disk: vda\n# checkpoint: monday\n# virtual size: 8388608\n# granularity: 65536\n\
                       0 1048576 1 dirty\n4194304 65536 1 dirty,zero\n";

    fn summary(map: &str) -> Summary {
        Summary::read(map.as_bytes()).unwrap()
    }

    #[test]
    fn totals_in_words() {
        let text = summary(MAP).text(42);
        let expected = "\
machine        vm1
disk           vda
checkpoint     monday
virtual size   8.0 MiB
granularity    64.0 KiB
changed        1.1 MiB (13.28 % of the disk), of it 64.0 KiB zeroes
extents        2, the largest 1.0 MiB at 0 B

▕█████               ▃                   ▏
 0                   4.0 MiB      8.0 MiB
";
        assert_eq!(text, expected);
        assert!(summary(MAP).text(5).lines().all(|line| line.starts_with(|c: char| c != ' ') || line.len() < 20));
    }

    #[test]
    fn totals_in_json() {
        let json: serde_json::Value = serde_json::from_str(&summary(MAP).json()).unwrap();
        let (bytes, zero) = (1_048_576 + 65536, 65536);
        assert_eq!((&json["bytes"], &json["zero_bytes"]), (&json!(bytes), &json!(zero)));
        assert_eq!(json["largest"], json!({"offset": 0, "length": 1_048_576}));
        let sum =
            |key: &str| json["cells"].as_array().unwrap().iter().map(|cell| cell[key].as_u64().unwrap()).sum::<u64>();
        assert_eq!((sum("bytes"), sum("zero_bytes"), sum("length")), (bytes, zero, 8_388_608));
    }

    #[test]
    fn a_map_without_a_header_ends_where_it_ends() {
        let summary = summary("0 65536 0 data\n65536 65536 3 hole,zero\n");
        assert_eq!((summary.size, summary.bytes, summary.noun()), (131_072, 65536, "data"));
        assert!(summary.text(80).contains("50.00 %"));
        assert!(super::Summary::read(&b""[..]).unwrap().text(80).contains("extents        0"));
    }
}
