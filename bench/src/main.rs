//! `make bench`: pullfs and its peers, measured in turns in one run on the same export and the same data.
//!
//! A *work* ([`work`]) sets a machine up and has everybody do the same thing, round by round: A B C A B C, so that whatever
//! else the computer does meets all of them. Each run is a [`sample`](results::Results::add) of a series, which is named by
//! what was done and by whom; a figure is the median of its series. [`claims`] are ratios of such medians, beside what
//! they are to be. [`results`] is all that the [`report`] (Markdown, JSON, SVG) knows.
//!
//! Nothing fails for being slow. A copy that fails, or that is not the disk, is a panic.

mod args;
mod claims;
mod domain;
mod facts;
mod held;
mod libvirt;
mod peers;
mod process;
mod pull;
mod pulled;
mod readers;
mod report;
mod results;
mod turns;
mod units;
mod vm;
mod work;

use std::time::Instant;

use clap::Parser;

use crate::args::Args;
use crate::results::Results;

fn main() {
    let args = Args::parse();
    let mut results = Results::default();
    for work in work::ALL {
        if args.takes(work.letter) {
            eprintln!("*** ({}) {}", work.letter, work.title);
            let start = Instant::now();
            (work.run)(&args, &mut results);
            eprintln!("    {:.0?}", start.elapsed());
        }
    }
    let report = report::Report::new(facts::tell(&args), results);
    println!("{}", report.markdown());
    report.write(&args.out);
    println!("written to {}", args.out.display());
}
