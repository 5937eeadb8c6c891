//! A file for `node_exporter`'s textfile collector: replaced as a whole, removed at the end.
//!
//! Its first line names the mount that writes it. One that no mount has written is not replaced, and one that another mount
//! has written is not removed.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;

use crate::error::{Error, Kind, Result};

/// How often it is written.
pub(super) const PERIOD: Duration = Duration::from_secs(15);

/// How the first line of such a file begins, whosever it is.
const MARK: &str = "# written by pullfs mount ";

/// Longest first line that is read, in bytes.
const MAX_LINE: u64 = 256;

/// The file of a mount.
#[derive(Debug, Clone)]
pub struct Textfile {
    path: PathBuf,
    /// In the same directory, under a name that the collector passes over.
    new: PathBuf,
    first_line: String,
}

impl Textfile {
    /// The file at an absolute path, for the mount of this id.
    ///
    /// # Errors
    /// [`Kind::Exists`] if there is one that no mount has written.
    pub fn new(path: &Path, mount_id: &str) -> Result<Self> {
        let file = Self::of(path, mount_id);
        match first_line(path) {
            Ok(line) if line.starts_with(MARK) => Ok(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(file),
            Ok(_) => {
                let why = format!("{} is no file of pullfs: metrics= would replace it", path.display());
                Err(Error::new(Kind::Exists, why))
            }
            Err(error) => Err(Error::with_source(Kind::Io, format!("cannot read {}", path.display()), error)),
        }
    }

    /// Replaces it.
    pub(super) async fn write(&self, text: Vec<u8>) -> Result<()> {
        self.apart(move |file| {
            let written = file.replace(&text);
            if written.is_err() {
                fs::remove_file(&file.new).ok();
            }
            written.map_err(|error| {
                Error::with_source(Kind::Io, format!("cannot write {} for metrics=", file.path.display()), error)
            })
        })
        .await
    }

    /// Removes it, if it is this mount's; none is no error.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub(crate) async fn remove(&self) -> Result<()> {
        self.apart(|file| file.remove_now()).await
    }

    /// The same at once, on this thread.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub(super) fn remove_now(&self) -> Result<()> {
        let ours = first_line(&self.path).is_ok_and(|line| line == self.first_line);
        for path in [Some(&self.new), ours.then_some(&self.path)].into_iter().flatten() {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    let what = format!("cannot remove {}", path.display());
                    return Err(Error::with_source(Kind::Io, what, error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The file of a mount, whatever is there.
    pub(crate) fn of(path: &Path, mount_id: &str) -> Self {
        Self {
            path: path.to_owned(),
            new: path.with_extension(format!("prom.{mount_id}")),
            first_line: format!("{MARK}{mount_id}\n"),
        }
    }

    /// On a thread where waiting for a disk holds nobody up.
    async fn apart(&self, work: impl FnOnce(Self) -> Result<()> + Send + 'static) -> Result<()> {
        let file = self.clone();
        let worked = tokio::task::spawn_blocking(move || work(file)).await;
        worked.map_err(|error| Error::with_source(Kind::Io, "the file of metrics= was left alone", error))?
    }

    fn replace(&self, text: &[u8]) -> io::Result<()> {
        let mut file = File::create(&self.new)?;
        // The collector is another user, and what is told is no secret of the guest's.
        file.set_permissions(Permissions::from_mode(0o644))?;
        file.write_all(self.first_line.as_bytes())?;
        file.write_all(text)?;
        drop(file);
        fs::rename(&self.new, &self.path)
    }
}

fn first_line(path: &Path) -> io::Result<String> {
    let mut line = Vec::new();
    // Nobody is waited for, should it be no file.
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)?;
    BufReader::new(file.take(MAX_LINE)).read_until(b'\n', &mut line)?;
    Ok(String::from_utf8_lossy(&line).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_files_of_mounts_are_replaced_and_only_its_own_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.prom");
        fs::write(&path, "somebody else's\n").unwrap();
        assert_eq!(Textfile::new(&path, "pullfs-1").unwrap_err().kind(), Kind::Exists);
        fs::remove_file(&path).unwrap();
        let [first, second] = ["pullfs-1", "pullfs-2"].map(|id| Textfile::new(&path, id).unwrap());
        first.write(b"up 1\n".to_vec()).await.unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "# written by pullfs mount pullfs-1\nup 1\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        Textfile::new(&path, "pullfs-2").unwrap();
        second.write(b"up 2\n".to_vec()).await.unwrap();
        first.remove().await.unwrap();
        assert!(path.exists(), "the second one's");
        second.remove().await.unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
