//! The scratch directory: whether it is there, may be written and has room.

use std::path::Path;

use pullfs_fs::vm::qmp::examine::room;

use super::finding::Finding;
use crate::status::size;

const CHECK: &str = "scratch";

/// Whether it can be used at all: a file is made in it that has no name.
pub(super) fn usable(dir: &Path) -> Result<(), Finding> {
    let shown = dir.display();
    let unusable = |what: String| Err(Finding::wrong(CHECK, what, "make it, or name another with -o scratch=DIR"));
    match std::fs::metadata(dir) {
        Ok(found) if !found.is_dir() => return unusable(format!("{shown} is no directory")),
        Ok(_) => {}
        Err(error) => return unusable(format!("{shown}: {error}")),
    }
    tempfile::tempfile_in(dir).map(drop).map_err(|error| {
        let cure = "let this user write there, or name another directory with -o scratch=DIR";
        Finding::wrong(CHECK, format!("{shown} cannot be written: {error}"), cure)
    })
}

/// How much the guest may overwrite during a backup, beside the size of its disks in bytes.
pub(super) fn space(dir: &Path, limit: Option<u64>, disks: &[u64]) -> Finding {
    const CHECK: &str = "scratch-space";
    let shown = dir.display();
    let total: u64 = disks.iter().fold(0, |sum, size| sum.saturating_add(*size));
    let count = u64::try_from(disks.len()).unwrap_or(u64::MAX);
    let cure = "make room, raise scratch_limit=, or name another directory with -o scratch=DIR";
    match room(dir, limit, count) {
        Err(error) => Finding::wrong(CHECK, format!("{shown}: {error}"), "name another directory with -o scratch=DIR"),
        Ok(None) => Finding::wrong(CHECK, format!("there is too little room in {shown} to begin with"), cure),
        Ok(Some(left)) if left < total => {
            let (left, total) = (size(left), size(total));
            let what = format!("the guest may overwrite {left} during a backup, in {shown}; its disks have {total}");
            Finding::hint(CHECK, what, format!("if it may write more: {cure}"))
        }
        Ok(Some(left)) => Finding::ok(CHECK, format!("the guest may overwrite {} during a backup", size(left))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;

    #[test]
    fn a_directory_is_looked_at_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        usable(dir.path()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let missing = usable(&dir.path().join("none")).unwrap_err();
        assert!(missing.state == State::Wrong && missing.what.contains("none"), "{missing:?}");
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(usable(&file).unwrap_err().what.contains("no directory"));
        assert_eq!(space(dir.path(), Some(64 << 20), &[1 << 20]).state, State::Ok);
        assert_eq!(space(dir.path(), Some(64 << 20), &[1 << 40]).state, State::Hint);
        assert_eq!(space(dir.path(), Some(1), &[1 << 20]).state, State::Wrong);
    }
}
