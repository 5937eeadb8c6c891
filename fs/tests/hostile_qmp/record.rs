//! Records a session: a go-between that writes down what pullfs and a real QEMU say, and passes descriptors on.

use std::io::{self, BufRead, BufReader, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::Value;

use crate::session::receive;

/// The commands and the part of the schema that are recorded: what is asked of them.
const COMMANDS: [&str; 12] = [
    "query-fdsets",
    "add-fd",
    "getfd",
    "query-name",
    "query-version",
    "qmp_capabilities",
    "transaction",
    "block-export-add",
    "blockdev-add",
    "x-debug-query-block-graph",
    "blockdev-backup",
    "query-jobs",
];

/// What was said, in the form of a session.
pub(crate) type Said = Arc<Mutex<String>>;

/// Serves one client at `at` in the name of the QEMU at `qemu`. It ends with the process.
pub(crate) fn between(at: &Path, qemu: &Path) -> io::Result<Said> {
    let (listener, qemu, said) = (UnixListener::bind(at)?, UnixStream::connect(qemu)?, Said::default());
    let (from_qemu, written) = (qemu.try_clone()?, Arc::clone(&said));
    thread::spawn(move || -> io::Result<()> {
        let client = listener.accept()?.0;
        let (to_client, answers) = (client.try_clone()?, Arc::clone(&written));
        thread::spawn(move || pass_answers(&from_qemu, &to_client, &answers));
        pass_commands(&client, &qemu, &written)
    });
    Ok(said)
}

fn note(said: &Said, who: char, line: &str) {
    let mut said = said.lock().expect("nobody panics with it");
    said.extend([who, ' ']);
    said.push_str(line.trim_end());
    said.push('\n');
}

fn pass_answers(qemu: &UnixStream, mut client: &UnixStream, said: &Said) -> io::Result<()> {
    for line in BufReader::new(qemu).lines() {
        let line = line?;
        note(said, '<', &cut_down(&line));
        client.write_all(format!("{line}\r\n").as_bytes())?;
    }
    Ok(())
}

/// The line without what nobody asks for in the longest answers.
fn cut_down(line: &str) -> String {
    let Ok(mut message) = serde_json::from_str::<Value>(line) else { return line.to_owned() };
    let Some(items) = message["return"].as_array_mut().filter(|items| items.len() > 2 * COMMANDS.len()) else {
        return line.to_owned();
    };
    let backup = items.iter().find(|item| item["meta-type"] == "command" && item["name"] == "blockdev-backup");
    let arguments = backup.map_or(Value::Null, |backup| backup["arg-type"].clone());
    items.retain(|item| match item["meta-type"].as_str() {
        None => item["name"].as_str().is_some_and(|name| COMMANDS.contains(&name)),
        Some("enum") => item["values"].as_array().is_some_and(|values| values.contains(&"copy-before-write".into())),
        Some("command") => item["name"] == "blockdev-backup",
        Some(_) => item["name"] == arguments,
    });
    for item in items.iter_mut().filter(|item| item["meta-type"] == "enum") {
        item.as_object_mut().expect("an object").remove("members");
    }
    message.to_string()
}

fn pass_commands(client: &UnixStream, qemu: &UnixStream, said: &Said) -> io::Result<()> {
    let mut pending = Vec::new();
    loop {
        let (bytes, fds) = receive(client)?;
        if bytes.is_empty() {
            return Ok(());
        }
        // Before QEMU has them: its answers come after.
        pending.extend_from_slice(&bytes);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            note(said, '>', &String::from_utf8_lossy(&line));
        }
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&fds));
        }
        let part = [IoSlice::new(&bytes)];
        let sent = rustix::net::sendmsg(qemu, &part, &mut control, SendFlags::NOSIGNAL)?;
        assert_eq!(sent, bytes.len(), "QEMU takes a command at once");
    }
}
