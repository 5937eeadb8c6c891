//! (b) 4 KiB here and there, past the page cache.

use std::path::Path;

use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::Machine;
use pullfs_tests::process::run_within;
use pullfs_tests::tools::tool;
use serde_json::Value;

use super::{Work, data};
use crate::args::Args;
use crate::held::Held;
use crate::peers::{FILE_SYSTEMS, shown};
use crate::process::LIMIT;
use crate::results::Results;
use crate::turns::turns;
use crate::units::Unit;

pub(crate) const WORK: Work = Work {
    letter: 'b',
    title: "random reads of 4 KiB",
    how: "fio with O_DIRECT on a disk of full blocks, for two seconds each; a queue depth of 16 is 16 requests of one \
          process (libaio). QEMU's FUSE export is in QEMU itself: it needs no NBD. `qemu-img bench` reads the export that \
          pullfs reads without any file system: what NBD itself allows.",
    run: operations,
};

/// What NBD itself allows.
const NBD: &str = "NBD alone (qemu-img bench)";

/// Requests of which its speed is told.
const COUNT: u32 = 40_000;

/// What is done with so many requests at once.
pub(crate) fn depth(requests: u32) -> String {
    format!("4 KiB random, QD{requests}")
}

fn operations(args: &Args, results: &mut Results) {
    let machine = Machine::build(Flavor::New).disk(data::full("vda", args.size)).start();
    for round in 0..args.rounds {
        for requests in [1, 16] {
            for who in turns(&FILE_SYSTEMS, round) {
                let operations = shown(who, &machine, |disk, _| fio(disk, requests));
                results.add('b', &depth(requests), who, Unit::PerSecond, operations);
            }
            results.add('b', &depth(requests), NBD, Unit::PerSecond, bare(&Held::of(&machine).uri(), requests));
        }
    }
}

/// Operations a second of NBD itself: 4 KiB each, 1 MiB and 4 KiB from the last.
#[track_caller]
fn bare(uri: &str, requests: u32) -> f64 {
    let mut command = tool("qemu-img");
    command.args(["bench", "-f", "raw", "-s", "4096", "-S", "1052672", "-c"]).arg(COUNT.to_string());
    command.arg("-d").arg(requests.to_string()).arg(uri);
    let text = run_within(&mut command, LIMIT).success();
    let seconds = text.split_once("completed in ").and_then(|(_, rest)| rest.split_whitespace().next());
    let seconds: f64 = seconds.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("qemu-img: {text}"));
    f64::from(COUNT) / seconds
}

/// Operations a second.
#[track_caller]
fn fio(disk: &Path, requests: u32) -> f64 {
    let mut command = tool("fio");
    command.args(["--name=random", "--rw=randread", "--bs=4k", "--direct=1", "--readonly", "--time_based"]);
    command.args(["--runtime=2", "--ioengine=libaio", "--output-format=json"]);
    command.arg(format!("--iodepth={requests}")).arg(format!("--filename={}", disk.display()));
    let text = run_within(&mut command, LIMIT).success();
    // fio may say something before its JSON.
    let json = text.find('{').map_or("", |start| &text[start..]);
    let told: Value = serde_json::from_str(json).unwrap_or_else(|e| panic!("fio: {e}\n{text}"));
    let job = &told["jobs"][0];
    assert_eq!(job["error"], 0, "fio: {job}");
    job["read"]["iops"].as_f64().expect("operations a second")
}
