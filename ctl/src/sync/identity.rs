//! What a copy is a copy of, and which increments fit it.
//!
//! An [`Identity`] promises: *every difference between the copy and the disk lies within what changed since its
//! checkpoint*. It follows that a copy is brought up to date by writing what changed since that checkpoint, that half
//! of such a run breaks nothing, and that the promise may only be renewed after the last byte is safe.
//!
//! ```text
//!             full copy begins                 full copy ends, point taken with checkpoint Y
//! any state ──────────────────▶ no identity ──────────────────────────────────────────────▶ fits Y
//!                                    │  ends, point taken alone                                │ sync from Y, point
//!                                    └─────────────────────────────▶ fits none                 │ taken with Z ▶ fits Z
//!                                                                                              │ alone ▶ fits Y still
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

/// A machine, as `status.json` tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) source: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} ({})", self.source),
            None => f.write_str(&self.source),
        }
    }
}

/// A disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) machine: Machine,
    pub(crate) name: String,
}

/// A checkpoint. One that was deleted and made anew under the same name is another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub(crate) name: String,
    /// When it was made, where that is known.
    pub(crate) created: Option<String>,
}

/// What is noted beside a copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) machine: Machine,
    pub(crate) disk: String,
    /// What changed since then is all that the copy may lack; `None` for a copy that no increment fits.
    pub(crate) checkpoint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) created: Option<String>,
    /// Of the disk at the last point in time that was copied, in bytes.
    pub(crate) size: u64,
    /// That point in time, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) time: Option<String>,
}

/// The point in time that was copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Copied {
    pub(crate) size: u64,
    pub(crate) time: Option<String>,
    /// The checkpoint that was made at the same instant.
    pub(crate) checkpoint: Option<Checkpoint>,
}

/// Why what changed since a checkpoint does not fit a copy.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Misfit {
    #[error("nobody noted what it is a copy of")]
    Unknown,
    #[error("it is a copy of disk {disk} of {machine}")]
    OtherDisk { machine: Machine, disk: String },
    #[error("it is a full copy that was not made together with a checkpoint, so no increment fits it")]
    Alone,
    #[error("it fits checkpoint {0}")]
    OtherCheckpoint(String),
    #[error("it fits an older checkpoint of this name")]
    MadeAnew,
}

/// Whether what changed on `disk` since `checkpoint` brings a copy up to date.
pub(crate) fn fits<'a>(
    copy: Option<&'a Identity>,
    disk: &Disk,
    checkpoint: &Checkpoint,
) -> Result<&'a Identity, Misfit> {
    let copy = copy.ok_or(Misfit::Unknown)?;
    if copy.machine != disk.machine || copy.disk != disk.name {
        return Err(Misfit::OtherDisk { machine: copy.machine.clone(), disk: copy.disk.clone() });
    }
    match &copy.checkpoint {
        None => Err(Misfit::Alone),
        Some(other) if *other != checkpoint.name => Err(Misfit::OtherCheckpoint(other.clone())),
        // Where either is not known, the name has to do.
        Some(_) if copy.created.is_some() && checkpoint.created.is_some() && copy.created != checkpoint.created => {
            Err(Misfit::MadeAnew)
        }
        Some(_) => Ok(copy),
    }
}

/// What a copy is after all of it, or all that changed `since` a checkpoint that fits it, was copied.
pub(crate) fn after(disk: &Disk, since: Option<&Checkpoint>, copied: &Copied) -> Identity {
    let checkpoint = copied.checkpoint.as_ref().or(since);
    Identity {
        machine: disk.machine.clone(),
        disk: disk.name.clone(),
        checkpoint: checkpoint.map(|checkpoint| checkpoint.name.clone()),
        created: checkpoint.and_then(|checkpoint| checkpoint.created.clone()),
        size: copied.size,
        time: copied.time.clone(),
    }
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
