//! What the steps of a point in time may leave in QEMU and on disk, and how that is removed.
//!
//! Names and nothing else, so that a journal can keep it and any process can undo it. Each undo is idempotent; what was
//! never made, and what QEMU lost because it ended, is fine.
//!
//! A daemon that was taken over may have written the journal, and the guardian that reads it has privileges which that had
//! given up: so what it names on this host is removed only if it looks like ours.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::ids::PREFIX;
use super::removal::Move;
use super::server;
use super::session::Session;
use super::transport::has_ended;
use crate::error::{Error, Kind, Result};
use crate::point::plan::{self, Ledger};
use crate::vm::warden::ScratchFile;

/// What steps and their undoing work on.
pub(super) struct Context {
    pub(super) session: Session,
    /// Whether the monitor takes descriptors.
    pub(super) descriptors: bool,
    /// Our own descriptors of scratch files, by node. Held for a moment only.
    files: Mutex<HashMap<String, File>>,
}

impl Context {
    pub(super) fn new(session: Session, descriptors: bool) -> Self {
        Self { session, descriptors, files: Mutex::default() }
    }

    /// Descriptors of all scratch files there are.
    pub(super) fn scratch_files(&self) -> Result<Vec<ScratchFile>> {
        let failed = |error| Error::with_source(Kind::Io, "cannot keep a descriptor of a scratch file", error);
        let files = self.files();
        let each = files.iter().map(|(node, file)| Ok(ScratchFile { node: node.clone(), file: file.try_clone()? }));
        each.collect::<std::io::Result<_>>().map_err(failed)
    }

    pub(super) fn files(&self) -> MutexGuard<'_, HashMap<String, File>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something that may exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Leftover {
    /// The scratch file of a node, its descriptor in QEMU, and the directory where it has a name for a moment.
    File { node: String, place: PathBuf },
    /// A block node.
    Node { name: String },
    /// The jobs that keep a point in time: the guest's writes wait for them.
    Jobs { ids: Vec<String> },
    /// A checkpoint that does not count yet: wherever `note` is, it and the bitmap `name` are of it.
    Checkpoint { name: String, note: String },
    /// The NBD server on a socket of ours; `name` is the socket's in QEMU until the server has it.
    Server { name: String, socket: PathBuf },
    /// An NBD export.
    Export { id: String },
    /// A guest's device that was put on top of `filter` instead of `node`.
    Drive { qdev: String, node: String, filter: String },
    /// A guest that was stopped for the instant.
    Pause,
}

impl Leftover {
    /// Removes what is on this host, where QEMU has ended.
    pub(super) fn undo_on_host(&self) -> Result<()> {
        match self {
            Self::File { place, .. } => remove_scratch(place),
            Self::Server { socket, .. } => remove_socket(socket),
            _ => Ok(()),
        }
    }

    fn file(&self) -> Option<(&str, &Path)> {
        if let Self::File { node, place } = self { Some((node, place)) } else { None }
    }

    fn node(&self) -> Option<&str> {
        if let Self::Node { name } = self { Some(name) } else { None }
    }

    fn noted(&self) -> Option<(&str, &str)> {
        if let Self::Checkpoint { name, note } = self { Some((name, note)) } else { None }
    }

    fn export(&self) -> Option<&str> {
        if let Self::Export { id } = self { Some(id) } else { None }
    }

    /// Takes a device off its filter.
    fn back(&self) -> Option<Move<'_>> {
        if let Self::Drive { qdev, node, filter } = self { Some(Move { qdev, from: filter, to: node }) } else { None }
    }
}

/// Undoes all that is noted; where the machine has ended, what is on this host: all the rest ended with it. For who does not
/// come again: a socket where nobody listens may be that of somebody who passes on what is said to a machine.
///
/// # Errors
/// As [`Ledger::undo`].
pub(super) async fn undo_for_good(ledger: &Ledger<Leftover>, context: &Context) -> Result<()> {
    match ledger.undo(context).await {
        Err(error) if has_ended(&error) => {
            context.files().clear();
            undo_on_host(ledger)
        }
        other => other,
    }
}

/// The same where it is known that the machine has ended.
///
/// # Errors
/// When something may be left.
pub(super) fn undo_on_host(ledger: &Ledger<Leftover>) -> Result<()> {
    for left in ledger.notes() {
        left.undo_on_host()?;
    }
    ledger.keep(|_| true);
    Ok(())
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { node, .. } => write!(f, "scratch file {node}"),
            Self::Node { name } => write!(f, "block node {name}"),
            Self::Jobs { ids } => write!(f, "backup jobs {}", ids.join(", ")),
            Self::Checkpoint { name, .. } => write!(f, "unfinished checkpoint {name}"),
            Self::Server { socket, .. } => write!(f, "NBD server on {}", socket.display()),
            Self::Export { id } => write!(f, "NBD export {id}"),
            Self::Drive { qdev, .. } => write!(f, "filter on device {qdev}"),
            Self::Pause => f.write_str("paused guest"),
        }
    }
}

#[async_trait]
impl plan::Undo for Leftover {
    type Context = Context;

    async fn relieve(&self, context: &Context) -> Result<()> {
        match self {
            Self::Jobs { ids } => context.session.let_go(ids).await.map(drop),
            Self::Pause => context.session.resume().await,
            _ => Ok(()),
        }
    }

    fn goes_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File { .. }, Self::File { .. })
            | (Self::Checkpoint { .. }, Self::Checkpoint { .. })
            | (Self::Export { .. }, Self::Export { .. })
            | (Self::Drive { .. }, Self::Drive { .. }) => true,
            // Those of one role, which is the last letter.
            (Self::Node { name }, Self::Node { name: other }) => name.bytes().last() == other.bytes().last(),
            _ => false,
        }
    }

    async fn undo(these: &[Self], context: &Context) -> Result<()> {
        let session = &context.session;
        let Some(first) = these.first() else { return Ok(()) };
        // All of them are of its kind.
        match first {
            Self::File { .. } => remove_files(context, &these.iter().filter_map(Self::file).collect::<Vec<_>>()).await,
            Self::Node { .. } => {
                let stuck = session.remove_nodes(&these.iter().filter_map(Self::node).collect::<Vec<_>>()).await?;
                stuck.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
            }
            Self::Jobs { ids } => session.end_jobs(ids).await,
            Self::Checkpoint { .. } => {
                session.remove_noted(&these.iter().filter_map(Self::noted).collect::<Vec<_>>()).await
            }
            Self::Server { name, socket } => {
                if context.descriptors {
                    session.close_descriptor(name).await?;
                }
                if server::is_served(socket).await? {
                    session.stop_server().await?;
                }
                remove_socket(socket)
            }
            Self::Export { .. } => {
                session.remove_exports(&these.iter().filter_map(Self::export).collect::<Vec<_>>()).await
            }
            Self::Drive { .. } => session.move_drives(&these.iter().filter_map(Self::back).collect::<Vec<_>>()).await,
            Self::Pause => session.resume().await,
        }
    }
}

/// Removes the nodes of scratch files, given with their places, and the files; a file whose node stays is left alone.
async fn remove_files(context: &Context, files: &[(&str, &Path)]) -> Result<()> {
    let nodes: Vec<&str> = files.iter().map(|(node, _)| *node).collect();
    let stuck = context.session.remove_nodes(&nodes).await?;
    let gone: Vec<_> = files.iter().filter(|(node, _)| stuck.iter().all(|(stuck, _)| stuck != node)).collect();
    let mut outcome = stuck.into_iter().next().map_or(Ok(()), |(_, error)| Err(error));
    for (node, _) in &gone {
        // QEMU before 9.1 closes a removed descriptor of a paused machine only when that runs again: until then at least
        // no disk space goes with it.
        if let Some(file) = context.files().remove(*node) {
            let failed = |error| Error::with_source(Kind::Io, "cannot empty a scratch file", error);
            outcome = outcome.and(file.set_len(0).map_err(failed));
        }
    }
    if context.descriptors {
        let nodes: Vec<&str> = gone.iter().map(|(node, _)| *node).collect();
        context.session.remove_descriptors(&nodes).await?;
    }
    for (_, place) in gone {
        outcome = outcome.and(remove_scratch(place));
    }
    outcome
}

/// What the name of a scratch file's directory ends with.
pub(super) const SCRATCH_SUFFIX: &str = ".scratch";

/// The scratch file's name in its directory.
pub(super) const SCRATCH_NAME: &str = "old-clusters";

/// Removes a directory that [`Leftover::File`] names, and the file in it.
pub(super) fn remove_scratch(place: &Path) -> Result<()> {
    let name = place.file_name().map(OsStr::as_encoded_bytes).unwrap_or_default();
    if !name.starts_with(PREFIX.as_bytes()) || !name.ends_with(SCRATCH_SUFFIX.as_bytes()) {
        return Err(not_ours(place));
    }
    remove_path(&place.join(SCRATCH_NAME))?;
    match std::fs::remove_dir(place) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::with_source(Kind::Io, format!("cannot remove {}", place.display()), error))
        }
        _ => Ok(()),
    }
}

/// Removes a socket; none is fine.
pub(super) fn remove_socket(path: &Path) -> Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => Err(not_ours(path)),
        _ => remove_path(path),
    }
}

fn not_ours(path: &Path) -> Error {
    Error::new(Kind::Invalid, format!("{} is not what pullfs makes, and is left alone", path.display()))
}

/// Removes a file; none is fine.
fn remove_path(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::with_source(Kind::Io, format!("cannot remove {}", path.display()), error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_removes_nothing_that_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let [file, socket] = ["file", "nbd.sock"].map(|name| dir.path().join(name));
        std::fs::write(&file, "somebody's").unwrap();
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let server = |socket: &Path| Leftover::Server { name: "m".into(), socket: socket.to_owned() };
        assert_eq!(server(&file).undo_on_host().unwrap_err().kind(), Kind::Invalid);
        server(&socket).undo_on_host().unwrap();
        server(&socket).undo_on_host().unwrap();
        assert!(file.exists() && !socket.exists());

        for (name, ours) in [("pullfs-1-1a-f.scratch", true), ("somebodys.scratch", false), ("pullfs-1", false)] {
            let place = dir.path().join(name);
            std::fs::create_dir(&place).unwrap();
            std::fs::write(place.join(SCRATCH_NAME), "").unwrap();
            let undone = Leftover::File { node: "n".into(), place: place.clone() }.undo_on_host();
            assert_eq!((undone.is_ok(), place.exists()), (ours, !ours), "{name}");
        }
    }

    /// A journal may be read by a later version: what is written stays what it is.
    #[test]
    fn what_is_written_down_is_known_for_good() {
        let written = [
            (Leftover::Node { name: "n".into() }, r#"{"node":{"name":"n"}}"#),
            (Leftover::Jobs { ids: vec!["a".into()] }, r#"{"jobs":{"ids":["a"]}}"#),
            (Leftover::Server { name: "m".into(), socket: "/s".into() }, r#"{"server":{"name":"m","socket":"/s"}}"#),
            (Leftover::File { node: "n".into(), place: "/p".into() }, r#"{"file":{"node":"n","place":"/p"}}"#),
            (Leftover::Checkpoint { name: "c".into(), note: "o".into() }, r#"{"checkpoint":{"name":"c","note":"o"}}"#),
            (
                Leftover::Drive { qdev: "q".into(), node: "n".into(), filter: "f".into() },
                r#"{"drive":{"qdev":"q","node":"n","filter":"f"}}"#,
            ),
            (Leftover::Pause, r#""pause""#),
        ];
        for (leftover, text) in written {
            assert_eq!(serde_json::to_string(&leftover).unwrap(), text);
            assert_eq!(serde_json::from_str::<Leftover>(text).unwrap(), leftover);
        }
    }
}
