//! What a server may say in place of a line of QEMU's.

use serde_json::{Value, json};

use crate::say;
use crate::session::Act;

/// A way to go wrong.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// What is done in place of a line.
    pub(crate) instead: fn(&str) -> Act,
    /// Whether nothing can go on after it, whatever the line was.
    pub(crate) fatal: bool,
}

/// The line with another value where QEMU's answer was; a line without an answer stays as it is.
fn returning(line: &str, value: Value) -> Act {
    let mut message: Value = serde_json::from_str(line).expect("a recorded line");
    if let Some(returned) = message.get_mut("return") {
        *returned = value;
    }
    Act::Say(say(&message.to_string()))
}

/// The line with every number in it changed.
fn with_numbers(line: &str, change: fn(u64) -> Value) -> Act {
    fn walk(value: &mut Value, change: fn(u64) -> Value) {
        match value {
            Value::Number(number) => *value = change(number.as_u64().unwrap_or(0)),
            Value::Array(items) => items.iter_mut().for_each(|item| walk(item, change)),
            Value::Object(fields) => fields.values_mut().for_each(|field| walk(field, change)),
            _ => {}
        }
    }
    let mut message: Value = serde_json::from_str(line).expect("a recorded line");
    if let Some(returned) = message.get_mut("return") {
        walk(returned, change);
    }
    Act::Say(say(&message.to_string()))
}

/// The line with a refusal where QEMU's answer was.
fn refusing(line: &str, error: &Value) -> Act {
    let mut message: Value = serde_json::from_str(line).expect("a recorded line");
    if message.get("return").is_some() {
        message = json!({"error": error, "id": message["id"]});
    }
    Act::Say(say(&message.to_string()))
}

/// Other bytes, then the line.
fn after(line: &str, first: &str) -> Act {
    Act::Say([first.as_bytes(), b"\n", &say(line)].concat())
}

macro_rules! kinds {
    ($($fatal:ident $name:literal: |$line:ident| $act:expr,)+) => {
        /// All of them.
        pub(crate) const KINDS: &[Kind] =
            &[$(Kind { name: $name, instead: |$line| $act, fatal: stringify!($fatal).len() == "fatal".len() },)+];
    };
}

kinds! {
    fatal "no JSON": |_line| Act::Say(say("this is not JSON")),
    fatal "no text": |_line| Act::Say(b"\xff\xfe\x00\n".to_vec()),
    fatal "half an object": |_line| Act::Say(say(r#"{"return": "#)),
    fatal "an array": |_line| Act::Say(say(r#"[{"return": {}}]"#)),
    fatal "a field twice": |_line| Act::Say(say(r#"{"return": {}, "return": {}}"#)),
    fatal "an event whose name is none": |_line| Act::Say(say(r#"{"event": {}}"#)),
    harmless "null": |line| returning(line, Value::Null),
    harmless "true": |line| returning(line, json!(true)),
    harmless "a number": |line| returning(line, json!(-1)),
    harmless "a string": |line| returning(line, json!("x\u{1b}[2J\n")),
    harmless "a long string": |line| returning(line, json!("x".repeat(1 << 20))),
    harmless "an empty list": |line| returning(line, json!([])),
    harmless "a list of nothing": |line| returning(line, json!([null, null])),
    harmless "a list of lists": |line| returning(line, json!([[[]], [[]]])),
    harmless "an empty object": |line| returning(line, json!({})),
    harmless "a list of empty objects": |line| returning(line, json!([{}, {}])),
    harmless "a list of strange objects": |line| returning(line, json!(vec![json!({"name": [], "id": 5}); 1000])),
    harmless "fields of the wrong type": |line| returning(line, json!([{"id": 1, "status": 2, "node-name": 3, "fds": 4}])),
    harmless "negative numbers": |line| with_numbers(line, |_| json!(-1)),
    harmless "zeroes": |line| with_numbers(line, |_| json!(0)),
    harmless "the largest numbers": |line| with_numbers(line, |_| json!(u64::MAX)),
    harmless "fractions": |line| with_numbers(line, |_| json!(0.5)),
    harmless "doubled numbers": |line| with_numbers(line, |number| json!(number.saturating_mul(2))),
    harmless "an error": |line| refusing(line, &json!({"class": "GenericError", "desc": "no"})),
    harmless "an error without words": |line| refusing(line, &json!({})),
    harmless "an error that is none": |line| refusing(line, &json!("no")),
    harmless "an error of the wrong type": |line| refusing(line, &json!({"class": 1, "desc": [2]})),
    harmless "an endless error": |line| refusing(line, &json!({"class": "X", "desc": "no\n".repeat(100_000)})),
    harmless "the answer twice": |line| Act::Say([say(line), say(line)].concat()),
    harmless "blank lines": |line| after(line, "\r\n\n   \n"),
    harmless "a greeting again": |line| after(line, r#"{"QMP": {}}"#),
    harmless "an answer to nobody": |line| after(line, r#"{"return": {"x": 1}, "id": 18446744073709551615}"#),
    harmless "an answer without an id": |line| after(line, r#"{"error": {"class": "GenericError", "desc": "?"}}"#),
    harmless "an id of another kind": |line| after(line, r#"{"return": {}, "id": {"a": []}}"#),
    harmless "an unknown event": |line| after(line, r#"{"event": "BRAND_NEW", "data": [1, {"x": null}]}"#),
    harmless "an event without data": |line| after(line, r#"{"event": "JOB_STATUS_CHANGE"}"#),
    harmless "an event of the wrong type": |line| after(line, r#"{"event": "BLOCK_EXPORT_DELETED", "data": {"id": 7}}"#),
}

/// The same, where nothing follows that could be an answer: only time ends the wait.
pub(crate) const STALLING: &[Kind] = &[
    Kind { name: "nothing", instead: |_| Act::Mute(Vec::new()), fatal: true },
    Kind { name: "another id", instead: |_| Act::Mute(say(r#"{"return": {}, "id": 4711}"#)), fatal: true },
    Kind { name: "no end of the line", instead: |line| Act::Mute(line.as_bytes().to_vec()), fatal: true },
    Kind { name: "only events", instead: |_| Act::Mute(say(r#"{"event": "STOP"}"#).repeat(5000)), fatal: true },
];
