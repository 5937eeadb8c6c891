//! The test's own client of a guest agent: one question a connection.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// An agent that runs answers at once, also on a busy machine; one that does not run never does.
const LIMIT: Duration = Duration::from_secs(5);

/// Any number that another client is not likely to use.
const NUMBER: u64 = 0x7075_6c6c;

/// Asks `command`, which has no arguments.
///
/// # Errors
/// When nobody answers within a few seconds (somebody else may have the socket), or refuses.
pub fn ask(socket: &Path, command: &str) -> Result<Value> {
    let mut stream = UnixStream::connect(socket).context("the agent's socket")?;
    stream.set_read_timeout(Some(LIMIT))?;
    let sync = json!({"execute": "guest-sync-delimited", "arguments": {"id": NUMBER}});
    stream.write_all(&[b"\xff", sync.to_string().as_bytes(), b"\n"].concat())?;
    let mut lines = BufReader::new(stream.try_clone()?).split(b'\n');
    loop {
        let line = lines.next().context("the end")??;
        let after = line.rsplit(|&byte| byte == 0xff).next().unwrap_or_default();
        if serde_json::from_slice::<Value>(after).is_ok_and(|answer| answer["return"] == NUMBER) {
            break;
        }
    }
    stream.write_all(format!("{}\n", json!({ "execute": command })).as_bytes())?;
    let mut answer: Value = serde_json::from_slice(&lines.next().context("the end")??)?;
    match answer.get("error") {
        Some(error) => bail!("{command}: {error}"),
        None => Ok(answer["return"].take()),
    }
}
