//! A sorted set of numbers (clusters, tables) as runs of neighbours, with the position of each member in the set.
//!
//! 16 bytes a run. Both directions are a binary search: the position of a number, and the number at a position.

use std::ops::Range;

/// See the module.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Runs {
    runs: Vec<Run>,
    total: u64,
}

#[derive(Debug, PartialEq, Eq)]
struct Run {
    first: u64,
    /// Members of all earlier runs, so the next run's is where this one ends.
    before: u64,
}

impl Runs {
    /// Adds a range that begins at or after the begin of the last run; what is in the set already changes nothing.
    pub(super) fn push(&mut self, range: Range<u64>) {
        let end = self.runs.last().map(|run| run.first + (self.total - run.before));
        debug_assert!(self.runs.last().is_none_or(|run| run.first <= range.start), "runs come in order");
        let new = match end {
            Some(end) if range.start <= end => range.end.saturating_sub(end),
            _ if range.start >= range.end => 0,
            _ => {
                self.runs.push(Run { first: range.start, before: self.total });
                range.end - range.start
            }
        };
        self.total += new;
    }

    /// Number of members.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Bytes of memory of the list.
    pub(super) fn memory(&self) -> usize {
        self.runs.capacity() * size_of::<Run>()
    }

    /// Gives back memory that growing left unused.
    pub(super) fn shrink_to_fit(&mut self) {
        self.runs.shrink_to_fit();
    }

    /// All runs, each with the position of its first member.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Range<u64>, u64)> + '_ {
        self.iter_from(0)
    }

    fn iter_from(&self, index: usize) -> impl Iterator<Item = (Range<u64>, u64)> + '_ {
        let runs = self.runs.get(index..).unwrap_or_default();
        let ends = runs.iter().skip(1).map(|run| run.before).chain([self.total]);
        runs.iter().zip(ends).map(|(run, end)| (run.first..run.first + (end - run.before), run.before))
    }

    /// The runs that lie in `window`, cut to it, each with the position of its first member.
    pub(super) fn within(&self, window: Range<u64>) -> impl Iterator<Item = (Range<u64>, u64)> + '_ {
        let index = self.runs.partition_point(|run| run.first <= window.start).saturating_sub(1);
        self.iter_from(index).take_while(move |(run, _)| run.start < window.end).filter_map(move |(run, position)| {
            let (start, end) = (run.start.max(window.start), run.end.min(window.end));
            (start < end).then(|| (start..end, position + (start - run.start)))
        })
    }

    /// The members at a range of positions, as runs, each with the position of its first member.
    pub(super) fn at(&self, positions: Range<u64>) -> impl Iterator<Item = (Range<u64>, u64)> + '_ {
        let index = self.runs.partition_point(|run| run.before <= positions.start).saturating_sub(1);
        self.iter_from(index).take_while(move |(_, position)| *position < positions.end).filter_map(
            move |(run, position)| {
                let (from, to) = (positions.start.max(position), positions.end);
                let (start, end) = (run.start + (from - position), run.end.min(run.start + (to - position)));
                (start < end).then_some((start..end, from))
            },
        )
    }

    /// The parts of `window` that are not in the set.
    pub(super) fn gaps(&self, window: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut at = window.start;
        let end = window.end;
        self.within(window).map(|(run, _)| run).chain(std::iter::once(end..end)).filter_map(move |run| {
            let gap = at..run.start;
            at = run.end;
            (!gap.is_empty()).then_some(gap)
        })
    }
}

/// Two sequences of ranges, each sorted by where they begin, as one.
pub(super) fn in_order<T>(
    left: impl Iterator<Item = (Range<u64>, T)>,
    right: impl Iterator<Item = (Range<u64>, T)>,
) -> impl Iterator<Item = (Range<u64>, T)> {
    let (mut left, mut right) = (left.peekable(), right.peekable());
    std::iter::from_fn(move || match (left.peek(), right.peek()) {
        (Some((a, _)), Some((b, _))) if b.start < a.start => right.next(),
        (None, _) => right.next(),
        _ => left.next(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Begins rise, ends do as they like.
    fn ranges() -> impl Strategy<Value = Vec<Range<u64>>> {
        proptest::collection::vec((0_u64..12, 0_u64..9), 0..40).prop_map(|steps| {
            let begins = steps.iter().scan(0, |at, &(step, _)| {
                *at += step;
                Some(*at)
            });
            begins.zip(&steps).map(|(begin, &(_, length))| begin..begin + length).collect()
        })
    }

    fn members(runs: impl Iterator<Item = (Range<u64>, u64)>) -> Vec<(u64, u64)> {
        runs.flat_map(|(run, position)| run.zip(position..)).collect()
    }

    proptest! {
        #[test]
        fn agrees_with_a_set(ranges in ranges(), a in 0_u64..500, b in 0_u64..500) {
            let mut runs = Runs::default();
            for range in &ranges {
                runs.push(range.clone());
            }
            let set: Vec<u64> = ranges.into_iter().flatten().collect::<BTreeSet<_>>().into_iter().collect();
            let all: Vec<(u64, u64)> = set.iter().copied().zip(0..).collect();
            let window = a.min(b)..a.max(b);
            prop_assert_eq!(runs.total(), u64::try_from(set.len()).unwrap());
            prop_assert_eq!(members(runs.iter()), all.clone());
            let cut = |key: fn(&(u64, u64)) -> u64| -> Vec<_> {
                all.iter().copied().filter(|entry| window.contains(&key(entry))).collect()
            };
            prop_assert_eq!(members(runs.within(window.clone())), cut(|entry| entry.0));
            prop_assert_eq!(members(runs.at(window.clone())), cut(|entry| entry.1));
            let gaps: Vec<u64> = runs.gaps(window.clone()).flatten().collect();
            let expected: Vec<u64> = window.filter(|number| set.binary_search(number).is_err()).collect();
            prop_assert_eq!(gaps, expected);
        }

        #[test]
        fn merging_keeps_the_order(left in ranges(), right in ranges()) {
            let both = in_order(left.iter().map(|r| (r.clone(), 'l')), right.iter().map(|r| (r.clone(), 'r')));
            let both: Vec<_> = both.collect();
            prop_assert!(both.is_sorted_by_key(|(range, _)| range.start));
            let of = |side| both.iter().filter(|entry| entry.1 == side).map(|entry| entry.0.clone()).collect::<Vec<_>>();
            prop_assert_eq!((of('l'), of('r')), (left, right));
        }
    }
}
