//! What reads bytes that others wrote, as functions of those bytes: the targets of a fuzzer.
//!
//! ```text
//! corpus/TARGET/* ─┬─▶ tests/short.rs: each of them, and changes of them that a seed determines   (make test)
//!                  └─▶ engine/: libFuzzer, guided by what is covered                              (make fuzz)
//! ```
//! A target takes any bytes and panics where a promise is broken. What broke one stays in its corpus for ever, in a file
//! whose name begins with `regression-`.

mod disks;
mod images;
mod map;
pub mod mutation;
mod walk;
mod wire;
pub mod xfs;

use inside::Disk;
use nbd_pool::testing::fuzz as nbd;
use pullfs_fs::image::qcow2::fuzz as qcow2;
use pullfs_fs::{fuzz as text, vm::qmp::fuzz as qmp};

/// Something that is fuzzed.
#[derive(Debug)]
pub struct Target {
    /// Its name, and that of the directory of its corpus.
    pub name: &'static str,
    /// Takes any bytes; panics where a promise is broken.
    pub run: fn(&[u8]),
}

/// All that is fuzzed.
pub const TARGETS: [Target; 19] = [
    Target { name: "nbd_handshake", run: nbd::handshake },
    Target { name: "nbd_replies", run: nbd::replies },
    Target { name: "qmp_lines", run: qmp::lines },
    Target { name: "qmp_message", run: qmp::message },
    Target { name: "qmp_inventory", run: qmp::inventory },
    Target { name: "checkpoint_note", run: qmp::checkpoint_note },
    Target { name: "qcow2_layout", run: qcow2::layout },
    Target { name: "map", run: map::run },
    Target { name: "options", run: text::options },
    Target { name: "control", run: text::control },
    Target { name: "mountinfo", run: text::mountinfo },
    Target { name: "printable", run: text::printed },
    Target { name: "ext", run: images::ext },
    Target { name: "table", run: disks::table },
    Target { name: "lvm", run: disks::lvm },
    Target { name: "xfs", run: xfs::run },
    Target { name: "fat", run: images::fat },
    Target { name: "ntfs", run: images::ntfs },
    Target { name: "wire", run: wire::run },
];

/// The target of that name.
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// The disks that an input of a target is, if the target reads disks.
pub fn disks_of(target: &str, input: &[u8]) -> Vec<Box<dyn Disk + Send>> {
    match target {
        "ext" => vec![Box::new(images::image(input, images::BLOCK))],
        "fat" | "ntfs" => vec![Box::new(images::image(input, images::LINE))],
        "xfs" => vec![Box::new(xfs::Pieces::parse(input))],
        "table" | "lvm" => disks::disks(input).into_iter().flatten().map(|disk| Box::new(disk) as _).collect(),
        _ => Vec::new(),
    }
}
