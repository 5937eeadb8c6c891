//! A bar chart: what one reads first. Its colours suit a light page and a dark one.

use std::fmt::Write as _;

use super::Report;
use crate::results::{OURS, Series};
use crate::units::figure;
use crate::work;

const WIDTH: u32 = 860;
/// Of names, left of the bars.
const NAMES: u32 = 270;
/// Of figures, right of the longest bar.
const FIGURES: u32 = 110;
const BAR: u32 = 16;
const LINE: u32 = 21;
const HEADING: u32 = 34;

/// A bar for each of those who did what [`work::CHARTED`] names; the longest of a group is as long as there is room.
pub(super) fn render(report: &Report) -> String {
    let mut body = String::new();
    let mut y = 8;
    for work in work::ALL {
        for (what, group) in report.groups(work.letter) {
            if work::CHARTED.contains(&what) {
                y = bars(&mut body, y, what, &group);
            }
        }
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<style>\ntext {{ fill: #24292f }} .ours {{ fill: #2f81f7 }} .peer {{ fill: #8c959f }}\n\
         @media (prefers-color-scheme: dark) {{ text {{ fill: #e6edf3 }} .peer {{ fill: #6e7681 }} }}\n</style>\n\
         {body}</svg>\n",
        height = y + 8
    )
}

/// Draws a group from `y` on; where the next one begins.
fn bars(body: &mut String, mut y: u32, what: &str, group: &[&Series]) -> u32 {
    let Some(first) = group.first() else { return y };
    let side = if first.unit.more_is_better() { "more is better" } else { "less is better" };
    let heading = format!("{what} ({}, {side})", first.unit.name());
    let _ = writeln!(body, "<text x=\"8\" y=\"{}\" font-weight=\"bold\">{}</text>", y + 20, escaped(&heading));
    y += HEADING;
    let longest = group.iter().map(|series| series.median()).fold(f64::MIN_POSITIVE, f64::max);
    for series in group {
        let length = f64::from(WIDTH - NAMES - FIGURES) * series.median() / longest;
        let class = if series.who == OURS { "ours" } else { "peer" };
        let (text, figures) = (y + 13, f64::from(NAMES) + length + 6.0);
        let _ = writeln!(
            body,
            "<text x=\"{}\" y=\"{text}\" text-anchor=\"end\">{}</text>",
            NAMES - 8,
            escaped(&series.who)
        );
        let _ =
            writeln!(body, "<rect class=\"{class}\" x=\"{NAMES}\" y=\"{y}\" width=\"{length:.1}\" height=\"{BAR}\"/>");
        let _ = writeln!(body, "<text x=\"{figures:.1}\" y=\"{text}\">{}</text>", figure(series.median()));
        y += LINE;
    }
    y
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::tests::example;

    #[test]
    fn bars_are_as_long_as_medians() {
        let svg = super::render(&example());
        assert!(svg.contains("<rect class=\"ours\" x=\"270\" y=\"42\" width=\"480.0\""), "{svg}");
        assert!(svg.contains("<rect class=\"peer\" x=\"270\" y=\"63\" width=\"240.0\""), "{svg}");
        assert!(svg.contains("nbdfuse &lt;x&gt;") && !svg.contains("<x>"), "{svg}");
        assert_eq!(svg.matches("<rect").count(), 2, "what is not charted is left out: {svg}");
    }
}
