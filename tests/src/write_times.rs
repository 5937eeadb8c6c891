//! A guest that writes 4 KiB here and there and says how long each write took; see tests/setup/stalls.c.

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::time::Duration;

use serde_json::{Value, json};

use crate::disk::Disk;
use crate::flavor::Flavor;
use crate::guest::BOOT_LIMIT;
use crate::machine::Machine;
use crate::process::wait_until;
use crate::stalls::Stalls;

/// A guest that overwrites places of its only disk, `vda`, which is raw.
#[derive(Debug)]
pub struct WriteTimes {
    guest: Stalls,
}

impl WriteTimes {
    /// Boots a guest with a disk of so many MiB, none of them zeroes, and returns when it has written for a second. With
    /// `limits`, a throttle group of QEMU's bounds what the disk does for all who use it.
    #[track_caller]
    pub fn boot(flavor: Flavor, mib: u64, limits: Option<&Value>) -> Self {
        let words = "pullfs.passes=times";
        let disk = Disk::raw("vda", 0);
        let guest = match limits {
            None => Stalls::start(flavor, disk, mib, words, &[]),
            Some(limits) => {
                let group = json!({"qom-type": "throttle-group", "id": "slow", "limits": limits});
                let arguments = ["-object".to_owned(), group.to_string()];
                Stalls::start(flavor, disk.slowed_by("slow"), mib, words, &arguments)
            }
        };
        let guest = Self { guest };
        guest.of_next(1);
        guest
    }

    /// The machine that the guest runs on.
    pub fn machine(&self) -> &Machine {
        self.guest.machine()
    }

    /// Waits for so many seconds by the guest's clock, of which the first one begins after this call; how long the writes
    /// of those took. Panics if the guest is in trouble.
    #[track_caller]
    pub fn of_next(&self, seconds: usize) -> Times {
        let first = self.told().len() + 1;
        let limit = BOOT_LIMIT + Duration::from_secs(10) * u32::try_from(seconds).expect("a few seconds");
        let mut told = Vec::new();
        wait_until("the guest to write on", limit, || {
            self.guest.untroubled();
            told = self.told();
            told.len() >= first + seconds
        });
        let mut times = Times::default();
        for second in told.drain(first..first + seconds) {
            times += second;
        }
        times
    }

    /// Each second that it has told.
    fn told(&self) -> Vec<Times> {
        self.guest.said().lines().filter_map(Times::parse).collect()
    }
}

/// How long writes took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// By microseconds, how many took about as long.
    counts: BTreeMap<u64, u64>,
    longest: u64,
}

impl Times {
    /// A second, as the guest tells it.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.trim().strip_prefix("stalls: second=")?.split(' ').skip(1);
        let longest = words.next()?.strip_prefix("longest=")?.parse().ok()?;
        let count = |word: &str| {
            let (time, count) = word.split_once(':')?;
            Some((time.parse().ok()?, count.parse().ok()?))
        };
        Some(Self { counts: words.map(count).collect::<Option<_>>()?, longest })
    }

    /// How many writes there were.
    pub fn count(&self) -> u64 {
        self.counts.values().sum()
    }

    /// So many of a thousand took no longer, to about a hundredth.
    pub fn permille(&self, permille: u64) -> Duration {
        let wanted = (self.count() * permille).div_ceil(1000);
        let mut seen = 0;
        let found = self.counts.iter().find(|(_, count)| {
            seen += **count;
            seen >= wanted
        });
        Duration::from_micros(found.map_or(0, |(time, _)| *time))
    }

    /// The slowest of them.
    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.longest)
    }
}

impl AddAssign for Times {
    fn add_assign(&mut self, other: Self) {
        for (time, count) in other.counts {
            *self.counts.entry(time).or_default() += count;
        }
        self.longest = self.longest.max(other.longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_add_up() {
        let mut times = Times::parse("stalls: second=1 longest=907 10:97 20:1").expect("a second");
        assert_eq!(times.permille(990), Duration::from_micros(20));
        times += Times::parse("stalls: second=2 longest=350 10:1 300:1\r").expect("a second");
        assert_eq!((times.count(), times.longest()), (100, Duration::from_micros(907)));
        let told = [500, 980, 990, 1000].map(|permille| times.permille(permille).as_micros());
        assert_eq!(told, [10, 10, 20, 300]);
    }

    #[test]
    fn other_lines_tell_nothing() {
        for line in ["", "stalls: written=1 longest=2", "stalls: second=1", "stalls: second=1 longest=2 3:x"] {
            assert_eq!(Times::parse(line), None, "{line}");
        }
    }
}
