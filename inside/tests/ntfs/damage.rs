//! File systems that are not right.

use std::time::{Duration, Instant};

use images::compare::contents;
use images::damage::{Random, error, look_at_all};
use inside::ntfs;
use inside::{FileSystem, Id, Kind};

use crate::{attribute_of, path_of, record_of, small};

#[test]
fn damage_is_an_error_where_it_is_and_nowhere_else() {
    let directory = tempfile::tempdir().unwrap();
    let good = small(directory.path());
    let fs = ntfs::open(&good).unwrap();
    let (plain, other, below) = (path_of(&fs, "plain"), path_of(&fs, "other"), path_of(&fs, "directory"));
    let damaged = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        let fs = ntfs::open(bytes.clone()).unwrap();
        assert_eq!(contents(&fs, &bytes, other, 5), b"other", "another file");
        look_at_all(&fs);
        fs
    };
    let torn = damaged(&|bytes| {
        let record = record_of(bytes, plain);
        bytes[record + 510] ^= 1;
    });
    assert_eq!(error(torn.attributes(plain)), Kind::Corrupt);
    let reused = damaged(&|bytes| {
        let record = record_of(bytes, plain);
        bytes[record + 16] += 1;
    });
    assert_eq!(error(reused.attributes(plain)), Kind::NotFound);
    let runs = |bytes: &[u8]| {
        let data = attribute_of(bytes, plain, 0x80);
        data + usize::from(u16::from_le_bytes([bytes[data + 32], bytes[data + 33]]))
    };
    let past = damaged(&|bytes| {
        let runs = runs(bytes);
        bytes[runs..runs + 5].copy_from_slice(&[0x31, 13, 0xFF, 0xFF, 0x7F]);
    });
    assert_eq!(error(past.extents(plain, 0, 10)), Kind::Corrupt);
    let huge = damaged(&|bytes| {
        let data = attribute_of(bytes, plain, 0x80);
        bytes[data + 24..data + 32].copy_from_slice(&(1_u64 << 50).to_le_bytes());
        bytes[data + 40..data + 48].copy_from_slice(&(1_u64 << 62).to_le_bytes());
        bytes[data + 48..data + 56].copy_from_slice(&(1_u64 << 62).to_le_bytes());
        bytes[data + 56..data + 64].copy_from_slice(&(1_u64 << 62).to_le_bytes());
    });
    assert_eq!(error(huge.extents(plain, 0, 10)), Kind::Corrupt);
    // Every block of the index says that it has itself below it.
    let looped = damaged(&|bytes| {
        let blocks: Vec<usize> =
            (0..bytes.len()).step_by(4096).filter(|&at| bytes[at..].starts_with(b"INDX")).collect();
        for at in blocks {
            let number = bytes[at + 16..at + 24].to_vec();
            let mut entry = at + 24 + usize::from(u16::from_le_bytes([bytes[at + 24], bytes[at + 25]]));
            if bytes[entry + 16..entry + 24] != below.0.to_le_bytes() {
                continue;
            }
            while bytes[entry + 12] & 2 == 0 {
                let length = usize::from(u16::from_le_bytes([bytes[entry + 8], bytes[entry + 9]]));
                // Not where a sector's last bytes are, which would be torn.
                if [entry + 12, entry + length - 8, entry + length - 1].iter().all(|at| at % 512 < 503) {
                    bytes[entry + 12] |= 1;
                    bytes[entry + length - 8..entry + length].copy_from_slice(&number);
                }
                entry += length;
            }
        }
    });
    let looped = looped.lookup(below, b"number 77a").unwrap_err();
    assert!(looped.kind() == Kind::Corrupt && looped.to_string().contains("its depth"), "{looped}");
    for made_up in [0, 1, 0x1234_5678, u64::MAX, plain.0 + (1 << 48)] {
        let kind = error(fs.attributes(Id(made_up)));
        assert!(matches!(kind, Kind::NotFound | Kind::Corrupt), "{made_up}: {kind:?}");
    }
    assert_eq!(error(fs.lookup(plain, b"x")), Kind::WrongKind);
    assert_eq!(error(fs.link_target(plain)), Kind::WrongKind);
    assert_eq!(error(fs.extents(below, 0, 1)), Kind::WrongKind);
}

#[test]
fn random_damage_ends_in_time() {
    let directory = tempfile::tempdir().unwrap();
    let good = small(directory.path());
    // All that is neither zeroes nor the log's emptiness.
    let used: Vec<usize> = (0..good.len())
        .step_by(64)
        .filter(|&at| good[at..at + 64].iter().any(|&byte| byte != 0 && byte != 0xFF))
        .collect();
    let mut random = Random(11);
    let (mut opened, mut errors, mut slowest) = (0, 0, Duration::ZERO);
    let mut bytes = good.clone();
    for _ in 0..300 {
        let mut changed = Vec::new();
        for _ in 0..=random.below(30) {
            let at = used[usize::try_from(random.below(used.len() as u64)).unwrap()]
                + usize::try_from(random.below(64)).unwrap();
            changed.push(at);
            bytes[at] = match random.below(3) {
                0 => 0xFF,
                1 => 0,
                _ => bytes[at] ^ (1 << random.below(8)),
            };
        }
        let started = Instant::now();
        if let Ok(fs) = ntfs::open(&bytes) {
            opened += 1;
            errors += look_at_all(&fs);
        }
        slowest = slowest.max(started.elapsed());
        for at in changed {
            bytes[at] = good[at];
        }
    }
    println!("{opened} of 300 opened, {errors} errors, the slowest took {slowest:?}");
    assert!(opened > 100 && errors > 50 && slowest < Duration::from_secs(5));
}
