//! The table for people.

use std::fmt::Write as _;

use super::Report;
use crate::results::OURS;
use crate::units::figure;
use crate::work;

/// Everything, the claims first.
pub(super) fn render(report: &Report) -> String {
    let mut text = "# pullfs beside its peers\n\nMeasured by `make bench`; how to read it: [performance](../../docs/performance.md).\n\n".to_owned();
    for (name, value) in &report.facts {
        let _ = writeln!(text, "- {name}: {value}");
    }
    text.push_str("\n## What it is to reach\n| claim | target | measured | |\n|---|---|---|---|\n");
    for claim in &report.claims {
        let _ = writeln!(text, "| {} | {} | {} | {} |", claim.says, claim.target, claim.measured(), claim.verdict());
    }
    for work in work::ALL {
        section(&mut text, report, work);
    }
    text
}

fn section(text: &mut String, report: &Report, work: &work::Work) {
    let groups = report.groups(work.letter);
    let missing = report.results.missing.iter().filter(|(letter, _)| *letter == work.letter);
    let missing: Vec<&str> = missing.map(|(_, why)| why.as_str()).collect();
    if groups.is_empty() && missing.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n## ({}) {}\n{}\n", work.letter, work.title, work.how);
    if let Some((_, first)) = groups.first() {
        let (by, last) = if first[0].step.is_some() { ("with", "for each") } else { ("by", "of pullfs") };
        let _ = writeln!(text, "| | {by} | median | smallest – largest | {last} |\n|---|---|---|---|---|");
    }
    for (what, group) in groups {
        let ours = group.iter().find(|series| series.who == OURS).map(|series| series.median());
        for (index, series) in group.iter().enumerate() {
            let (median, unit) = (series.median(), series.unit.name());
            let last = match &series.step {
                Some(step) => Some(format!("{} {unit}/{}", figure(median / step.count), step.each)),
                None => ours.filter(|ours| *ours > 0.0).map(|ours| format!("{} ×", figure(median / ours))),
            };
            let _ = writeln!(
                text,
                "| {} | {} | {} {unit} | {} – {} | {} |",
                if index == 0 { what } else { "" },
                series.who,
                figure(median),
                figure(series.smallest()),
                figure(series.largest()),
                last.as_deref().unwrap_or("–"),
            );
        }
    }
    for why in missing {
        let _ = writeln!(text, "\nNot run: {why}");
    }
}

#[cfg(test)]
mod tests {
    use super::super::Report;
    use super::super::tests::example;
    use crate::results::{Results, Step};
    use crate::units::Unit;

    #[test]
    fn a_table_has_medians_and_ratios() {
        let text = example().markdown();
        assert!(text.contains("- kernel: Linux 6\n"), "{text}");
        assert!(text.contains("| dd bs=1M, cold | pullfs | 250 MiB/s | 200 – 300 | 1.00 × |\n"), "{text}");
        assert!(text.contains("|  | nbdfuse <x> | 125 MiB/s | 100 – 150 | 0.500 × |\n"), "{text}");
        assert!(text.contains("| not measured |"), "{text}");
    }

    #[test]
    fn what_grows_is_told_for_each() {
        let mut results = Results::default();
        for (name, count, sample) in [("1 GiB", 1.0, 2.0), ("4 GiB", 4.0, 10.0)] {
            let step = Step { name: name.to_owned(), count, each: "GiB" };
            results.grow('h', "reading", &step, Unit::Seconds, sample);
        }
        let text = Report::new(Vec::new(), results).markdown();
        assert!(text.contains("| | with | median | smallest – largest | for each |\n"), "{text}");
        assert!(text.contains("| reading | 1 GiB | 2.00 s | 2.00 – 2.00 | 2.00 s/GiB |\n"), "{text}");
        assert!(text.contains("|  | 4 GiB | 10.0 s | 10.0 – 10.0 | 2.50 s/GiB |\n"), "{text}");
    }
}
