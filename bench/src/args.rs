//! What is measured, and how often.

use std::path::PathBuf;

use clap::Parser;
use pullfs_tests::tools;

use crate::units::{GIB, bytes};

/// Measures pullfs and its peers side by side.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// The works to do, by their letters, such as `a,b`; without it, all
    #[arg(long, value_delimiter = ',')]
    work: Vec<char>,
    /// Rounds of which the median is taken
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) rounds: u16,
    /// Data on the disk that is read, such as 512M
    #[arg(long, default_value = "1G", value_parser = size)]
    pub(crate) size: u64,
    /// Where latest.md, latest.json and latest.svg go
    #[arg(long, default_value_os_t = tools::workspace().join("bench/results"))]
    pub(crate) out: PathBuf,
}

impl Args {
    /// Whether a work is to be done.
    pub(crate) fn takes(&self, letter: char) -> bool {
        self.work.is_empty() || self.work.contains(&letter)
    }
}

/// Whole MiB, at least 16 of them, so that 4 streams have their parts.
fn size(text: &str) -> Result<u64, String> {
    let size = bytes(text).filter(|size| (16 << 20..=64 * GIB).contains(size) && size % (16 << 20) == 0);
    size.ok_or_else(|| format!("`{text}` is no multiple of 16M, up to 64G"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn works_and_sizes_are_chosen() {
        let args = Args::try_parse_from(["bench", "--work", "a,c", "--size", "512M", "--rounds", "3"]).unwrap();
        assert!(args.takes('a') && !args.takes('b') && args.takes('c'));
        assert_eq!((args.size, args.rounds), (512 << 20, 3));
        assert!(Args::try_parse_from(["bench"]).unwrap().takes('i'));
    }

    #[test]
    fn nonsense_is_refused() {
        for arguments in [["--size", "1"], ["--size", "17M"], ["--size", "much"], ["--rounds", "0"]] {
            assert!(Args::try_parse_from(["bench"].into_iter().chain(arguments)).is_err(), "{arguments:?}");
        }
    }
}
