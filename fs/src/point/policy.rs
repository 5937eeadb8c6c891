//! Who may have which point in time: the rules, as plain code.
//!
//! | request | none held | held, nothing open | held, something open |
//! |---|---|---|---|
//! | open    | take it (`start=manual`: refuse) | share it | share it |
//! | begin   | take it | let go, take a new one | refuse: busy |
//! | release | refuse: nothing held | let go | let go; open files get `ESTALE` |
//! | end of the mount | – | let go | let go |

use crate::options::Start;

/// What somebody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// To read a file that shows a disk.
    Open,
    /// A new point in time, explicitly.
    Begin,
    /// That the point in time ends.
    Release,
    /// That nothing is left: the mount ends.
    End,
}

/// What is done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The point in time that is held serves.
    Share,
    /// A new one is taken.
    Take,
    /// The one that is held ends, then a new one is taken.
    Replace,
    /// The one that is held ends.
    LetGo,
    /// There is nothing to do.
    Nothing,
    /// Refused: files are open on the one that is held.
    Busy,
    /// Refused: none is held.
    NothingHeld,
}

/// Decides; `held` is the number of files open on the point in time, none if there is none.
pub fn decide(wish: Wish, held: Option<usize>, start: Start) -> Decision {
    match (wish, held) {
        (Wish::Open, Some(_)) => Decision::Share,
        (Wish::Open, None) if start == Start::Manual => Decision::NothingHeld,
        (Wish::Open | Wish::Begin, None) => Decision::Take,
        (Wish::Begin, Some(0)) => Decision::Replace,
        (Wish::Begin, Some(_)) => Decision::Busy,
        (Wish::Release | Wish::End, Some(_)) => Decision::LetGo,
        (Wish::Release, None) => Decision::NothingHeld,
        (Wish::End, None) => Decision::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The promises, said another way: the open files of each point in time, by its number.
    #[derive(Default)]
    struct Model {
        taken: u32,
        held: Option<u32>,
        open: Vec<u32>,
    }

    proptest! {
        #[test]
        fn no_open_file_loses_its_instant_to_a_begin(
            wishes in proptest::collection::vec((0_u8..5, any::<prop::sample::Index>()), 0..60), manual: bool,
        ) {
            let start = if manual { Start::Manual } else { Start::Read };
            let mut model = Model::default();
            for (wish, which) in wishes {
                let wish = match wish {
                    0 => Wish::Open,
                    1 => Wish::Begin,
                    2 => Wish::Release,
                    3 => Wish::End,
                    _ => {
                        if !model.open.is_empty() {
                            let index = which.index(model.open.len());
                            model.open.remove(index);
                        }
                        continue;
                    }
                };
                let on_held = model.held.map(|held| model.open.iter().filter(|open| **open == held).count());
                let before = model.held;
                match decide(wish, on_held, start) {
                    Decision::Share => prop_assert!(wish == Wish::Open && before.is_some()),
                    Decision::Take | Decision::Replace => {
                        prop_assert!(matches!(wish, Wish::Open | Wish::Begin));
                        prop_assert!(on_held.unwrap_or(0) == 0, "nothing open is cut off");
                        prop_assert!(!(manual && wish == Wish::Open));
                        model.taken += 1;
                        model.held = Some(model.taken);
                    }
                    Decision::LetGo => {
                        prop_assert!(matches!(wish, Wish::Release | Wish::End));
                        model.held = None;
                    }
                    Decision::Busy => prop_assert!(wish == Wish::Begin && on_held > Some(0)),
                    Decision::NothingHeld => prop_assert!(before.is_none() && (wish == Wish::Release || manual)),
                    Decision::Nothing => prop_assert!(before.is_none() && wish == Wish::End),
                }
                if wish == Wish::End {
                    prop_assert!(model.held.is_none());
                }
                if wish == Wish::Open
                    && let Some(held) = model.held {
                        model.open.push(held);
                    }
            }
        }
    }
}
