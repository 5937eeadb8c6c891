//! What a fuzzer feeds with text of the user's and of the system's: each function takes any input and panics where a
//! promise is broken. The others are [`crate::vm::qmp::fuzz`] and [`crate::image::qcow2::fuzz`].

use std::os::unix::ffi::OsStrExt;

use crate::error::{Kind, printable};
use crate::fs::command::Command;
use crate::fuse::mount::parse_mountinfo;
use crate::image::qcow2::ClusterSize;
use crate::options::Options;
use crate::options::settings::Origin;

/// Mount options, as they stand behind `-o`.
pub fn options(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match Options::parse(text) {
        Ok(options) => {
            assert!((1..=16).contains(&options.connections) && options.umask <= 0o777, "{options:?}");
            assert!(options.scratch.is_absolute() && options.agent.is_none_or(|agent| agent.is_absolute()));
            assert_eq!(ClusterSize::new(options.cluster_size.bytes()).ok(), Some(options.cluster_size));
            assert!(options.disks.is_none_or(|disks| !disks.is_empty() && !disks.contains("")));
        }
        Err(error) => assert_eq!(error.kind(), Kind::Invalid),
    }
}

/// A command as it is written to `control`.
pub fn control(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let again = match Command::parse(text) {
        None => return,
        Some(Command::Release) => "release".to_owned(),
        Some(Command::Delete(name)) => format!("delete {name}"),
        Some(Command::Set(setting)) => {
            let word = if setting.origin == Origin::Control { "set" } else { "reload" };
            let value = setting.value.map(|value| format!("={value}")).unwrap_or_default();
            format!("{word} {}{value}", setting.name)
        }
        Some(Command::Begin(wanted)) => {
            let quiesce = if wanted.quiesce { " quiesce" } else { "" };
            let checkpoint = wanted.checkpoint.map(|name| format!(" checkpoint={name}")).unwrap_or_default();
            format!("begin{quiesce}{checkpoint}")
        }
    };
    assert_eq!(Command::parse(&again), Command::parse(text), "it says what it was understood as");
}

/// The text of `/proc/self/mountinfo`.
pub fn mountinfo(input: &[u8]) {
    let found = parse_mountinfo(input).map(|mounted| mounted.path.as_os_str().as_bytes().len()).sum::<usize>();
    assert!(found <= input.len(), "an escaped path is longer than what it stands for");
}

/// A text of QEMU's that is to be a part of one line.
pub fn printed(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let shown = printable(&text);
    assert!(!shown.contains(char::is_control) && shown.len() <= text.len() + 3);
    assert_eq!(printable(&shown).chars().take(1000).collect::<String>(), shown.chars().take(1000).collect::<String>());
}
