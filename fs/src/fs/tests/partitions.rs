//! What is inside of disks, with a reader that knows it by heart.

use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering;

use super::*;
use crate::guest::testing::{self as toy, Toy};

pub(super) const SIZE: usize = 256 << 10;
const N: &str = "current/vda/partitions";

pub(super) struct Scene {
    pub(super) vm: Arc<Memory>,
    pub(super) fs: Arc<Fs>,
    pub(super) toy: Arc<Toy>,
}

impl Scene {
    pub(super) fn new(options: &str) -> Self {
        Self::of(Memory::new(&[("vda", SIZE)], Fleece::Job), options)
    }

    pub(super) fn of(vm: Arc<Memory>, options: &str) -> Self {
        // Each byte tells where it is.
        let bytes: Vec<u8> = (0..SIZE).map(|at| u8::try_from((at * 31 + at / 251) % 256).unwrap()).collect();
        vm.write("vda", 0, &bytes);
        let toy = Arc::<Toy>::default();
        let inodes = Arc::new(Inodes::new("memory"));
        let options = Options::parse(options).unwrap();
        let fs = Fs::new(vm.clone(), options, "pullfs-test".into(), (7, 8), inodes, Arc::new(|| {}), Pid::default());
        let fs = Arc::new(fs.reading_inside(toy.clone()));
        Self { vm, fs, toy }
    }

    pub(super) async fn kind(&self, path: &str) -> Kind {
        walk(&self.fs, path).await.unwrap_err().kind()
    }

    pub(super) async fn names(&self, path: &str) -> Vec<OsString> {
        let ino = walk(&self.fs, path).await.unwrap().attr.ino;
        let handle = self.fs.opendir(ino).await.unwrap();
        let mut names = Vec::new();
        self.fs
            .readdir(handle, 2, |_, entry| {
                names.push(entry.name.to_os_string());
                false
            })
            .await
            .unwrap();
        self.fs.release(handle);
        names
    }

    pub(super) fn write(&self, offset: u64, bytes: &[u8]) {
        self.vm.write("vda", usize::try_from(offset).unwrap(), bytes);
    }
}

#[tokio::test]
async fn looking_from_outside_takes_no_point_in_time_and_naming_a_partition_does() {
    let scene = Scene::new("");
    look_at(&scene.fs, ROOT).await;
    assert_eq!(scene.names(N).await, ["table.json"]);
    for nothing in ["nothing", ".git", "01", "1.raw.xz"] {
        assert_eq!(scene.kind(&format!("{N}/{nothing}")).await, Kind::NotFound);
    }
    assert_eq!((scene.vm.taken(), scene.toy.tables.load(Ordering::SeqCst)), (0, 0));
    walk(&scene.fs, &format!("{N}/1/files/many/17")).await.unwrap();
    assert_eq!(scene.vm.taken(), 1);
    assert_eq!(scene.names(N).await, ["table.json", "1.raw", "1", "2.raw"], "3 reaches past the end");
    assert_eq!(scene.names(&format!("{N}/1")).await, ["files"]);
    for nothing in ["2", "3", "3.raw", "4", "1/UNCLEAN.txt", "1/other", "1/files/none"] {
        assert_eq!(scene.kind(&format!("{N}/{nothing}")).await, Kind::NotFound, "{nothing}");
    }
    look_at(&scene.fs, ROOT).await;
    assert_eq!(scene.vm.taken(), 1);
    assert_eq!(scene.toy.tables.load(Ordering::SeqCst), 1, "read once");
    assert_eq!(scene.toy.opened.load(Ordering::SeqCst), 1, "opened once");
    assert!(status(&scene.fs).await["last_error"].is_null(), "a name that is not there is no failure");
}

#[tokio::test]
async fn each_of_them_can_be_the_first_that_is_wanted() {
    for path in ["table.json", "1.raw", "1/files/file"] {
        let scene = Scene::new("");
        let handle = open(&scene.fs, &format!("{N}/{path}")).await.unwrap();
        assert!(!read_all(&scene.fs, handle).await.unwrap().is_empty());
        assert_eq!(scene.vm.taken(), 1);
        let scene = Scene::new("start=manual");
        assert_eq!(open(&scene.fs, &format!("{N}/{path}")).await.unwrap_err().kind(), Kind::NothingHeld, "{path}");
        assert_eq!(scene.vm.taken(), 0);
    }
}

#[tokio::test]
async fn the_option_says_whether_it_is_shown() {
    for options in ["formats=raw", "read_once"] {
        assert_eq!(Scene::new(options).kind(N).await, Kind::NotFound, "{options}");
    }
    assert_eq!(Scene::new("formats=partitions").names("current/vda").await, ["partitions"]);
}

#[tokio::test]
async fn a_partition_is_a_window_of_the_disk() {
    let scene = Scene::new("");
    let (start, size) = (usize::try_from(toy::START).unwrap(), usize::try_from(toy::SIZE).unwrap());
    scene.write(toy::START + 512, &[0; 1024]);
    scene.write(toy::START - 512, &[0; 512]);
    let disk = scene.vm.data("vda");
    let raw = open(&scene.fs, &format!("{N}/1.raw")).await.unwrap();
    assert_eq!(read_all(&scene.fs, raw).await.unwrap(), disk[start..start + size]);
    let seek = async |offset, what| scene.fs.seek(raw, offset, what).await;
    assert_eq!(seek(0, Seek::Hole).await.unwrap(), 512);
    assert_eq!(seek(512, Seek::Data).await.unwrap(), 1536);
    assert_eq!(seek(1536, Seek::Hole).await.unwrap(), toy::SIZE, "the end, though the disk goes on");
    assert_eq!(seek(toy::SIZE, Seek::Data).await.unwrap_err().kind(), Kind::NoSuchData);
    let attr = walk(&scene.fs, &format!("{N}/1.raw")).await.unwrap().attr;
    assert_eq!((attr.size, attr.blocks, attr.mode), (toy::SIZE, (toy::SIZE - 1024) / 512, 0o400));
}

#[tokio::test]
async fn a_guests_file_is_its_pieces_of_the_disk() {
    let scene = Scene::new("");
    let file = open(&scene.fs, &format!("{N}/1/files/file")).await.unwrap();
    let disk = scene.vm.data("vda");
    let mut expected = vec![0; usize::try_from(toy::FILE_SIZE).unwrap()];
    for (at, length, from) in toy::PIECES {
        let (at, from) = (usize::try_from(at).unwrap(), usize::try_from(toy::START + from).unwrap());
        let length = usize::try_from(length).unwrap();
        expected[at..at + length].copy_from_slice(&disk[from..from + length]);
    }
    assert_eq!(read_all(&scene.fs, file).await.unwrap(), expected);
    assert_eq!(scene.fs.seek(file, 0, Seek::Hole).await.unwrap(), 3000);
    assert_eq!(scene.fs.seek(file, 3000, Seek::Data).await.unwrap(), 6000);
}

#[tokio::test]
async fn a_guests_file_is_told_as_it_is_there() {
    let scene = Scene::new("");
    let at = async |path: &str| walk(&scene.fs, &format!("{N}/1/files{path}")).await.unwrap().attr;
    let file = at("/file").await;
    let guest = file.guest.clone().unwrap();
    assert_eq!((file.mode, file.uid, file.gid, file.size, guest.links), (0o600, 0, 5, toy::FILE_SIZE, 2));
    assert_eq!(file.mtime, SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 7));
    assert_eq!(at("/again").await.ino, file.ino, "one file with two names");
    assert_eq!(at("/device").await.guest.unwrap().device, (1, 3));
    let link = at("/link").await;
    assert_eq!((link.kind, scene.fs.readlink(link.ino).await.unwrap()), (FileKind::Symlink, b"/etc/passwd".to_vec()));
    assert!(scene.fs.readlink(file.ino).await.is_ok() && scene.fs.readlink(ROOT).await.is_err());
    assert_eq!(scene.fs.guest_xattr_names(file.ino, false).await.unwrap(), b"user.note\0");
    assert_eq!(scene.fs.guest_xattr_names(file.ino, true).await.unwrap(), b"user.note\0trusted.secret\0");
    assert_eq!(scene.fs.guest_xattr(file.ino, OsStr::new("user.note")).await.unwrap().unwrap(), b"value\0");
    assert_eq!(scene.fs.guest_xattr(file.ino, OsStr::new("user.none")).await.unwrap(), None);
    assert!(scene.fs.is_guest(file.ino) && !scene.fs.is_guest(walk(&scene.fs, N).await.unwrap().attr.ino));
    let scene = Scene::new("uid=1000,umask=027");
    let file = walk(&scene.fs, &format!("{N}/1/files/file")).await.unwrap().attr;
    assert_eq!((file.mode, file.uid, file.gid), (0o440, 1000, 8), "readable for whom the options name");
}

#[tokio::test]
async fn a_large_directory_is_listed_in_pieces_and_from_anywhere() {
    let scene = Scene::new("");
    let ino = walk(&scene.fs, &format!("{N}/1/files/many")).await.unwrap().attr.ino;
    let handle = scene.fs.opendir(ino).await.unwrap();
    let mut all: Vec<(u64, OsString)> = Vec::new();
    loop {
        let (mut room, from) = (97, all.last().map_or(0, |(next, _)| *next));
        let before = all.len();
        scene
            .fs
            .readdir(handle, from, |next, entry| {
                if room == 0 {
                    return true;
                }
                room -= 1;
                all.push((next, entry.name.to_os_string()));
                false
            })
            .await
            .unwrap();
        if all.len() == before {
            break;
        }
    }
    let expected = [".".to_owned(), "..".to_owned()].into_iter().chain((0..toy::MANY).map(|n| n.to_string()));
    assert!(all.iter().map(|(_, name)| name.to_str().unwrap().to_owned()).eq(expected));
    assert!(scene.toy.asked.listed.load(Ordering::SeqCst) <= 6, "a thousand names an answer");
    for index in [1, 2, 1001, 1002, 3500] {
        let mut next = None;
        let tell = |_: u64, entry: &DirEntry| {
            next = Some(entry.name.to_os_string());
            true
        };
        scene.fs.readdir(handle, all[index].0, tell).await.unwrap();
        assert_eq!(next, Some(all[index + 1].1.clone()), "telldir and seekdir");
    }
    let asked = || scene.toy.asked.listed.load(Ordering::SeqCst);
    let before = asked();
    let root = scene.names(&format!("{N}/1/files")).await;
    assert_eq!(asked() - before, 1, "all of it at once, and that it is all");
    assert_eq!(scene.toy.asked.parents.load(Ordering::SeqCst), 0, "told along");
    assert!(root.iter().map(|name| name.as_encoded_bytes()).eq(toy::NAMES.iter().map(|(name, _)| *name)));
}

#[tokio::test]
async fn who_looks_at_one_file_after_another_has_many_asked_for_at_once() {
    let scene = Scene::new("");
    let asked = &scene.toy.asked;
    let many = walk(&scene.fs, &format!("{N}/1/files/many")).await.unwrap().attr.ino;
    let before = asked.looked_up.load(Ordering::SeqCst);
    let mut numbers = HashSet::new();
    for number in 0..toy::MANY {
        let found = scene.fs.lookup(many, OsStr::new(&number.to_string())).await.unwrap();
        assert_eq!((found.lasts, found.attr.gid), (Lasts::Held, 5));
        assert!(numbers.insert(found.attr.ino));
    }
    let described = asked.described.load(Ordering::SeqCst);
    assert_eq!((asked.looked_up.load(Ordering::SeqCst) - before, described), (1, 10), "16, 32 and so on up to 1024");
    let nothing = scene.fs.lookup(many, OsStr::new("none")).await.unwrap_err();
    assert_eq!(nothing.kind(), Kind::NotFound);
    // Again, as who comes when the kernel has forgotten.
    let again = scene.fs.lookup(many, OsStr::new("17")).await.unwrap();
    assert!(numbers.contains(&again.attr.ino));
}

#[tokio::test]
async fn who_reads_one_small_file_after_another_has_them_fetched_at_once() {
    let fetched = async |options: &str| {
        let scene = Scene::new(options);
        let disk = scene.vm.data("vda");
        for number in toy::SMALL {
            let file = open(&scene.fs, &format!("{N}/1/files/many/{number}")).await.unwrap();
            let at = usize::try_from(toy::START + toy::SMALL_START + (number - toy::SMALL.start) * toy::SMALL_SIZE);
            let at = at.unwrap();
            assert_eq!(read_all(&scene.fs, file).await.unwrap(), disk[at..at + 512]);
            scene.fs.release(file);
        }
        let asked = scene.toy.asked.extents.load(Ordering::SeqCst);
        assert!(asked < 8, "{asked}");
        status(&scene.fs).await["cache"]["hits"].as_u64().unwrap()
    };
    let files = toy::SMALL.end - toy::SMALL.start;
    let (hits, without) = (fetched("").await, fetched("readahead=0").await);
    assert!(hits > files * 3 / 4 && without < files / 4, "{hits} of {files} were there, {without} without");
}

#[tokio::test]
async fn what_a_file_of_few_pieces_is_and_where_is_asked_once() {
    let scene = Scene::new("");
    let asked = &scene.toy.asked;
    let file = walk(&scene.fs, &format!("{N}/1/files/many/5")).await.unwrap().attr.ino;
    for _ in 0..3 {
        let handle = scene.fs.open(file, Access::Read).await.unwrap().handle;
        assert_eq!(read_all(&scene.fs, handle).await.unwrap().len() as u64, toy::SMALL_SIZE);
        scene.fs.release(handle);
        assert_eq!(scene.fs.getattr(file, None).await.unwrap().size, toy::SMALL_SIZE);
    }
    assert_eq!(asked.extents.load(Ordering::SeqCst), 1);
    // With its look-up, which tells it.
    let before = asked.attributes.load(Ordering::SeqCst);
    scene.fs.getattr(file, None).await.unwrap();
    assert_eq!(asked.attributes.load(Ordering::SeqCst), before);
    assert!(before < 5, "{before}, of it and the directories to it");
}

#[tokio::test]
async fn who_copies_files_has_their_extended_attributes_told_along() {
    let scene = Scene::new("");
    let root = walk(&scene.fs, &format!("{N}/1/files")).await.unwrap().attr.ino;
    let mut told = Vec::new();
    for (name, _) in toy::NAMES {
        let ino = scene.fs.lookup(root, OsStr::from_bytes(name)).await.unwrap().attr.ino;
        told.push(scene.fs.guest_xattr_names(ino, true).await.unwrap());
    }
    assert_eq!(told[1], b"user.note\0trusted.secret\0");
    assert_eq!(scene.toy.asked.xattrs.load(Ordering::SeqCst), 1 + toy::NAMES.len(), "the first, and all at once");
}

#[tokio::test]
async fn what_is_not_clean_says_so() {
    let scene = Scene::new("");
    scene.write(toy::START, toy::IN_USE);
    let handle = open(&scene.fs, &format!("{N}/1/UNCLEAN.txt")).await.unwrap();
    let text = String::from_utf8(read_all(&scene.fs, handle).await.unwrap()).unwrap();
    assert!(text.starts_with("It was in use.\n") && text.contains("--quiesce"), "{text}");
    assert_eq!(scene.names(&format!("{N}/1")).await, ["files", "UNCLEAN.txt"]);
    let table = open(&scene.fs, &format!("{N}/table.json")).await.unwrap();
    let json: Value = serde_json::from_slice(&read_all(&scene.fs, table).await.unwrap()).unwrap();
    let told = &json["partitions"];
    assert_eq!(told[0]["content"]["unclean"], "It was in use.");
    assert_eq!(told[1]["content"]["refused"], "swap space holds no files");
    assert_eq!(told[2]["problem"], "it reaches past the end of the disk");
}

#[tokio::test]
async fn a_file_system_that_cannot_be_read_says_why_and_is_not_tried_for_each_file() {
    let scene = Scene::new("");
    scene.write(toy::START, toy::BROKEN);
    for _ in 0..3 {
        assert_eq!(scene.kind(&format!("{N}/1/files")).await, Kind::Io);
    }
    assert_eq!(scene.toy.opened.load(Ordering::SeqCst), 1);
    let told = status(&scene.fs).await["last_error"]["message"].as_str().unwrap().to_owned();
    assert_eq!(told, "cannot open the file system on partition 1 of disk vda: told to be broken");
    let table = open(&scene.fs, &format!("{N}/table.json")).await.unwrap();
    let text = String::from_utf8(read_all(&scene.fs, table).await.unwrap()).unwrap();
    assert!(text.contains("told to be broken"), "{text}");
}

#[tokio::test]
async fn nothing_of_an_ended_point_in_time_shows_the_next_one() {
    let scene = Scene::new("");
    let path = format!("{N}/1/files/file");
    let old = walk(&scene.fs, &path).await.unwrap();
    let file = scene.fs.open(old.attr.ino, Access::Read).await.unwrap().handle;
    let root = walk(&scene.fs, &format!("{N}/1/files")).await.unwrap();
    let directory = scene.fs.opendir(root.attr.ino).await.unwrap();
    scene.fs.read(file, 0, 16).await.unwrap();
    assert_eq!(command(&scene.fs, "begin").await.unwrap_err().kind(), Kind::Busy, "something is open");
    command(&scene.fs, "release").await.unwrap();
    let stale = async || {
        assert_eq!(scene.fs.read(file, 0, 16).await.unwrap_err().kind(), Kind::Stale);
        assert_eq!(scene.fs.readdir(directory, 0, |_, _| false).await.unwrap_err().kind(), Kind::Stale);
    };
    stale().await;
    let ino = old.attr.ino;
    assert_eq!(scene.fs.open(ino, Access::Read).await.unwrap_err().kind(), Kind::Stale);
    assert_eq!(scene.fs.opendir(root.attr.ino).await.unwrap_err().kind(), Kind::Stale);
    assert_eq!(scene.fs.getattr(ino, None).await.unwrap_err().kind(), Kind::Stale);
    assert_eq!(scene.fs.guest_xattr_names(ino, true).await.unwrap_err().kind(), Kind::Stale);
    assert_eq!(scene.fs.lookup(root.attr.ino, OsStr::new("file")).await.unwrap_err().kind(), Kind::Stale);
    assert_eq!(scene.fs.lookup(ino, OsStr::new(".")).await.unwrap_err().kind(), Kind::Stale);
    assert_eq!(scene.vm.taken(), 1, "none of it takes a new one");
    let new = walk(&scene.fs, &path).await.unwrap();
    assert_eq!(scene.vm.taken(), 2);
    assert_eq!(new.attr.ino, old.attr.ino, "backup tools take it for the same file");
    assert_ne!(new.generation, old.generation, "and the kernel does not");
    stale().await;
    assert_eq!(scene.toy.opened.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn who_looks_inside_holds_the_point_in_time_no_longer_than_others() {
    let scene = Scene::new("idle_timeout=300ms");
    let path = format!("{N}/1/files/file");
    for _ in 0..6 {
        walk(&scene.fs, &path).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(scene.vm.taken(), 1, "whoever goes on looking does not lose it");
    let directory = walk(&scene.fs, &format!("{N}/1/files")).await.unwrap().attr.ino;
    let directory = scene.fs.opendir(directory).await.unwrap();
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert_eq!(status(&scene.fs).await["point"]["state"], "held", "an open directory holds it");
    scene.fs.release(directory);
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert_eq!(status(&scene.fs).await["last_end"]["kind"], "idle");
}

#[tokio::test]
async fn who_has_a_handle_of_a_guests_file_finds_what_it_stands_in() {
    let scene = Scene::new("");
    let ino = async |path: &str| walk(&scene.fs, &format!("{N}{path}")).await.unwrap().attr.ino;
    let above = async |ino| scene.fs.lookup(ino, OsStr::new("..")).await.unwrap().attr.ino;
    let (many, root, partition) = (ino("/1/files/many").await, ino("/1/files").await, ino("/1").await);
    assert_eq!(above(many).await, root);
    assert_eq!(above(root).await, partition);
    assert_eq!(above(partition).await, ino("").await);
    assert_eq!(scene.fs.lookup(many, OsStr::new(".")).await.unwrap().attr.ino, many);
}
