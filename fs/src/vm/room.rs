//! When scratch space runs out: the rules, as plain code.
//!
//! ```text
//! 0 ──────── used ────────┬──── left ────┬──────── reserve ────────┐
//!                         now            the point in time is      the guest would
//!                                        given up                  have to wait
//! ```
//! Giving up takes some milliseconds, in which the guest goes on writing: the reserve is for these. It is a part of the
//! room that there was when the point in time was taken, so that a small scratch directory serves too, and is bounded, so
//! that a large one is not wasted.

/// Bytes that stay free in the scratch directory's file system. What the fastest of guests overwrites in the time of
/// giving up: 2 GiB/s for an eighth of a second.
const FREE_RESERVE: u64 = 256 << 20;

/// Where a quota ends the guest loses nothing: it is kept roughly, by a smaller reserve.
const QUOTA_RESERVE: u64 = 16 << 20;

/// What is left of the room is not worth another mark when it is less than this part of the reserve.
const WORTH_A_MARK: u64 = 16;

/// Less than this for each disk is no room to begin with: an empty scratch image and a few clusters.
pub(super) const LEAST: u64 = 1 << 20;

/// What is measured, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    /// Taken by the scratch images.
    pub(super) used: u64,
    /// Free in the file system, for QEMU's user.
    pub(super) free: u64,
}

/// What must not be passed, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Marks {
    /// Free space that is left alone.
    reserve: u64,
    /// What the scratch images may take (`scratch_limit=`).
    limit: Option<u64>,
}

/// Why a point in time is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// The file system is about to be.
    FileSystem,
    /// `scratch_limit=` is reached.
    Limit(u64),
}

impl Marks {
    /// For a point in time that begins with this room.
    pub(super) fn new(begin: Room, limit: Option<u64>) -> Self {
        Self { reserve: (begin.free / 4 * 3).min(FREE_RESERVE), limit }
    }

    /// The same with another limit.
    pub(super) fn limited(self, limit: Option<u64>) -> Self {
        Self { limit, ..self }
    }

    /// How many bytes the guest may still overwrite before the point in time is given up.
    ///
    /// # Errors
    /// None: it is to be given up now, for this reason.
    pub(super) fn left(&self, now: Room) -> Result<u64, Full> {
        let free = now.free.saturating_sub(self.reserve);
        let free = if free < self.reserve / WORTH_A_MARK { 0 } else { free };
        let quota =
            self.limit.map(|limit| (limit, limit.saturating_sub(quota_reserve(limit)).saturating_sub(now.used)));
        match quota {
            _ if free == 0 => Err(Full::FileSystem),
            Some((limit, 0)) => Err(Full::Limit(limit)),
            Some((_, quota)) => Ok(free.min(quota)),
            None => Ok(free),
        }
    }
}

fn quota_reserve(limit: u64) -> u64 {
    (limit / 8).min(QUOTA_RESERVE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn small_and_large_rooms_serve() {
        let small = Marks::new(Room { used: 0, free: 8 * MIB }, None);
        assert_eq!(small.left(Room { used: MIB, free: 7 * MIB }), Ok(MIB));
        assert_eq!(small.left(Room { used: 2 * MIB, free: 6 * MIB }), Err(Full::FileSystem));
        assert_eq!(small.left(Room { used: 2 * MIB, free: 6 * MIB + 4096 }), Err(Full::FileSystem), "hardly worth it");
        let large = Marks::new(Room { used: 0, free: 1 << 40 }, Some(1 << 30));
        assert_eq!(large.left(Room { used: 0, free: 1 << 40 }), Ok((1 << 30) - QUOTA_RESERVE));
        assert_eq!(large.left(Room { used: 1 << 30, free: 1 << 39 }), Err(Full::Limit(1 << 30)));
        assert_eq!(large.left(Room { used: 0, free: FREE_RESERVE }), Err(Full::FileSystem));
    }

    proptest! {
        #[test]
        fn it_is_given_up_before_anything_is_full(
            begin in 0_u64..1 << 42, limit in proptest::option::of(1_u64..1 << 42), used: u32, free in 0_u64..1 << 42,
        ) {
            let used = u64::from(used);
            let marks = Marks::new(Room { used: 0, free: begin }, limit);
            if let Ok(left) = marks.left(Room { used, free }) {
                prop_assert!(left > 0 && left <= free);
                // After so much is written it is not fine any more.
                let then = Room { used: used + left, free: free - left };
                prop_assert!(marks.left(then).is_err());
                if let Some(limit) = limit {
                    prop_assert!(used + left <= limit);
                }
            }
        }
    }
}
