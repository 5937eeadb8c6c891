//! The files of an NTFS are what ntfs-3g, which wrote them, shows of them.

use std::fs::File;
use std::path::Path;

use images::Driver;
use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::process::ok;
use pullfs_tests::tools::tool;

use super::{compared, differences, restored};

/// How many files are in one directory; `make long` has more.
const FILES: u32 = 2_000;

/// All that an NTFS ($1) may hold: names that Windows takes for another's, and a directory of many files ($2).
const FILL: &str = r#"
many=$2
cd "$1"
mkdir -p 'a directory/deep/er' many empty
echo 127.0.0.1 localhost >hosts
head -c 3000000 /dev/urandom >'a directory/large'
ln 'a directory/large' 'a directory/deep/second name'
ln -s ../../hosts 'a directory/deep/relative'
ln -s /no/such/ümläut absolute
: >empty/nothing
for name in ümläut 日本語 '😀 emoji 🎉' case CASE ends. ' a space ' 'a\b:c*d?e' "$(printf '%0250d' 7)"; do echo "$name" >"$name"; done
printf data >sparse
truncate -s 40M sparse
printf end | dd of=sparse bs=1 seek=30000000 conv=notrunc status=none
for n in $(seq 200); do
    head -c 5000 /dev/urandom >>'grows in turns'
    head -c 5000 /dev/urandom >>'with another'
done
seq "$many" | split -l 1 -a 6 -d - 'many/a file with a name of its own, number '
setfattr -n user.note -v 'a stream' hosts
setfattr -n user.Zone.Identifier -v "$(printf 'v%.0s' $(seq 3000))" 'a directory'
setfattr -n system.ntfs_dos_name -v AHIDDE~1 'a directory/deep'
chmod a-w 'a directory/large'
touch -d '1975-01-02 03:04:05.1234567 UTC' hosts
touch -d '2100-12-31 23:59:59.9 UTC' empty
"#;

fn ntfs_3g(image: &Path, options: &str) -> Driver {
    Driver::start(
        tool("ntfs-3g").args(["-o", &format!("no_detach,{options}")]).arg(image),
        &image.with_extension("mnt"),
    )
}

on!(the_files_of_an_ntfs_are_what_ntfs_3g_shows: new = New);
fn the_files_of_an_ntfs_are_what_ntfs_3g_shows(flavor: Flavor) {
    let dir = tempfile::Builder::new().prefix("pullfs-inside-").tempdir().expect("a temporary directory");
    let (image, copy) = (dir.path().join("vda.raw"), dir.path().join("copy.raw"));
    let files = compared(FILES);
    // A record of 1 KiB for each, and its name.
    let size = 96 * MIB + u64::from(files) * 2048;
    File::create(&image).expect("an image").set_len(size).expect("its size");
    ok(tool("mkntfs").args(["-F", "-q", "-Q", "-c", "512"]).arg(&image));
    {
        let mounted = ntfs_3g(&image, "rw");
        ok(tool("sh").args(["-euc", FILL, "sh"]).arg(&mounted.at).arg(files.to_string()));
    }
    ok(tool("cp").arg("--sparse=always").args([&image, &copy]));
    let machine = Machine::build(flavor).disk(Disk::raw("vda", size).from_image(&image)).start();
    let mount = Mount::of(&machine);
    let ours = mount.path("current/vda/partitions/0/files");
    let theirs = ntfs_3g(&copy, "ro");
    assert_eq!(differences(&ours, &theirs.at), "", "in our tree, against ntfs-3g's");
    assert_eq!(differences(&theirs.at, &ours), "", "the other way round");
    assert_eq!(differences(&theirs.at, &restored(&mount, &ours)), "", "what was restored");
    assert!(mount.unmount().success());
}
