//! What a reader of a guest's disk says, and what it is told: each side takes the other for hostile.

use inside::lvm::is_name;
use inside::wire::{Answer, Given, Listed, MAX_ANSWERS, Request, Said, is_plain, is_short};
use inside::{Extent, Id, Place};

/// The size of the disk, in bytes.
const SIZE: u64 = 1 << 20;

/// The same as two disks, one after the other.
const DISKS: [u64; 2] = [SIZE / 4, SIZE / 4 * 3];

/// The first byte chooses what was asked, the second where it begins; then a frame.
pub(crate) fn run(input: &[u8]) {
    let [which, from, frame @ ..] = input else { return };
    heard(frame);
    let (file, from) = (Id(1), u64::from(*from) << 9);
    let request = match which % 12 {
        0 => Request::Table { size: SIZE },
        1 => Request::Open { size: SIZE },
        2 => Request::Attributes(file),
        3 => Request::Lookup(file, b"name".to_vec()),
        4 => Request::List(file, from, MAX_ANSWERS),
        5 => Request::Parent(file),
        6 => Request::LinkTarget(file),
        7 => Request::Xattrs(file),
        8 => Request::Extents(file, from, MAX_ANSWERS),
        9 => Request::Describe(file, from, MAX_ANSWERS),
        10 => Request::Volumes(DISKS.to_vec()),
        _ => Request::Mirrors(DISKS.to_vec()),
    };
    let Ok(said) = Said::decode(frame, &request, SIZE) else { return };
    match &said {
        Said::Blocks(offset, length) => assert!(*length > 0 && *length <= SIZE && offset + length <= SIZE),
        Said::Failed(error) => assert!(error.to_string().len() <= frame.len()),
        Said::Answered(answer) => check(answer, from, frame.len()),
    }
    let again = said.encode();
    let again = Said::decode(&again, &request, SIZE).expect("what was understood can be said");
    assert_eq!(format!("{again:?}"), format!("{said:?}"));
}

fn check(answer: &Answer, from: u64, length: usize) {
    match answer {
        Answer::Table(table) => {
            for partition in &table.partitions {
                let end = partition.offset.checked_add(partition.size);
                assert!(partition.problem.is_some() || end.is_some_and(|end| end <= SIZE), "{partition:?}");
            }
        }
        Answer::Open(summary, _) => assert!(summary.free_blocks <= summary.blocks && summary.block_size > 0),
        Answer::Attributes(attributes) | Answer::Lookup(Some((_, attributes))) => {
            assert!(attributes.mode <= 0o7777 && attributes.modified.nanoseconds < 1_000_000_000);
            assert!(i64::try_from(attributes.size).is_ok() && i64::try_from(attributes.allocated).is_ok());
        }
        Answer::List(names) => {
            assert!(names.all.len() <= length);
            names.all.iter().for_each(check_name);
        }
        Answer::Describe(files) => {
            assert!(files.len() <= length);
            for file in files {
                check_name(&file.listed);
                assert!(file.xattrs.as_deref().is_none_or(is_short));
                if let Some(extents) = &file.extents {
                    check_extents(extents, 0);
                    assert!(file.attributes.is_some_and(|attributes| is_plain(&attributes, extents)));
                }
            }
        }
        Answer::LinkTarget(target) => assert!((1..=4096).contains(&target.len())),
        Answer::Xattrs(all) => {
            assert!(all.iter().map(|xattr| xattr.name.len() + xattr.value.len()).sum::<usize>() <= length);
        }
        Answer::Extents(extents) => check_extents(extents, from),
        Answer::Volumes(found) => {
            for volume in found.groups.iter().flat_map(|group| &group.volumes) {
                assert!(is_name(volume.name.as_bytes()));
                for offset in [0, volume.size / 2, volume.size.saturating_sub(1)] {
                    let Some(piece) = volume.piece(offset) else { continue };
                    assert!(piece.length > 0 && piece.offset + piece.length <= DISKS[piece.disk], "on its disk");
                }
                assert!(volume.piece(volume.size).is_none());
            }
        }
        Answer::Mirrors(outdated) => assert!(outdated.iter().all(|at| *at < DISKS.len())),
        Answer::Lookup(None) | Answer::Parent(_) => {}
    }
}

/// In order, from where they were asked for, within the disk.
fn check_extents(extents: &[Extent], from: u64) {
    let mut at = from;
    for extent in extents {
        assert!(extent.offset == at && extent.length > 0, "in order, from where it was asked for");
        at = at.checked_add(extent.length).expect("a file's size");
        match &extent.place {
            Place::Hole => {}
            Place::Disk(offset) => assert!(offset + extent.length <= SIZE, "within the disk"),
            Place::Inline(bytes) => assert_eq!(u64::try_from(bytes.len()), Ok(extent.length)),
        }
    }
}

fn check_name(listed: &Listed) {
    let name = &listed.name;
    assert!(!name.is_empty() && name.len() <= 1024 && !name.contains(&b'/') && !name.contains(&0));
    assert!(listed.next > 0 && listed.next < 1 << 63);
}

/// The child's side.
fn heard(frame: &[u8]) {
    if let Ok(request) = Request::decode(frame) {
        assert_eq!(Request::decode(&request.encode()), Ok(request));
    }
    let length = frame.len().saturating_sub(1);
    if let Ok(Given::Blocks(blocks)) = Given::decode(frame, length) {
        assert_eq!(blocks.len(), length);
    }
}
