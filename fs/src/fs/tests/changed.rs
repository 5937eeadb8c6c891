//! `changed-files.txt`, with a reader that knows the disk by heart.

use std::sync::atomic::Ordering;

use super::partitions::Scene;
use super::*;
use crate::guest::testing as toy;

const LIST: &str = "checkpoints/monday/vda/changed-files.txt";

async fn text(scene: &Scene) -> String {
    let handle = open(&scene.fs, LIST).await.unwrap();
    let text = String::from_utf8(read_all(&scene.fs, handle).await.unwrap()).unwrap();
    scene.fs.release(handle);
    text
}

fn files(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.starts_with('#')).collect()
}

#[tokio::test]
async fn files_are_listed_by_where_the_disk_changed() {
    let scene = Scene::new("");
    scene.vm.checkpoint("monday");
    scene.write(toy::START + 1000, b"no file's");
    let list = text(&scene).await;
    assert!(list.starts_with("# machine: "), "{list}");
    for line in ["# disk: vda", "# checkpoint: monday"] {
        assert!(list.lines().any(|has| has == line), "{line}: {list}");
    }
    assert!(list.contains("# point in time: ") && list.ends_with("# end: 0 files\n"), "{list}");
    command(&scene.fs, "release").await.unwrap();
    scene.write(toy::START + toy::PIECES[1].2, b"x");
    let list = text(&scene).await;
    assert_eq!(files(&list), ["1/files/file", "1/files/again"]);
    assert!(list.contains("# note: partition 2: nothing changed on it\n"), "{list}");
    assert!(list.contains("# not read: partition 3: it reaches past the end of the disk\n"), "{list}");
    assert!(list.ends_with("# incomplete: 1 of the above could not be read\n# end: 2 files\n"), "{list}");
}

#[tokio::test]
async fn a_file_system_that_is_not_read_is_named() {
    let scene = Scene::new("");
    scene.vm.checkpoint("monday");
    scene.write(toy::START, toy::BROKEN);
    scene.write(toy::START + toy::SIZE, b"swapped out");
    let list = text(&scene).await;
    assert!(files(&list).is_empty());
    assert!(list.contains("# not read: partition 1: ") && list.contains("told to be broken"), "{list}");
    assert!(list.contains("# not read: partition 2: swap space holds no files\n"), "{list}");
    assert!(list.ends_with("# incomplete: 3 of the above could not be read\n# end: 0 files\n"), "{list}");
}

#[tokio::test]
async fn only_an_open_walks_the_guests_files() {
    let scene = Scene::new("");
    scene.vm.checkpoint("monday");
    scene.write(toy::START + toy::PIECES[0].2, b"x");
    open(&scene.fs, "current/vda/disk.raw").await.unwrap();
    let checkpoints = walk(&scene.fs, "checkpoints").await.unwrap().attr.ino;
    look_at(&scene.fs, checkpoints).await;
    let asked = || (scene.toy.tables.load(Ordering::SeqCst), scene.toy.asked.listed.load(Ordering::SeqCst));
    walk(&scene.fs, LIST).await.unwrap();
    assert_eq!(asked().1, 0, "a look");
    let length = text(&scene).await.len() as u64;
    let walked = asked();
    assert!(walked.1 > 0);
    assert_eq!(walk(&scene.fs, LIST).await.unwrap().attr.size, length, "exact once it was made");
    assert_eq!(asked(), walked);
}

#[tokio::test]
async fn formats_says_whether_it_is_there() {
    for (options, there) in [("formats=map", false), ("formats=partitions", true), ("read_once", false)] {
        let scene = Scene::new(options);
        scene.vm.checkpoint("monday");
        assert_eq!(walk(&scene.fs, LIST).await.is_ok(), there, "{options}");
    }
}
