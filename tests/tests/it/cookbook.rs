//! docs/cookbook.md, as printed: its commands are run by a shell, and what they make is what the disks were.
//!
//! The document is Markdown for people. What it does not say to them, because it happens by itself, stands in comments:
//!
//! | comment | what the test does there |
//! |---|---|
//! | `recipe: NAME` | begins a recipe, with a new machine and an empty `$BACKUPS` |
//! | `guest: LABEL` | the guest changes both disks; what they are then is known as LABEL |
//! | `again` | runs the last commands again, some time later |
//! | `crash` | QEMU is killed and started again |
//! | `same: IMAGE = DISK at LABEL` | compares by qemu-img |
//! | `same: FILE = DISK:/PATH at LABEL` | compares with the file in that disk's file system, by debugfs |

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::Mount;
use pullfs_tests::oracle;
use pullfs_tests::process::ok;
use pullfs_tests::tools::{pullfs, tool, workspace};
use tempfile::TempDir;

const BLOCK: u64 = 4096;
const RECIPES: [&str; 7] = ["incremental", "cron", "differential", "sync", "restore", "one-file", "files"];

on!(full_once_incremental_forever: new = New, old = Old);
fn full_once_incremental_forever(flavor: Flavor) {
    cook(flavor, "incremental");
}

on!(the_same_from_cron: new = New, old = Old);
fn the_same_from_cron(flavor: Flavor) {
    cook(flavor, "cron");
}

on!(differential: new = New, old = Old);
fn differential(flavor: Flavor) {
    cook(flavor, "differential");
}

on!(one_full_copy_that_is_kept_up_to_date: new = New, old = Old);
fn one_full_copy_that_is_kept_up_to_date(flavor: Flavor) {
    cook(flavor, "sync");
}

on!(restore_a_chain: new = New, old = Old);
fn restore_a_chain(flavor: Flavor) {
    cook(flavor, "restore");
}

on!(restore_one_file: new = New, old = Old);
fn restore_one_file(flavor: Flavor) {
    cook(flavor, "one-file");
}

on!(files_of_a_machine_that_runs: new = New, old = Old);
fn files_of_a_machine_that_runs(flavor: Flavor) {
    cook(flavor, "files");
}

#[test]
fn every_recipe_is_cooked() {
    let names: Vec<String> = recipes().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, RECIPES);
    for (name, instructions) in recipes() {
        let commands = instructions.iter().any(|instruction| matches!(instruction, Instruction::Commands(_)));
        let compared = instructions.iter().any(|instruction| matches!(instruction, Instruction::Same { .. }));
        assert!(commands && compared, "{name} shows nothing");
    }
}

#[derive(Debug)]
enum Instruction {
    Commands(String),
    Guest(String),
    Again,
    Crash,
    Same { file: String, disk: String, path: Option<String>, label: String },
}

/// The recipes of the cookbook and what to do in each.
#[track_caller]
fn recipes() -> Vec<(String, Vec<Instruction>)> {
    let text = fs::read_to_string(workspace().join("docs/cookbook.md")).expect("the cookbook");
    let mut recipes: Vec<(String, Vec<Instruction>)> = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let instruction = if line == "```sh" {
            let commands: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            Instruction::Commands(commands.join("\n"))
        } else if let Some(comment) = line.strip_prefix("<!-- ").and_then(|line| line.strip_suffix(" -->")) {
            match comment.split_once(": ") {
                Some(("recipe", name)) => {
                    recipes.push((name.to_owned(), Vec::new()));
                    continue;
                }
                Some(("guest", label)) => Instruction::Guest(label.to_owned()),
                Some(("same", same)) => compared(same).unwrap_or_else(|| panic!("{line}")),
                None if comment == "again" => Instruction::Again,
                None if comment == "crash" => Instruction::Crash,
                _ => panic!("nobody knows what this means: {line}"),
            }
        } else {
            assert!(!line.starts_with("```"), "commands that no test runs: {line}");
            continue;
        };
        recipes.last_mut().expect("a recipe begins first").1.push(instruction);
    }
    recipes
}

fn compared(same: &str) -> Option<Instruction> {
    let (file, right) = same.split_once(" = ")?;
    let (place, label) = right.split_once(" at ")?;
    let (disk, path) = place.split_once(':').map_or((place, None), |(disk, path)| (disk, Some(path.to_owned())));
    Some(Instruction::Same { file: file.to_owned(), disk: disk.to_owned(), path, label: label.to_owned() })
}

/// Follows a recipe.
fn cook(flavor: Flavor, name: &str) {
    let (_, instructions) = recipes().into_iter().find(|(found, _)| found == name).expect("the recipe");
    let mut kitchen = Kitchen::new(flavor);
    let mut last = None;
    for instruction in &instructions {
        match instruction {
            Instruction::Commands(commands) => {
                kitchen.run(commands);
                last = Some(commands);
            }
            Instruction::Guest(label) => kitchen.guest(label),
            Instruction::Again => {
                // Names made of the time change once a second.
                thread::sleep(Duration::from_millis(1100));
                kitchen.run(last.expect("commands to run again"));
            }
            Instruction::Crash => {
                kitchen.machine.kill();
                kitchen.machine.restart();
            }
            Instruction::Same { file, disk, path, label } => {
                let file = PathBuf::from(kitchen.run(&format!("printf %s \"{file}\"")));
                let disk = &kitchen.known[&(disk.clone(), label.clone())];
                match path {
                    None => same_disk(&file, disk),
                    Some(path) => {
                        let right = ok(tool("debugfs").args(["-R", &format!("cat {path}")]).arg(disk));
                        assert!(!right.is_empty() && fs::read_to_string(&file).is_ok_and(|found| found == right));
                    }
                }
            }
        }
    }
    assert!(kitchen.mount.unmount().success());
}

fn same_disk(image: &Path, disk: &Path) {
    if image.extension().is_some_and(|extension| extension == "raw") {
        oracle::same(image, disk);
    } else {
        ok(tool("qemu-img").args(["compare", "-q", "-f", "qcow2", "-F", "raw"]).arg(image).arg(disk));
    }
}

/// A machine, what its disks were, and a place for backups.
struct Kitchen {
    mount: Mount,
    machine: Machine,
    /// The blocks of `vda` that hold the file `/etc/motd` and the file `/big`.
    motd: Vec<u64>,
    big: Vec<u64>,
    /// Copies by disk and label, made by QEMU's own tool.
    known: BTreeMap<(String, String), PathBuf>,
    _images: TempDir,
}

impl Kitchen {
    fn new(flavor: Flavor) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (files, image) = (dir.path().join("files"), dir.path().join("vda.raw"));
        fs::create_dir_all(files.join("etc")).expect("a directory");
        fs::write(files.join("etc/motd"), "a".repeat(4096)).expect("a file");
        fs::write(files.join("big"), vec![0x11; 4 << 20]).expect("a file");
        ok(tool("mkfs.ext4").args(["-q", "-b", "4096", "-d"]).arg(&files).arg(&image).arg("32M"));
        let [motd, big] = ["/etc/motd", "/big"].map(|file| -> Vec<u64> {
            let blocks = ok(tool("debugfs").args(["-R", &format!("blocks {file}")]).arg(&image));
            blocks.split_whitespace().map(|block| block.parse().expect("a block")).collect()
        });
        let qcow2 = dir.path().join("vda.qcow2");
        ok(tool("qemu-img").args(["convert", "-O", "qcow2"]).arg(&image).arg(&qcow2));
        let machine = Machine::build(flavor)
            .disk(Disk::qcow2("vda", 0).from_image(&qcow2))
            .disk(Disk::raw("vdb", 8 * MIB + 512).filled(&[(MIB, 2 * MIB)]))
            .start();
        fs::create_dir(machine.dir().join("backups")).expect("a directory");
        let mount = Mount::of(&machine);
        Self { mount, machine, motd, big, known: BTreeMap::new(), _images: dir }
    }

    /// The guest edits a file in place, and writes to and trims others. No file system needs repair afterwards.
    fn guest(&mut self, label: &str) {
        let number = u8::try_from(self.known.len() / 2).expect("a number");
        self.machine.write("vda", self.motd[0] * BLOCK, BLOCK, b'b' + number);
        let index = usize::from(number) * 64;
        self.machine.write("vda", self.big[index] * BLOCK, BLOCK, 0x20 + number);
        self.machine.write_zeroes("vda", self.big[index + 16] * BLOCK, 16 * BLOCK);
        self.machine.discard("vda", self.big[index + 32] * BLOCK, 16 * BLOCK);
        self.machine.write("vdb", u64::from(number) * MIB, 65536, 0x30 + number);
        for id in ["vda", "vdb"] {
            let copy = self.machine.copy(id, &format!("{id}.{label}.known"));
            self.known.insert((id.to_owned(), label.to_owned()), copy);
        }
    }

    /// Runs commands as a person would who has set the two variables.
    fn run(&self, commands: &str) -> String {
        let programs = pullfs();
        let path = std::env::var("PATH").unwrap_or_default();
        let dir = programs.parent().expect("a directory").display();
        let mut shell = Command::new("sh");
        shell.args(["-euc", commands]).current_dir(self.machine.dir()).env("PATH", format!("{dir}:{path}"));
        shell.env("MNT", self.mount.mnt()).env("BACKUPS", self.machine.dir().join("backups"));
        ok(&mut shell)
    }
}
