//! Logs whose last records were not written to their end.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use images::xfs::{SIZE, Store};
use images::{Image, run};
use inside::Disk;

use super::dirty::check;
use super::fill;

const BLOCK: u64 = 512;

/// Where the records of a log are on the disk, and their lengths; the last one that was written is the last one here.
fn records(image: &Image) -> Vec<(u64, u64)> {
    let number = |at, size: usize| {
        let mut bytes = [0; 8];
        image.read_at(at, &mut bytes[8 - size..]).unwrap();
        u64::from_be_bytes(bytes)
    };
    let (block_size, group_blocks) = (number(4, 4), number(84, 4));
    let group_log = number(124, 1);
    let start = number(48, 8);
    let start = ((start >> group_log) * group_blocks + (start & ((1 << group_log) - 1))) * block_size;
    let mut log = vec![0; usize::try_from(number(96, 4) * block_size).unwrap()];
    image.read_at(start, &mut log).unwrap();
    let mut found: Vec<(u64, u64, u64)> = (0..)
        .zip(log.chunks(512))
        .filter(|(_, block)| block.starts_with(&[0xfe, 0xed, 0xba, 0xbe]))
        .map(|(at, block)| {
            let word = |at: usize| u32::from_be_bytes(block[at..at + 4].try_into().unwrap());
            (u64::from(word(16)) << 32 | u64::from(word(20)), start + at * BLOCK, u64::from(word(12)))
        })
        .collect();
    found.sort_unstable();
    found.into_iter().map(|(_, at, length)| (at, length)).collect()
}

#[test]
fn records_that_were_not_written_to_their_end() {
    let store = Store::new();
    let image = store.made("whole", SIZE, &[]);
    let mount = image.mount("rw");
    // Each of them is in some records of its own.
    for round in 0..12 {
        let directory = mount.0.join(format!("round {round}"));
        std::fs::create_dir(&directory).unwrap();
        fill::names(&directory);
        fill::xattrs(&directory);
        run("xfs_io", &["-c", "fsync", directory.join("odd/...").to_str().unwrap()]);
    }
    run("xfs_io", &["-x", "-c", "shutdown -f", mount.0.to_str().unwrap()]);
    drop(mount);

    let records = records(&image);
    assert!(records.len() > 12, "{} records", records.len());
    let nth_last = |back: usize| records[records.len() - 1 - back];
    let cases: [(&str, usize, u64, usize); 5] = [
        ("a byte of the last one", 0, 700, 1),
        ("the last one's header", 0, 0, 512),
        ("the last one's end", 0, u64::MAX, 512),
        ("the third last one", 2, 600, 300),
        ("a byte of the eighth last one's header", 7, 50, 1),
    ];
    for (what, back, offset, length) in cases {
        println!("{what}");
        let (at, size) = nth_last(back);
        let torn = image.copy(what);
        let file = OpenOptions::new().read(true).write(true).open(&torn.path).unwrap();
        let at = if offset == u64::MAX { at + size.next_multiple_of(BLOCK) } else { at + offset };
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, at).unwrap();
        for byte in &mut bytes {
            *byte = byte.wrapping_add(77);
        }
        file.write_all_at(&bytes, at).unwrap();
        assert!(check(&torn), "{what}");
    }
}

#[test]
fn a_damaged_record_further_back_is_refused() {
    let store = Store::new();
    let image = store.made("whole", SIZE, &[]);
    let mount = image.mount("rw");
    for round in 0..16 {
        fill::names(&mount.0.join(round.to_string()));
        run("xfs_io", &["-c", "fsync", mount.0.join(format!("{round}/odd/...")).to_str().unwrap()]);
    }
    run("xfs_io", &["-x", "-c", "shutdown -f", mount.0.to_str().unwrap()]);
    drop(mount);
    let records = records(&image);
    let (at, _) = records[records.len() - 12];
    let file = OpenOptions::new().read(true).write(true).open(&image.path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at + 600).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at + 600).unwrap();
    let error = inside::xfs::open(&image).map(drop).unwrap_err();
    assert_eq!(error.kind(), inside::Kind::Unclean, "{error}");
}
