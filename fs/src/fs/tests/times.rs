//! Times: what did not change keeps its own, and what changed has another.

use proptest::prelude::*;

use super::*;
use crate::vm::memory::GRANULE;

/// What `stat` says.
async fn modified(fs: &Arc<Fs>, path: &str) -> SystemTime {
    let entry = walk(fs, path).await.unwrap();
    fs.getattr(entry.attr.ino, None).await.unwrap().mtime
}

#[tokio::test]
async fn what_did_not_change_keeps_its_time() {
    let vm = machine(Fleece::Job);
    let fs = mount(&vm, Options::default());
    let (vda, vdb) = ("current/vda/disk.raw", "current/vdb/disk.qcow2");
    assert_ne!(modified(&fs, vda).await, modified(&fs, vda).await, "nothing is known, so it may have changed");
    vm.checkpoint("monday");
    fs.inventories.forget();
    let (monday, small) = (modified(&fs, vda).await, modified(&fs, vdb).await);
    let handle = open(&fs, vda).await.unwrap();
    assert_eq!((modified(&fs, vda).await, modified(&fs, vdb).await), (monday, small), "held or not");
    let map = modified(&fs, "checkpoints/monday/vda/dirty.map").await;
    assert!(map > monday, "it tells of the point in time itself");
    vm.write("vda", 0, &[1]);
    assert_eq!(modified(&fs, vda).await, monday, "the point in time that is held is what it was");
    fs.release(handle);
    command(&fs, "release").await.unwrap();
    vm.checkpoint("tuesday");
    // Another mount knows as much.
    let fs = mount(&vm, Options::default());
    let tuesday = modified(&fs, vda).await;
    assert!(tuesday > monday, "since Tuesday");
    assert_eq!(modified(&fs, vdb).await, small, "a later checkpoint changes nothing");
    // At once, although the inventory is fresh.
    vm.write("vda", 0, &[2]);
    assert!(modified(&fs, vda).await > tuesday);
}

#[tokio::test]
async fn what_changed_just_before_the_instant_has_changed() {
    let vm = machine(Fleece::Job);
    let fs = mount(&vm, Options::default());
    vm.checkpoint("monday");
    let monday = modified(&fs, "current/vda/disk.raw").await;
    vm.writes_meanwhile("vda");
    command(&fs, "begin").await.unwrap();
    assert!(modified(&fs, "current/vda/disk.raw").await > monday, "the look before the instant proves nothing");
    assert!(modified(&fs, "current/vdb/disk.raw").await < modified(&fs, "current/vda/disk.raw").await);
}

/// What may happen between two looks of a tool.
#[derive(Debug, Clone)]
enum Happens {
    Write(usize, u8),
    Checkpoint(u8),
    Delete(u8),
    Begin,
    Release,
    Remount,
    /// A tool looks at the file, and copies it unless it has a copy of that time.
    Backup,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        3 => (0..3_usize, 0..3_u8).prop_map(|(granule, value)| Happens::Write(granule * GRANULE, value)),
        2 => (0..3_u8).prop_map(Happens::Checkpoint),
        1 => (0..3_u8).prop_map(Happens::Delete),
        1 => Just(Happens::Begin),
        2 => Just(Happens::Release),
        1 => Just(Happens::Remount),
        5 => Just(Happens::Backup),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// The tool keeps every copy with the time that it saw before it read, as rsync does.
    #[test]
    fn no_change_is_ever_skipped(history in prop::collection::vec(happens(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let vm = machine(Fleece::Job);
            let mut fs = mount(&vm, Options::default());
            let mut copies: std::collections::BTreeMap<SystemTime, Vec<u8>> = std::collections::BTreeMap::new();
            for step in history {
                match step {
                    Happens::Write(offset, value) => vm.write("vda", offset, &[value]),
                    Happens::Checkpoint(name) => {
                        vm.checkpoint(&name.to_string());
                        fs.inventories.forget();
                    }
                    Happens::Delete(name) => drop(vm.delete_checkpoint(&name.to_string(), false).await),
                    Happens::Begin => drop(command(&fs, "begin").await),
                    Happens::Release => drop(command(&fs, "release").await),
                    Happens::Remount => {
                        command(&fs, "release").await.ok();
                        fs = mount(&vm, Options::default());
                    }
                    Happens::Backup => {
                        let time = modified(&fs, "current/vda/disk.raw").await;
                        let handle = open(&fs, "current/vda/disk.raw").await.unwrap();
                        let bytes = read_all(&fs, handle).await.unwrap();
                        fs.release(handle);
                        if let Some(copy) = copies.insert(time, bytes.clone()) {
                            assert_eq!(copy, bytes, "skipped, though it changed");
                        }
                    }
                }
            }
        });
    }
}
