//! What is done by pullfs and its peers; a file each.

pub(crate) mod data;
mod find;
mod first_byte;
pub(crate) mod full;
mod growth;
pub(crate) mod guest;
pub(crate) mod increment;
pub(crate) mod random;
pub(crate) mod sequential;
pub(crate) mod sparse;

use crate::args::Args;
use crate::results::Results;

/// Something that is measured: it sets its own machine up.
pub(crate) struct Work {
    /// By which it is chosen.
    pub(crate) letter: char,
    /// What it is about.
    pub(crate) title: &'static str,
    /// How the figures were got, for who reads them.
    pub(crate) how: &'static str,
    pub(crate) run: fn(&Args, &mut Results),
}

/// All of them, in the order of the report.
pub(crate) const ALL: &[Work] = &[
    sequential::WORK,
    random::WORK,
    sparse::WORK,
    increment::WORK,
    first_byte::WORK,
    sequential::COST,
    guest::WORK,
    growth::WORK,
    find::WORK,
];

/// What the chart shows of it all.
pub(crate) const CHARTED: &[&str] = &[
    "dd bs=1M, cold",
    "dd bs=1M iflag=direct, cold",
    sequential::COPIED,
    "4 KiB random, QD1",
    "4 KiB random, QD16",
    sequential::CLIENT_CPU,
];
