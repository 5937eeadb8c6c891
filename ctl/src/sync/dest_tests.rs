use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;

use super::*;

fn open(path: &Path) -> Dest {
    Dest::open(&Place::find(path).unwrap()).unwrap()
}

#[test]
fn runs_of_zeroes_begin_and_end_at_blocks() {
    let mut data = vec![0; 3 * 4096];
    data[5000] = 1;
    assert_eq!(runs(0, &data), [(0..4096, true), (4096..8192, false), (8192..12288, true)]);
    // Blocks are those of the disk, not of the buffer.
    assert_eq!(runs(512, &data), [(0..3584, true), (3584..7680, false), (7680..12288, true)]);
    assert_eq!(runs(0, &[]), []);
}

#[test]
fn a_new_copy_is_sparse_and_private() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new");
    let mut dest = open(&path);
    dest.resize(1 << 30).unwrap();
    dest.write(1 << 20, &vec![0; 1 << 20]).unwrap();
    dest.write(8 << 20, &[7; 4096]).unwrap();
    dest.flush().unwrap();
    let meta = std::fs::metadata(&path).unwrap();
    assert!(meta.len() == 1 << 30 && meta.blocks() * 512 < 1 << 20 && meta.mode() & 0o777 == 0o600);
    assert_eq!((dest.written, dest.zeroed), (4096, 0));
}

#[test]
fn one_run_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("copy");
    let _first = open(&path);
    let second = Dest::open(&Place::find(&path).unwrap()).unwrap_err();
    assert!(second.to_string().contains("in use"), "{second}");
}

#[test]
fn places() {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().canonicalize().unwrap();
    std::fs::write(real.join("file"), "").unwrap();
    std::os::unix::fs::symlink("file", real.join("link")).unwrap();
    std::os::unix::fs::symlink("nothing", real.join("dangling")).unwrap();
    assert_eq!(Place::find(&real.join("link")).unwrap(), Place::Regular(real.join("file")));
    assert_eq!(Place::find(&real.join("new")).unwrap(), Place::Missing(real.join("new")));
    for wrong in ["dangling", ".", "no/such"] {
        assert!(Place::find(&real.join(wrong)).is_err(), "{wrong}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn what_is_written_is_there(
        writes in proptest::collection::vec((0..60_000_u64, 1..20_000_usize, any::<bool>()), 1..20), punches: bool,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("copy");
        let mut model = vec![9_u8; 100_000];
        std::fs::write(&path, &model).unwrap();
        let mut dest = open(&path);
        dest.punches = punches;
        for (offset, length, zero) in writes {
            let place = usize::try_from(offset).unwrap()..usize::try_from(offset).unwrap() + length;
            // Zeroes with a byte here and there.
            let data: Vec<u8> = place.clone().map(|at| u8::from(!zero && at % 7919 == 0)).collect();
            model[place].copy_from_slice(&data);
            if zero {
                dest.zero(offset..offset + u64::try_from(length).unwrap()).unwrap();
            } else {
                dest.write(offset, &data).unwrap();
            }
        }
        prop_assert!(std::fs::read(&path).unwrap() == model);
    }
}
