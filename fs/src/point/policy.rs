//! Who may have which point in time: the rules, as plain code.
//!
//! | request | none held | held, nothing open | held, something open |
//! |---|---|---|---|
//! | open    | take it (`start=manual`: refuse) | share it | share it |
//! | open what it cannot serve | – | let go, take a new one; if somebody began it: refuse, busy | refuse: busy |
//! | begin   | take it | let go, take a new one | refuse: busy |
//! | release | refuse: nothing held | let go | let go; open files get `ESTALE` |
//! | end of the mount | – | let go | let go |
//! | `idle_timeout=` after the last close | – | let go | – |
//! | `hold_limit=` after it was taken | – | let go | let go; open files get `ESTALE` |

use std::time::Duration;

use tokio::time::Instant;

use super::reason::Reason;
use crate::options::{Options, Start};

/// What the mount's options say about its points in time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Terms {
    /// What may take one.
    pub start: Start,
    /// How long after the last close it ends.
    pub idle_timeout: Option<Duration>,
    /// How long it may be held.
    pub hold_limit: Option<Duration>,
}

impl From<&Options> for Terms {
    fn from(options: &Options) -> Self {
        Self { start: options.start, idle_timeout: options.idle_timeout, hold_limit: options.hold_limit }
    }
}

/// How a point in time is used.
#[derive(Debug, Clone, Copy)]
pub struct Use {
    /// When it was taken.
    pub taken: Instant,
    /// Files open on it.
    pub open: usize,
    /// When the last one was closed, or it was taken.
    pub last_close: Instant,
}

/// Whether the options let a point in time go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing ends it by itself.
    Never,
    /// To be asked again then, not sooner.
    At(Instant),
    /// It ends now, for this reason, also in words.
    Now(Reason, &'static str),
}

/// Decides whether a point in time has to end by itself.
pub fn due(terms: &Terms, now: Instant, used: Use) -> Due {
    let hold = terms.hold_limit.map(|limit| used.taken + limit);
    // A file that is open now may be closed now, not earlier.
    let idle = terms.idle_timeout.map(|limit| if used.open == 0 { used.last_close + limit } else { now + limit });
    match (hold, idle) {
        (Some(hold), _) if hold <= now => Due::Now(Reason::HoldLimit, "hold_limit= passed"),
        (_, Some(idle)) if idle <= now => {
            Due::Now(Reason::Idle, "nothing was open on it for as long as idle_timeout= says")
        }
        (Some(hold), Some(idle)) => Due::At(hold.min(idle)),
        (Some(at), None) | (None, Some(at)) => Due::At(at),
        (None, None) => Due::Never,
    }
}

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

/// A point in time that is held, to somebody who wants something.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    /// Files open on it.
    pub open: usize,
    /// Whether somebody began it, rather than opening a file.
    pub begun: bool,
    /// Whether it has what is to be opened ([`Base`](crate::vm::Base)).
    pub serves: bool,
}

/// Decides about the point in time that is held, if one is.
pub fn decide(wish: Wish, held: Option<Held>, start: Start) -> Decision {
    match (wish, held) {
        (Wish::Open, Some(Held { serves: true, .. })) => Decision::Share,
        // Its instant was chosen by a reader who is gone; another one is as good.
        (Wish::Open, Some(Held { open: 0, begun: false, .. })) | (Wish::Begin, Some(Held { open: 0, .. })) => {
            Decision::Replace
        }
        (Wish::Open, None) if start == Start::Manual => Decision::NothingHeld,
        (Wish::Open | Wish::Begin, None) => Decision::Take,
        (Wish::Open | Wish::Begin, Some(_)) => Decision::Busy,
        (Wish::Release | Wish::End, Some(_)) => Decision::LetGo,
        (Wish::Release, None) => Decision::NothingHeld,
        (Wish::End, None) => Decision::Nothing,
    }
}

/// Whether files that are open are all that is in the way of a wish.
pub fn waits_for_closes(wish: Wish, held: Held) -> bool {
    let decided = |open| decide(wish, Some(Held { open, ..held }), Start::default());
    decided(held.open) == Decision::Busy && decided(0) != Decision::Busy
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
        begun: bool,
        open: Vec<u32>,
    }

    proptest! {
        #[test]
        fn it_ends_when_the_options_say_so(
            hold in proptest::option::of(1_u64..100), idle in proptest::option::of(1_u64..100),
            open in 0_usize..3, closed in 0_u64..100, after in 0_u64..100,
        ) {
            let seconds = |count| Duration::from_secs(count);
            let terms = Terms { hold_limit: hold.map(seconds), idle_timeout: idle.map(seconds), ..Terms::default() };
            let taken = Instant::now();
            let now = taken + seconds(closed + after);
            let held_too_long = hold.is_some_and(|hold| closed + after >= hold);
            let idle_too_long = open == 0 && idle.is_some_and(|idle| after >= idle);
            match due(&terms, now, Use { taken, open, last_close: taken + seconds(closed) }) {
                Due::Now(..) => prop_assert!(held_too_long || idle_too_long),
                Due::At(then) => prop_assert!(then > now && !held_too_long && !idle_too_long),
                Due::Never => prop_assert!(hold.is_none() && idle.is_none()),
            }
        }

        #[test]
        fn no_open_file_loses_its_instant_to_a_begin(
            wishes in proptest::collection::vec((0_u8..5, any::<prop::sample::Index>(), any::<bool>()), 0..60), manual: bool,
        ) {
            let start = if manual { Start::Manual } else { Start::Read };
            let mut model = Model::default();
            for (wish, which, serves) in wishes {
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
                let held = on_held.map(|open| Held { open, begun: model.begun, serves });
                match decide(wish, held, start) {
                    Decision::Share => prop_assert!(wish == Wish::Open && before.is_some() && serves),
                    Decision::Take | Decision::Replace => {
                        prop_assert!(matches!(wish, Wish::Open | Wish::Begin));
                        prop_assert!(on_held.unwrap_or(0) == 0, "nothing open is cut off");
                        prop_assert!(!(manual && wish == Wish::Open && before.is_none()));
                        prop_assert!(wish == Wish::Begin || before.is_none() || !(serves || model.begun), "nobody's instant is moved");
                        model.begun = wish == Wish::Begin;
                        model.taken += 1;
                        model.held = Some(model.taken);
                    }
                    Decision::LetGo => {
                        prop_assert!(matches!(wish, Wish::Release | Wish::End));
                        model.held = None;
                    }
                    Decision::Busy if wish == Wish::Begin => {
                        prop_assert!(on_held > Some(0) && held.is_some_and(|held| waits_for_closes(wish, held)));
                    }
                    Decision::Busy => prop_assert!(wish == Wish::Open && !serves && (on_held > Some(0) || model.begun)),
                    Decision::NothingHeld => prop_assert!(before.is_none() && (wish == Wish::Release || manual)),
                    Decision::Nothing => prop_assert!(before.is_none() && wish == Wish::End),
                }
                if wish == Wish::End {
                    prop_assert!(model.held.is_none());
                }
                if wish == Wish::Open
                    && !matches!(decide(wish, held, start), Decision::Busy)
                    && let Some(held) = model.held {
                        model.open.push(held);
                    }
            }
        }
    }
}
