//! The scratch directory: whether it is there, may be written, has room, and QEMU's user gets there.

use std::path::Path;

use pullfs_fs::vm::qmp::examine::room;

use super::access::{User, first_closed};
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

/// Whether a user of QEMU's gets to the directory.
pub(super) fn reachable(dir: &Path, user: &User) -> Finding {
    const CHECK: &str = "scratch-reach";
    let (shown, uid) = (dir.display(), user.uid);
    match first_closed(dir, user) {
        Ok(None) => Finding::ok(CHECK, format!("QEMU's user {uid} gets to {shown}")),
        Ok(Some(closed)) => {
            let closed = closed.display();
            let cure = format!("setfacl -m u:{uid}:x {closed}, or name another directory with -o scratch=DIR");
            Finding::wrong(CHECK, format!("QEMU's user {uid} may not go through {closed}, on the way to {shown}"), cure)
        }
        Err(error) => Finding::wrong(CHECK, format!("{shown}: {error}"), "name another directory with -o scratch=DIR"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

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

    #[test]
    fn the_directory_that_is_closed_is_named() {
        let base = tempfile::tempdir_in("/var/tmp").unwrap();
        let inner = base.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        let set = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        let user = User { uid: 64055, groups: vec![64055] };
        set(base.path(), 0o755);
        set(&inner, 0o755);
        assert_eq!(reachable(&inner, &user).state, State::Ok);
        set(base.path(), 0o700);
        let found = reachable(&inner, &user);
        let place = base.path().display().to_string();
        assert!(found.state == State::Wrong && found.cure.unwrap().contains(&format!("u:64055:x {place},")));
    }
}
