//! What was measured: series of samples, each with its median.

use crate::units::Unit;

/// The name by which pullfs stands beside its peers.
pub(crate) const OURS: &str = "pullfs";

/// Everything that was measured, in the order in which it first was.
#[derive(Debug, Default)]
pub(crate) struct Results {
    pub(crate) series: Vec<Series>,
    /// What could not be measured, by work, and why.
    pub(crate) missing: Vec<(char, String)>,
}

/// One thing that was done by one of those who can.
#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) work: char,
    /// What was done.
    pub(crate) what: String,
    /// Who did it.
    pub(crate) who: String,
    pub(crate) unit: Unit,
    /// With how much it was done, where that is what differs and not who did it.
    pub(crate) step: Option<Step>,
    pub(crate) samples: Vec<f64>,
}

/// How much something was done with.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    /// For people, such as `4 GiB`.
    pub(crate) name: String,
    pub(crate) count: f64,
    /// What it counts.
    pub(crate) each: &'static str,
}

impl Results {
    /// Adds a sample to its series.
    pub(crate) fn add(&mut self, work: char, what: &str, who: &str, unit: Unit, sample: f64) {
        self.add_to(work, what, who, unit, None, sample);
    }

    /// Adds a sample of ours to the series of its step.
    pub(crate) fn grow(&mut self, work: char, what: &str, step: &Step, unit: Unit, sample: f64) {
        self.add_to(work, what, &step.name, unit, Some(step), sample);
    }

    fn add_to(&mut self, work: char, what: &str, who: &str, unit: Unit, step: Option<&Step>, sample: f64) {
        match self.series.iter_mut().find(|series| series.work == work && series.what == what && series.who == who) {
            Some(series) => series.samples.push(sample),
            None => self.series.push(Series {
                work,
                what: what.to_owned(),
                who: who.to_owned(),
                unit,
                step: step.cloned(),
                samples: vec![sample],
            }),
        }
    }

    /// Notes that something could not be measured.
    pub(crate) fn miss(&mut self, work: char, why: &str) {
        eprintln!("    not run: {why}");
        self.missing.push((work, why.to_owned()));
    }

    /// The median of a series, if there is one.
    pub(crate) fn median(&self, what: &str, who: &str) -> Option<f64> {
        let found = self.series.iter().find(|series| series.what == what && series.who == who);
        found.map(Series::median)
    }

    /// The best median of several who did the same: of nbdcopy with different settings.
    pub(crate) fn best(&self, what: &str, whose: &str) -> Option<f64> {
        let of = |series: &&Series| series.what == what && series.who.starts_with(whose);
        let better = |best: f64, series: &Series| {
            let median = series.median();
            if series.unit.more_is_better() { best.max(median) } else { best.min(median) }
        };
        let mut found = self.series.iter().filter(of);
        let first = found.next()?.median();
        Some(found.fold(first, better))
    }
}

impl Series {
    pub(crate) fn median(&self) -> f64 {
        let sorted = self.sorted();
        let middle = sorted.len() / 2;
        if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
    }

    pub(crate) fn smallest(&self) -> f64 {
        self.sorted()[0]
    }

    pub(crate) fn largest(&self) -> f64 {
        self.sorted()[self.samples.len() - 1]
    }

    /// There is at least one.
    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(samples: &[f64]) -> Series {
        let (what, who) = ("dd".to_owned(), OURS.to_owned());
        Series { work: 'a', what, who, unit: Unit::MibPerSecond, step: None, samples: samples.to_vec() }
    }

    #[test]
    fn a_median_is_the_middle_whatever_the_order() {
        assert!((of(&[9.0, 1.0, 2.0]).median() - 2.0).abs() < 1e-9);
        assert!((of(&[4.0, 1.0, 2.0, 90.0]).median() - 3.0).abs() < 1e-9);
        assert!((of(&[7.0]).median() - 7.0).abs() < 1e-9);
        assert!((of(&[9.0, 1.0, 2.0]).smallest() - 1.0).abs() < 1e-9);
        assert!((of(&[1.0, 9.0, 2.0]).largest() - 9.0).abs() < 1e-9);
    }

    #[test]
    fn samples_find_their_series() {
        let mut results = Results::default();
        for (who, sample) in [("nbdcopy", 1.0), (OURS, 5.0), ("nbdcopy", 3.0), ("nbdcopy, 4 × 256 KiB", 9.0)] {
            results.add('a', "dd", who, Unit::MibPerSecond, sample);
        }
        assert_eq!(results.series.len(), 3);
        assert_eq!(results.median("dd", "nbdcopy"), Some(2.0));
        assert_eq!(results.median("cp", "nbdcopy"), None);
        assert_eq!(results.best("dd", "nbdcopy"), Some(9.0));
        assert_eq!(results.best("dd", "qemu"), None);
    }

    #[test]
    fn the_best_time_is_the_shortest() {
        let mut results = Results::default();
        for (who, sample) in [("nbdcopy", 3.0), ("nbdcopy, best", 2.0)] {
            results.add('c', "copy", who, Unit::Seconds, sample);
        }
        assert_eq!(results.best("copy", "nbdcopy"), Some(2.0));
    }
}
