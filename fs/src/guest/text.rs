//! `partitions/table.json` and `partitions/N/UNCLEAN.txt`.

use inside::table::{Content, Partition, Scheme, Table};
use serde::Serialize;

#[derive(Serialize)]
struct Document<'a> {
    /// Of this document's form: fields are added within one, none changes or goes.
    version: u32,
    scheme: &'static str,
    sector_size: u32,
    id: Option<&'a str>,
    problems: &'a [String],
    partitions: Vec<PartitionText<'a>>,
}

/// The version of the form.
const VERSION: u32 = 1;

#[derive(Serialize)]
struct PartitionText<'a> {
    number: u32,
    offset: u64,
    size: u64,
    #[serde(rename = "type")]
    type_id: Option<&'a str>,
    id: Option<&'a str>,
    name: Option<&'a str>,
    problem: Option<&'a str>,
    content: Option<ContentText<'a>>,
}

#[derive(Serialize)]
pub(super) struct ContentText<'a> {
    kind: &'a str,
    /// What is no UTF-8 in it is replaced.
    label: Option<String>,
    /// The label's bytes, where they are no UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    label_hex: Option<String>,
    uuid: Option<&'a str>,
    refused: Option<&'a str>,
    unclean: Option<String>,
    problem: Option<String>,
}

/// What became of opening a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// It is open; what nobody can tell of it, if there is something.
    Fine(Option<String>),
    /// Why it is not.
    Failed(String),
}

/// `table.json`; `opened` tells of each file system that can be read.
pub fn table(table: &Table, opened: impl Fn(u32) -> Option<Opened>) -> String {
    let partitions = table.partitions.iter().map(|partition| of(partition, opened(partition.number)));
    let document = Document {
        version: VERSION,
        scheme: match table.scheme {
            Scheme::Gpt => "gpt",
            Scheme::Mbr => "mbr",
            Scheme::Whole => "none",
        },
        sector_size: table.sector_size,
        id: table.id.as_deref(),
        problems: &table.problems,
        partitions: partitions.collect(),
    };
    json(&document)
}

pub(super) fn json(document: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(document).unwrap_or_else(|_| "{}".to_owned());
    text.push('\n');
    text
}

fn of(partition: &Partition, opened: Option<Opened>) -> PartitionText<'_> {
    PartitionText {
        number: partition.number,
        offset: partition.offset,
        size: partition.size,
        type_id: partition.type_id.as_deref(),
        id: partition.id.as_deref(),
        name: partition.name.as_deref(),
        problem: partition.problem.as_deref(),
        content: partition.content.as_ref().map(|content| content_of(content, opened)),
    }
}

pub(super) fn content_of(content: &Content, opened: Option<Opened>) -> ContentText<'_> {
    use std::fmt::Write as _;
    let hex = |label: &Vec<u8>| {
        std::str::from_utf8(label).is_err().then(|| {
            label.iter().fold(String::new(), |mut hex, byte| {
                write!(hex, "{byte:02x}").ok();
                hex
            })
        })
    };
    let (unclean, problem) = match opened {
        Some(Opened::Fine(unclean)) => (unclean, None),
        Some(Opened::Failed(why)) => (None, Some(why)),
        None => (None, None),
    };
    ContentText {
        kind: content.kind,
        label: content.label.as_deref().map(|label| String::from_utf8_lossy(label).into_owned()),
        label_hex: content.label.as_ref().and_then(hex),
        uuid: content.uuid.as_deref(),
        refused: content.refused.as_deref(),
        unclean,
        problem,
    }
}

/// What to do about it.
const ADVICE: &str = include_str!("unclean.txt");

/// `UNCLEAN.txt`.
pub fn unclean(sentence: &str) -> String {
    [sentence, ADVICE].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_tells_all_of_its_partitions() {
        let content = |label: &[u8], refused: Option<&str>| Content {
            kind: "ext4",
            label: Some(label.to_vec()),
            uuid: Some("u".into()),
            refused: refused.map(str::to_owned),
        };
        let partition = |number, content| Partition {
            number,
            offset: 1 << 20,
            size: 512,
            type_id: Some("0x83".into()),
            id: None,
            name: None,
            content,
            problem: None,
        };
        let table = Table {
            scheme: Scheme::Mbr,
            sector_size: 512,
            id: Some("12345678".into()),
            problems: vec!["it is odd".into()],
            partitions: vec![
                partition(1, Some(content(b"root", None))),
                partition(2, Some(content(b"\xffx", Some("no")))),
                partition(5, None),
            ],
        };
        let opened = |number| match number {
            1 => Some(Opened::Fine(Some("it was in use".into()))),
            2 => Some(Opened::Failed("it broke".into())),
            _ => None,
        };
        let json: serde_json::Value = serde_json::from_str(&super::table(&table, opened)).unwrap();
        assert_eq!(json["scheme"], "mbr");
        let of = |index: usize, field: &str| json["partitions"][index]["content"][field].clone();
        assert_eq!((of(0, "label"), of(0, "label_hex")), ("root".into(), serde_json::Value::Null));
        assert_eq!((of(0, "unclean"), of(1, "problem")), ("it was in use".into(), "it broke".into()));
        assert_eq!((of(1, "label"), of(1, "label_hex")), ("\u{fffd}x".into(), "ff78".into()));
        assert_eq!(json["partitions"][2]["content"], serde_json::Value::Null);
        assert!(unclean("It was in use.").starts_with("It was in use.\n"));
    }
}
