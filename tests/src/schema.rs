//! The JSON Schemas of `docs/`, and documents that are to be as they say.
//!
//! A foreign validator decides on the documents (Debian's python3-jsonschema); what it cannot be asked, that a schema has
//! nothing which no document has, is found here.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::tools::{tool, workspace};

/// Prints what is wrong with which document.
const VALIDATE: &str = "
import json, sys
from jsonschema import Draft202012Validator
schema, documents = json.load(sys.stdin)
Draft202012Validator.check_schema(schema)
validator = Draft202012Validator(schema)
for state, document in documents:
    for error in validator.iter_errors(document):
        print(f'{state}: {list(error.absolute_path)}: {error.message}')
";

/// A schema.
#[derive(Debug)]
pub struct Schema(Value);

impl Schema {
    /// The one in a file of `docs/`.
    #[track_caller]
    pub fn of(file: &str) -> Self {
        let text = std::fs::read_to_string(workspace().join("docs").join(file)).expect(file);
        Self(serde_json::from_str(&text).expect("JSON"))
    }

    /// A part of it, by its name in `$defs`.
    #[must_use]
    pub fn part(&self, name: &str) -> Self {
        Self(json!({"$ref": format!("#/$defs/{name}"), "$defs": self.0["$defs"]}))
    }

    /// What is wrong with documents, each of which comes with the state that it tells of.
    #[track_caller]
    pub fn faults(&self, documents: &[(&str, Value)]) -> String {
        // The interpreter that Debian's packages belong to.
        let mut python = tool("/usr/bin/python3");
        python.args(["-c", VALIDATE]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = python.spawn().expect("python3");
        let input = json!([self.0, documents]).to_string();
        running.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("python3 reads");
        let output = running.wait_with_output().expect("python3");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Properties that none of the documents has.
    pub fn unseen(&self, documents: &[(&str, Value)]) -> Vec<String> {
        let mut unseen = BTreeSet::new();
        self.properties(&self.0, "", &mut |path, _| {
            unseen.insert(path.to_owned());
        });
        for (_, document) in documents {
            self.see(&self.0, document, "", &mut unseen);
        }
        unseen.into_iter().collect()
    }

    /// What it does not say of its own properties, or leaves open.
    pub fn gaps(&self) -> Vec<String> {
        let mut gaps = Vec::new();
        self.properties(&self.0, "", &mut |path, property| {
            let described = self.resolved(property).get("description").or(property.get("description"));
            if described.and_then(Value::as_str).is_none_or(str::is_empty) {
                gaps.push(format!("{path} is not described"));
            }
            let object = self.resolved(property);
            let closed = object.get("properties").is_none() || object["additionalProperties"] == false;
            if !closed {
                gaps.push(format!("{path} may have any property"));
            }
        });
        gaps
    }

    fn resolved<'a>(&'a self, schema: &'a Value) -> &'a Value {
        match schema.get("$ref").and_then(Value::as_str) {
            Some(path) => self.0.pointer(path.trim_start_matches('#')).unwrap_or_else(|| panic!("there is no {path}")),
            None => schema,
        }
    }

    /// Tells `each` all properties below a schema.
    fn properties(&self, schema: &Value, path: &str, each: &mut dyn FnMut(&str, &Value)) {
        let schema = self.resolved(schema);
        for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let path = format!("{path}/{name}");
            each(&path, property);
            self.properties(property, &path, each);
        }
        for open in ["items", "additionalProperties"].into_iter().filter_map(|open| schema.get(open)) {
            self.properties(open, &format!("{path}/*"), each);
        }
    }

    /// Takes what a document has from what was not seen yet.
    fn see(&self, schema: &Value, value: &Value, path: &str, unseen: &mut BTreeSet<String>) {
        let schema = self.resolved(schema);
        let below = format!("{path}/*");
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    match schema.get("properties").and_then(|properties| properties.get(name)) {
                        Some(property) => {
                            let path = format!("{path}/{name}");
                            unseen.remove(&path);
                            self.see(property, value, &path, unseen);
                        }
                        None => self.see(&schema["additionalProperties"], value, &below, unseen),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| self.see(&schema["items"], item, &below, unseen)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_on_either_side_is_found() {
        let schema = Schema(json!({
            "properties": {
                "a": {"description": "A list.", "items": {"$ref": "#/$defs/b"}},
                "c": {"additionalProperties": {"$ref": "#/$defs/b"}, "description": "By name."},
                "d": {},
            },
            "additionalProperties": false,
            "$defs": {"b": {"properties": {"x": {"description": "X.", "type": "integer"}}}},
        }));
        let told = json!({"a": [{"x": 1}], "c": {}});
        assert_eq!(schema.unseen(&[("first", told.clone())]), ["/c/*/x", "/d"]);
        assert_eq!(schema.gaps(), ["/d is not described"]);
        assert_eq!(schema.faults(&[("first", told)]), "");
        let faults = schema.faults(&[("first", json!({"a": [{"x": "1"}], "e": 0}))]);
        assert!(faults.contains("first: ['a', 0, 'x']") && faults.contains("'e' was unexpected"), "{faults}");
    }
}
