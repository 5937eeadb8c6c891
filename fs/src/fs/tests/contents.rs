//! What is in the files, whatever the guest wrote before and since.

use proptest::prelude::*;

use super::*;
use crate::vm::memory::GRANULE;

/// What holes a file has, found by seeking as `cp` does.
async fn data_ranges(fs: &Arc<Fs>, handle: u64) -> Vec<Range<u64>> {
    let mut ranges = Vec::new();
    let mut at = 0;
    loop {
        match fs.seek(handle, at, Seek::Data).await {
            Ok(start) => {
                at = fs.seek(handle, start, Seek::Hole).await.unwrap();
                ranges.push(start..at);
            }
            Err(error) => {
                assert_eq!(error.kind(), Kind::NoSuchData);
                return ranges;
            }
        }
    }
}

fn ranges(extents: &[(Range<u64>, bool)], only_data: bool) -> Vec<Range<u64>> {
    extents.iter().filter(|extent| extent.1 || !only_data).map(|extent| extent.0.clone()).collect()
}

fn place(range: &Range<u64>, size: usize) -> Range<usize> {
    usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap().min(size)
}

#[derive(Debug, Clone)]
enum Act {
    Write { offset: usize, length: usize, byte: u8 },
    Checkpoint,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let write = (0_usize..99_000, 1_usize..4000, 0_u8..3).prop_map(|(offset, length, byte)| {
        let length = length.min(100_000 - offset);
        Act::Write { offset, length, byte }
    });
    proptest::collection::vec(prop_oneof![6 => write, 1 => Just(Act::Checkpoint)], 0..25)
}

fn perform(vm: &Memory, acts: &[Act]) {
    for (index, act) in acts.iter().enumerate() {
        match act {
            Act::Write { offset, length, byte } => vm.write("vda", *offset, &vec![*byte; *length]),
            Act::Checkpoint => vm.checkpoint(&format!("c{index}")),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Full + delta = later full, and everything stays what it was at the instant whatever the guest does next.
    #[test]
    fn what_is_read_is_the_disk_at_the_point_in_time(
        before in acts(), since in acts(), after in acts(), reads in proptest::collection::vec((0_u64..110_000, 0_u32..70_000), 1..8),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let vm = machine(Fleece::Backing);
            let fs = mount(&vm, Options::default());
            perform(&vm, &before);
            vm.checkpoint("monday");
            let full = vm.data("vda");
            perform(&vm, &since);
            let later = vm.data("vda");
            let raw = open(&fs, "current/vda/disk.raw").await.unwrap();
            perform(&vm, &after);

            assert_eq!(read_all(&fs, raw).await.unwrap(), later);
            let handles = ["allocated.map", "disk.raw"].map(|name| format!("current/vda/{name}"));
            let map = open(&fs, &handles[0]).await.unwrap();
            let allocated = parse(std::str::from_utf8(&read_all(&fs, map).await.unwrap()).unwrap());
            assert_eq!(data_ranges(&fs, raw).await, ranges(&allocated, true));
            // Now that holes are known, they are answered without the disk.
            for (offset, size) in reads {
                let bytes = fs.read(raw, offset, size).await.unwrap();
                let range = place(&(offset.min(100_000)..offset.saturating_add(size.into())), 100_000);
                assert_eq!(&bytes[..], &later[range]);
            }

            let dir = "checkpoints/monday/vda";
            let map = open(&fs, &format!("{dir}/dirty.map")).await.unwrap();
            let map = parse(std::str::from_utf8(&read_all(&fs, map).await.unwrap()).unwrap());
            let dirty = ranges(&map, false);
            let json = open(&fs, &format!("{dir}/dirty.json")).await.unwrap();
            let array: Vec<Value> = serde_json::from_slice(&read_all(&fs, json).await.unwrap()).unwrap();
            assert_eq!(array.len(), dirty.len());
            let delta = open(&fs, &format!("{dir}/delta.raw")).await.unwrap();
            assert_eq!(data_ranges(&fs, delta).await, ranges(&map, true), "what became zeroes is a hole");
            let delta = read_all(&fs, delta).await.unwrap();
            let mut restored = full;
            let mut outside = delta.clone();
            for range in &dirty {
                assert!(usize::try_from(range.start).unwrap() % GRANULE == 0);
                let range = place(range, restored.len());
                restored[range.clone()].copy_from_slice(&delta[range.clone()]);
                outside[range].fill(0);
            }
            assert_eq!(restored, later);
            assert!(outside.iter().all(|byte| *byte == 0), "what did not change is a hole");

            for (name, size) in [("dirty.map", None), ("delta.raw", Some(100_000_u64))] {
                let attr = walk(&fs, &format!("{dir}/{name}")).await.unwrap().attr;
                let handle = open(&fs, &format!("{dir}/{name}")).await.unwrap();
                assert_eq!(attr.size, read_all(&fs, handle).await.unwrap().len() as u64, "sizes are exact once held");
                let bytes: u64 = ranges(&map, true).iter().map(|range| range.end - range.start).sum();
                if size.is_some() {
                    assert_eq!(attr.blocks, bytes.div_ceil(512));
                }
            }
        });
    }
}
