//! Which bytes of a read were described.

/// Most separate runs that one reply may leave.
///
/// Servers send a reply in order, which is one run. The bound is for a hostile one: it allows an
/// 8 MiB read in chunks of 1 KiB in the worst possible order, and keeps a reply to 64 KiB.
const MAX_RUNS: usize = 4096;

/// The bytes described so far: sorted runs that neither overlap nor touch.
#[derive(Debug, Default)]
pub(super) struct Coverage {
    runs: Vec<(usize, usize)>,
}

impl Coverage {
    /// Adds `start..end`, which is not empty. Gives the reason if it cannot.
    pub(super) fn add(&mut self, start: usize, end: usize) -> Result<(), &'static str> {
        let index = self.runs.partition_point(|run| run.0 < start);
        let previous = index.checked_sub(1);
        let overlaps_previous = previous.is_some_and(|previous| self.runs[previous].1 > start);
        let overlaps_next = self.runs.get(index).is_some_and(|next| next.0 < end);
        if overlaps_previous || overlaps_next {
            return Err("overlaps an earlier one of");
        }
        let previous = previous.filter(|previous| self.runs[*previous].1 == start);
        let touches_next = self.runs.get(index).is_some_and(|next| next.0 == end);
        match (previous, touches_next) {
            (Some(previous), true) => {
                self.runs[previous].1 = self.runs[index].1;
                self.runs.remove(index);
            }
            (Some(previous), false) => self.runs[previous].1 = end,
            (None, true) => self.runs[index].0 = start,
            (None, false) if self.runs.len() == MAX_RUNS => return Err("too scattered in"),
            (None, false) => self.runs.insert(index, (start, end)),
        }
        Ok(())
    }

    /// Whether every byte of `0..length` was described.
    pub(super) fn is_whole(&self, length: usize) -> bool {
        self.runs == [(0, length)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn runs_join_and_are_bounded() {
        let mut coverage = Coverage::default();
        for run in [(4, 6), (0, 2), (8, 9), (2, 4)] {
            coverage.add(run.0, run.1).expect("free");
        }
        assert_eq!(coverage.runs, [(0, 6), (8, 9)]);
        assert!(coverage.add(5, 7).is_err());
        assert!(coverage.add(6, 9).is_err());
        assert!(coverage.add(0, 1).is_err());

        let mut coverage = Coverage::default();
        for at in 0..MAX_RUNS {
            coverage.add(2 * at, 2 * at + 1).expect("free");
        }
        assert!(coverage.add(2 * MAX_RUNS, 2 * MAX_RUNS + 1).is_err());
        coverage.add(1, 2).expect("what joins runs is still welcome");
    }

    proptest! {
        /// The model is one flag a byte.
        #[test]
        fn agrees_with_a_flag_a_byte(runs in prop::collection::vec((0_usize..60, 1_usize..12), 0..30)) {
            let mut coverage = Coverage::default();
            let mut model = [false; 72];
            for (start, length) in runs {
                let bytes = &mut model[start..start + length];
                let free = !bytes.contains(&true);
                prop_assert_eq!(coverage.add(start, start + length).is_ok(), free);
                if free {
                    bytes.fill(true);
                }
                for whole in 1..72 {
                    let expected = model.iter().position(|byte| !byte) == Some(whole)
                        && !model[whole..].contains(&true);
                    prop_assert_eq!(coverage.is_whole(whole), expected);
                }
            }
        }
    }
}
