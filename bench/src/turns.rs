//! Who goes first: each in turn, so that being first, or after a certain other, is nobody's advantage.

/// All of `who`, beginning one further each round.
pub(crate) fn turns<T: Copy>(who: &[T], round: u16) -> impl Iterator<Item = T> {
    who.iter().copied().cycle().skip(usize::from(round) % who.len().max(1)).take(who.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_first_in_turn() {
        let told: Vec<String> = (0..4).map(|round| turns(&['a', 'b', 'c'], round).collect()).collect();
        assert_eq!(told, ["abc", "bca", "cab", "abc"]);
        assert_eq!(turns::<char>(&[], 3).count(), 0);
    }
}
