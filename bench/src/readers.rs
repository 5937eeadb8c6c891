//! Programs that read a file from its beginning to its end.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use pullfs_tests::tools::tool;

use crate::process::{limited, timed, warm};
use crate::units::MIB;

/// A way to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    /// `dd bs=1M`.
    Dd,
    /// `dd bs=1M iflag=direct`.
    Direct,
    /// `cat` to /dev/null.
    Cat,
    /// Four `dd`, each with a quarter of its own.
    Streams,
}

/// All of them.
pub(crate) const READERS: [Reader; 4] = [Reader::Dd, Reader::Direct, Reader::Cat, Reader::Streams];

impl Reader {
    /// What it does, for people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Dd => "dd bs=1M",
            Self::Direct => "dd bs=1M iflag=direct",
            Self::Cat => "cat",
            Self::Streams => "4 × dd bs=1M, a quarter each",
        }
    }

    /// Reads a file of `size` bytes; panics if that fails.
    #[track_caller]
    pub(crate) fn read(self, file: &Path, size: u64) -> Duration {
        // For the page cache, and for what the server needs.
        warm(2 * size);
        match self {
            Self::Dd => timed(&dd(file, &[])),
            Self::Direct => timed(&direct(file)),
            Self::Cat => timed(tool("cat").arg(file)),
            Self::Streams => streams(file, size / 4 / MIB),
        }
    }
}

/// `dd` past the page cache.
#[track_caller]
pub(crate) fn direct(file: &Path) -> Command {
    dd(file, &["iflag=direct"])
}

#[track_caller]
fn dd(file: &Path, arguments: &[&str]) -> Command {
    let mut command = tool("dd");
    command.arg(format!("if={}", file.display())).args(["of=/dev/null", "bs=1M", "status=none"]).args(arguments);
    command
}

#[track_caller]
fn streams(file: &Path, mib: u64) -> Duration {
    let start = Instant::now();
    let parts = (0..4).map(|part| {
        let place = [format!("skip={}", part * mib), format!("count={mib}")];
        limited(&dd(file, &[&place[0], &place[1]])).spawn().expect("dd")
    });
    let parts: Vec<_> = parts.collect();
    for mut part in parts {
        let status = part.wait().expect("the end of dd");
        assert!(status.success(), "a stream of {}: {status}", file.display());
    }
    start.elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_by_each_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, vec![7; 16 << 20]).unwrap();
        for reader in READERS {
            assert!(reader.read(&file, 16 * MIB) > Duration::ZERO, "{}", reader.name());
        }
    }
}
