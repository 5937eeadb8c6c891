//! A session of pullfs with a real QEMU, recorded once, and a server that plays it again up to where it turns hostile.
//!
//! A line that begins with `>` is what pullfs sent, one with `<` what QEMU did: connecting, a point in time with a new
//! checkpoint, its release, the deletion of the checkpoint. The schema and the list of commands are cut down to what is
//! asked of them. The mount id that was recorded stands for that of the mount.
//!
//! When pullfs comes to send something else, record again, with a QEMU of each version (`tests/src/flavor.rs` tells how
//! the old one is started) whose only disk has the bitmap `foreign`, and whose monitor nobody else uses:
//!
//! ```sh
//! qemu-img create -f qcow2 vda.qcow2 1M && qemu-img bitmap --add vda.qcow2 foreign
//! qemu-system-x86_64 -name vm1 -nodefaults -display none -accel tcg -m 64 -qmp unix:/tmp/qmp,server=on,wait=off \
//!     -blockdev qcow2,node-name=fmt-vda,discard=unmap,file.driver=file,file.node-name=file-vda,file.filename=vda.qcow2 \
//!     -device virtio-blk-pci,id=vda,drive=fmt-vda &
//! PULLFS_RECORD_FROM=/tmp/qmp PULLFS_RECORD_TO=$PWD/fs/tests/hostile_qmp/qemu-10.session \
//!     cargo test -p pullfs-fs --all-features --test hostile_qmp -- --ignored record_a_session
//! ```
//! What is asked by the clock ([`POLLED`]) is left out of the recording, and answered whenever it is asked.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};

/// The mount id of the recordings.
const RECORDED: &str = "pullfs-000000";

/// Asked again and again while a point in time is held, wherever the session has got to by then; nothing migrates.
const POLLED: &str = "query-migrate";

/// The text of a session that was recorded by `mount`.
pub(crate) fn recorded(said: &str, mount: &str) -> String {
    let said = said.replace(mount, RECORDED);
    let message = |line: &str| serde_json::from_str::<Value>(&line[2..]).expect("a recorded line");
    let polled: Vec<Value> =
        said.lines().map(message).filter(|line| line["execute"] == POLLED).map(|line| line["id"].clone()).collect();
    let keep = |line: &&str| !polled.contains(&message(line)["id"]);
    said.lines().filter(keep).flat_map(|line| [line, "\n"]).collect()
}

/// A session: its lines, with what each begins with.
#[derive(Debug)]
pub(crate) struct Session(Vec<(char, String)>);

impl Session {
    pub(crate) fn qemu_10(mount: &str) -> Self {
        Self::parse(include_str!("qemu-10.session"), mount)
    }

    pub(crate) fn qemu_7_2(mount: &str) -> Self {
        Self::parse(include_str!("qemu-7.2.session"), mount)
    }

    fn parse(text: &str, mount: &str) -> Self {
        let line = |line: &str| {
            let message: Value = serde_json::from_str(&line[2..].replace(RECORDED, mount)).expect("a recorded line");
            (line.chars().next().expect("no blank lines"), message.to_string())
        };
        Self(text.lines().map(line).collect())
    }

    /// Bytes that QEMU sent.
    pub(crate) fn bytes(&self) -> usize {
        self.said().map(|line| line.len() + 1).sum()
    }

    /// Lines that QEMU sent.
    pub(crate) fn said(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter(|(who, _)| *who == '<').map(|(_, line)| line.as_str())
    }
}

/// What the server does in place of a line of QEMU's, which it is given with its number.
#[derive(Debug)]
pub(crate) enum Act {
    /// Sends this instead, and goes on.
    Say(Vec<u8>),
    /// Sends this, closes the connection, and takes no other.
    Cut(Vec<u8>),
    /// Sends this and nothing more; the clock need not be waited for from here on.
    Mute(Vec<u8>),
}

/// A listening server.
#[derive(Debug)]
pub(crate) struct Server {
    listener: UnixListener,
    dir: TempDir,
}

impl Server {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let listener = UnixListener::bind(dir.path().join("qmp")).expect("a socket");
        for name in ["run", "scratch"] {
            std::fs::create_dir(dir.path().join(name)).expect("a directory");
        }
        Self { listener, dir }
    }

    /// A place of the mount's: `qmp`, `run`, `scratch`.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Plays a session to each client that comes; ends when it is cut.
    pub(crate) async fn play(&self, session: &Session, act: impl Fn(usize, &str) -> Act) {
        loop {
            let stream = self.listener.accept().await.expect("a client").0;
            // A client that hangs up is what is to be expected.
            if let Ok(true) = converse(stream, session, &act, &self.path("qmp")).await {
                return;
            }
        }
    }
}

/// Whether it was cut.
async fn converse(
    stream: UnixStream,
    session: &Session,
    act: impl Fn(usize, &str) -> Act,
    socket: &Path,
) -> std::io::Result<bool> {
    let mut client = Client { stream, pending: Vec::new(), descriptors: Vec::new() };
    let mut said = 0;
    // After a reconnect the ids are others, and what is sent at once is answered in order.
    let mut ids: Vec<(Value, Value)> = Vec::new();
    for (who, line) in &session.0 {
        if *who == '>' {
            let expected: Value = serde_json::from_str(line).expect("a recorded command");
            let command = loop {
                let Some(command) = client.command().await? else { return Ok(false) };
                if command["execute"] != POLLED {
                    break command;
                }
                let answer = json!({"return": {}, "id": command["id"]});
                client.stream.write_all(&crate::say(&answer.to_string())).await?;
            };
            if command["execute"] != expected["execute"] {
                return improvise(client, command).await;
            }
            ids.push((expected["id"].clone(), command["id"].clone()));
            continue;
        }
        let mut line: Value = serde_json::from_str(line).expect("a recorded line");
        if let Some(id) = line.get_mut("id") {
            let asked = ids.iter().find(|(recorded, _)| recorded == id).expect("an answer to what was asked");
            *id = asked.1.clone();
        }
        match act(said, &line.to_string()) {
            Act::Say(bytes) => client.stream.write_all(&bytes).await?,
            Act::Cut(bytes) => {
                // Whoever comes from now on finds nobody.
                std::fs::remove_file(socket)?;
                client.stream.write_all(&bytes).await?;
                return Ok(true);
            }
            Act::Mute(bytes) => {
                client.stream.write_all(&bytes).await?;
                tokio::time::pause();
                std::future::pending::<()>().await;
            }
        }
        said += 1;
    }
    match client.command().await? {
        Some(command) => improvise(client, command).await,
        None => Ok(false),
    }
}

/// Answers what was never asked in the recording: there is nothing of anything, and nothing can be done.
async fn improvise(mut client: Client, mut next: Value) -> std::io::Result<bool> {
    loop {
        let refused = json!({"class": "GenericError", "desc": "this is not as it was recorded"});
        let answer = match next["execute"].as_str() {
            Some(query) if query.starts_with("query-") => json!({"return": [], "id": next["id"]}),
            _ => json!({"error": refused, "id": next["id"]}),
        };
        client.stream.write_all(format!("{answer}\n").as_bytes()).await?;
        next = match client.command().await? {
            Some(command) => command,
            None => return Ok(false),
        };
    }
}

/// A client, and what it has given to QEMU.
struct Client {
    stream: UnixStream,
    pending: Vec<u8>,
    /// The socket of the NBD server is among them: as long as they are here, somebody listens.
    descriptors: Vec<OwnedFd>,
}

impl Client {
    /// Its next command; none when it has hung up.
    async fn command(&mut self) -> std::io::Result<Option<Value>> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                let command: Value = serde_json::from_slice(&line).expect("pullfs sends JSON");
                if command["execute"] == "nbd-server-stop" {
                    self.descriptors.clear();
                }
                return Ok(Some(command));
            }
            let stream = &self.stream;
            let (bytes, fds) = stream.async_io(Interest::READABLE, || receive(stream)).await?;
            if bytes.is_empty() {
                return Ok(None);
            }
            self.pending.extend(bytes);
            self.descriptors.extend(fds);
        }
    }
}

/// What can be read at once, with the descriptors beside it; no bytes at the end.
pub(crate) fn receive(stream: impl AsFd) -> std::io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; 1 << 16];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let parts = &mut [IoSliceMut::new(&mut bytes)];
    let received = rustix::net::recvmsg(stream, parts, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
    bytes.truncate(received);
    let fds = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
        _ => Vec::new(),
    });
    Ok((bytes, fds.collect()))
}
