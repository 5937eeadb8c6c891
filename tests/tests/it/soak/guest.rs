//! The guest: it writes, discards and zeroes all the time.

use std::thread;
use std::time::{Duration, Instant};

use pullfs_tests::machine::MIB;
use pullfs_tests::model::SECTOR;
use pullfs_tests::oracle;
use pullfs_tests::random::Random;

use super::load::{EndOnPanic, Load, Now, World};

const CLUSTER: usize = 65536;

/// Between two requests. Whoever begins a point in time waits for its turn no longer than this.
const LONGEST_PAUSE: u64 = 4;

pub(super) fn run(load: &Load<'_>, seed: u64) {
    let _end = EndOnPanic(load);
    let mut random = Random::new(seed);
    while !load.over() {
        {
            let mut world = load.world();
            let held = matches!(load.now().1, Now::Held(_));
            let took = request(&mut world, &mut random);
            if held { &load.figures.guest_held } else { &load.figures.guest_alone }.note(took);
            load.figures.guest_requests.add(1);
        }
        thread::sleep(Duration::from_millis(random.below(LONGEST_PAUSE)));
    }
}

/// One request of the guest, and how long the machine took for it.
fn request(world: &mut World, random: &mut Random) -> Duration {
    let World { machine, model } = world;
    let disk = random.index(model.disks.len());
    let (id, size) = (model.disks[disk].id.clone(), model.disks[disk].bytes.len());
    let kind = random.below(10);
    let unit = [SECTOR, SECTOR, 4096, CLUSTER][random.index(4)];
    let most = if random.chance(4) { usize::try_from(MIB).expect("a length") / unit } else { 8 };
    let length = (unit * (1 + random.index(most))).min(size / unit * unit);
    let last = random.chance(3);
    let offset = if last { size - length } else { unit * random.index((size - length) / unit + 1) };
    let [at, long] = [offset, length].map(|number| u64::try_from(number).expect("a place"));
    let (began, byte) = (Instant::now(), u8::try_from(random.below(256)).expect("a byte"));
    let after = match kind {
        0 => {
            machine.discard(&id, at, long);
            None
        }
        1 | 2 => {
            machine.write_zeroes(&id, at, long);
            Some(0)
        }
        _ => {
            machine.write(&id, at, long, byte);
            Some(byte)
        }
    };
    let took = began.elapsed();
    let after = match after {
        Some(byte) => vec![byte; length],
        None => oracle::discarded(machine, &model.disks[disk], offset, length),
    };
    model.change(disk, offset, &after);
    took
}
