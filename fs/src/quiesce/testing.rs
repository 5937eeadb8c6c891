//! A guest agent that does as a test says, on a socket that serves one client at a time, as QEMU's does.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// What the agent does with a command.
#[derive(Debug, Clone)]
pub enum Act {
    /// What an agent does whose guest has two file systems.
    Usual,
    /// The usual after a while, in which it does nothing else.
    Late(Duration),
    /// Sends these bytes and does nothing.
    Send(Vec<u8>),
    /// Refuses, with a class and a description.
    Refuse(&'static str, &'static str),
    /// Closes the connection after doing the usual without an answer.
    HangUp,
}

/// What happened so far.
#[derive(Debug, Default)]
struct State {
    frozen: bool,
    commands: Vec<String>,
    frozen_at: Option<Instant>,
    frozen_for: Option<Duration>,
}

/// The agent; its thread ends with the test's process.
#[derive(Debug)]
pub struct Scripted {
    state: Arc<Mutex<State>>,
    path: PathBuf,
    _dir: TempDir,
}

/// Called with a command's name and how many came before.
pub type Script = Box<dyn FnMut(&str, usize) -> Act + Send>;

/// How many file systems the guest has.
pub const FILESYSTEMS: u64 = 2;

impl Scripted {
    /// An agent as it should be.
    pub fn usual() -> Self {
        Self::new(|_, _| Act::Usual)
    }

    /// An agent that asks `script` for each command.
    pub fn new(script: impl FnMut(&str, usize) -> Act + Send + 'static) -> Self {
        Self::greeting(b"", script)
    }

    /// The same with something in the line for each client that comes.
    pub fn greeting(greeting: &'static [u8], script: impl FnMut(&str, usize) -> Act + Send + 'static) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("agent");
        let listener = UnixListener::bind(&path).expect("a socket");
        let state = Arc::new(Mutex::new(State::default()));
        let agent = state.clone();
        let mut script: Script = Box::new(script);
        thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that left is no reason to end.
                stream.and_then(|stream| serve(stream, greeting, &agent, &mut script)).ok();
            }
        });
        Self { state, path, _dir: dir }
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the guest is frozen.
    pub fn is_frozen(&self) -> bool {
        lock(&self.state).frozen
    }

    /// How long the guest was frozen the last time, once it was thawed.
    pub fn frozen_for(&self) -> Option<Duration> {
        lock(&self.state).frozen_for
    }

    /// Freezes or thaws the guest from inside.
    pub fn set_frozen(&self, frozen: bool) {
        lock(&self.state).set(frozen);
    }

    /// The commands that were carried out.
    pub fn commands(&self) -> Vec<String> {
        lock(&self.state).commands.clone()
    }

    /// Waits until the guest is frozen, or thawed; panics when that takes longer than `limit`.
    pub fn wait(&self, frozen: bool, limit: Duration) {
        let end = Instant::now() + limit;
        while self.is_frozen() != frozen {
            assert!(Instant::now() < end, "not within {limit:?}: frozen = {frozen}; {:?}", self.commands());
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl State {
    fn set(&mut self, frozen: bool) {
        if frozen && !self.frozen {
            self.frozen_at = Some(Instant::now());
        }
        if !frozen && self.frozen {
            self.frozen_for = self.frozen_at.map(|at| at.elapsed());
        }
        self.frozen = frozen;
    }

    fn usual(&mut self, command: &str, arguments: &Value) -> Value {
        let before = self.frozen;
        let count = |yes: bool| json!(if yes { FILESYSTEMS } else { 0 });
        match command {
            "guest-sync-delimited" => arguments["id"].clone(),
            "guest-info" => json!({"version": "7.2", "supported_commands": [
                {"name": "guest-fsfreeze-freeze", "enabled": !before, "success-response": true},
                {"name": "guest-fsfreeze-thaw", "enabled": true},
            ], "new": {}}),
            "guest-fsfreeze-status" => json!(if before { "frozen" } else { "thawed" }),
            "guest-fsfreeze-freeze" => {
                self.set(true);
                count(!before)
            }
            "guest-fsfreeze-thaw" => {
                self.set(false);
                count(before)
            }
            other => panic!("the agent has no {other}"),
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(mut stream: UnixStream, greeting: &[u8], state: &Mutex<State>, script: &mut Script) -> std::io::Result<()> {
    say(&mut stream, greeting);
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte)? > 0 {
        match byte[0] {
            // What the agent does with a half command is to complain.
            0xff if !line.is_empty() => {
                line.clear();
                say(&mut stream, b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error\"}}\n");
            }
            0xff => {}
            b'\n' => {
                let command: Value = serde_json::from_slice(&std::mem::take(&mut line)).expect("a command");
                if !obey(&mut stream, &command, state, script) {
                    return Ok(());
                }
            }
            other => line.push(other),
        }
    }
    Ok(())
}

/// Whether the connection goes on.
fn obey(stream: &mut UnixStream, command: &Value, state: &Mutex<State>, script: &mut Script) -> bool {
    let name = command["execute"].as_str().expect("a name");
    let before = lock(state).commands.iter().filter(|each| *each == name).count();
    let act = script(name, before);
    if let Act::Late(while_) = act {
        thread::sleep(while_);
    }
    let mut state = lock(state);
    state.commands.push(name.to_owned());
    match act {
        Act::Usual | Act::Late(_) => {
            let answer = json!({ "return": state.usual(name, &command["arguments"]) });
            let delimiter: &[u8] = if name == "guest-sync-delimited" { b"\xff" } else { b"" };
            say(stream, &[delimiter, answer.to_string().as_bytes(), b"\n"].concat());
        }
        Act::Send(bytes) => say(stream, &bytes),
        Act::Refuse(class, description) => {
            let answer = json!({"error": {"class": class, "desc": description}});
            say(stream, format!("{answer}\n").as_bytes());
        }
        Act::HangUp => {
            state.usual(name, &command["arguments"]);
            return false;
        }
    }
    true
}

/// An agent carries out what it was told also when nobody is there for the answer.
fn say(stream: &mut UnixStream, bytes: &[u8]) {
    stream.write_all(bytes).ok();
}
