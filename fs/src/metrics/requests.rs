//! What the kernel asks, by operation: how often, how long it took, how often it failed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use nbd_pool::{Latencies, Latency};

/// What the kernel may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A name in a directory.
    Lookup,
    /// Attributes.
    Getattr,
    /// Other attributes; only a size, and only of `control`.
    Setattr,
    /// A file is opened.
    Open,
    /// A checkpoint is made.
    Mkdir,
    /// A checkpoint is deleted.
    Rmdir,
    /// Content.
    Read,
    /// A command.
    Write,
    /// Data or holes.
    Lseek,
    /// A directory is opened.
    Opendir,
    /// Names in a directory.
    Readdir,
    /// Sizes of the file system.
    Statfs,
    /// The target of a symbolic link.
    Readlink,
    /// Whether a file may be used.
    Access,
}

impl Operation {
    const ALL: [Self; 14] = [
        Self::Lookup,
        Self::Getattr,
        Self::Setattr,
        Self::Open,
        Self::Mkdir,
        Self::Rmdir,
        Self::Read,
        Self::Write,
        Self::Lseek,
        Self::Opendir,
        Self::Readdir,
        Self::Statfs,
        Self::Readlink,
        Self::Access,
    ];

    /// Its name, as FUSE has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lookup => "lookup",
            Self::Getattr => "getattr",
            Self::Setattr => "setattr",
            Self::Open => "open",
            Self::Mkdir => "mkdir",
            Self::Rmdir => "rmdir",
            Self::Read => "read",
            Self::Write => "write",
            Self::Lseek => "lseek",
            Self::Opendir => "opendir",
            Self::Readdir => "readdir",
            Self::Statfs => "statfs",
            Self::Readlink => "readlink",
            Self::Access => "access",
        }
    }
}

#[derive(Debug, Default)]
struct Counter {
    latency: Latency,
    errors: AtomicU64,
}

/// Counters of all operations.
#[derive(Debug, Default)]
pub struct Requests {
    counters: [Counter; Operation::ALL.len()],
}

/// What was asked by one operation.
#[derive(Debug, Clone, Copy)]
pub struct Count {
    /// Which.
    pub operation: Operation,
    /// How long it took, failures included.
    pub latency: Latencies,
    /// How often it failed.
    pub errors: u64,
}

impl Requests {
    /// A request was answered.
    pub fn answered(&self, operation: Operation, since: Instant, fine: bool) {
        let counter = &self.counters[operation as usize];
        if !fine {
            counter.errors.fetch_add(1, Ordering::Relaxed);
        }
        counter.latency.add(since.elapsed());
    }

    /// What there is now.
    pub fn now(&self) -> Vec<Count> {
        let of = |operation| {
            let counter = &self.counters[operation as usize];
            Count { operation, errors: counter.errors.load(Ordering::Relaxed), latency: counter.latency.now() }
        };
        Operation::ALL.into_iter().map(of).collect()
    }
}
