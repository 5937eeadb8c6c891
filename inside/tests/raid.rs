//! Superblocks of md, made by hand as the kernel lays them out: the driver is not there everywhere. What mdadm and blkid say of
//! them is the oracle.

use std::path::Path;
use std::process::Command;

use images::{Image, feed, ok, run};
use inside::raid::{Member, member, outdated};
use inside::{Part, probe};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 20 * MIB;
const DATA: u64 = MIB;
const LENGTH: u64 = 16 * MIB;

/// A superblock of version 1.
#[derive(Clone)]
struct New {
    level: i32,
    features: u32,
    device: u32,
    roles: Vec<u16>,
    resync: u64,
    events: u64,
    flags: u8,
}

impl Default for New {
    fn default() -> Self {
        Self { level: 1, features: 0, device: 0, roles: vec![0, 1], resync: u64::MAX, events: 7, flags: 0 }
    }
}

impl New {
    fn bytes(&self, place: u64) -> Vec<u8> {
        let mut block = vec![0; 4096];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &0xa92b_4efc_u32.to_le_bytes());
        put(4, &1_u32.to_le_bytes());
        put(8, &self.features.to_le_bytes());
        put(16, &[0xab; 16]);
        put(32, b"host:the array");
        put(64, &1_700_000_000_u64.to_le_bytes());
        put(72, &self.level.to_le_bytes());
        put(80, &(LENGTH / 512).to_le_bytes());
        put(92, &2_u32.to_le_bytes());
        let start = if place > DATA { 0 } else { DATA };
        put(128, &(start / 512).to_le_bytes());
        put(136, &(LENGTH / 512 + 1024).to_le_bytes());
        put(144, &(place / 512).to_le_bytes());
        put(160, &self.device.to_le_bytes());
        put(168, &[0xcd; 16]);
        put(184, &[self.flags]);
        put(192, &1_700_000_001_u64.to_le_bytes());
        put(200, &self.events.to_le_bytes());
        put(208, &self.resync.to_le_bytes());
        put(220, &u32::try_from(self.roles.len()).unwrap().to_le_bytes());
        for (index, role) in self.roles.iter().enumerate() {
            put(256 + 2 * index, &role.to_le_bytes());
        }
        let covered = &block[..256 + 2 * self.roles.len()];
        let words = covered.chunks(4).map(|word| match *word {
            [a, b, c, d] => u64::from(u32::from_le_bytes([a, b, c, d])),
            [a, b] => u64::from(u16::from_le_bytes([a, b])),
            _ => unreachable!("roles have two bytes"),
        });
        let checksum = fold(words.sum());
        block[216..220].copy_from_slice(&checksum.to_le_bytes());
        block
    }

    fn image(&self, version: &str) -> Image {
        let image = Image::new(SIZE);
        let place = match version {
            "1.0" => SIZE - 8192,
            "1.1" => 0,
            _ => 4096,
        };
        image.write(place, &self.bytes(place));
        image
    }

    fn data(&self) -> Result<std::ops::Range<u64>, String> {
        member(&self.image("1.2")).unwrap().expect("a member").data
    }
}

fn fold(sum: u64) -> u32 {
    u32::try_from(((sum & 0xffff_ffff) + (sum >> 32)) & 0xffff_ffff).unwrap()
}

/// A superblock of version 0.90 of two devices, of which this one has that number and state.
fn old(level: i32, number: u32, states: [u32; 2], clean: bool, big: bool) -> Image {
    let mut words = [0_u32; 1024];
    words[0] = 0xa92b_4efc;
    words[2] = 90;
    words[4] = 0;
    words[5] = 0x0011_2233;
    words[13..16].copy_from_slice(&[0x4455_6677, 0x8899_aabb, 0xccdd_eeff]);
    words[6] = 1_700_000_000;
    words[7] = level.cast_unsigned();
    words[8] = u32::try_from(LENGTH >> 10).unwrap();
    words[9..11].copy_from_slice(&[2, 2]);
    words[32] = 1_700_000_001;
    words[33] = u32::from(clean);
    words[34..38].copy_from_slice(&[2, 2, 0, 0]);
    words[if big { 40 } else { 39 }] = 7;
    for (index, state) in (0..).zip(states) {
        let place = usize::try_from(128 + 32 * index).unwrap();
        words[place..place + 5].copy_from_slice(&[index, 7, index, index, state]);
    }
    let own = usize::try_from(128 + 32 * number).unwrap();
    words.copy_within(own..own + 32, 992);
    words[38] = fold(words.iter().map(|&word| u64::from(word)).sum());
    let image = Image::new(SIZE + 12_345);
    let place = SIZE - 65536;
    let bytes = words.map(|word| if big { word.to_be_bytes() } else { word.to_le_bytes() });
    image.write(place, &bytes.concat());
    image
}

const SYNC: u32 = 6;

fn mdadm(image: &Image) -> String {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/setup/lvm2/sbin/mdadm");
    ok(Command::new(tool).arg("--examine").arg(&image.path))
}

fn told<'a>(said: &'a str, field: &str) -> &'a str {
    let line = said.lines().find(|line| line.trim_start().starts_with(field));
    line.and_then(|line| line.split_once(" : ")).unwrap_or_else(|| panic!("{field}: {said}")).1.trim()
}

/// As mdadm writes a UUID.
fn grouped(member: &Member) -> String {
    let digits: Vec<char> = member.array.as_ref().unwrap().chars().filter(|one| *one != '-').collect();
    digits.chunks(8).map(|chunk| chunk.iter().collect::<String>()).collect::<Vec<_>>().join(":")
}

#[test]
fn mirrors_are_as_mdadm_and_blkid_say() {
    for version in ["1.0", "1.1", "1.2"] {
        let image = New::default().image(version);
        let found = member(&image).unwrap().expect("a member");
        let said = mdadm(&image);
        assert!(told(&said, "Checksum").ends_with("correct"), "{said}");
        assert_eq!(told(&said, "Version"), version);
        assert_eq!(told(&said, "Array UUID"), grouped(&found));
        assert_eq!(told(&said, "Events"), found.events.to_string());
        assert_eq!(told(&said, "Raid Level"), "raid1");
        let range = found.data.unwrap();
        let start = if version == "1.0" { "0" } else { told(&said, "Data Offset") };
        assert_eq!(start.trim_end_matches(" sectors"), (range.start / 512).to_string());
        assert!(told(&said, "Array Size").starts_with(&((range.end - range.start) >> 10).to_string()));
        assert_eq!((found.version, found.level), (version, 1));
        assert_eq!(found.name.as_deref(), Some(&b"host:the array"[..]));
        let uuid = image.run("blkid", &["-p", "-o", "value", "-s", "UUID"]);
        let content = probe(&image).unwrap().unwrap();
        assert_eq!((content.kind, content.uuid.as_deref()), ("linux_raid_member", Some(uuid.trim())));
        assert_eq!(content.label, found.name);
    }
    for big in [false, true] {
        let image = old(1, 1, [SYNC, SYNC], true, big);
        let found = member(&image).unwrap().expect("a member");
        if !big {
            let said = mdadm(&image);
            assert!(told(&said, "Checksum").ends_with("correct"), "{said}");
            assert_eq!(told(&said, "UUID").split(' ').next().unwrap(), grouped(&found));
        }
        let uuid = image.run("blkid", &["-p", "-o", "value", "-s", "UUID"]);
        assert_eq!(found.array.as_deref(), Some(uuid.trim()));
        assert_eq!((found.version, found.events, found.data), ("0.90", 7, Ok(0..LENGTH)));
    }
}

#[test]
fn a_member_in_doubt_is_refused() {
    let new = New::default;
    assert_eq!(new().data(), Ok(DATA..DATA + LENGTH));
    // Active arrays are as usual on a machine that runs: the mirror that others are copied from can be read.
    assert!(New { resync: 0, ..new() }.data().is_ok());
    assert!(New { resync: 0, device: 1, roles: vec![0xfffe, 1], ..new() }.data().is_ok(), "the only one left");
    for (superblock, why) in [
        (New { resync: 0, device: 1, ..new() }, "look at the first one"),
        (New { resync: 0, flags: 1, ..new() }, "look at the first one"),
        (New { roles: vec![0xffff, 1], ..new() }, "spare"),
        (New { device: 9, ..new() }, "spare"),
        (New { roles: vec![0xfffe, 1], ..new() }, "faulty"),
        (New { roles: vec![0xfffd, 1], ..new() }, "something else"),
        (New { features: 2, ..new() }, "being rebuilt"),
        (New { features: 4, ..new() }, "reshaped"),
        (New { features: 8, ..new() }, "bad blocks"),
        (New { features: 16, ..new() }, "take the place"),
        (New { level: 5, ..new() }, "RAID5"),
        (New { level: 0, ..new() }, "RAID0"),
        (New { level: -1, ..new() }, "linear"),
    ] {
        let refused = superblock.data().unwrap_err();
        assert!(refused.contains(why), "{why}: {refused}");
        let content = probe(&superblock.image("1.2")).unwrap().unwrap();
        assert_eq!(content.refused, Some(refused));
    }
    for (image, why) in [
        (old(5, 0, [SYNC, SYNC], true, false), "RAID5"),
        (old(1, 0, [1, SYNC], true, false), "faulty"),
        (old(1, 0, [0, SYNC], true, false), "spare"),
        (old(1, 1, [SYNC, SYNC], false, false), "look at the first one"),
    ] {
        let refused = member(&image).unwrap().unwrap().data.unwrap_err();
        assert!(refused.contains(why), "{why}: {refused}");
    }
    assert!(member(&old(1, 0, [SYNC, SYNC], false, false)).unwrap().unwrap().data.is_ok());
    let image = new().image("1.2");
    image.resize(2 * MIB);
    assert!(member(&image).unwrap().unwrap().data.unwrap_err().contains("cut off"));
    image.write(4096 + 100, b"X");
    assert_eq!(member(&image).unwrap(), None, "a wrong checksum");
}

#[test]
fn who_has_missed_writes_is_told() {
    let others =
        |roles: &[u16]| member(&New { roles: roles.to_vec(), ..New::default() }.image("1.2")).unwrap().unwrap().others;
    assert_eq!([others(&[0, 1]), others(&[0, 0xfffe]), others(&[0, 1, 2, 0xffff])], [1, 0, 2]);
    assert_eq!(member(&old(1, 0, [SYNC, SYNC], true, false)).unwrap().unwrap().others, 1);
    assert_eq!(member(&old(1, 0, [SYNC, 1], true, false)).unwrap().unwrap().others, 0);
    let one = |events| New { events, ..New::default() }.image("1.2");
    assert_eq!(outdated(&[one(7), one(9), one(8)]).unwrap(), [0, 2]);
    assert_eq!(outdated(&[one(7), one(7), Image::new(MIB)]).unwrap(), Vec::<usize>::new());
    let other = old(1, 0, [SYNC, SYNC], true, false);
    assert_eq!(outdated(&[one(9), other, one(8)]).unwrap(), [2], "of another array");
}

#[test]
fn a_mirror_is_what_is_in_it() {
    let image = New::default().image("1.2");
    assert!(probe(&image).unwrap().unwrap().refused.unwrap().contains("not known here"));
    let path = image.path.to_str().unwrap().to_owned();
    run("mkfs.ext4", &["-q", "-F", "-E", &format!("offset={DATA}"), &path, "8M"]);
    let content = probe(&image).unwrap().unwrap();
    assert_eq!((content.kind, content.refused), ("linux_raid_member", None));
    let range = member(&image).unwrap().unwrap().data.unwrap();
    let part = Part::new(&image, range.start, range.end - range.start);
    assert_eq!(probe(&part).unwrap().unwrap().kind, "ext4");
    // An array in an array is not looked into.
    image.write(DATA + 4096, &New::default().bytes(4096));
    assert_eq!(probe(&image).unwrap().unwrap().kind, "linux_raid_member");
}

/// A file system on the first partition of a disk.
fn partitioned(image: &Image, size: &str) {
    feed(
        Command::new("sfdisk").args(["-q", "--wipe=never"]).arg(&image.path),
        &format!("label: dos\n2048,{size},83\n"),
    );
    run("mkfs.ext4", &["-q", "-F", "-E", "offset=1048576", image.path.to_str().unwrap(), "8M"]);
}

/// What is said of the first partition, and of the table.
fn doubts(image: &Image) -> (Option<String>, Vec<String>) {
    let table = inside::table::read(image).unwrap();
    let content = table.partitions.into_iter().next().unwrap().content.expect("something is on it");
    (content.refused, table.problems)
}

#[test]
fn partitions_of_an_array_are_no_partitions_of_a_member() {
    let said = "the disk as a whole is a member of an array (linux_raid_member)";
    let image = New::default().image("1.0");
    partitioned(&image, "10M");
    let (refused, problems) = doubts(&image);
    assert!(refused.unwrap().starts_with(said) && problems[0].starts_with(said));
    image.write(SIZE - 8192, &[0; 4096]);
    assert_eq!(doubts(&image), (None, Vec::new()), "no member any more");
    // A superblock of version 0.90 does not say whether it is that of the disk or that of the last partition.
    let image = old(1, 0, [SYNC, SYNC], true, false);
    image.resize(SIZE);
    partitioned(&image, "10M");
    assert!(doubts(&image).0.unwrap().starts_with(said), "no partition reaches so far");
    partitioned(&image, "+");
    let (refused, problems) = doubts(&image);
    assert!(
        !refused.is_some_and(|refused| refused.starts_with(said)) && problems.is_empty(),
        "the partition is the member"
    );
}
