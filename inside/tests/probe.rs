//! What the real tools make, as `blkid -p` tells it.

use images::{Image, run};
use inside::table::Content;
use inside::{Kind, probe};

const MIB: u64 = 1 << 20;

/// What blkid says: type, label, UUID. With `-o export` it would write a label for a terminal.
fn blkid(image: &Image) -> (String, Option<Vec<u8>>, Option<String>) {
    let said = image.run("blkid", &["-p", "-o", "export", "-u", "filesystem,raid,crypto,other"]);
    let value = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let label = value("LABEL").map(|_| image.run("blkid", &["-p", "-o", "value", "-s", "LABEL"]));
    let label = label.map(|label| label.strip_suffix('\n').expect("a line").as_bytes().to_vec());
    (value("TYPE").expect("a type").to_owned(), label, value("UUID").map(str::to_owned))
}

/// What is in an image, which has to be what blkid says.
fn same(image: &Image) -> Content {
    let content = probe(image).expect("a look").unwrap_or_else(|| panic!("nothing, but {:?}", blkid(image)));
    assert_eq!((content.kind.to_owned(), content.label.clone(), content.uuid.clone()), blkid(image));
    content
}

fn made(size: u64, tool: &str, arguments: &[&str]) -> Content {
    let image = Image::new(size);
    image.run(tool, arguments);
    let content = same(&image);
    println!("{tool} {arguments:?}: {content:?}");
    content
}

const UUID: &str = "12345678-9abc-4def-8123-456789abcdef";

#[test]
fn ext_is_told_apart() {
    for (kind, arguments) in [
        ("ext2", vec!["-t", "ext2", "-L", "a b\tc  "]),
        ("ext3", vec!["-t", "ext3"]),
        ("ext4", vec!["-t", "ext4", "-L", "größer"]),
        ("ext4", vec!["-t", "ext4", "-O", "^has_journal"]),
        ("ext4", vec!["-t", "ext2", "-O", "extents"]),
        ("ext2", vec!["-t", "ext2", "-b", "4096"]),
        ("ext4", vec!["-t", "ext4", "-O", "^metadata_csum", "-b", "1024"]),
    ] {
        let content = made(8 * MIB, "mkfs.ext4", &[&["-q", "-F", "-U", UUID][..], &arguments].concat());
        assert_eq!((content.kind, content.refused.as_deref()), (kind, None));
        assert_eq!(content.uuid.as_deref(), Some(UUID));
    }
    let journal = made(8 * MIB, "mkfs.ext4", &["-q", "-F", "-O", "journal_dev"]);
    assert_eq!(journal.kind, "jbd");
    assert!(journal.refused.is_some());
    let image = Image::new(8 * MIB);
    image.run("mkfs.ext4", &["-q", "-F"]);
    image.write(1024 + 0x78, b"other");
    assert_eq!(probe(&image).unwrap(), None, "a superblock with a wrong checksum is none");
}

#[test]
fn xfs_and_btrfs() {
    for label in ["", "twelve chars"] {
        assert_eq!(made(320 * MIB, "mkfs.xfs", &["-q", "-L", label]).refused, None);
    }
    assert_eq!(made(320 * MIB, "mkfs.xfs", &["-q", "-m", "crc=0", "-b", "size=1024"]).kind, "xfs");
    let btrfs = made(128 * MIB, "mkfs.btrfs", &["-q", "-L", "b trfs"]);
    assert!(btrfs.refused.unwrap().starts_with("btrfs is not read: "));
    assert_eq!(made(128 * MIB, "mkfs.btrfs", &["-q", "--csum", "sha256"]).kind, "btrfs");
}

#[test]
fn fat_with_its_label_in_the_root_directory() {
    for (size, arguments) in [
        (2, vec!["-F12", "-n", "A LABEL"]),
        (16, vec!["-F16", "-i", "0badcafe"]),
        (16, vec!["-F16", "-n", "ELEVENCHARS"]),
        (64, vec!["-F32", "-s1", "-n", "THIRTYTWO"]),
        (64, vec!["-F32", "-s1"]),
        (64, vec!["-F16", "-S", "2048"]),
    ] {
        let content = made(size * MIB, "mkfs.vfat", &arguments);
        assert_eq!((content.kind, content.refused), ("vfat", None));
    }
    // The label moves when files come before it: beyond the first cluster, along the chain.
    let image = Image::new(64 * MIB);
    image.run("mkfs.vfat", &["-F32", "-s1"]);
    let path = image.path.to_str().unwrap().to_owned();
    let empty = image.path.with_file_name("empty");
    std::fs::write(&empty, b"").unwrap();
    let names: Vec<String> = (0..40).map(|index| format!("::a rather long name {index}")).collect();
    for name in &names {
        run("mcopy", &["-i", &path, empty.to_str().unwrap(), name]);
    }
    run("mlabel", &["-i", &path, "::LATE"]);
    assert_eq!(same(&image).label.as_deref(), Some(&b"LATE"[..]));
}

#[test]
fn ntfs_and_exfat() {
    assert_eq!(made(16 * MIB, "mkfs.ntfs", &["-q", "-F", "-L", "Größe 12"]).refused, None);
    // blkid takes the two bytes that mark the end of a sector for a character of a name that goes across it.
    let image = Image::new(16 * MIB);
    image.run("mkfs.ntfs", &["-q", "-F", "-c", "65536", "-L", &"x".repeat(120)]);
    assert_eq!(probe(&image).unwrap().unwrap().label, Some(b"x".repeat(120)));
    assert_eq!(made(16 * MIB, "mkfs.ntfs", &["-q", "-F", "-c", "512"]).kind, "ntfs");
    assert!(made(16 * MIB, "mkfs.exfat", &["-L", "exföt"]).refused.unwrap().starts_with("exfat is not read"));
    assert_eq!(made(16 * MIB, "mkfs.exfat", &["-c", "512"]).label, None);
}

#[test]
fn swap_and_what_is_encrypted() {
    let swap = made(4 * MIB, "mkswap", &["-q", "-L", "swap space"]);
    assert!(swap.refused.unwrap().contains("no files"));
    assert_eq!(made(4 * MIB, "mkswap", &["-q", "-p", "65536"]).kind, "swap");
    for (kind, more) in [("luks1", &[][..]), ("luks2", &["--label", "secret", "--pbkdf-memory", "32"])] {
        let image = Image::new(32 * MIB);
        let quick = ["luksFormat", "-q", "--key-file=-", "--type", kind, "--pbkdf-force-iterations"];
        let iterations = if kind == "luks1" { "1000" } else { "4" };
        image.feed("cryptsetup", &[&quick[..], &[iterations], more].concat(), "key");
        let refused = same(&image).refused.unwrap();
        assert!(refused.starts_with("encrypted: ") && refused.contains(&kind.to_uppercase()), "{refused}");
        assert_eq!(inside::open(image).err().unwrap().kind(), Kind::Unsupported);
    }
    let image = Image::new(MIB);
    image.write(0, b"\xeb\x58\x90-FVE-FS-");
    assert_eq!(probe(&image).unwrap().unwrap().kind, "BitLocker");
    image.run("mkfs.vfat", &["-F12"]);
    image.write(0, b"\xeb\x58\x90MSWIN4.1");
    assert_eq!(same(&image).kind, "vfat");
    image.write(424, b"\x3b\xd6\x67\x49\x29\x2e\xd8\x4a\x83\x99\xf6\xa3\x39\xe3\xd0\x01");
    let content = probe(&image).unwrap().unwrap();
    assert_eq!(content.kind, "BitLocker", "not the file system with the program that unlocks it");
    assert!(content.refused.unwrap().starts_with("encrypted: "));
}

#[test]
fn what_is_only_named() {
    for (size, tool, arguments) in [
        (64, "mkfs.f2fs", vec!["-q", "-l", "eff zwei"]),
        (16, "make-bcache", vec!["-B"]),
        (128, "make-bcache", vec!["-C"]),
    ] {
        assert!(made(size * MIB, tool, &arguments).refused.is_some(), "{tool}");
    }
    let image = Image::new(MIB);
    let directory = image.path.with_file_name("files");
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("file"), b"content").unwrap();
    let (files, path) = (directory.to_str().unwrap(), image.path.to_str().unwrap());
    run("mksquashfs", &[files, path, "-noappend", "-quiet", "-no-progress"]);
    assert_eq!(same(&image).kind, "squashfs");
    image.write(28, &3_u16.to_le_bytes());
    assert_eq!(probe(&image).unwrap().unwrap().kind, "squashfs3");
    for joliet in
        [&["-V", "A VOLUME_1"][..], &["-J", "-V", "Volume name"], &["-J", "-V", "A NAME OF THIRTY CHARACTERS_ABCD"]]
    {
        run("genisoimage", &[&["-quiet", "-o", path], joliet, &[files]].concat());
        assert_eq!(same(&image).kind, "iso9660");
    }
}

#[test]
fn zfs_by_its_labels() {
    let image = Image::new(64 * MIB);
    let pair = |name: &str, kind: u32, value: &[u8]| {
        let mut body = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
        body.extend(name.as_bytes());
        body.resize(body.len().next_multiple_of(4), 0);
        body.extend([kind.to_be_bytes(), 1_u32.to_be_bytes()].concat());
        body.extend(value);
        body.resize(body.len().next_multiple_of(4), 0);
        let size = u32::try_from(body.len() + 8).unwrap().to_be_bytes();
        [&size[..], &size[..], &body].concat()
    };
    let name = [&4_u32.to_be_bytes()[..], b"tank"].concat();
    let list = [
        &[1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1][..],
        &pair("version", 8, &5000_u64.to_be_bytes()),
        &pair("name", 9, &name),
    ];
    let list = [&list.concat()[..], &pair("pool_guid", 8, &12_345_678_901_u64.to_be_bytes()), &[0; 8]].concat();
    for label in [0, 256 << 10, 63 * MIB + (512 << 10), 63 * MIB + (768 << 10)] {
        image.write(label + (16 << 10), &list);
        for block in 0..8 {
            image.write(label + (128 << 10) + block * 1024, &0x00ba_b10c_u64.to_le_bytes());
        }
    }
    let content = same(&image);
    assert_eq!((content.kind, content.label.as_deref()), ("zfs_member", Some(&b"tank"[..])));
    assert_eq!(content.uuid.as_deref(), Some("12345678901"));
}

#[test]
fn two_file_systems_at_once_are_refused() {
    let image = Image::new(320 * MIB);
    image.run("mkfs.xfs", &["-q"]);
    let other = Image::new(8 * MIB);
    other.run("mkfs.ext4", &["-q", "-F"]);
    image.write(1024, &other.bytes(1024, 1024));
    let content = probe(&image).unwrap().unwrap();
    let refused = content.refused.unwrap();
    assert!(refused.contains("xfs") && refused.contains("ext4"), "{refused}");
    assert_eq!(inside::open(image).err().unwrap().kind(), Kind::Unsupported);
}

#[test]
fn nothing_is_nothing() {
    assert_eq!(probe(&Image::new(MIB)).unwrap(), None);
    assert_eq!(probe(&Image::new(0)).unwrap(), None);
    assert_eq!(inside::open(Image::new(MIB)).err().unwrap().kind(), Kind::Unsupported);
}
