//! What may happen next.

use pullfs_tests::machine::MIB;
use pullfs_tests::model::{Model, SECTOR};
use pullfs_tests::random::Random;

/// More checkpoints than this cost time and show nothing new.
const CHECKPOINTS: usize = 4;
/// Disks stay small: all of them are compared after each step.
const LARGEST: usize = 8 << 20;

/// What a guest asks for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    /// This pattern; 0 is data as well.
    Write(u8),
    /// Zeroes, unmapped where the disk likes to.
    Zero,
    /// Nothing in particular.
    Discard,
}

/// A request of a guest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) disk: usize,
    pub(super) change: Change,
    pub(super) offset: usize,
    pub(super) length: usize,
}

/// What happens between two checks.
#[derive(Debug)]
pub(super) enum Step {
    /// The guest writes.
    Guest(Vec<Request>),
    /// A checkpoint is made. The copies at it are what changed since `parent`, or whole disks.
    Checkpoint { name: String, parent: Option<String> },
    /// A checkpoint is deleted.
    Delete { name: String },
    /// A disk grows.
    Grow { disk: usize, size: usize },
    /// An external snapshot.
    Snapshot { disks: Vec<usize>, tag: String, cluster: u64 },
    /// QEMU ends in an orderly way and starts again, with the old mount or a new one.
    Restart { remount: bool },
    /// QEMU is killed and starts again.
    Kill { remount: bool },
}

impl Step {
    /// Chooses the step `number`, which depends on nothing but the seed and what happened before. Names of checkpoints that
    /// are gone may be `free` for new ones.
    pub(super) fn choose(random: &mut Random, model: &Model, number: u64, free: &[String]) -> Self {
        let broken = model.checkpoints.iter().find(|checkpoint| !model.usable(&checkpoint.name));
        if let Some(broken) = broken.filter(|_| random.chance(50)) {
            return Self::Delete { name: broken.name.clone() };
        }
        let full = model.checkpoints.len() >= CHECKPOINTS;
        match random.below(100) {
            _ if number == 1 => Self::checkpoint(random, model, number, free),
            0..48 => Self::Guest(requests(random, model, 6)),
            48..68 if !full => Self::checkpoint(random, model, number, free),
            48..75 if !model.checkpoints.is_empty() => {
                let index = random.index(model.checkpoints.len());
                Self::Delete { name: model.checkpoints[index].name.clone() }
            }
            75..82 => {
                let disk = random.index(model.disks.len());
                let more = SECTOR * (1 + random.index(2048));
                let size = (model.disks[disk].bytes.len() + more).min(LARGEST);
                Self::Grow { disk, size }
            }
            82..88 => {
                let mut disks: Vec<usize> = (0..model.disks.len()).filter(|_| random.chance(60)).collect();
                if disks.is_empty() {
                    disks.push(0);
                }
                let cluster = [4096, 65536, 131_072][random.index(3)];
                Self::Snapshot { disks, tag: format!("snap{number}"), cluster }
            }
            88..94 => Self::Restart { remount: random.chance(50) },
            94..97 => Self::Kill { remount: random.chance(50) },
            _ => Self::Guest(requests(random, model, 20)),
        }
    }

    fn checkpoint(random: &mut Random, model: &Model, number: u64, free: &[String]) -> Self {
        let parents = model.parents();
        let parent = (!parents.is_empty() && random.chance(80)).then(|| random.index(parents.len()));
        let parent = parent.map(|index| parents[index].to_owned());
        let name = if free.is_empty() || random.chance(60) {
            format!("cp{number}")
        } else {
            free[random.index(free.len())].clone()
        };
        Self::Checkpoint { name, parent }
    }
}

/// Up to `most` requests, at least one.
pub(super) fn requests(random: &mut Random, model: &Model, most: u64) -> Vec<Request> {
    (0..=random.below(most)).map(|_| request(random, model)).collect()
}

fn request(random: &mut Random, model: &Model) -> Request {
    let disk = random.index(model.disks.len());
    let size = model.disks[disk].bytes.len();
    let change = match random.below(10) {
        0..6 => Change::Write(u8::try_from(random.below(256)).expect("a byte")),
        6..8 => Change::Zero,
        _ => Change::Discard,
    };
    // Some sectors, as a file system writes; whole clusters, as it trims; now and then large parts, and the disk's end.
    let unit = [SECTOR, SECTOR, 4096, 65536][random.index(4)];
    let length = match random.below(10) {
        0..8 => unit * (1 + random.index(4)),
        8 => unit * (1 + random.index(32)),
        _ => unit * (1 + random.index(usize::try_from(MIB).expect("a length") / unit)),
    };
    let length = length.min(size);
    let last = (size - length) / unit;
    let offset = if random.chance(5) { size - length } else { unit * random.index(last + 1) };
    Request { disk, change, offset, length }
}
