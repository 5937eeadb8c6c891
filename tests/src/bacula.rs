//! Bacula: a director, a storage daemon and a file daemon of a test's own, with all that they keep in one directory.
//!
//! The programs are Debian's, unpacked and not installed (tests/setup/unpacked.sh), and listen on ports of 127.0.0.1 alone.
//! The job `vm1` and its file set are those of docs/bacula.md, word for word.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::ports::free_port;
use crate::process::{Running, run_within, wait_until};
use crate::tools::{require, tool, workspace};

/// For a job, and for the daemons to answer.
const LIMIT: Duration = Duration::from_secs(60);

/// The daemons; they end when this is dropped.
#[derive(Debug)]
pub struct Bacula {
    dir: PathBuf,
    _daemons: Vec<Running>,
}

impl Bacula {
    /// Starts one that backs up the mount at `mnt` and keeps everything in `dir`, where `bconsole.conf` is for its console.
    #[track_caller]
    pub fn start(dir: &Path, mnt: &Path) -> Self {
        require("sqlite3");
        for name in ["state", "volumes"] {
            fs::create_dir(dir.join(name)).expect("a directory");
        }
        let tables = unpacked("usr/share/dbconfig-common/data/bacula-director-sqlite3/install/sqlite3");
        let read = format!(".read {}", tables.display());
        run_within(tool("sqlite3").arg(dir.join("state/bacula.db")).arg(read), LIMIT).success();
        let ports = [free_port(), free_port(), free_port()];
        let mut daemons = Vec::new();
        for (name, text) in configuration(dir, mnt, ports) {
            let file = dir.join(format!("{name}.conf"));
            fs::write(&file, text).expect("a configuration");
            if name == "bconsole" {
                continue;
            }
            let mut daemon = Command::new(unpacked(&format!("usr/sbin/{name}")));
            daemon.arg("-f").arg("-c").arg(&file);
            with_libraries(&mut daemon);
            daemons.push(Running::start(&daemon, &dir.join(format!("{name}.log"))));
        }
        for port in ports {
            wait_until("Bacula to listen", LIMIT, || {
                daemons.iter_mut().for_each(Running::check);
                TcpStream::connect(("127.0.0.1", port)).is_ok()
            });
        }
        Self { dir: dir.to_owned(), _daemons: daemons }
    }

    /// Where `bconsole` is, for a command that is to run it.
    pub fn programs() -> PathBuf {
        let console = unpacked("usr/sbin/bconsole");
        console.parent().expect("a directory").to_owned()
    }

    /// Says something to the director; what it answers.
    #[track_caller]
    pub fn say(&self, words: &str) -> String {
        let spoken = self.dir.join("words");
        fs::write(&spoken, format!("{words}\n")).expect("a file");
        let mut sh = tool("sh");
        sh.args(["-euc", "exec \"$1\" -n -c \"$2\" <\"$3\"", "sh"]);
        sh.arg(unpacked("usr/sbin/bconsole")).arg(self.dir.join("bconsole.conf")).arg(&spoken);
        run_within(with_libraries(&mut sh), LIMIT).success()
    }

    /// Waits for all jobs to end; panics unless they were so many backups, which all went well. When the last one began, as Bacula
    /// notes it: local time, in whole seconds.
    #[track_caller]
    pub fn finished(&self, backups: usize) -> String {
        self.say("wait");
        let list = self.say("list jobs");
        // | JobId | Name | StartTime | Type | Level | JobFiles | JobBytes | JobStatus |
        let rows = list.lines().map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
        let rows: Vec<Vec<&str>> = rows.filter(|cells| cells.get(4) == Some(&"B")).collect();
        let good = rows.iter().all(|cells| cells.get(8) == Some(&"T"));
        assert!(rows.len() == backups && good, "{list}\n{}", self.log());
        rows.last().map(|cells| cells[3].to_owned()).unwrap_or_default()
    }

    /// Restores the file at `path` as the last backup has it.
    #[track_caller]
    pub fn restore(&self, path: &Path) -> PathBuf {
        let to = self.dir.join("restored");
        // What an earlier one made is not what this one makes.
        let _ = fs::remove_dir_all(&to);
        self.say(&format!("restore fileset=vm1 where={} select current all done yes\nwait", to.display()));
        let restored = to.join(path.strip_prefix("/").expect("an absolute path"));
        assert!(restored.exists(), "{} was not restored\n{}", path.display(), self.log());
        restored
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

/// A file of the packages.
#[track_caller]
fn unpacked(name: &str) -> PathBuf {
    let path = workspace().join("target/setup/bacula").join(name);
    assert!(path.exists(), "there is no {}: run `make setup`", path.display());
    path
}

/// Sets where Bacula's libraries are, which would be installed.
pub fn with_libraries(command: &mut Command) -> &mut Command {
    command.env("LD_LIBRARY_PATH", unpacked("usr/lib/bacula"))
}

/// Job and file set of the document.
fn documented(mnt: &Path) -> String {
    let text = fs::read_to_string(workspace().join("docs/bacula.md")).expect("docs/bacula.md");
    let block = text.split("```\nJob {").nth(1).and_then(|rest| rest.split("```").next()).expect("a block");
    format!("Job {{{block}").replace("MNT", &mnt.display().to_string())
}

/// What each program is told, by its name.
fn configuration(dir: &Path, mnt: &Path, ports: [u16; 3]) -> [(&'static str, String); 4] {
    let [director, storage, file] = ports;
    let own = dir.display();
    let state = format!("WorkingDirectory = \"{own}/state\"; PidDirectory = \"{own}/state\"");
    let caller = "Director { Name = dir; Password = test }\nMessages { Name = Standard; Director = dir = all }";
    let job = documented(mnt);
    [
        (
            "bacula-sd",
            format!(
                "Storage {{ Name = sd; SDAddress = 127.0.0.1; SDPort = {storage}; {state} }}
                Device {{
                  Name = volumes; Media Type = File; Archive Device = \"{own}/volumes\"; Label Media = yes
                  Random Access = yes; Automatic Mount = yes; Removable Media = no; Always Open = no
                }}
                {caller}"
            ),
        ),
        ("bacula-fd", format!("FileDaemon {{ Name = fd; FDAddress = 127.0.0.1; FDPort = {file}; {state} }}\n{caller}")),
        (
            "bacula-dir",
            format!(
                "Director {{
                  Name = dir; DirAddress = 127.0.0.1; DirPort = {director}; {state}
                  QueryFile = /dev/null; Password = test; Messages = Standard
                }}
                Catalog {{ Name = catalog; DB Name = bacula; DB User = \"\"; DB Password = \"\" }}
                Storage {{
                  Name = sd; Address = 127.0.0.1; SDPort = {storage}; Password = test; Device = volumes; Media Type = File
                }}
                Client {{ Name = fd; Address = 127.0.0.1; FDPort = {file}; Password = test; Catalog = catalog }}
                Pool {{ Name = File; Pool Type = Backup; Label Format = volume }}
                Messages {{ Name = Standard; Append = \"{own}/log\" = all }}
                JobDefs {{
                  Name = DefaultJob; Type = Backup; Level = Incremental; Client = fd; Storage = sd; Pool = File
                  Messages = Standard
                }}
                Job {{
                  Name = restore; Type = Restore; Client = fd; FileSet = vm1; Storage = sd; Pool = File; Messages = Standard
                }}
                {job}"
            ),
        ),
        (
            "bconsole",
            format!("Director {{ Name = dir; Address = 127.0.0.1; DirPort = {director}; Password = test }}\n"),
        ),
    ]
}
