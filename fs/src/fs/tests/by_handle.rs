//! What a handle that somebody kept finds, when the kernel has forgotten everything.

use super::*;

const PATHS: [&str; 12] = [
    "status.json",
    "control",
    "current",
    "current/vda",
    "current/vda/disk.raw",
    "current/vda/disk.qcow2",
    "current/vdb/allocated.map",
    "checkpoints",
    "checkpoints/monday",
    "checkpoints/monday/vda",
    "checkpoints/monday/vda/delta.raw",
    "checkpoints/monday/vdb/dirty.map",
];

/// What the kernel compares with a handle.
async fn handle(fs: &Arc<Fs>, path: &str) -> (u64, u64) {
    let entry = walk(fs, path).await.unwrap();
    (entry.attr.ino, entry.generation)
}

/// What the kernel finds of a handle; none is `ESTALE`.
async fn found(fs: &Arc<Fs>, (number, generation): (u64, u64)) -> Option<Entry> {
    match fs.lookup(number, OsStr::new(".")).await {
        Ok(entry) => (entry.attr.ino == number && entry.generation == generation).then_some(entry),
        Err(error) => {
            assert_eq!(error.kind(), Kind::NotFound);
            None
        }
    }
}

fn forget_all(fs: &Arc<Fs>, handles: &[(u64, u64)]) {
    for (number, _) in handles {
        fs.forget(*number, u64::MAX);
    }
}

#[tokio::test]
async fn what_the_kernel_forgot_is_found_by_its_number() {
    let vm = machine(Fleece::Job);
    vm.checkpoint("monday");
    let fs = mount(&vm, Options::default());
    let mut handles = Vec::new();
    for path in PATHS {
        handles.push(handle(&fs, path).await);
    }
    forget_all(&fs, &handles);
    for (path, handle) in PATHS.iter().zip(&handles) {
        let entry = found(&fs, *handle).await.unwrap_or_else(|| panic!("{path}"));
        let parent = fs.lookup(handle.0, OsStr::new("..")).await.unwrap();
        let above = path.rsplit_once('/').map(|(above, _)| above);
        let right = match above {
            Some(above) => walk(&fs, above).await.unwrap().attr.ino,
            None => ROOT,
        };
        assert_eq!(parent.attr.ino, right, "above {path}");
        assert_eq!(entry.attr.ino, walk(&fs, path).await.unwrap().attr.ino, "{path}");
        forget_all(&fs, &handles);
    }
    assert_eq!(vm.taken(), 0, "looking starts nothing");
    assert_eq!(found(&fs, (12345, 0)).await, None);

    let (number, _) = handles[4];
    found(&fs, handles[4]).await.unwrap();
    let open = fs.open(number, Access::Read).await.unwrap().handle;
    assert_eq!(read_all(&fs, open).await.unwrap(), vm.data("vda"));
    assert_eq!(found(&fs, handles[5]).await, None, "its size was an estimate");
}

#[tokio::test]
async fn what_is_always_there_is_found_though_the_machine_does_not_answer() {
    let vm = machine(Fleece::Job);
    let fs = mount(&vm, Options::default());
    let always = handle(&fs, "checkpoints").await;
    forget_all(&fs, &[always]);
    vm.tells_in(Duration::from_secs(3600));
    assert!(found(&fs, always).await.is_some());
}

#[tokio::test]
async fn a_handle_is_of_one_instant_one_checkpoint_and_one_mount() {
    let vm = machine(Fleece::Job);
    vm.checkpoint("monday");
    let fs = mount(&vm, Options::default());
    let directory = handle(&fs, "checkpoints/monday").await;
    let files = handle(&fs, "checkpoints/monday/vda/delta.raw").await;
    let raw = handle(&fs, "current/vda/disk.raw").await;

    // Deleted, and one of that name made again by somebody else: no point in time came in between.
    vm.delete_checkpoint("monday", false).await.unwrap();
    fs.inventories.forget();
    for gone in [directory, files] {
        assert_eq!(found(&fs, gone).await, None);
    }
    tokio::time::sleep(Duration::from_millis(2)).await;
    vm.checkpoint("monday");
    fs.inventories.forget();
    for other in [directory, files] {
        assert_eq!(found(&fs, other).await, None, "another checkpoint");
    }
    assert!(found(&fs, raw).await.is_some(), "the disk is the same");

    // Nor is it opened if the kernel still knows the node.
    let known = handle(&fs, "checkpoints/monday/vda/delta.raw").await;
    vm.delete_checkpoint("monday", false).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2)).await;
    vm.checkpoint("monday");
    fs.inventories.forget();
    assert_eq!(fs.open(known.0, Access::Read).await.unwrap_err().kind(), Kind::Stale);

    command(&fs, "release").await.unwrap();
    assert_eq!(found(&fs, raw).await, None, "the next instant");
    let (next, directory) = (handle(&fs, "current/vda/disk.raw").await, handle(&fs, "checkpoints/monday").await);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let fs = mount(&vm, Options::default());
    assert_eq!(found(&fs, raw).await, None);
    assert_eq!(found(&fs, next).await, None, "the first instant of another mount");
    assert!(found(&fs, directory).await.is_some(), "the same checkpoint");
}
