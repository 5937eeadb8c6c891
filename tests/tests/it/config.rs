//! Mount options from the configuration file, the environment and the command line, on real mounts.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::MountPoint;
use pullfs_tests::namespace::Namespace;
use pullfs_tests::process::{Finished, run};
use pullfs_tests::tools::pullfs;
use serde_json::Value;
use tempfile::TempDir;

fn machine(flavor: Flavor) -> Machine {
    let disk = |name| Disk::qcow2(name, 4 * MIB).filled(&[(0, MIB)]);
    Machine::build(flavor).disk(disk("vda")).disk(disk("vdb")).start()
}

/// A configuration file of its own.
pub(super) struct Config {
    dir: TempDir,
}

impl Config {
    #[track_caller]
    pub(super) fn new(text: &str) -> Self {
        let config = Self { dir: tempfile::tempdir().expect("a temporary directory") };
        config.write(text);
        config
    }

    #[track_caller]
    pub(super) fn write(&self, text: &str) {
        fs::write(self.path(), text).expect("a file");
        fs::set_permissions(self.path(), fs::Permissions::from_mode(0o644)).expect("a mode");
    }

    pub(super) fn path(&self) -> PathBuf {
        self.dir.path().join("config.toml")
    }

    /// Runs pullfs with it.
    #[track_caller]
    pub(super) fn pullfs(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Finished {
        let mut command = Command::new(pullfs());
        run(command.args(arguments).env("PULLFS_CONFIG", self.path()).envs(variables.iter().copied()))
    }
}

#[track_caller]
pub(super) fn status(mount: &MountPoint) -> Value {
    let status = fs::read_to_string(mount.mnt().join("status.json")).expect("status.json");
    serde_json::from_str(&status).expect("JSON")
}

#[track_caller]
fn options(mount: &MountPoint) -> Value {
    status(mount)["mount"]["options"].clone()
}

on!(the_last_who_sets_an_option_decides: new = New, old = Old);
fn the_last_who_sets_an_option_decides(flavor: Flavor) {
    let machine = machine(flavor);
    let (source, mount) = (machine.source(), MountPoint::new());
    let config = Config::new(&format!(
        "[options]\numask = \"027\"\ndisks = [\"vdb\"]\nreadahead = \"1M\"\npolite = true\n\n\
         [source.\"{source}\"]\ndisks = [\"vda\"]\nscratch = \"{}\"\n\n[source.\"qmp:/other\"]\ndisks = [\"vdx\"]\n",
        mount.scratch().trim_start_matches("scratch=")
    ));
    let mnt = mount.mnt().display().to_string();
    let variables = [("PULLFS_CACHE", "16M"), ("PULLFS_READAHEAD", "2M"), ("PULLFS_CONNECTIONS", "")];
    let given = ["-o", "cache=8M", "-o", "polite=no"];
    config.pullfs(&[&["mount", &source, &mnt], &given[..]].concat(), &variables).success();
    let told = options(&mount);
    for (name, value) in [
        ("umask", Value::from("027")),
        ("disks", ["vda"].as_slice().into()),
        ("readahead", (2 << 20).into()),
        ("cache", (8 << 20).into()),
        ("polite", false.into()),
        ("connections", 1.into()),
        ("scratch", mount.scratch().trim_start_matches("scratch=").into()),
    ] {
        assert_eq!(told[name], value, "{name} in {told}");
    }
    // It is not only told.
    assert!(mount.mnt().join("current/vda/disk.raw").exists() && !mount.mnt().join("current/vdb").exists());
    let mode = fs::metadata(mount.mnt().join("status.json")).expect("status.json").permissions().mode();
    assert_eq!(mode & 0o777, 0o440);

    let shown = config.pullfs(&[&["config", &source, "--json"], &given[..]].concat(), &variables).success();
    let shown: Value = serde_json::from_str(&shown).expect("JSON");
    for option in shown.as_array().expect("an array") {
        let name = option["name"].as_str().expect("a name");
        assert_eq!(option["value"], told[name], "config and the mount agree about {name}");
        let from = match name {
            "umask" | "disks" | "scratch" => "file",
            "readahead" => "environment",
            "cache" | "polite" => "given",
            _ => "default",
        };
        assert_eq!(option["from"], from, "{name}");
    }
    let text = config.pullfs(&["config", &source], &[]).success();
    let line = text.lines().find(|line| line.starts_with("disks=vda ")).unwrap_or_else(|| panic!("{text}"));
    assert!(line.ends_with(&format!("{}, line 8 [source.\"{source}\"]", config.path().display())), "{line}");
    config.pullfs(&["umount", &mnt], &[]).success();
}

on!(a_mistake_mounts_nothing: new = New);
fn a_mistake_mounts_nothing(flavor: Flavor) {
    let machine = machine(flavor);
    let (source, mount) = (machine.source(), MountPoint::new());
    let mnt = mount.mnt().display().to_string();
    let refused = |config: &Config, variables: &[(&str, &str)], said: &str| {
        for command in [&["mount", &source, &mnt][..], &["recover", &source], &["config", &source]] {
            let done = config.pullfs(command, variables);
            assert!(done.code == Some(1) && done.stderr.contains(said), "{command:?}: {done}");
            assert_eq!(done.stderr.lines().count(), 1, "{done}");
        }
        assert!(!mount.mnt().join("status.json").exists());
    };
    refused(
        &Config::new("[options]\nscratch = \"tmp\"\n"),
        &[],
        "line 2 [options]: mount option scratch=tmp: it takes",
    );
    refused(&Config::new("[options\n"), &[], "config.toml, line 1: ");
    refused(&Config::new(&format!("[source.\"{source}\"]\nspeed = 11\n")), &[], "no mount option speed");
    let good = Config::new("");
    refused(&good, &[("PULLFS_UMASK", "999")], "environment variable PULLFS_UMASK: mount option umask=999");
    refused(&good, &[("PULLFS_CONFIG", "/nonexistent/c.toml")], "does not exist");
    let writable = Config::new("");
    fs::set_permissions(writable.path(), fs::Permissions::from_mode(0o666)).expect("a mode");
    refused(&writable, &[], "others may write it");
    // A mistake for another machine is not this one's; whoever asks for all is told.
    let others = Config::new("[source.\"qmp:/other\"]\nspeed = 11\n");
    others.pullfs(&["config", &source], &[]).success();
    let done = others.pullfs(&["config"], &[]);
    assert!(done.code == Some(1) && done.stderr.contains("line 2 [source.\"qmp:/other\"]"), "{done}");
}

on!(mount_and_fstab_read_it_too: new = New);
fn mount_and_fstab_read_it_too(flavor: Flavor) {
    let machine = machine(flavor);
    let namespace = Namespace::new();
    let mnt = namespace.mnt();
    let config = Config::new("[options]\ndisks = \"vdb\"\nreadahead = 0\n");
    namespace.fstab(&format!("{} {} pullfs noauto,umask=022 0 0\n", machine.source(), mnt.display()));
    run(namespace.command("mount").arg(&mnt).env("PULLFS_CONFIG", config.path())).success();
    let status: Value =
        serde_json::from_str(&namespace.ok(&format!("cat {}", mnt.join("status.json").display()))).expect("JSON");
    let told = &status["mount"]["options"];
    assert_eq!((&told["disks"][0], &told["readahead"], &told["umask"]), (&"vdb".into(), &0.into(), &"022".into()));
    namespace.ok(&format!("umount {}", mnt.display()));
    namespace.daemons_end();
}
