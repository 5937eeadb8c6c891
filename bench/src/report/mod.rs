//! The results for people and programs: Markdown, JSON, SVG.

mod chart;
mod json;
mod markdown;

use std::fs;
use std::path::Path;

use crate::claims::{self, Claim};
use crate::facts::Facts;
use crate::results::{Results, Series};

/// All that is told.
pub(crate) struct Report {
    facts: Facts,
    results: Results,
    claims: Vec<Claim>,
}

impl Report {
    pub(crate) fn new(facts: Facts, results: Results) -> Self {
        let claims = claims::of(&results);
        Self { facts, results, claims }
    }

    pub(crate) fn markdown(&self) -> String {
        markdown::render(self)
    }

    /// Writes `latest.md`, `latest.json` and `latest.svg`.
    #[track_caller]
    pub(crate) fn write(&self, dir: &Path) {
        fs::create_dir_all(dir).expect("a directory for the results");
        let write = |name: &str, text: String| fs::write(dir.join(name), text).expect("the results");
        write("latest.md", self.markdown());
        write("latest.json", json::render(self));
        write("latest.svg", chart::render(self));
    }

    /// The series of a work, those who did the same thing together.
    fn groups(&self, work: char) -> Vec<(&str, Vec<&Series>)> {
        let mut groups: Vec<(&str, Vec<&Series>)> = Vec::new();
        for series in self.results.series.iter().filter(|series| series.work == work) {
            match groups.iter_mut().find(|(what, _)| *what == series.what) {
                Some((_, group)) => group.push(series),
                None => groups.push((&series.what, vec![series])),
            }
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::OURS;
    use crate::units::Unit;

    pub(super) fn example() -> Report {
        let mut results = Results::default();
        for (who, samples) in [(OURS, [200.0, 300.0]), ("nbdfuse <x>", [100.0, 150.0])] {
            for sample in samples {
                results.add('a', "dd bs=1M, cold", who, Unit::MibPerSecond, sample);
            }
        }
        results.add('a', "cat", OURS, Unit::MibPerSecond, 7.0);
        results.missing.push(('d', "there is no libvirtd".to_owned()));
        Report::new(vec![("kernel", "Linux 6".to_owned())], results)
    }

    #[test]
    fn the_three_files_are_written() {
        let dir = tempfile::tempdir().unwrap();
        example().write(&dir.path().join("new"));
        let names = ["latest.md", "latest.json", "latest.svg"];
        assert!(names.iter().all(|name| dir.path().join("new").join(name).metadata().unwrap().len() > 0));
    }

    #[test]
    fn those_who_did_the_same_are_together() {
        let report = example();
        let groups: Vec<_> = report.groups('a').into_iter().map(|(what, group)| (what, group.len())).collect();
        assert_eq!(groups, [("dd bs=1M, cold", 2), ("cat", 1)]);
        assert!(report.groups('b').is_empty());
    }
}
