//! The part of libvirt's C API that backups of running domains need.
//!
//! libvirt.so.0 is loaded when it is first used ([`load`]), so a program that never asks for a libvirt machine runs where
//! there is none. The calls are libvirt's own, with its names: they **block**, for as long as libvirt takes, so whoever
//! calls has a thread to spare and a time limit outside. Any thread may call; libvirt's own are one, which runs its event
//! loop for the whole process.
//!
//! All unsafe code of pullfs is in this crate and in that of the kernel's automounter (`autofs/`). What it holds to: a pointer that libvirt gave is freed once, in the `Drop`
//! of the one value that owns it; strings that libvirt gave are copied and freed at once; a callback's data is freed by
//! libvirt's own word for it. `tests/signatures.rs` compares the declarations with libvirt's headers.

mod connection;
mod domain;
mod error;
mod event;
mod stats;
mod storage;
mod sys;

pub use connection::{Connection, Subscription};
pub use domain::{BlockInfo, Checkpoint, Domain, JobStats, PauseReason, State};
pub use error::{Code, Error, Result};
pub use event::{Event, Lifecycle};
pub use stats::{BlockStats, DomainStats};
pub use storage::{Pool, PoolInfo, Volume};

/// Loads libvirt, unless that was done before. It opens files: whoever gives up the right to do so calls this first.
///
/// # Errors
/// [`Code::NoLibrary`] where libvirt is not installed, or is older than 6.0.
pub fn load() -> Result<()> {
    sys::api().map(drop)
}
