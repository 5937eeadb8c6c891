//! Logical volumes, with a reader that knows by heart where they are.

use inside::lvm::{Found, Group, Segment, Stripe, Volume};
use inside::table::Content;
use proptest::prelude::*;

use super::partitions::{SIZE, Scene};
use super::*;
use crate::guest::testing as toy;
use crate::vm::memory::GRANULE;

/// The size of a stripe, how often it is each disk's turn, and each disk with a place on it.
type Shape<'a> = (u64, u64, &'a [(usize, u64)]);

/// A volume of these segments.
fn volume(name: &str, shapes: &[Shape<'_>]) -> Volume {
    let (mut segments, mut size) = (Vec::new(), 0);
    for (stripe_size, turns, places) in shapes {
        let stripes: Vec<Stripe> = places.iter().map(|&(disk, offset)| Stripe { disk, offset }).collect();
        let length = stripe_size * turns * u64::try_from(stripes.len()).unwrap();
        let stripe_size = if stripes.len() == 1 { length } else { *stripe_size };
        segments.push(Segment { offset: size, length, stripe_size, stripes });
        size += length;
    }
    let content = Some(Content { kind: "ext4", label: Some(b"data".to_vec()), uuid: None, refused: None });
    Volume { name: name.to_owned(), id: format!("id-of-{name}"), size, segments: Ok(segments), content }
}

/// All of the toy's file system, striped over both disks.
fn striped(name: &str) -> Volume {
    volume(name, &[(4096, 8, &[(1, 8192), (0, 16384)])])
}

fn group(name: &str, volumes: Vec<Volume>) -> Group {
    let physical = vec![("pv-1".to_owned(), Some(1)), ("pv-2".to_owned(), None)];
    Group { name: name.to_owned(), id: format!("id-of-{name}"), sequence: 3, physical, volumes }
}

/// Two disks whose first partitions are physical volumes.
fn scene(options: &str, groups: Vec<Group>) -> Scene {
    let scene = Scene::of(Memory::new(&[("vda", SIZE), ("vdb", SIZE)], Fleece::Job), options);
    let bytes: Vec<u8> = (0..SIZE).map(|at| u8::try_from((at * 17 + at / 241 + 1) % 256).unwrap()).collect();
    scene.vm.write("vdb", 0, &bytes);
    *scene.toy.lvm.lock().unwrap() = Some(Found { groups, problems: vec!["it is odd".to_owned()] });
    scene
}

/// The bytes of a volume, one by one, where the metadata has them.
fn bytes(scene: &Scene, volume: &Volume) -> Vec<u8> {
    let disks = ["vda", "vdb"].map(|disk| scene.vm.data(disk));
    let byte = |at| {
        let piece = volume.piece(at).unwrap();
        disks[piece.disk][usize::try_from(toy::START + piece.offset).unwrap()]
    };
    (0..volume.size).map(byte).collect()
}

async fn json(scene: &Scene) -> Value {
    let handle = open(&scene.fs, "lvm/table.json").await.unwrap();
    serde_json::from_slice(&read_all(&scene.fs, handle).await.unwrap()).unwrap()
}

#[tokio::test]
async fn looking_takes_no_point_in_time_and_naming_a_group_does() {
    let scene = scene("", vec![group("vg", vec![striped("root")])]);
    look_at(&scene.fs, ROOT).await;
    assert_eq!(scene.names("lvm").await, ["table.json"]);
    for nothing in [".git", "a b", "\u{e9}"] {
        assert_eq!(scene.kind(&format!("lvm/{nothing}")).await, Kind::NotFound, "{nothing}");
    }
    assert_eq!(scene.vm.taken(), 0);
    walk(&scene.fs, "lvm/vg/root/files/many/17").await.unwrap();
    assert_eq!(scene.vm.taken(), 1);
    assert_eq!(scene.names("lvm").await, ["table.json", "vg"]);
    assert_eq!(scene.names("lvm/vg").await, ["root.raw", "root"]);
    assert_eq!(scene.names("lvm/vg/root").await, ["files"]);
    for nothing in ["other", "vg/other", "vg/root.raw.raw", "vg/.raw", "vg/root/UNCLEAN.txt", "vg/table.json"] {
        assert_eq!(scene.kind(&format!("lvm/{nothing}")).await, Kind::NotFound, "{nothing}");
    }
    look_at(&scene.fs, ROOT).await;
    assert_eq!(scene.vm.taken(), 1);
    assert!(status(&scene.fs).await["last_error"].is_null(), "a name that is not there is no failure");
    for path in ["table.json", "vg/root.raw", "vg/root/files/file"] {
        let scene = self::scene("", vec![group("vg", vec![striped("root")])]);
        let handle = open(&scene.fs, &format!("lvm/{path}")).await.unwrap();
        assert!(!read_all(&scene.fs, handle).await.unwrap().is_empty());
        let scene = self::scene("start=manual", vec![group("vg", vec![striped("root")])]);
        assert_eq!(open(&scene.fs, &format!("lvm/{path}")).await.unwrap_err().kind(), Kind::NothingHeld, "{path}");
    }
    for options in ["formats=raw", "read_once"] {
        assert_eq!(self::scene(options, Vec::new()).kind("lvm").await, Kind::NotFound, "{options}");
    }
}

#[tokio::test]
async fn files_of_a_logical_volume_are_its_pieces_of_the_disks() {
    let root = striped("root");
    let scene = scene("", vec![group("vg", vec![root.clone()])]);
    let whole = bytes(&scene, &root);
    let handle = open(&scene.fs, "lvm/vg/root/files/file").await.unwrap();
    let mut expected = vec![0; usize::try_from(toy::FILE_SIZE).unwrap()];
    for (at, length, from) in toy::PIECES {
        let [at, length, from] = [at, length, from].map(|number| usize::try_from(number).unwrap());
        expected[at..at + length].copy_from_slice(&whole[from..from + length]);
    }
    assert_eq!(read_all(&scene.fs, handle).await.unwrap(), expected);
    let attr = walk(&scene.fs, "lvm/vg/root/files/file").await.unwrap().attr;
    assert_eq!((attr.mode, attr.size), (0o600, toy::FILE_SIZE));
    assert_eq!(scene.fs.guest_xattr_names(attr.ino, false).await.unwrap(), b"user.note\0");
    let table = json(&scene).await;
    let told = &table["groups"][0]["volumes"][0];
    assert_eq!((&told["type"], &told["problem"]), (&"striped".into(), &Value::Null), "{table}");
    assert_eq!((&told["content"]["kind"], &told["content"]["label"]), (&"ext4".into(), &"data".into()));
    assert_eq!(table["problems"][0], "it is odd");
    let physical = &table["groups"][0]["physical_volumes"];
    assert_eq!((&physical[0]["disk"], &physical[0]["partition"]), (&"vdb".into(), &1.into()));
    assert_eq!((&physical[1]["disk"], &physical[1]["id"]), (&Value::Null, &"pv-2".into()));
    // In use, which the first disk of the volume tells.
    command(&scene.fs, "release").await.unwrap();
    scene.vm.write("vdb", usize::try_from(toy::START + 8192).unwrap(), toy::IN_USE);
    assert_eq!(scene.names("lvm").await, ["table.json"]);
    walk(&scene.fs, "lvm/vg/root/UNCLEAN.txt").await.unwrap();
    assert_eq!(json(&scene).await["groups"][0]["volumes"][0]["content"]["unclean"], "It was in use.");
}

#[tokio::test]
async fn what_cannot_be_read_is_told_and_not_shown() {
    let refused = Volume { segments: Err("it is thin".to_owned()), ..striped("thin") };
    let past_the_end = volume("wrong", &[(4096, 17, &[(0, 0)])]);
    let nowhere = volume("nowhere", &[(4096, 1, &[(2, 0)])]);
    let locked = Content { kind: "crypto_LUKS", label: None, uuid: None, refused: Some("encrypted".to_owned()) };
    let locked = Volume { content: Some(locked), ..striped("locked") };
    let clashing = vec![striped("a"), striped("a.raw"), striped("b.raw"), locked, nowhere, refused, past_the_end];
    let groups = vec![group("table.json", vec![striped("root")]), group("vg", clashing)];
    let scene = scene("", groups);
    walk(&scene.fs, "lvm/vg").await.unwrap();
    assert_eq!(scene.names("lvm").await, ["table.json", "vg"]);
    assert_eq!(scene.names("lvm/vg").await, ["a.raw", "a", "b.raw.raw", "b.raw", "locked.raw"]);
    for path in ["locked", "thin", "thin.raw", "wrong.raw", "nowhere.raw", "a.raw.raw"] {
        assert_eq!(scene.kind(&format!("lvm/vg/{path}")).await, Kind::NotFound, "{path}");
    }
    assert_eq!(walk(&scene.fs, "lvm/vg/a.raw").await.unwrap().attr.kind, FileKind::File);
    assert_eq!(walk(&scene.fs, "lvm/vg/b.raw").await.unwrap().attr.kind, FileKind::Directory);
    let table = json(&scene).await;
    let problem = |group: usize, volume: usize| {
        table["groups"][group]["volumes"][volume]["problem"].as_str().unwrap_or_default().to_owned()
    };
    assert!(problem(0, 0).contains("vgrename"), "{table}");
    assert!(problem(1, 1).contains("the file of a: rename one of them"), "{table}");
    for wrong in [4, 6] {
        assert!(problem(1, wrong).contains("cannot be right"), "{table}");
    }
    assert_eq!((problem(1, 5), problem(1, 2)), ("it is thin".to_owned(), String::new()));
    assert_eq!(table["groups"][1]["volumes"][3]["content"]["refused"], "encrypted");
    assert!(status(&scene.fs).await["last_error"].is_null());
}

#[tokio::test]
async fn nothing_of_an_ended_point_in_time_shows_the_next_one() {
    let scene = scene("", vec![group("vg", vec![striped("root")])]);
    let mut old = Vec::new();
    for path in ["lvm/vg", "lvm/vg/root.raw", "lvm/vg/root", "lvm/vg/root/files/file"] {
        old.push(walk(&scene.fs, path).await.unwrap());
    }
    let raw = scene.fs.open(old[1].attr.ino, Access::Read).await.unwrap().handle;
    command(&scene.fs, "release").await.unwrap();
    for entry in &old {
        let ino = entry.attr.ino;
        assert_eq!(scene.fs.getattr(ino, None).await.unwrap_err().kind(), Kind::Stale);
        assert_eq!(scene.fs.lookup(ino, OsStr::new(".")).await.unwrap_err().kind(), Kind::Stale);
    }
    for directory in [0, 2] {
        assert_eq!(scene.fs.opendir(old[directory].attr.ino).await.unwrap_err().kind(), Kind::Stale);
    }
    assert_eq!(scene.fs.lookup(old[0].attr.ino, OsStr::new("root")).await.unwrap_err().kind(), Kind::Stale);
    assert_eq!(scene.fs.read(raw, 0, 16).await.unwrap_err().kind(), Kind::Stale);
    assert_eq!(scene.fs.open(old[1].attr.ino, Access::Read).await.unwrap_err().kind(), Kind::Stale);
    assert_eq!(scene.vm.taken(), 1, "none of it takes a new one");
    for (entry, path) in old.iter().zip(["lvm/vg", "lvm/vg/root.raw", "lvm/vg/root", "lvm/vg/root/files/file"]) {
        let new = walk(&scene.fs, path).await.unwrap();
        assert_eq!(new.attr.ino, entry.attr.ino, "{path}");
        assert_ne!(new.generation, entry.generation, "{path}");
    }
    let above = async |at: usize| scene.fs.lookup(old[at].attr.ino, OsStr::new("..")).await.unwrap().attr.ino;
    let lvm = walk(&scene.fs, "lvm").await.unwrap().attr.ino;
    assert_eq!([above(0).await, above(1).await, above(2).await], [lvm, old[0].attr.ino, old[0].attr.ino]);
}

#[tokio::test]
async fn a_mirror_that_missed_writes_is_refused() {
    let scene = Scene::of(Memory::new(&[("vda", SIZE), ("vdb", SIZE)], Fleece::Job), "");
    scene.toy.mirrors.store(true, std::sync::atomic::Ordering::SeqCst);
    for (disk, there) in [("vda", true), ("vdb", false)] {
        let files = walk(&scene.fs, &format!("current/{disk}/partitions/1/files")).await;
        assert_eq!(files.is_ok(), there, "{disk}");
        let table = open(&scene.fs, &format!("current/{disk}/partitions/table.json")).await.unwrap();
        let text = String::from_utf8(read_all(&scene.fs, table).await.unwrap()).unwrap();
        assert_eq!(text.contains("another mirror of its array was written to"), !there, "{text}");
        assert!(
            walk(&scene.fs, &format!("current/{disk}/partitions/1.raw")).await.is_ok(),
            "its bytes are what they are"
        );
    }
}

/// What lseek(2) answers for the bytes of a file, of which a granule of zeroes is a hole on its disk.
fn sought(scene: &Scene, volume: &Volume, offset: u64, what: Seek) -> Option<u64> {
    let disks = ["vda", "vdb"].map(|disk| scene.vm.data(disk));
    let is_data = |at: u64| {
        let piece = volume.piece(at).unwrap();
        let granule = usize::try_from(toy::START + piece.offset).unwrap() / GRANULE * GRANULE;
        disks[piece.disk][granule..granule + GRANULE].iter().any(|byte| *byte != 0)
    };
    let found = (offset..volume.size).find(|at| is_data(*at) == (what == Seek::Data));
    found.or((what == Seek::Hole).then_some(volume.size))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// Whatever the stripes: the bytes are those that the metadata tells, and so are the holes.
    #[test]
    fn a_logical_volume_is_where_the_metadata_has_it(
        shapes in proptest::collection::vec((1_u64..9, 1_u64..5, 1_usize..4), 1..4),
        zeroes in proptest::collection::vec((0_usize..2, 0_usize..128, 1_usize..20), 0..8),
        offsets in proptest::collection::vec(any::<proptest::sample::Index>(), 4),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let places = [[(0, 1024), (1, 20_480), (0, 41_024)], [(1, 0), (0, 20_000), (1, 40_960)], [(0, 512), (0, 8192), (1, 700)]];
            let shapes: Vec<_> = shapes
                .iter()
                .zip(&places)
                .map(|((chunk, turns, count), places)| (chunk * 512, *turns, &places[..*count]))
                .collect();
            let volume = volume("root", &shapes);
            let scene = scene("", vec![group("vg", vec![volume.clone()])]);
            for (disk, granule, count) in zeroes {
                let at = usize::try_from(toy::START).unwrap() + granule * GRANULE;
                scene.vm.write(["vda", "vdb"][disk], at, &vec![0; count * GRANULE]);
            }
            let expected = bytes(&scene, &volume);
            let raw = open(&scene.fs, "lvm/vg/root.raw").await.unwrap();
            assert_eq!(read_all(&scene.fs, raw).await.unwrap(), expected, "before the holes are known");
            for offset in offsets.iter().map(|at| at.index(expected.len()) as u64).chain([0]) {
                for what in [Seek::Data, Seek::Hole] {
                    let found = scene.fs.seek(raw, offset, what).await;
                    assert_eq!(found.ok(), sought(&scene, &volume, offset, what), "{what:?} from {offset}");
                }
            }
            assert_eq!(scene.fs.seek(raw, volume.size, Seek::Hole).await.unwrap_err().kind(), Kind::NoSuchData);
            assert_eq!(read_all(&scene.fs, raw).await.unwrap(), expected, "once they are");
            for offset in offsets.iter().map(|at| at.index(expected.len())) {
                let end = (offset + 5000).min(expected.len());
                assert_eq!(scene.fs.read(raw, offset as u64, 5000).await.unwrap(), expected[offset..end]);
            }
            let attr = walk(&scene.fs, "lvm/vg/root.raw").await.unwrap().attr;
            assert_eq!((attr.size, attr.mode), (volume.size, 0o400));
        });
    }
}
