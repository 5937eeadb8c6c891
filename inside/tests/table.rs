//! Partition tables that sgdisk and sfdisk make, and damage done to them; what sfdisk says of them is the oracle.

use std::process::Command;
use std::sync::OnceLock;

use images::{Image, Loop, feed, run};
use inside::table::{Partition, Scheme, Table, read};
use inside::{Disk, Kind};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// A partition: number, offset, size, type, GUID and name.
type Row = (u32, u64, u64, String, Option<String>, Option<String>);

fn table(image: &Image) -> Table {
    read(image).expect("a table")
}

/// What sfdisk says of a disk: its identifier and its partitions.
fn oracle(path: &str) -> (String, Vec<Row>) {
    let said: Value = serde_json::from_str(&run("sfdisk", &["--json", path])).expect("JSON");
    let table = &said["partitiontable"];
    let sector = table["sectorsize"].as_u64().expect("a sector size");
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let one = |partition: &Value| {
        let node = partition["node"].as_str().expect("a name");
        let number = node.rsplit(|one: char| !one.is_ascii_digit()).next().expect("digits").parse().expect("a number");
        let start = partition["start"].as_u64().expect("a start") * sector;
        let kind = text(&partition["type"]).expect("a type").to_lowercase();
        let kind = if kind.len() < 3 { format!("0x{kind:0>2}") } else { kind };
        let id = text(&partition["uuid"]).map(|id| id.to_lowercase());
        (number, start, partition["size"].as_u64().expect("a size") * sector, kind, id, text(&partition["name"]))
    };
    let id = text(&table["id"]).expect("an identifier").to_lowercase();
    let partitions = table["partitions"].as_array().map(|all| all.iter().map(one).collect()).unwrap_or_default();
    (id.trim_start_matches("0x").to_owned(), partitions)
}

fn compare(table: &Table, path: &str) {
    let (id, partitions) = oracle(path);
    assert_eq!(table.id, Some(id));
    let ours = |one: &Partition| {
        (one.number, one.offset, one.size, one.type_id.clone().unwrap(), one.id.clone(), one.name.clone())
    };
    assert_eq!(table.partitions.iter().map(ours).collect::<Vec<_>>(), partitions);
    assert!(!partitions.is_empty());
}

fn problems(table: &Table) -> Vec<(u32, &str)> {
    table.partitions.iter().filter_map(|one| Some((one.number, one.problem.as_deref()?))).collect()
}

const GPT: [&str; 14] = [
    "-n1:2048:+1M",
    "-t1:ef00",
    "-c1:EFI system",
    "-n2:0:+2M",
    "-t2:8300",
    "-c2:Grüße 🐧",
    "-n9:0:+3M",
    "-t9:8e00",
    "-n128:0:0",
    "-t128:0700",
    "-c128:thirty-six characters are the most..",
    "-U=0e1b4e2c-41a2-4d21-a0a5-0c1d2c2f3a4b",
    "-u1:c0ffee00-0000-4000-8000-000000000001",
    "-A2:set:2",
];

/// The beginning and the end of a disk that sgdisk made, which sleeps a second each time.
fn gpt() -> Image {
    const ENDS: usize = 64 << 10;
    static MADE: OnceLock<(Vec<u8>, Vec<u8>)> = OnceLock::new();
    let (first, last) = MADE.get_or_init(|| {
        let image = Image::new(16 * MIB);
        image.run("sgdisk", &GPT);
        (image.bytes(0, ENDS), image.bytes(16 * MIB - (64 << 10), ENDS))
    });
    let image = Image::new(16 * MIB);
    image.write(0, first);
    image.write(16 * MIB - (64 << 10), last);
    image
}

#[test]
fn a_gpt_is_what_sfdisk_says() {
    let image = gpt();
    let table = table(&image);
    assert_eq!((table.scheme, table.sector_size), (Scheme::Gpt, 512));
    assert_eq!(table.problems, Vec::<String>::new());
    assert_eq!(problems(&table), []);
    assert_eq!(table.partitions[0].type_name(), Some("EFI system"));
    compare(&table, image.path.to_str().unwrap());
}

#[test]
fn sectors_of_4096_bytes_are_found_out() {
    let image = Image::new(16 * MIB);
    let device = Loop::new(&image.path, 4096);
    feed(Command::new("sfdisk").args(["-q", &device.0]), "label: gpt\nsize=1M, type=U, name=\"esp\"\nsize=2M\n,\n");
    let gpt = table(&image);
    assert_eq!((gpt.scheme, gpt.sector_size, gpt.problems.len()), (Scheme::Gpt, 4096, 0));
    compare(&gpt, &device.0);
    // The rest of the primary table's place is as it was: what decides is where a right header is.
    image.write(4096, &[0; 4096]);
    let backup = table(&image);
    assert_eq!((backup.sector_size, &backup.partitions), (4096, &gpt.partitions));
    assert!(backup.problems[0].contains("its backup in sector 4095 was"), "{:?}", backup.problems);
    // An MBR does not say how large its sectors are; the contents do.
    feed(
        Command::new("sfdisk").args(["-q", "--wipe", "always", &device.0]),
        "label: dos\nstart=256, size=1024, type=83\nstart=2080,type=83\n",
    );
    drop(device);
    let unknown = table(&image);
    assert_eq!((unknown.scheme, unknown.sector_size, unknown.partitions[0].offset), (Scheme::Mbr, 512, 256 * 512));
    image.run("mkfs.ext4", &["-q", "-F", "-E", &format!("offset={MIB}")]);
    let known = table(&image);
    assert_eq!((known.scheme, known.sector_size), (Scheme::Mbr, 4096));
    assert_eq!(known.partitions[0].content.as_ref().unwrap().kind, "ext4");
    let device = Loop::new(&image.path, 4096);
    compare(&known, &device.0);
}

#[test]
fn a_damaged_primary_table_is_got_round() {
    let good = table(&gpt());
    let last = 16 * MIB - 512;
    // A byte of the header, of an entry, the signature, everything of the first 34 sectors but the first.
    let damages: [(u64, &[u8], &str); 4] = [
        (512 + 60, b"X", "its header has a wrong checksum"),
        (1024 + 128 * 20, b"X", "its entries have a wrong checksum"),
        (512, b"X", "there is none"),
        (512, &vec![0; 33 * 512], "there is none"),
    ];
    for (offset, bytes, why) in damages {
        let image = gpt();
        image.write(offset, bytes);
        let found = table(&image);
        assert_eq!(found.partitions, good.partitions, "{why}");
        assert_eq!(found.problems.len(), 1);
        assert!(found.problems[0].contains(why) && found.problems[0].contains("sector 32767"), "{:?}", found.problems);
        image.write(last + 60, b"X");
        let error = read(&image).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "neither copy is right, and the disk is not empty");
        assert!(error.to_string().contains("neither copy"), "{error}");
    }
}

#[test]
fn a_damaged_backup_is_told_and_harms_nothing() {
    let image = gpt();
    image.write(16 * MIB - 512, &[0; 512]);
    let found = table(&image);
    assert_eq!(found.partitions.len(), 4);
    assert!(found.problems[0].contains("there is none in sector 32767"), "{:?}", found.problems);

    // The disk grew: the backup is where the primary says, and not at the end.
    let image = gpt();
    image.resize(32 * MIB);
    let found = table(&image);
    assert!(found.problems[0].contains("not at the end"), "{:?}", found.problems);
    // Now only the damaged primary says where the backup is.
    image.write(512 + 60, b"X");
    let found = table(&image);
    assert_eq!(found.partitions.len(), 4);
    assert!(found.problems[0].contains("sector 32767"), "{:?}", found.problems);
}

#[test]
fn a_partition_past_the_end_is_listed_and_not_read() {
    let image = gpt();
    image.resize(6 * MIB);
    let found = table(&image);
    assert_eq!(problems(&found).iter().map(|(number, _)| *number).collect::<Vec<_>>(), [9, 128]);
    assert!(problems(&found)[0].1.contains("past the end of the disk"), "{:?}", problems(&found));
    assert_eq!(found.partitions[2].size, 2 * MIB, "what of it is there");
    assert_eq!(found.partitions[3].size, 0);
    assert!(found.problems.iter().any(|problem| problem.contains("smaller")), "{:?}", found.problems);
}

/// Changes an entry of the primary table, and puts its checksums right.
fn entry(image: &Image, index: u64, at: u64, bytes: &[u8]) {
    image.write(1024 + 128 * index + at, bytes);
    let crc = |bytes: &[u8]| {
        !bytes.iter().fold(u32::MAX, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
        })
    };
    image.write(512 + 88, &crc(&image.bytes(1024, 128 * 128)).to_le_bytes());
    image.write(512 + 16, &[0; 4]);
    image.write(512 + 16, &crc(&image.bytes(512, 92)).to_le_bytes());
}

#[test]
fn overlapping_and_impossible_partitions_are_told() {
    let image = gpt();
    let path = image.path.to_str().unwrap();
    run("mkfs.ext4", &["-q", "-F", "-E", &format!("offset={}", 2 * MIB), path, "1M"]);
    assert_eq!(table(&image).partitions[1].content.as_ref().unwrap().kind, "ext4");
    entry(&image, 0, 40, &5000_u64.to_le_bytes());
    let found = table(&image);
    assert_eq!(problems(&found), [(1, "it overlaps partition 2"), (2, "it overlaps partition 1")]);
    assert_eq!(found.partitions[1].content, None, "what overlaps is not looked into");
    assert!(found.problems[0].contains("other partitions"), "{:?}", found.problems);
    entry(&image, 0, 40, &7_u64.to_le_bytes());
    assert_eq!(problems(&table(&image)), [(1, "it ends before it begins")]);
    entry(&image, 0, 32, &[0xff; 16]);
    let found = table(&image);
    assert_eq!((found.partitions[0].offset, found.partitions[0].size), (u64::MAX, 0));
    assert!(found.partitions[0].problem.is_some());
}

#[test]
fn a_hybrid_record_is_told() {
    let image = gpt();
    image.run("sgdisk", &["-h2:EE"]);
    let found = table(&image);
    assert_eq!((found.scheme, found.partitions.len()), (Scheme::Gpt, 4));
    assert!(found.problems.iter().any(|problem| problem.contains("hybrid")), "{:?}", found.problems);
}

#[test]
fn a_table_that_the_first_sector_does_not_speak_of() {
    let image = gpt();
    image.write(0, &[0; 512]);
    let found = table(&image);
    assert_eq!((found.scheme, found.partitions.len()), (Scheme::Gpt, 4));
    assert!(found.problems.iter().any(|problem| problem.contains("takes no notice")), "{:?}", found.problems);
    // Another table in the first sector is the one that Linux reads.
    let mbr = Image::new(16 * MIB);
    mbr.feed("sfdisk", &["-q"], "label: dos\nsize=4M\n");
    image.write(0, &mbr.bytes(0, 512));
    let found = table(&image);
    assert_eq!((found.scheme, found.partitions.len()), (Scheme::Mbr, 1));
    assert!(found.problems.iter().any(|problem| problem.contains("GUID")), "{:?}", found.problems);
    // A file system that was made over all of it has won.
    image.run("mkfs.ext4", &["-q", "-F"]);
    let found = table(&image);
    assert_eq!((found.scheme, found.partitions[0].number), (Scheme::Whole, 0));
}

const MBR: &str = "label: dos\nlabel-id: 0xcafe0042\nstart=2048, size=2M, type=83, bootable\nsize=1M, type=7\n\
                   type=5, size=10M\nsize=1M, type=82\nsize=1M, type=83\nsize=2M, type=8e\nsize=1M, type=83\n";

fn mbr() -> Image {
    let image = Image::new(16 * MIB);
    image.feed("sfdisk", &["-q"], MBR);
    image
}

#[test]
fn an_mbr_with_logical_partitions_is_what_sfdisk_says() {
    let image = mbr();
    let found = table(&image);
    assert_eq!((found.scheme, found.sector_size, &found.problems), (Scheme::Mbr, 512, &Vec::new()));
    compare(&found, image.path.to_str().unwrap());
    assert_eq!(found.partitions.iter().map(|one| one.number).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(problems(&found).len(), 1, "only the extended partition is not to be opened");
    assert_eq!(problems(&found)[0].0, 3);
    assert_eq!(found.partitions[0].type_name(), Some("Linux"));
}

#[test]
fn a_chain_that_goes_back_and_forth_is_what_sfdisk_says() {
    let image = Image::new(16 * MIB);
    let text = "label: dos\nstart=2048, size=12M, type=f\nstart=16384,size=1M,type=83\nstart=8192,size=1M,type=82\nstart=20480,size=1M,type=7\n";
    image.feed("sfdisk", &["-q"], text);
    let found = table(&image);
    assert_eq!(found.partitions.len(), 4);
    assert_eq!(found.problems, Vec::<String>::new());
    compare(&found, image.path.to_str().unwrap());
}

/// The first sectors of the records of the logical partitions.
fn records(image: &Image) -> Vec<u64> {
    let mut found = Vec::new();
    let first = u64::from(u32::from_le_bytes(image.bytes(446 + 32 + 8, 4).try_into().unwrap()));
    let mut next = 0;
    while found.is_empty() || next != 0 {
        found.push(first + next);
        let entry = image.bytes((first + next) * 512 + 446 + 16 + 8, 4);
        next = u64::from(u32::from_le_bytes(entry.try_into().unwrap()));
    }
    found
}

#[test]
fn a_chain_that_is_broken_keeps_what_is_good() {
    let chain = records(&mbr());
    assert_eq!(chain.len(), 3);
    let link = |index: usize| chain[index] * 512 + 446 + 16 + 8;
    let back = u32::try_from(chain[1] - chain[0]).unwrap();
    let cases: [(u64, &[u8], usize, &str); 6] = [
        (link(1), &back.to_le_bytes(), 6, "comes back to sector"),
        (link(1), &0_u32.to_le_bytes(), 6, "comes back to sector"),
        (link(0), &0x0fff_fff0_u32.to_le_bytes(), 5, "out of the extended partition"),
        (chain[2] * 512 + 510, &[0, 0], 6, "which is no part of it"),
        (chain[1] * 512 + 446 + 12, &0x7fff_ffff_u32.to_le_bytes(), 7, ""),
        (446 + 32 + 8, &0xffff_fff0_u32.to_le_bytes(), 4, "past the end of the disk"),
    ];
    for (at, bytes, left, why) in cases {
        let image = mbr();
        image.write(at, bytes);
        let found = table(&image);
        assert_eq!(found.partitions.len(), left, "{why}: {found:?}");
        let told = why.is_empty() || found.problems.iter().any(|problem| problem.contains(why));
        let six = problems(&found).iter().any(|(number, why)| *number == 6 && why.contains("past the end"));
        assert!(told && (!why.is_empty() || six), "{why}: {found:?}");
        assert_eq!((found.partitions[0].offset, found.partitions[0].size), (MIB, 2 * MIB));
    }
}

#[test]
fn a_long_chain_ends() {
    let image = Image::new(512 * MIB);
    image.feed("sfdisk", &["-q"], "label: dos\nstart=2048,size=500M,type=5\n");
    let mut sector = [0; 512];
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let (data, link) = (446, 446 + 16);
    sector[data + 4] = 0x83;
    sector[data + 8..data + 12].copy_from_slice(&1_u32.to_le_bytes());
    sector[data + 12..data + 16].copy_from_slice(&1_u32.to_le_bytes());
    sector[link + 4] = 5;
    sector[link + 12] = 2;
    for index in 0..100_000_u32 {
        sector[link + 8..link + 12].copy_from_slice(&((index + 1) * 8).to_le_bytes());
        image.write(MIB + u64::from(index) * 8 * 512, &sector);
    }
    let found = table(&image);
    assert_eq!(found.partitions.len(), Table::MAX_PARTITIONS);
    assert!(found.problems[0].contains("longer than 256"), "{:?}", found.problems);
}

#[test]
fn a_file_system_on_the_whole_disk_is_partition_0() {
    let image = Image::new(16 * MIB);
    assert_eq!((table(&image).scheme, table(&image).partitions.len()), (Scheme::Whole, 0), "an empty disk");
    image.feed("sfdisk", &["-q"], "label: dos\n");
    assert_eq!((table(&image).scheme, table(&image).partitions.len()), (Scheme::Mbr, 0), "a table of nothing");
    let whole = |image: &Image, kind: &str| {
        let found = table(image);
        assert_eq!((found.scheme, found.partitions.len()), (Scheme::Whole, 1), "{kind}: {found:?}");
        let one = &found.partitions[0];
        assert_eq!((one.number, one.offset, one.size, &one.problem), (0, 0, image.size(), &None));
        assert_eq!(one.content.as_ref().unwrap().kind, kind);
    };
    image.run("mkfs.ext4", &["-q", "-F"]);
    whole(&image, "ext4");
    // With and without a table that has the whole disk as its one partition.
    for arguments in [["--mbr=y", "-F16"], ["--mbr=n", "-F16"], ["--mbr=y", "-F12"]] {
        image.write(0, &vec![0; 65536]);
        image.run("mkfs.vfat", &arguments);
        whole(&image, "vfat");
    }
    image.write(0, &vec![0; 65536]);
    image.run("mkfs.ntfs", &["-q", "-F"]);
    whole(&image, "ntfs");
    let tiny = Image::new(100);
    assert_eq!(table(&tiny).partitions.len(), 0);
}

#[test]
fn a_table_of_partitions_wins_over_an_old_boot_sector() {
    let fat = Image::new(16 * MIB);
    fat.run("mkfs.vfat", &["--mbr=n", "-F16"]);
    let image = mbr();
    image.write(0, &fat.bytes(0, 440));
    let found = table(&image);
    assert_eq!((found.scheme, found.partitions.len()), (Scheme::Mbr, 7));
    assert!(found.problems[0].contains("vfat"), "{:?}", found.problems);
}
