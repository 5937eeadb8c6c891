//! The picture of a map as a drawing that needs nothing else: it follows the viewer's light or dark scheme.

use std::fmt::Write as _;

use super::Summary;
use crate::status::size;

/// Cells of the strip, two units wide each.
const CELLS: u32 = 480;
const CELL: u32 = 2;
/// Where the strip lies in the drawing.
const LEFT: u32 = 20;
const TOP: u32 = 64;
const HEIGHT: u32 = 72;
/// Steps of the scale.
const STEPS: u32 = 4;

const STYLE: &str = "\
text{font:13px system-ui,sans-serif;fill:#24292f}.title{font-size:17px;font-weight:600}.dim{fill:#57606a}\
.paper{fill:#fff}.strip{fill:#eaeef2}.tick{stroke:#8c959f}.changed{fill:#0969da}.zero{fill:#bf8700}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.dim{fill:#8b949e}.paper{fill:#0d1117}.strip{fill:#21262d}\
.tick{stroke:#6e7681}.changed{fill:#58a6ff}.zero{fill:#e3b341}}";

pub(super) fn draw(summary: &Summary) -> String {
    let (width, height) = (CELLS * CELL + 2 * LEFT, TOP + HEIGHT + 72);
    let fact = |name: &str| summary.header.get(name).map(escape);
    let disk = fact("disk").unwrap_or_else(|| "disk".to_owned());
    let of = fact("machine").map(|machine| format!(" of {machine}")).unwrap_or_default();
    let what = match fact("checkpoint") {
        Some(checkpoint) => format!("changed since {checkpoint}"),
        None => summary.noun().to_owned(),
    };
    let title = format!("{disk}{of}: {what}");
    let at = fact("point in time").map(|time| format!(", {time}")).unwrap_or_default();
    let facts = format!(
        "{} of {} ({}), {} extents{at}",
        size(summary.bytes),
        size(summary.size),
        summary.percent(),
        summary.extents
    );
    let pieces = [
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\">\n\
             <title>{title}</title>\n<style>{STYLE}</style>\n\
             <rect class=\"paper\" width=\"{width}\" height=\"{height}\"/>\n\
             <text class=\"title\" x=\"{LEFT}\" y=\"28\">{title}</text>\n\
             <text class=\"dim\" x=\"{LEFT}\" y=\"50\">{facts}</text>\n\
             <rect class=\"strip\" x=\"{LEFT}\" y=\"{TOP}\" width=\"{}\" height=\"{HEIGHT}\"/>\n",
            CELLS * CELL
        ),
        bars(summary),
        scale(summary.size),
        legend(summary, TOP + HEIGHT + 50),
        "</svg>\n".to_owned(),
    ];
    pieces.concat()
}

/// A bar for each run of cells that are as full: what changed stands on the ground, what reads as zeroes on top of it.
fn bars(summary: &Summary) -> String {
    let zeroes = summary.zero.cells(summary.size, CELLS);
    let heights: Vec<(u32, u32)> = summary
        .cells(CELLS)
        .iter()
        .zip(&zeroes)
        .map(|(cell, zero)| {
            let full = cell.range.end - cell.range.start;
            (high(cell.bytes.saturating_sub(zero.bytes), full), high(zero.bytes, full))
        })
        .collect();
    // A disk of a few bytes has fewer cells, which are wider.
    let cells = u32::try_from(heights.len()).unwrap_or(CELLS).max(1);
    let mut out = String::new();
    let mut at = 0;
    for run in heights.chunk_by(|one, other| one == other) {
        let length = u32::try_from(run.len()).unwrap_or(CELLS);
        let (x, end) = (LEFT + at * CELLS * CELL / cells, LEFT + (at + length) * CELLS * CELL / cells);
        at += length;
        let (data, zero) = run[0];
        let zero = zero.min(HEIGHT - data);
        let ground = TOP + HEIGHT;
        for (class, height, y) in [("changed", data, ground - data), ("zero", zero, ground - data - zero)] {
            if height > 0 {
                let width = end - x;
                writeln!(out, "<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\"/>")
                    .ok();
            }
        }
    }
    out
}

/// How high a bar is. What is there at all is seen.
fn high(bytes: u64, full: u64) -> u32 {
    let height = u128::from(bytes) * u128::from(HEIGHT) / u128::from(full.max(1));
    let height = u32::try_from(height).unwrap_or(HEIGHT).min(HEIGHT);
    if bytes > 0 { height.max(3) } else { 0 }
}

fn scale(bytes: u64) -> String {
    let mut out = String::new();
    for step in 0..=STEPS {
        let x = LEFT + CELLS * CELL * step / STEPS;
        let anchor = ["start", "middle", "end"][if step == 0 { 0 } else { usize::from(step == STEPS) + 1 }];
        let at = u128::from(bytes) * u128::from(step) / u128::from(STEPS);
        let label = size(u64::try_from(at).unwrap_or(bytes));
        let (from, to, text) = (TOP + HEIGHT, TOP + HEIGHT + 6, TOP + HEIGHT + 22);
        writeln!(
            out,
            "<line class=\"tick\" x1=\"{x}\" y1=\"{from}\" x2=\"{x}\" y2=\"{to}\"/>\
             <text class=\"dim\" x=\"{x}\" y=\"{text}\" text-anchor=\"{anchor}\">{label}</text>"
        )
        .ok();
    }
    out
}

fn legend(summary: &Summary, y: u32) -> String {
    let mut entries = vec![("changed", summary.noun())];
    if summary.zero_bytes > 0 {
        entries.push(("zero", "changed, reads as zeroes"));
    }
    entries.push(("strip", if summary.dirty { "unchanged" } else { "hole" }));
    let mut out = String::new();
    let mut x = LEFT;
    for (class, label) in entries {
        writeln!(
            out,
            "<rect class=\"{class}\" x=\"{x}\" y=\"{}\" width=\"12\" height=\"12\"/><text x=\"{}\" y=\"{}\">{label}</text>",
            y - 11,
            x + 18,
            y
        )
        .ok();
        x += 50 + 8 * u32::try_from(label.len()).unwrap_or(0);
    }
    writeln!(out, "<text class=\"dim\" x=\"{x}\" y=\"{y}\">the higher a bar, the more of that place</text>").ok();
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(map: &str) -> String {
        draw(&Summary::read(map.as_bytes()).unwrap())
    }

    #[test]
    fn it_says_what_it_shows() {
        let svg =
            drawn("# machine: <vm & co>\n# disk: vda\n# checkpoint: monday\n# virtual size: 960\n0 480 1 dirty\n");
        assert!(svg.contains("<title>vda of &lt;vm &amp; co&gt;: changed since monday</title>"), "{svg}");
        assert!(svg.contains("480 B of 960 B (50.00 %)"), "{svg}");
        // The first half is one bar of full height.
        assert!(svg.contains("class=\"changed\" x=\"20\" y=\"64\" width=\"480\" height=\"72\""), "{svg}");
        assert!(!svg.contains("class=\"zero\""), "{svg}");
    }

    #[test]
    fn zeroes_stand_on_top_and_little_is_seen() {
        let svg = drawn("# virtual size: 3932160\n0 4096 1 dirty\n4096 4096 1 dirty,zero\n2400000 1 1 dirty\n");
        assert!(svg.contains("class=\"changed\" x=\"20\" y=\"100\" width=\"2\" height=\"36\""), "{svg}");
        assert!(svg.contains("class=\"zero\" x=\"20\" y=\"64\" width=\"2\" height=\"36\""), "{svg}");
        assert!(svg.contains("height=\"3\""), "{svg}");
    }

    #[test]
    fn an_empty_map_is_drawn() {
        assert!(drawn("").ends_with("</svg>\n"));
        assert!(drawn("0 3 0 data\n").contains("width=\"960\""));
    }
}
