//! Volume groups that the real LVM2 makes; where it says that their extents are is the oracle. Its programs are in
//! `target/setup/lvm2`; the kernel's device mapper is not needed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use images::{Image, Loop};
use inside::lvm::{Found, Group, Volume, read};
use inside::probe;
use serde_json::Value;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// A segment: its volume, offset and size, the size of a stripe, and for each stripe the disk and the offset on it.
type Row = (String, u64, u64, u64, Vec<(usize, u64)>);

/// Disks, and LVM2 with a configuration that lets it see nothing but them.
struct Lvm {
    images: Vec<Image>,
    devices: Vec<Loop>,
    directory: TempDir,
}

impl Lvm {
    fn new(disks: usize) -> Self {
        let images: Vec<Image> = (0..disks).map(|_| Image::new(40 * MIB)).collect();
        let devices: Vec<Loop> = images.iter().map(|image| Loop::new(&image.path, 512)).collect();
        let directory = tempfile::tempdir().expect("a directory");
        let mut filter = String::new();
        for device in &devices {
            let _ = write!(filter, "\"a|^{}$|\", ", device.0);
        }
        let configuration = format!(
            "devices {{ filter = [{filter} \"r|.*|\"] obtain_device_list_from_udev = 0 use_devicesfile = 0 }}\n\
             global {{ locking_dir = \"{}\" use_lvmpolld = 0 event_activation = 0 use_lvmlockd = 0 }}\n\
             activation {{ udev_sync = 0 udev_rules = 0 monitoring = 0 }}\nbackup {{ backup = 0 archive = 0 }}\n",
            directory.path().join("lock").display()
        );
        std::fs::write(directory.path().join("lvm.conf"), configuration).expect("a configuration");
        Self { images, devices, directory }
    }

    fn run(&self, arguments: &[&str]) -> String {
        let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/setup/lvm2/sbin/lvm");
        let (name, rest) = arguments.split_first().expect("a command");
        let mut command = Command::new(&tool);
        command.args([name, "--driverloaded", "n"]).args(rest).env("LVM_SUPPRESS_FD_WARNINGS", "1");
        let output = command.env("LVM_SYSTEM_DIR", self.directory.path()).output();
        let output = output.unwrap_or_else(|error| panic!("{} (`make setup` unpacks it): {error}", tool.display()));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    fn create(&self, arguments: &[&str]) {
        for device in &self.devices {
            self.run(&[&["pvcreate", "-q"], arguments, &[&device.0]].concat());
        }
        let devices: Vec<&str> = self.devices.iter().map(|device| device.0.as_str()).collect();
        self.run(&[&["vgcreate", "-q", "vg-0.x"], &devices[..]].concat());
    }

    fn volume(&self, name: &str, arguments: &[&str]) {
        let inactive = ["lvcreate", "-an", "-Zn", "-Wn", "-n", name, "vg-0.x"];
        self.run(&[&inactive[..], arguments].concat());
    }

    fn found(&self) -> Found {
        read(&self.images).expect("a look")
    }

    fn group(&self) -> Group {
        let mut found = self.found();
        assert_eq!(found.problems, Vec::<String>::new());
        assert_eq!(found.groups.len(), 1);
        found.groups.remove(0)
    }

    /// A report in bytes.
    fn report(&self, command: &str, fields: &str) -> Vec<Value> {
        let arguments = [command, "--reportformat", "json", "--units", "b", "--nosuffix", "-a", "-o", fields];
        let arguments = if command == "lvs" { &arguments[..] } else { &[&arguments[..6], &arguments[7..]].concat() };
        let said: Value = serde_json::from_str(&self.run(arguments)).expect("JSON");
        said["report"][0].as_object().and_then(|report| report.values().next()?.as_array().cloned()).expect("rows")
    }

    /// Every segment as LVM2 tells it.
    fn oracle(&self) -> Vec<Row> {
        let starts: BTreeMap<String, u64> = self
            .report("pvs", "pv_name,pe_start")
            .iter()
            .map(|row| (text(row, "pv_name"), number(row, "pe_start")))
            .collect();
        let extent = number(&self.report("vgs", "vg_extent_size")[0], "vg_extent_size");
        let rows = self.report("lvs", "lv_name,seg_start,seg_size,stripe_size,seg_pe_ranges");
        let mut segments: Vec<_> = rows
            .iter()
            .map(|row| {
                let ranges = text(row, "seg_pe_ranges");
                let stripe = |range: &str| {
                    let (name, extents) = range.rsplit_once(':').expect("a device");
                    let first: u64 = extents.split('-').next().expect("an extent").parse().expect("a number");
                    let disk = self.devices.iter().position(|device| device.0 == name).expect("a disk");
                    (disk, starts[name] + first * extent)
                };
                let stripes: Vec<_> = ranges.split_whitespace().map(stripe).collect();
                let size = number(row, "seg_size");
                let stripe_size = if stripes.len() == 1 { size } else { number(row, "stripe_size") };
                (text(row, "lv_name"), number(row, "seg_start"), size, stripe_size, stripes)
            })
            .collect();
        segments.sort();
        segments
    }
}

fn text(row: &Value, field: &str) -> String {
    row[field].as_str().expect("a text").to_owned()
}

fn number(row: &Value, field: &str) -> u64 {
    text(row, field).parse().expect("a number")
}

fn ours(group: &Group) -> Vec<Row> {
    let mut segments = Vec::new();
    for volume in &group.volumes {
        for one in volume.segments.as_ref().expect("segments") {
            let stripes = one.stripes.iter().map(|stripe| (stripe.disk, stripe.offset)).collect();
            segments.push((volume.name.clone(), one.offset, one.length, one.stripe_size, stripes));
        }
    }
    segments.sort();
    segments
}

fn refused<'a>(group: &'a Group, name: &str) -> &'a str {
    let volume = group.volumes.iter().find(|volume| volume.name == name).unwrap_or_else(|| panic!("{name}: {group:?}"));
    volume.segments.as_ref().expect_err("it is refused")
}

fn bytes(volume: &Volume, disks: &[Image], mut offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let piece = volume.piece(offset).expect("a piece");
        let some = usize::try_from(piece.length).unwrap().min(length - bytes.len());
        bytes.extend(disks[piece.disk].bytes(piece.offset, some));
        offset += u64::try_from(some).unwrap();
    }
    bytes
}

#[test]
fn linear_and_striped_volumes_are_where_lvm_says() {
    let lvm = Lvm::new(3);
    lvm.create(&[]);
    lvm.volume("linear", &["-L", "12M"]);
    lvm.volume("striped", &["-i", "3", "-I", "64k", "-L", "24M"]);
    lvm.volume("pair", &["-i", "2", "-I", "4k", "-L", "8M"]);
    lvm.run(&["lvextend", "-L", "+8M", "vg-0.x/linear"]);
    lvm.run(&["lvextend", "-i", "1", "-L", "+4M", "vg-0.x/pair"]);
    let group = lvm.group();
    assert_eq!(group.name, "vg-0.x");
    assert_eq!(ours(&group), lvm.oracle());
    assert_eq!(ours(&group).len(), 5);
    let ids: Vec<_> = lvm.report("lvs", "lv_name,lv_uuid,lv_size");
    for volume in &group.volumes {
        let row = ids.iter().find(|row| text(row, "lv_name") == volume.name).unwrap();
        assert_eq!((&volume.id, volume.size), (&text(row, "lv_uuid"), number(row, "lv_size")));
    }
    assert_eq!(group.id, text(&lvm.report("vgs", "vg_uuid")[0], "vg_uuid"));
    for (disk, row) in lvm.report("pvs", "pv_uuid").iter().enumerate() {
        assert!(group.physical.contains(&(text(row, "pv_uuid"), Some(disk))));
        let content = probe(&lvm.images[disk]).unwrap().unwrap();
        assert_eq!((content.kind, content.uuid), ("LVM2_member", Some(text(row, "pv_uuid"))));
    }

    // Written as dm-stripe would: a chunk on each disk in turn.
    let volume = group.volumes.iter().find(|volume| volume.name == "striped").unwrap();
    let stripes = &volume.segments.as_ref().unwrap()[0].stripes;
    for chunk in 0..12_u8 {
        let stripe = stripes[usize::from(chunk % 3)];
        lvm.images[stripe.disk].write(stripe.offset + u64::from(chunk / 3) * 65536, &vec![chunk + 1; 65536]);
    }
    let expected: Vec<u8> = (1..=12_u8).flat_map(|chunk| vec![chunk; 65536]).collect();
    assert_eq!(bytes(volume, &lvm.images, 0, expected.len()), expected);
    assert_eq!(bytes(volume, &lvm.images, 65530, 100_000), expected[65530..165_530]);
}

#[test]
fn the_newest_metadata_counts_and_all_disks_are_needed() {
    let lvm = Lvm::new(2);
    lvm.create(&[]);
    lvm.volume("first", &["-L", "4M"]);
    let old = lvm.images[0].bytes(0, 2 << 20);
    lvm.volume("second", &["-L", "8M", &lvm.devices[1].0]);
    let newest = lvm.group();
    lvm.images[0].write(0, &old);
    assert_eq!(lvm.group(), newest, "the other disk's metadata is newer");

    // A missing disk, a copy of one, a damaged one.
    let only_first = read(&lvm.images[..1]).unwrap().groups.remove(0);
    assert_eq!(only_first.volumes.len(), 1, "the old metadata, as nothing else is there");
    let only_second = read(&lvm.images[1..]).unwrap().groups.remove(0);
    assert_eq!(only_second.volumes.len(), 2);
    assert!(refused(&only_second, "first").contains("is missing"));
    assert_eq!(only_second.volumes[1].piece(0).unwrap().disk, 0);
    let copied = read(&[&lvm.images[0], &lvm.images[1], &lvm.images[1]]).unwrap();
    assert!(copied.problems[0].contains("more than one disk"), "{:?}", copied.problems);
    assert!(refused(&copied.groups[0], "second").contains("is missing"));
    let text = lvm.images[1].bytes(0, 1 << 20).windows(7).rposition(|bytes| bytes == b"second ").unwrap();
    lvm.images[1].write(u64::try_from(text).unwrap(), b"sekond");
    let found = lvm.found();
    assert!(found.problems[0].contains("wrong checksum"), "{:?}", found.problems);
    assert_eq!(found.groups[0].volumes.len(), 1);
    // Cut off: what lies past the end is refused.
    lvm.images[0].resize(2 * MIB);
    assert!(refused(&lvm.found().groups[0], "first").contains("past the end"));
    assert_eq!(read::<Image>(&[]).unwrap(), Found::default());
    assert_eq!(read(&[Image::new(MIB)]).unwrap(), Found::default());
}

#[test]
fn disks_that_were_in_use_apart_from_each_other_are_refused() {
    let lvm = Lvm::new(2);
    lvm.create(&[]);
    lvm.volume("before", &["-L", "4M"]);
    let metadata = |disk: usize| lvm.images[disk].bytes(0, 1 << 20);
    let (first, second) = (metadata(0), metadata(1));
    lvm.volume("one", &["-L", "4M"]);
    let other = metadata(0);
    lvm.images[0].write(0, &first);
    lvm.images[1].write(0, &second);
    lvm.volume("two", &["-L", "8M"]);
    assert_eq!(lvm.group().volumes.len(), 2);
    lvm.images[0].write(0, &other);
    let group = lvm.found().groups.remove(0);
    for volume in &group.volumes {
        assert!(refused(&group, &volume.name).contains("two different metadata"), "{volume:?}");
    }
}

#[test]
fn two_groups_of_one_name_are_refused() {
    let groups = [0, 1].map(|_| {
        let lvm = Lvm::new(1);
        lvm.create(&[]);
        lvm.volume("root", &["-L", "4M"]);
        lvm
    });
    let [one, other] = &groups;
    let found = read(&[&one.images[0], &other.images[0]]).unwrap();
    assert!(found.problems[0].contains("two volume groups have the name vg-0.x"), "{:?}", found.problems);
    assert_eq!(found.groups.len(), 2);
    for group in &found.groups {
        assert!(refused(group, "root").contains("rename one"));
    }
}

#[test]
fn what_is_on_a_volume_is_told() {
    let lvm = Lvm::new(2);
    lvm.create(&[]);
    lvm.volume("swap", &["-i", "2", "-I", "4k", "-L", "8M"]);
    let group = lvm.group();
    let Ok([segment]) = group.volumes[0].segments.as_deref() else { panic!("{group:?}") };
    // Of a machine with pages of 64 KiB: the header is in the first chunk, the mark in the sixteenth, on the other disk.
    let write = |turn: usize, offset: u64, bytes: &[u8]| {
        let stripe = segment.stripes[turn];
        lvm.images[stripe.disk].write(stripe.offset + offset, bytes);
    };
    write(0, 1024, &[1, 0, 0, 0, 0, 8]);
    write(1, 8 * 4096 - 10, b"SWAPSPACE2");
    let content = lvm.group().volumes.remove(0).content.expect("something");
    assert_eq!(content.kind, "swap");
}

#[test]
fn a_small_ring_of_metadata_and_disks_without_any() {
    let lvm = Lvm::new(2);
    lvm.run(&["pvcreate", "-q", "--metadatasize", "32k", "--dataalignment", "64k", &lvm.devices[0].0]);
    lvm.run(&["pvcreate", "-q", "--metadatacopies", "0", &lvm.devices[1].0]);
    lvm.run(&["vgcreate", "-q", "vg-0.x", &lvm.devices[0].0, &lvm.devices[1].0]);
    // A long text goes round soon.
    for tag in ["a", "b", "c"] {
        lvm.run(&["vgchange", "--addtag", &tag.repeat(1000), "vg-0.x"]);
    }
    let mut wrapped = 0;
    for round in 0..12 {
        lvm.volume(&format!("v{round}"), &["-l", "1"]);
        assert_eq!(ours(&lvm.group()), lvm.oracle());
        if round % 2 == 1 {
            lvm.run(&["lvremove", "-y", &format!("vg-0.x/v{}", round - 1)]);
        }
        // The header of the area is at 4096; where its text begins and how long it is come at byte 40.
        let place = lvm.images[0].bytes(4096 + 32, 24);
        let [size, start, length] = [0, 8, 16].map(|at| u64::from_le_bytes(place[at..at + 8].try_into().unwrap()));
        wrapped += usize::from(start + length > size);
    }
    assert!(wrapped > 0, "the text never went round");
}

#[test]
fn what_is_more_than_linear_is_named_and_refused() {
    let lvm = Lvm::new(2);
    lvm.create(&[]);
    lvm.volume("origin", &["-L", "8M"]);
    lvm.volume("snap", &["-L", "4M", &lvm.devices[1].0]);
    let backup = lvm.directory.path().join("backup");
    let backup = backup.to_str().unwrap();
    lvm.run(&["vgcfgbackup", "-f", backup, "vg-0.x"]);
    let mut next = 0;
    let mut volume = |name: &str, visible: bool, segment: &str| {
        next += 1;
        let status = if visible { "\"READ\", \"WRITE\", \"VISIBLE\"" } else { "\"READ\", \"WRITE\"" };
        format!(
            "{name} {{ id = \"aaaaaa-bbbb-cccc-dddd-eeee-ffff-{next:06}\"\nstatus = [{status}]\nflags = []\nsegment_count = 1\n\
             segment1 {{ start_extent = 0\nextent_count = 1\n{segment} }} }}\n"
        )
    };
    let linear = |extent: u32| format!("type = \"striped\"\nstripe_count = 1\nstripes = [\"pv1\", {extent}]");
    let text = [
        "logical_volumes {\n".to_owned(),
        volume("snapshot0", false, "type = \"snapshot\"\nchunk_size = 8\norigin = \"origin\"\ncow_store = \"snap\"")
            .replace("extent_count = 1", "extent_count = 2"),
        volume(
            "mirrored",
            true,
            "type = \"raid1\"\ndevice_count = 2\nregion_size = 4096\n\
             raids = [\"mirrored_rmeta_0\", \"mirrored_rimage_0\", \"mirrored_rmeta_1\", \"mirrored_rimage_1\"]",
        ),
        volume("mirrored_rmeta_0", false, &linear(1)),
        volume("mirrored_rimage_0", false, &linear(2)),
        volume("mirrored_rmeta_1", false, &linear(3)),
        volume("mirrored_rimage_1", false, &linear(4)),
        volume(
            "pool",
            true,
            "type = \"thin-pool\"\nmetadata = \"pool_tmeta\"\npool = \"pool_tdata\"\ntransaction_id = 1\nchunk_size = 128\n\
             discards = \"passdown\"\nzero_new_blocks = 1",
        ),
        volume("pool_tmeta", false, &linear(5)),
        volume("pool_tdata", false, &linear(6)),
        volume("thin", true, "type = \"thin\"\nthin_pool = \"pool\"\ntransaction_id = 0\ndevice_id = 1"),
    ];
    let whole = std::fs::read_to_string(backup).unwrap();
    std::fs::write(backup, whole.replacen("logical_volumes {\n", &text.concat(), 1)).unwrap();
    lvm.run(&["vgcfgrestore", "-q", "--force", "-f", backup, "vg-0.x"]);
    let kinds = lvm.report("lvs", "lv_name,segtype");
    assert!(kinds.iter().any(|row| text_is(row, "thin", "thin")), "LVM2 takes it: {kinds:?}");
    let group = lvm.group();
    let names: Vec<&str> = group.volumes.iter().map(|volume| volume.name.as_str()).collect();
    assert_eq!(names, ["mirrored", "origin", "pool", "snap", "thin"]);
    assert!(group.volumes[1].segments.is_ok(), "the origin of a snapshot is whole by itself");
    for (name, why) in [
        ("mirrored", "a RAID volume of LVM2 (type raid1)"),
        ("pool", "a pool of thin volumes"),
        ("snap", "it is a snapshot of another"),
        ("thin", "a thin volume (type thin)"),
    ] {
        assert!(refused(&group, name).contains(why), "{name}: {}", refused(&group, name));
    }
}

fn text_is(row: &Value, name: &str, kind: &str) -> bool {
    text(row, "lv_name") == name && text(row, "segtype") == kind
}
