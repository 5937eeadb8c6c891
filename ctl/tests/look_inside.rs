//! The process that reads what a guest has written, as it is once it speaks. What becomes of one that is taken over:
//! `ctl/src/look_inside/tests.rs`.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use inside::wire::{Request, frame_length};
use pullfs_fs::guest::SUBCOMMAND;

const PULLFS: &str = env!("CARGO_BIN_EXE_pullfs");

struct Reader {
    child: Child,
    conversation: UnixStream,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Reader {
    /// One that is started as `command` says, and answered once.
    fn start(mut command: Command) -> Self {
        let (conversation, theirs) = UnixStream::pair().unwrap();
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut reader = Self { child: command.spawn().unwrap(), conversation };
        // It has a copy of the other end.
        drop(command);
        reader.ask();
        reader
    }

    fn ask(&mut self) {
        let request = Request::Table { size: 0 }.encode();
        let length = u32::try_from(request.len()).unwrap().to_be_bytes();
        self.conversation.write_all(&[&length[..], &request].concat()).unwrap();
        let mut header = [0; 4];
        if self.conversation.read_exact(&mut header).is_err() {
            let mut said = String::new();
            self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            panic!("{:?}: {said}", self.child.wait());
        }
        let mut answer = vec![0; frame_length(header).unwrap()];
        self.conversation.read_exact(&mut answer).unwrap();
    }

    fn proc(&self, what: &str) -> String {
        format!("/proc/{}/{what}", self.child.id())
    }

    fn status(&self, field: &str) -> String {
        let status = fs::read_to_string(self.proc("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("{field} in {status}")).trim().to_owned()
    }
}

fn usual() -> Command {
    let mut command = Command::new(PULLFS);
    command.arg(SUBCOMMAND);
    command
}

/// What is the same whoever starts it.
fn check(reader: &Reader) {
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(reader.status(set), "0000000000000000", "{set}");
    }
    assert_eq!(["NoNewPrivs", "Seccomp", "Threads"].map(|field| reader.status(field)), ["1", "2", "1"]);
    let targets: Vec<_> = (0..100)
        .filter_map(|number| Some((number, fs::read_link(reader.proc(&format!("fd/{number}"))).ok()?)))
        .map(|(number, target)| format!("{number} {}", target.display()))
        .collect();
    let [conversation, nothing, words] = &targets[..] else { panic!("{targets:?}") };
    assert!(
        conversation.starts_with("0 socket:") && nothing == "1 /dev/null" && words.starts_with("2 pipe:"),
        "{targets:?}"
    );
    assert_eq!(fs::read_link(reader.proc("cwd")).unwrap().to_str(), Some("/"));
    let limits = fs::read_to_string(reader.proc("limits")).unwrap();
    let expected = [
        ("Max open files", "0"),
        ("Max processes", "0"),
        ("Max core file size", "0"),
        ("Max file size", "0"),
        ("Max address space", "268435456"),
    ];
    for (name, limit) in expected {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        assert_eq!(line.split_whitespace().take(2).collect::<Vec<_>>(), [limit; 2], "{name}");
    }
}

#[test]
fn a_reader_has_nothing_but_its_conversation() {
    let mut reader = Reader::start(usual());
    check(&reader);
    if rustix::process::geteuid().is_root() {
        for ids in ["Uid", "Gid"] {
            assert_eq!(reader.status(ids), ["65534"; 4].join("\t"), "nobody");
        }
        assert_eq!(reader.status("Groups"), "");
    }
    // The file of a process that is not dumpable is root's.
    assert_eq!(fs::metadata(reader.proc("mem")).map(|file| std::os::unix::fs::MetadataExt::uid(&file)).unwrap(), 0);
    reader.ask();
}

#[test]
fn descriptors_of_others_are_closed() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "exec 3<\"$0\" 9>>\"$0\" 8<&0; exec \"$@\""]).arg(file.path()).args([PULLFS, SUBCOMMAND]);
    check(&Reader::start(command));
}

#[test]
fn it_is_as_restricted_where_it_cannot_become_another_user() {
    let mut command = Command::new("setpriv");
    // As a daemon that has given its capabilities up starts it.
    command.args(["--bounding-set=-all,+dac_override", "--inh-caps=-all", "--no-new-privs", PULLFS, SUBCOMMAND]);
    let reader = Reader::start(command);
    check(&reader);
    assert_eq!(reader.status("Uid"), "0\t0\t0\t0", "what the threat model says");
}

#[test]
fn it_ends_with_its_conversation() {
    let mut reader = Reader::start(usual());
    reader.conversation.shutdown(std::net::Shutdown::Both).unwrap();
    let began = Instant::now();
    let status = loop {
        if let Some(status) = reader.child.try_wait().unwrap() {
            break status;
        }
        assert!(began.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(status.success(), "{status}");
}

#[test]
fn it_is_not_for_people() {
    let finished = usual().stdin(Stdio::null()).output().unwrap();
    assert_eq!(finished.status.code(), Some(1));
    let said = String::from_utf8_lossy(&finished.stderr).into_owned();
    assert!(said.contains("for pullfs itself"), "{said}");
    let help = Command::new(PULLFS).arg("--help").output().unwrap();
    assert!(!String::from_utf8_lossy(&help.stdout).contains(SUBCOMMAND));
}
