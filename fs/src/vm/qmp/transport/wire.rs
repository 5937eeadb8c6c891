//! QMP as bytes: a stream cut into lines, a line understood as a message. No I/O.
//!
//! Whoever is at the other end is not trusted with memory: lines have a longest length, and what a line would take once
//! it is understood is estimated before it is. An event that is larger than any we use loses its data; texts of QEMU's
//! are cut and made fit to be printed.

use serde::{Deserialize, Deserializer};
use serde_json::Value;
use serde_json::value::RawValue;

use super::Refusal;
use crate::error::printable;

/// Longest line taken from QEMU, in bytes. 64 disks with 1,000 checkpoints each have 128,000 bitmaps, of which
/// `query-named-block-nodes` tells in some 200 bytes each with names as people give them (26 MB), and in at most 510 with
/// the longest there are (65 MB).
pub(crate) const MAX_LINE: usize = 64 << 20;

/// Most memory that an answer may take once it is understood, by the estimate of [`exceeds`], in bytes. The
/// 128,000 bitmaps of above take 170 MB.
const MAX_ANSWER: usize = 256 << 20;

/// The same for the data of an event that is kept; `BLOCK_IO_ERROR`, the largest that is used, takes 2 KB. A thousand
/// events wait for a slow receiver.
const MAX_EVENT: usize = 16 << 10;

/// Longest name of an event, in bytes: QEMU's longest has 31.
const MAX_NAME: usize = 64;

/// Cuts a stream into lines.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    line: Vec<u8>,
}

/// A line is longer than [`MAX_LINE`].
#[derive(Debug, thiserror::Error)]
#[error("QEMU sent a line longer than any answer is")]
pub(crate) struct TooLong;

impl Lines {
    /// Takes bytes off `stream` up to the end of a line that is not blank, and gives that line; none when the stream is
    /// used up before.
    ///
    /// # Errors
    /// When the line is too long; nothing that follows can be understood then.
    pub(crate) fn next(&mut self, stream: &mut &[u8]) -> Result<Option<Vec<u8>>, TooLong> {
        while !stream.is_empty() {
            let end = stream.iter().position(|&byte| byte == b'\n');
            let (part, rest) = stream.split_at(end.map_or(stream.len(), |end| end + 1));
            *stream = rest;
            if self.line.len() + part.len() > MAX_LINE {
                return Err(TooLong);
            }
            self.line.extend_from_slice(part);
            if end.is_some() {
                if !self.line.trim_ascii().is_empty() {
                    return Ok(Some(std::mem::take(&mut self.line)));
                }
                self.line.clear();
            }
        }
        Ok(None)
    }
}

/// Whether a line only says that a job pauses, or goes on. Each job does that whenever QEMU drains its requests: of 64 disks
/// one hears it thousands of times while a point in time begins, and nobody has a use for it.
pub(crate) fn says_nothing(line: &[u8]) -> bool {
    /// Room for the longest id of a job, and more than most other lines take.
    const SHORT: usize = 512;
    let change = |incoming| match incoming {
        Incoming::Event { name: "JOB_STATUS_CHANGE", data } => {
            matches!(data["status"].as_str(), Some("paused" | "running"))
        }
        _ => false,
    };
    line.len() <= SHORT && Incoming::parse(line).is_ok_and(change)
}

/// What a line says.
#[derive(Debug)]
pub(crate) enum Incoming<'a> {
    /// QEMU's first line.
    Greeting,
    /// Something happened.
    Event {
        /// Such as `JOB_STATUS_CHANGE`.
        name: &'a str,
        /// Its data; null where it has none, or more than any event that is used.
        data: Value,
    },
    /// The answer to a command.
    Answer {
        /// The command's id; none if it had none, or QEMU could not read it.
        id: Option<u64>,
        /// What came back; see [`value`].
        outcome: Result<&'a RawValue, Refusal>,
    },
    /// Nothing that we know.
    Other,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "QMP", borrow, default, deserialize_with = "present")]
    greeting: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    event: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(rename = "return", borrow, default, deserialize_with = "present")]
    returned: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    error: Option<&'a RawValue>,
}

/// A field that is null is there all the same.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
struct Words {
    #[serde(default)]
    class: String,
    #[serde(default)]
    desc: String,
}

impl<'a> Incoming<'a> {
    /// Understands a line. Its size is all that it costs: what it carries is understood when it is used.
    ///
    /// # Errors
    /// Why it is no message, in words for the user.
    pub(crate) fn parse(line: &'a [u8]) -> Result<Self, String> {
        if line.trim_ascii_start().first() != Some(&b'{') {
            return Err("QEMU sent a line that is not a JSON object".to_owned());
        }
        let line: Line<'_> = serde_json::from_slice(line).map_err(|error| not_json(&error))?;
        if line.greeting.is_some() {
            return Ok(Self::Greeting);
        }
        if let Some(name) = line.event {
            // An escape has no place in a name, so it can be borrowed.
            let name: &str = serde_json::from_str(name.get()).map_err(|error| not_json(&error))?;
            if name.len() > MAX_NAME {
                return Ok(Self::Other);
            }
            let data = line.data.filter(|data| !exceeds(data.get(), MAX_EVENT));
            let data = data.map_or(Ok(Value::Null), |data| serde_json::from_str(data.get()));
            return Ok(Self::Event { name, data: data.map_err(|error| not_json(&error))? });
        }
        let id = line.id.and_then(|id| id.get().parse().ok());
        Ok(match (line.error, line.returned) {
            (Some(error), _) => {
                let small = error.get().len() <= MAX_EVENT;
                let words = small.then(|| serde_json::from_str::<Words>(error.get()).ok()).flatten();
                let words = words.unwrap_or_else(|| Words { class: String::new(), desc: "no reason given".to_owned() });
                let refusal = Refusal { class: printable(&words.class), description: printable(&words.desc) };
                Self::Answer { id, outcome: Err(refusal) }
            }
            (None, Some(returned)) => Self::Answer { id, outcome: Ok(returned) },
            (None, None) if id.is_some() => return Err("QEMU sent an answer that says nothing".to_owned()),
            (None, None) => Self::Other,
        })
    }
}

/// Understands what an answer carries.
///
/// # Errors
/// Why not, in words for the user: it would take more memory than any answer should, or is nested deeper.
pub(crate) fn value(raw: &RawValue) -> Result<Value, String> {
    if exceeds(raw.get(), MAX_ANSWER) {
        return Err("QEMU sent an answer larger than any machine's".to_owned());
    }
    serde_json::from_str(raw.get()).map_err(|error| not_json(&error))
}

fn not_json(error: &serde_json::Error) -> String {
    format!("QEMU sent a line that is not JSON: {}", printable(&error.to_string()))
}

/// Whether JSON takes more memory than `most` as a [`Value`], by estimate; `json` is well-formed.
///
/// A short text can take much: each `{}` around something is a node of a tree with room for eleven entries.
fn exceeds(json: &str, most: usize) -> bool {
    const VALUE: usize = size_of::<Value>();
    let (mut weight, mut quoted, mut escaped) = (VALUE, false, false);
    for byte in json.bytes() {
        weight += match byte {
            _ if escaped => {
                escaped = false;
                1
            }
            b'\\' if quoted => {
                escaped = true;
                1
            }
            b'"' => {
                quoted = !quoted;
                // Of two quotes each: what an allocation takes at least.
                16
            }
            _ if quoted => 1,
            b'{' => 11 * (VALUE + size_of::<String>()),
            b'[' => 4 * VALUE,
            b',' => VALUE,
            _ => 0,
        };
        if weight > most {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn outcome(line: &str) -> Result<Value, String> {
        match Incoming::parse(line.as_bytes())? {
            Incoming::Answer { id: Some(7), outcome: Ok(raw) } => value(raw),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn lines_are_cut_wherever_the_stream_is() {
        let stream = b"one\r\n\n  \ntwo\nthr";
        for size in 1..stream.len() {
            let (mut lines, mut found) = (Lines::default(), Vec::new());
            for mut piece in stream.chunks(size) {
                while let Some(line) = lines.next(&mut piece).unwrap() {
                    found.push(line);
                }
            }
            assert_eq!(found, [&b"one\r\n"[..], b"two\n"]);
        }
    }

    #[test]
    fn only_what_nobody_uses_says_nothing() {
        let change = |status: &str| {
            let event = json!({"event": "JOB_STATUS_CHANGE", "data": {"status": status, "id": "a"}, "timestamp": {}});
            says_nothing(event.to_string().as_bytes())
        };
        assert!(change("paused") && change("running"));
        assert!(!change("aborting") && !change("concluded") && !change("null") && !change("new"));
        for other in [r#"{"event": "STOP"}"#, r#"{"return": {"status": "running"}, "id": 1}"#, "{", ""] {
            assert!(!says_nothing(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn an_endless_line_is_given_up() {
        let mut lines = Lines::default();
        let chunk = vec![b'x'; 1 << 20];
        for _ in 0..MAX_LINE >> 20 {
            assert!(lines.next(&mut &chunk[..]).unwrap().is_none());
        }
        assert!(lines.next(&mut &b"x"[..]).is_err());
    }

    #[test]
    fn messages_are_told_apart() {
        let parse = |line: &'static str| Incoming::parse(line.as_bytes());
        assert!(matches!(parse(r#"{"QMP": {"version": {}}}"#), Ok(Incoming::Greeting)));
        assert!(matches!(
            parse(r#"{"event": "STOP", "timestamp": {}}"#),
            Ok(Incoming::Event { name: "STOP", data: Value::Null })
        ));
        assert_eq!(outcome(r#"{"return": [1, {"a": null}], "id": 7}"#).unwrap(), json!([1, {"a": null}]));
        assert!(matches!(parse(r#"{"return": {}, "id": "7"}"#), Ok(Incoming::Answer { id: None, .. })));
        assert_eq!(outcome(r#"{"return": null, "id": 7}"#).unwrap(), Value::Null);
        assert!(matches!(parse(r#"{"x": 1}"#), Ok(Incoming::Other)));
        for line in
            ["", "[null, {}]", "{", r#"{"return": 1, "return": 2}"#, r#"{"event": 5}"#, r#"{"id": 7}"#, "\u{feff}{}"]
        {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_refusal_fits_one_line() {
        let line = format!(r#"{{"error": {{"class": "X", "desc": "a\nb\u001b{}"}}, "id": 1}}"#, "c".repeat(5000));
        let Ok(Incoming::Answer { id: Some(1), outcome: Err(refusal) }) = Incoming::parse(line.as_bytes()) else {
            panic!("a refusal")
        };
        assert!(refusal.description.starts_with("a?b?c") && refusal.description.len() < 1100, "{refusal}");
        let huge = format!(r#"{{"error": {{"desc": "{}"}}}}"#, "c".repeat(1 << 20));
        assert!(matches!(Incoming::parse(huge.as_bytes()), Ok(Incoming::Answer { outcome: Err(_), .. })));
    }

    #[test]
    fn what_would_take_too_much_memory_is_not_understood() {
        assert!(outcome(&format!(r#"{{"id": 7, "return": [{}0]}}"#, r#"{"a":0},"#.repeat(500_000))).is_err());
        assert!(outcome(&format!(r#"{{"id": 7, "return": [{}0]}}"#, "0,".repeat(10_000_000))).is_err());
        assert!(outcome(&format!(r#"{{"id": 7, "return": {}{}}}"#, "[".repeat(200), "]".repeat(200))).is_err());
        // Deep nesting that nobody asked for costs nothing.
        let unasked = format!(r#"{{"x": {}{}}}"#, "[".repeat(1_000_000), "]".repeat(1_000_000));
        assert!(matches!(Incoming::parse(unasked.as_bytes()), Ok(Incoming::Other)));
        let event = |data: &str| format!(r#"{{"event": "E", "data": {data}}}"#);
        let lost = event(&format!(r#""{}""#, "x".repeat(MAX_EVENT)));
        assert!(matches!(Incoming::parse(lost.as_bytes()), Ok(Incoming::Event { data: Value::Null, .. })));
        let kept = event(r#"{"id": "pullfs-1-0", "status": "concluded"}"#);
        assert!(matches!(Incoming::parse(kept.as_bytes()), Ok(Incoming::Event { data: Value::Object(_), .. })));
        let named = format!(r#"{{"event": "{}"}}"#, "E".repeat(MAX_NAME + 1));
        assert!(matches!(Incoming::parse(named.as_bytes()), Ok(Incoming::Other)));
    }

    #[test]
    fn a_large_machine_is_within_the_bounds() {
        let bitmap = |name: String| {
            json!({"name": name, "recording": true, "persistent": true, "busy": false, "inconsistent": false,
                   "granularity": 65536, "count": 1_u64 << 40})
        };
        let pair = |n: usize| {
            [
                bitmap(format!("checkpoint-{n:04}")),
                bitmap(format!("pullfs-checkpoint:1:1764000000000:1099511627776:checkpoint-{n:04}")),
            ]
        };
        let node = json!({"node-name": "disk", "drv": "qcow2", "ro": false, "image": {"virtual-size": 1},
                          "dirty-bitmaps": (0..1000).flat_map(pair).collect::<Vec<_>>()});
        let disk = node.to_string();
        assert!(64 * disk.len() < MAX_LINE / 2, "{} bytes a disk", disk.len());
        assert!(!exceeds(&disk, MAX_ANSWER / 64));
    }
}
