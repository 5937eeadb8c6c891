//! Every error text that pullfs prints stands in docs/troubleshooting.md, with cause and cure, and no other does.
//!
//! Errors are made in many ways: at once, by closures, from parts. So nobody looks for calls that make one: *every* string
//! literal of the sources that is words, two at least, counts as an error text, unless it stands where it cannot be one
//! ([`NO_ERRORS`], [`WITHOUT_ERRORS`]) or is known for something else ([`OTHER_WORDS`]). What `{…}` stands for is `…`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::markdown::{Table, tables};
use crate::source::{files, literals, members, read, without_tests};

const DOCUMENT: &str = "docs/troubleshooting.md";

/// Crates that are no part of what a user runs.
const OUR_OWN: [&str; 5] = ["images", "fuzz", "tests", "bench", "manuals"];

/// What a literal in a call of these is: a defect's message, a result, a line of a debugging log, a line of the demo, what
/// is waited for.
const NO_ERRORS: [&str; 15] = [
    "expect",
    "assert!",
    "assert_eq!",
    "debug_assert!",
    "panic!",
    "unreachable!",
    "println!",
    "print!",
    "debug!",
    "trace!",
    "info!",
    "say",
    "shell",
    "guest_writes",
    "waiting",
];

/// Files that only describe, or tell results; what `pullfs doctor` finds says itself what to do.
const WITHOUT_ERRORS: [&str; 18] = [
    "ctl/src/args.rs",
    "ctl/src/doctor/access.rs",
    "ctl/src/doctor/finding.rs",
    "ctl/src/doctor/host.rs",
    "ctl/src/doctor/libvirt.rs",
    "ctl/src/doctor/machine.rs",
    "ctl/src/doctor/mod.rs",
    "ctl/src/doctor/qmp.rs",
    "ctl/src/doctor/scratch.rs",
    "ctl/src/doctor/whole.rs",
    "ctl/src/list.rs",
    "ctl/src/map/svg.rs",
    "ctl/src/status/list.rs",
    "ctl/src/status/text.rs",
    "ctl/src/sync/progress.rs",
    "fs/src/metrics/text.rs",
    "fs/src/options/table.rs",
    "inside/src/table/types.rs",
];

/// Words of results and commands, names of fields, and QEMU's own words that are looked for.
const OTHER_WORDS: [&str; 25] = [
    "point in time",
    "virtual size",
    "the point in time",
    "delete …",
    "set …",
    "reload …",
    "already running",
    "in use",
    "Conflicts with",
    "…{ \"offset\": …, \"length\": …, \"type\": …, \"description\": \"…\"}",
    "qemu-io -d /machine/peripheral/vda/virtio-backend \"…\"",
    ", of it … zeroes",
    "… (… of the disk)…",
    ", the largest … at …",
    "(the map does not tell the disk's size; the picture ends where the map does)",
    "…: … changed since …, to …",
    "…: all of it, about … of data, to …",
    "… written, … made zeroes; the copy is … as of …; …",
    "# written by pullfs mount",
    "text/plain; version=0.0.4; charset=utf-8",
    "… domain…",
    "libvirt at …, … running",
    "virt-ssh-helper 'qemu://…'",
    "pullfs: …",
    "mount.pullfs: …",
];

/// Code that is built for tests and fuzzing alone.
fn is_for_tests(path: &Path) -> bool {
    let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let within = |dir: &str| path.iter().any(|part| part == dir);
    name.ends_with("tests")
        || name == "testing"
        || name == "fuzz"
        || within("tests")
        || within("testing")
        || path == Path::new("fs/src/vm/memory.rs")
}

/// A literal as the document shows it.
fn shown(literal: &str) -> String {
    let (mut text, mut chars) = (String::new(), literal.chars().peekable());
    while let Some(c) = chars.next() {
        match c {
            '{' if chars.next_if_eq(&'{').is_none() => {
                text.push('…');
                chars.by_ref().find(|&c| c == '}');
            }
            '}' => {
                chars.next_if_eq(&'}');
                text.push('}');
            }
            other => text.push(other),
        }
    }
    text.trim().to_owned()
}

/// Two words at least, one of them not only a placeholder, and no markup.
fn is_words(text: &str) -> bool {
    if text.starts_with('<') && text.ends_with('>') || text.contains("='") {
        return false;
    }
    let letters: Vec<bool> = text.chars().map(|c| c.is_ascii_lowercase()).collect();
    text.contains(' ') && letters.windows(2).any(|pair| pair[0] && pair[1])
}

/// The error texts of one file, and the lines that they are on.
fn texts_of(source: &str) -> Vec<(String, usize)> {
    let mut texts = Vec::new();
    for literal in literals(without_tests(source)) {
        let within = |name: &str| literal.within.iter().any(|each| each == name);
        let attribute = within("#") && !within("error");
        let text = shown(&literal.text);
        if !attribute && !NO_ERRORS.iter().any(|name| within(name)) && is_words(&text) {
            texts.push((text, literal.line));
        }
    }
    texts
}

/// The sources of the programs.
fn sources() -> Vec<PathBuf> {
    let crates = members().into_iter().filter(|name| !OUR_OWN.contains(&name.as_str()));
    crates.flat_map(|name| files(&format!("{name}/src"))).collect()
}

/// The texts of all sources, and the first place of each.
fn texts() -> BTreeMap<String, String> {
    let mut texts = BTreeMap::new();
    for path in sources() {
        if is_for_tests(&path) || WITHOUT_ERRORS.iter().any(|file| Path::new(file) == path) {
            continue;
        }
        for (text, line) in texts_of(&read(&path)) {
            texts.entry(text).or_insert_with(|| format!("{}:{line}", path.display()));
        }
    }
    texts
}

/// The texts that the tables of errors explain.
fn explained(tables: &[Table]) -> Vec<String> {
    let rows = tables.iter().filter(|table| table.header[0] == "text").flat_map(|table| &table.rows);
    rows.flat_map(|row| row[0].split("<br>")).map(str::to_owned).collect()
}

/// What is wrong with the document.
fn complaints(texts: &BTreeMap<String, String>, explained: &[String], other: &[&str]) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut once = BTreeSet::new();
    for text in explained {
        if !once.insert(text.as_str()) {
            complaints.push(format!("explained twice: {text}"));
        }
        if !texts.contains_key(text) {
            complaints.push(format!("explained, but in no source: {text}"));
        }
        if other.contains(&text.as_str()) {
            complaints.push(format!("explained, though it is said to be no error: {text}"));
        }
    }
    let missing = texts.iter().filter(|(text, _)| !once.contains(text.as_str()) && !other.contains(&text.as_str()));
    complaints.extend(missing.map(|(text, place)| format!("not explained, {place}: {text}")));
    let gone = other.iter().filter(|text| !texts.contains_key(**text));
    complaints.extend(gone.map(|text| format!("said to be no error, but in no source: {text}")));
    complaints
}

#[test]
fn every_error_text_is_explained() {
    let texts = texts();
    assert!(texts.len() > 400, "{} texts: the sources are not read rightly", texts.len());
    let complaints = complaints(&texts, &explained(&tables(&read(DOCUMENT))), &OTHER_WORDS);
    assert!(complaints.is_empty(), "{DOCUMENT}:\n{}", complaints.join("\n"));
}

#[test]
fn files_that_are_left_out_exist() {
    let all = sources();
    for file in WITHOUT_ERRORS {
        assert!(all.iter().any(|path| path == Path::new(file)), "{file}");
    }
    let members = members();
    assert!(OUR_OWN.iter().all(|name| members.iter().any(|member| member == name)), "{members:?}");
}

#[test]
fn texts_are_found_however_an_error_is_made() {
    let source = r#"
        #[error("it is {0} late")] Late(String),
        #[arg(help = "no error at all")]
        fn f() { let what = "the file of"; bad(format!("{what} {} is {{gone}}", x)).context("oh {y:?} dear") }
        fn g() { value.expect("some words"); tracing::debug!("more words"); tracing::warn!("mind this: {}", z); h("word") }
        const A: [&str; 1] = ["a \
            cut"];"#;
    let found: Vec<_> = texts_of(source).into_iter().map(|(text, _)| text).collect();
    assert_eq!(found, ["it is … late", "the file of", "… … is {gone}", "oh … dear", "mind this: …", "a cut"]);
}

#[test]
fn a_text_that_is_missing_and_one_that_is_gone_are_found() {
    let texts: BTreeMap<_, _> = ["a b", "c d", "e f"].map(|text| (text.to_owned(), "x.rs:1".to_owned())).into();
    let table = |rows: &str| explained(&tables(&format!("| text | why | what |\n|---|---|---|\n{rows}")));
    let whole = table("| a b<br>c d | why | what |\n");
    assert_eq!(complaints(&texts, &whole, &["e f"]), [""; 0]);
    assert_eq!(complaints(&texts, &whole, &[]), ["not explained, x.rs:1: e f"]);
    assert_eq!(complaints(&texts, &table("| a b | why | what |\n"), &["e f"]), ["not explained, x.rs:1: c d"]);
    let more = table("| a b<br>c d | why | what |\n| c d<br>g h | why | what |\n");
    assert_eq!(complaints(&texts, &more, &["e f"]), ["explained twice: c d", "explained, but in no source: g h"]);
    let other = complaints(&texts, &whole, &["c d", "e f", "i j"]);
    assert_eq!(
        other,
        ["explained, though it is said to be no error: c d", "said to be no error, but in no source: i j"]
    );
    let elsewhere = "| errno | why | what |\n|---|---|---|\n| e f | why | what |\n";
    assert!(explained(&tables(elsewhere)).is_empty(), "a table of something else explains no text");
}
