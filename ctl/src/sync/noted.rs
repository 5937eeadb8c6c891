//! The file that holds an identity: it is there in full or not at all, also after a loss of power.

use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::identity::Identity;
use crate::failure::{Code, Failure, Outcome};

/// Longest file that is taken for an identity, in bytes; real ones have some 300.
const MAX: u64 = 1 << 16;

/// Where an identity is kept.
#[derive(Debug)]
pub(super) struct Noted {
    path: PathBuf,
}

impl Noted {
    pub(super) fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Beside the copy, which is a file.
    pub(super) fn beside(copy: &Path) -> Self {
        let mut name = OsString::from(copy);
        name.push(".pullfs.json");
        Self { path: name.into() }
    }

    /// What is noted, if anything is. A file that holds something else is not ours to replace.
    pub(super) fn read(&self) -> Outcome<Option<Identity>> {
        let shown = self.path.display();
        let mut text = Vec::new();
        match File::open(&self.path) {
            Ok(file) => file.take(MAX).read_to_end(&mut text).with_context(|| format!("cannot read {shown}"))?,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(anyhow::Error::new(error).context(format!("cannot read {shown}")).into()),
        };
        serde_json::from_slice(&text).map(Some).map_err(|error| {
            let message = format!("{shown} does not tell what a copy is of ({error}); remove it if nothing needs it");
            Failure::message(Code::System, message)
        })
    }

    pub(super) fn remove(&self) -> anyhow::Result<()> {
        let shown = self.path.display();
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other.with_context(|| format!("cannot remove {shown}"))?,
        }
        self.sync_dir()
    }

    pub(super) fn write(&self, identity: &Identity) -> anyhow::Result<()> {
        let failed = || format!("cannot write {}", self.path.display());
        let mut text = serde_json::to_vec_pretty(identity)?;
        text.push(b'\n');
        let mut file = tempfile::NamedTempFile::new_in(self.dir()).with_context(failed)?;
        file.write_all(&text).with_context(failed)?;
        file.as_file().sync_all().with_context(failed)?;
        file.persist(&self.path).map_err(|error| error.error).with_context(failed)?;
        self.sync_dir()
    }

    fn dir(&self) -> &Path {
        dir_of(&self.path)
    }

    fn sync_dir(&self) -> anyhow::Result<()> {
        sync_dir(self.dir())
    }
}

/// The directory that a file is in.
pub(super) fn dir_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

/// Makes the names in a directory survive a loss of power.
pub(super) fn sync_dir(dir: &Path) -> anyhow::Result<()> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .with_context(|| format!("cannot flush the directory {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::super::identity::Machine;
    use super::*;

    #[test]
    fn written_read_removed() {
        let dir = tempfile::tempdir().unwrap();
        let noted = Noted::beside(&dir.path().join("vda.raw"));
        assert!(noted.path.ends_with("vda.raw.pullfs.json"));
        assert_eq!(noted.read().unwrap(), None);
        noted.remove().unwrap();
        let mut identity = Identity {
            machine: Machine { source: "qmp:/a".to_owned(), name: None },
            disk: "vda".to_owned(),
            checkpoint: None,
            created: None,
            size: 1,
            time: None,
        };
        for checkpoint in [None, Some("monday".to_owned())] {
            identity.checkpoint = checkpoint;
            noted.write(&identity).unwrap();
            assert_eq!(noted.read().unwrap().as_ref(), Some(&identity));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
        noted.remove().unwrap();
        assert_eq!(noted.read().unwrap(), None);
    }

    #[test]
    fn another_file_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes");
        std::fs::write(&path, "remember the milk").unwrap();
        assert!(Noted::at(&path).read().unwrap_err().to_string().contains("notes"));
    }
}
