//! Programs and libraries that read qcow2 and that nobody here wrote.

use std::path::Path;
use std::process::{Command, Output};

use imago::file::File;
use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate};
use serde_json::Value;

#[track_caller]
fn run(arguments: &[&str], files: &[&Path]) -> Output {
    let output = Command::new("qemu-img").args(arguments).args(files).output();
    output.unwrap_or_else(|error| panic!("`qemu-img` cannot be run ({error}): run `make setup`"))
}

/// The output of `qemu-img`, which must not fail.
#[track_caller]
pub(crate) fn qemu_img(arguments: &[&str], files: &[&Path]) -> Vec<u8> {
    let output = run(arguments, files);
    assert!(output.status.success(), "qemu-img {arguments:?} {files:?}: {output:?}");
    output.stdout
}

/// `qemu-img check` finds nothing: no error and no leak, for either of which it exits with another status than 0.
#[track_caller]
pub(crate) fn check(image: &Path) {
    let report: Value =
        serde_json::from_slice(&qemu_img(&["check", "-f", "qcow2", "--output=json"], &[image])).unwrap();
    for count in ["check-errors", "corruptions", "leaks"] {
        assert!(report[count].is_null() || report[count] == 0, "{report}");
    }
    let length = std::fs::metadata(image).unwrap().len();
    assert_eq!(report["image-end-offset"], length, "the last cluster ends with the file");
}

/// An image, through its chain, has the content of a raw file.
#[track_caller]
pub(crate) fn same(image: &Path, raw: &Path) {
    qemu_img(&["compare", "-f", "qcow2", "-F", "raw"], &[image, raw]);
}

/// `qemu-img info`.
#[track_caller]
pub(crate) fn info(image: &Path) -> Value {
    serde_json::from_slice(&qemu_img(&["info", "-f", "qcow2", "--output=json"], &[image])).unwrap()
}

/// The disk as imago reads it through the chain.
#[track_caller]
pub(crate) fn imago(image: &Path) -> Vec<u8> {
    let image = imago::qcow2::Qcow2::<File>::builder_path(image).open(PermissiveImplicitOpenGate::default()).unwrap();
    let image = FormatAccess::new(image);
    let mut disk = vec![0; usize::try_from(image.size()).unwrap()];
    image.read(disk.as_mut_slice(), 0).unwrap();
    disk
}
