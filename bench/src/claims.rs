//! What pullfs is to reach, as ratios of medians of one run.

use crate::readers::Reader;
use crate::results::{OURS, Results};
use crate::units::figure;
use crate::work::full::FULL;
use crate::work::guest::{Disk, POLITE, PULL};
use crate::work::increment::{CHANGED, DELTA, FETCHED, VIRTNBDBACKUP};
use crate::work::random::depth;
use crate::work::sequential::{CLIENT_CPU, COPIED, NBDFUSE, QEMU_FUSE, cold};
use crate::work::sparse::{ALONE, RAW};

/// What a ratio is to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
}

/// One line of the table of claims.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) says: String,
    pub(crate) target: Target,
    /// `None` when one of the two was not measured.
    pub(crate) ratio: Option<f64>,
}

impl Claim {
    /// How it came out, in words.
    pub(crate) fn verdict(&self) -> &'static str {
        match (self.ratio, self.target) {
            (None, _) => "not measured",
            (Some(ratio), Target::AtLeast(target)) if ratio >= target => "reached",
            (Some(ratio), Target::AtMost(target)) if ratio <= target => "reached",
            _ => "not reached",
        }
    }

    /// The ratio, in words.
    pub(crate) fn measured(&self) -> String {
        self.ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{} ×", figure(ratio)))
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtLeast(ratio) => write!(f, "≥ {} ×", figure(*ratio)),
            Self::AtMost(ratio) => write!(f, "≤ {} ×", figure(*ratio)),
        }
    }
}

/// All claims, with what was measured.
pub(crate) fn of(results: &Results) -> Vec<Claim> {
    use Target::{AtLeast, AtMost};
    let (dd, direct) = (cold(Reader::Dd), cold(Reader::Direct));
    let claim = |says: &str, target, ours: (&str, &str), theirs: (&str, &str)| {
        let both = results.median(ours.0, ours.1).zip(results.best(theirs.0, theirs.1));
        let ratio = both.filter(|(ours, theirs)| *ours > 0.0 && *theirs > 0.0).map(|(ours, theirs)| ours / theirs);
        Claim { says: says.to_owned(), target, ratio }
    };
    let mut claims = vec![
        claim("1. dd bs=1M against nbdfuse", AtLeast(2.0), (&dd, OURS), (&dd, NBDFUSE)),
        claim("1. dd bs=1M against QEMU's FUSE export", AtLeast(2.0), (&dd, OURS), (&dd, QEMU_FUSE)),
        claim("1. dd bs=1M against nbdcopy at its best", AtLeast(0.8), (&dd, OURS), (COPIED, "nbdcopy")),
        claim("1. dd O_DIRECT against nbdcopy at its best", AtLeast(0.9), (&direct, OURS), (COPIED, "nbdcopy")),
    ];
    for (requests, peer, target) in [(1, NBDFUSE, 1.15), (16, NBDFUSE, 2.0), (16, QEMU_FUSE, 1.2)] {
        let (what, says) = (depth(requests), format!("2. 4 KiB random, QD{requests}, against {peer}"));
        claims.push(claim(&says, AtLeast(target), (&what, OURS), (&what, peer)));
    }
    claims.push(claim("3. cp of a sparse disk against cp of its data", AtMost(1.3), (RAW, OURS), (ALONE, "cp")));
    claims.push(claim("4. fetched against changed", AtMost(1.02), (FETCHED, OURS), (CHANGED, OURS)));
    for (what, backup, target) in [(DELTA, "increment", 3.0), (FULL, "full backup", 5.0)] {
        let says = format!("4. {backup}, virtnbdbackup's time over ours");
        claims.push(claim(&says, AtLeast(target), (what, VIRTNBDBACKUP), (what, OURS)));
    }
    for disk in [Disk::PageCache, Disk::Throttled] {
        let p99 = disk.p99();
        let says = format!("5. {p99}, of a guest's writes beside a reader, against a bare pull");
        claims.push(claim(&says, AtMost(1.1), (&p99, OURS), (&p99, PULL)));
        claims.push(claim(
            &format!("5. {p99}, with polite against without"),
            AtMost(1.0),
            (&p99, POLITE),
            (&p99, OURS),
        ));
    }
    let cpu = ((CLIENT_CPU, OURS), (CLIENT_CPU, NBDFUSE));
    claims.push(claim("6. CPU of the daemon against nbdfuse's", AtMost(0.6), cpu.0, cpu.1));
    claims
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Unit;

    #[test]
    fn a_claim_is_reached_from_its_side() {
        let verdict = |target, ratio| Claim { says: String::new(), target, ratio }.verdict();
        assert_eq!(verdict(Target::AtLeast(2.0), Some(2.0)), "reached");
        assert_eq!(verdict(Target::AtLeast(2.0), Some(1.9)), "not reached");
        assert_eq!(verdict(Target::AtMost(0.6), Some(0.5)), "reached");
        assert_eq!(verdict(Target::AtMost(0.6), Some(0.7)), "not reached");
        assert_eq!(verdict(Target::AtMost(0.6), None), "not measured");
    }

    #[test]
    fn ratios_are_of_medians_and_of_the_best_peer() {
        let mut results = Results::default();
        let dd = cold(Reader::Dd);
        for (what, who, value) in
            [(dd.as_str(), OURS, 900.0), (COPIED, "nbdcopy", 500.0), (COPIED, "nbdcopy, b", 1000.0)]
        {
            results.add('a', what, who, Unit::MibPerSecond, value);
        }
        let claims = of(&results);
        let nbdcopy = claims.iter().find(|claim| claim.says.contains("dd bs=1M against nbdcopy")).unwrap();
        assert_eq!((nbdcopy.verdict(), nbdcopy.measured()), ("reached", "0.900 ×".to_owned()));
        assert_eq!(claims[0].verdict(), "not measured");
    }
}
