//! (g) What a guest that writes feels of a backup.

use std::time::Instant;

use pullfs_tests::flavor::Flavor;
use pullfs_tests::write_times::{Times, WriteTimes};
use serde_json::{Value, json};

use super::Work;
use crate::args::Args;
use crate::held::Held;
use crate::peers::{NBDCOPY, convert_to_null};
use crate::process::again_and_again;
use crate::pull::Pull;
use crate::readers::direct;
use crate::results::{OURS, Results};
use crate::units::{MIB, Unit, float};

pub(crate) const WORK: Work = Work {
    letter: 'g',
    title: "a guest's writes while it is backed up",
    how: "Linux under TCG writes 4 KiB with O_DIRECT at random places of a disk of half the size, one after the other, and \
          takes the times itself; ten seconds each, from the beginning of a new point in time. \"pullfs\" is read by `dd bs=1M \
          iflag=direct`, again and again. The bare pull is a backup job with an export of its scratch image, as libvirt sets \
          it up, read by `nbdcopy` and by `qemu-img convert -n`, to nowhere. A disk in the page cache is as fast as the \
          processors, which guest, QEMU and reader share; the throttled one does 3,000 requests and 125 MiB a second, in all.",
    run: writes,
};

/// So long each of them is measured, by the guest's clock.
const SECONDS: usize = 10;

/// Who reads at full speed, beside [`OURS`].
pub(crate) const POLITE: &str = "polite pullfs";
pub(crate) const PULL: &str = "bare pull, ";

/// A disk that the guest writes to.
#[derive(Clone, Copy)]
pub(crate) enum Disk {
    PageCache,
    Throttled,
}

impl Disk {
    fn name(self) -> &'static str {
        match self {
            Self::PageCache => "page cache",
            Self::Throttled => "throttled disk",
        }
    }

    /// As a volume of a cloud has them.
    fn limits(self) -> Option<Value> {
        match self {
            Self::PageCache => None,
            Self::Throttled => Some(json!({"iops-total": 3000, "bps-total": 125 * MIB})),
        }
    }

    /// The series of a figure.
    fn series(self, figure: &str) -> String {
        format!("{figure}, {}", self.name())
    }

    /// What the claims are of.
    pub(crate) fn p99(self) -> String {
        self.series("p99")
    }
}

fn writes(args: &Args, results: &mut Results) {
    for disk in [Disk::PageCache, Disk::Throttled] {
        let size = args.size / 2;
        let guest = WriteTimes::boot(Flavor::New, size / MIB, disk.limits().as_ref());
        for _ in 0..args.rounds {
            round(&mut Felt { disk, results }, &guest, size);
        }
    }
}

fn round(felt: &mut Felt<'_>, guest: &WriteTimes, size: u64) {
    felt.times("nothing held", &guest.of_next(SECONDS));
    {
        let _held = Held::of(guest.machine());
        felt.times("idle pullfs", &guest.of_next(SECONDS));
    }
    for (who, options) in [(OURS, ""), (POLITE, "polite")] {
        let held = Held::with(guest.machine(), options);
        let fetched = || float(held.mount.status()["point"]["nbd"]["bytes"].as_u64().expect("a count"));
        let reader = direct(&held.mount.disk("vda"));
        let ((times, speed), _) = again_and_again(&reader, || {
            let (before, start) = (fetched(), Instant::now());
            let times = guest.of_next(SECONDS);
            (times, (fetched() - before) / start.elapsed().as_secs_f64())
        });
        felt.times(who, &times);
        felt.speed(who, speed);
    }
    {
        let _pull = Pull::of(guest.machine(), "vda", size);
        felt.times("idle bare pull", &guest.of_next(SECONDS));
    }
    for reader in ["nbdcopy", "qemu-img convert"] {
        let pull = Pull::of(guest.machine(), "vda", size);
        let uri = pull.uri();
        let command =
            if reader == "nbdcopy" { NBDCOPY[0].command(&uri, "null:".as_ref()) } else { convert_to_null(&uri, size) };
        let (times, passes) = again_and_again(&command, || guest.of_next(SECONDS));
        let who = format!("{PULL}{reader}");
        felt.times(&who, &times);
        for took in passes {
            felt.speed(&who, float(size) / took.as_secs_f64());
        }
    }
}

/// What the guest of one disk felt.
struct Felt<'a> {
    disk: Disk,
    results: &'a mut Results,
}

impl Felt<'_> {
    fn times(&mut self, who: &str, times: &Times) {
        let seconds = float(SECONDS.try_into().unwrap_or(0));
        let figures = [("p50", times.permille(500)), ("p99", times.permille(990)), ("slowest", times.longest())];
        for (figure, time) in figures {
            self.add(figure, who, Unit::Milliseconds, time.as_secs_f64() * 1000.0);
        }
        self.add("writes", who, Unit::PerSecond, float(times.count()) / seconds);
    }

    /// Bytes a second that were read meanwhile.
    fn speed(&mut self, who: &str, speed: f64) {
        self.add("read meanwhile", who, Unit::MibPerSecond, speed / float(MIB));
    }

    fn add(&mut self, figure: &str, who: &str, unit: Unit, sample: f64) {
        self.results.add('g', &self.disk.series(figure), who, unit, sample);
    }
}
