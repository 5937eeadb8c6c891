//! docs/SEMANTICS.md and the tests say the same: each promise has a test that exists, each integration test a promise, or a
//! reason why it holds none.
//!
//! A test is called by its path, as `cargo test` prints it: `bytes::holes_are_those_of_the_disk` is in tests/tests/it; all
//! others begin with their crate, `fs::point::plan::…`. A `src`, `tests`, `mod` or `main` in its file's path is left out, as
//! is the flavor of QEMU.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::markdown::{Table, code_spans, tables};
use crate::source::{files, members, read, tests};

const DOCUMENT: &str = "docs/SEMANTICS.md";

/// Where each test is to be found in the document.
const INTEGRATION: [&str; 4] = ["tests/tests/it", "fs/tests", "ctl/tests", "nbd-pool/tests"];

/// What the tests in a file are called before their own name.
fn module(path: &Path) -> String {
    let path = path.strip_prefix("tests/tests/it").or_else(|_| path.strip_prefix("tests/tests")).unwrap_or(path);
    let path = path.with_extension("");
    let parts = path.iter().map(|part| part.to_str().expect("a name in UTF-8"));
    let told = parts.filter(|part| !["src", "tests", "mod", "main", "lib"].contains(part));
    told.collect::<Vec<_>>().join("::")
}

/// All tests below the directories.
fn tests_in<D: AsRef<str>>(dirs: &[D]) -> BTreeSet<String> {
    let paths = dirs.iter().flat_map(|dir| files(dir.as_ref()));
    let named = paths.flat_map(|path| {
        let module = module(&path);
        tests(&read(&path)).into_iter().map(move |test| format!("{module}::{test}"))
    });
    named.collect()
}

/// The names of tests in a cell.
fn named(cell: &str) -> Vec<String> {
    code_spans(cell).filter(|span| span.contains("::")).map(str::to_owned).collect()
}

/// What is wrong with the document.
fn complaints(document: &[Table], all: &BTreeSet<String>, integration: &BTreeSet<String>) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut promises = BTreeSet::new();
    let (mut holding, mut others) = (BTreeSet::new(), BTreeMap::<String, u32>::new());
    for table in document {
        match &*table.header[0] {
            "promise" => {
                for row in &table.rows {
                    let tests = named(&row[1]);
                    if tests.is_empty() {
                        complaints.push(format!("a promise without a test: {}", row[0]));
                    }
                    if !promises.insert(&row[0]) {
                        complaints.push(format!("promised twice: {}", row[0]));
                    }
                    holding.extend(tests);
                }
            }
            "test" => {
                for test in table.rows.iter().flat_map(|row| named(&row[0])) {
                    *others.entry(test).or_default() += 1;
                }
            }
            header => complaints.push(format!("a table of neither promises nor tests: {header}")),
        }
    }
    let known = |test: &&String| !all.contains(*test);
    complaints.extend(holding.iter().chain(others.keys()).filter(known).map(|test| format!("there is no test {test}")));
    complaints.extend(others.iter().filter(|(_, times)| **times > 1).map(|(test, _)| format!("listed twice: {test}")));
    let both = holding.iter().filter(|test| others.contains_key(*test));
    complaints.extend(both.map(|test| format!("it holds a promise, and is said to hold none: {test}")));
    let nowhere = integration.iter().filter(|test| !holding.contains(*test) && !others.contains_key(*test));
    complaints.extend(nowhere.map(|test| format!("a test that the document does not name: {test}")));
    complaints
}

#[test]
fn promises_and_tests_agree() {
    let (all, integration) = (tests_in(&members()), tests_in(&INTEGRATION));
    assert!(integration.len() > 150 && all.len() > integration.len(), "{} of {}", integration.len(), all.len());
    let complaints = complaints(&tables(&read(DOCUMENT)), &all, &integration);
    assert!(complaints.is_empty(), "{DOCUMENT}:\n{}", complaints.join("\n"));
}

#[test]
fn tests_are_called_by_their_path() {
    for (path, name) in [
        ("tests/tests/it/bytes.rs", "bytes"),
        ("tests/tests/it/killed/mod.rs", "killed"),
        ("tests/tests/it/guest_first/ends.rs", "guest_first::ends"),
        ("tests/tests/harness.rs", "harness"),
        ("fs/src/fs/tests.rs", "fs::fs"),
        ("nbd-pool/tests/hostile/main.rs", "nbd-pool::hostile"),
        ("fuzz/tests/short.rs", "fuzz::short"),
    ] {
        assert_eq!(module(Path::new(path)), name, "{path}");
    }
}

#[test]
fn a_test_that_is_not_there_and_one_that_is_not_named_are_found() {
    let set = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    let (all, integration) = (set(&["a::one", "a::two", "unit::three"]), set(&["a::one", "a::two"]));
    let found = |promises: &str, others: &str| {
        let text = format!("| promise | held by |\n|---|---|\n{promises}\n| test | why |\n|---|---|\n{others}\n");
        complaints(&tables(&text), &all, &integration)
    };
    let whole = "| It holds. | `a::one`, `unit::three` |\n";
    let other = "| `a::two` | of the harness |\n";
    assert_eq!(found(whole, other), [""; 0]);
    assert_eq!(found("| It holds. | `a::one`, `a::eno` |\n", other), ["there is no test a::eno"]);
    assert_eq!(found(whole, ""), ["a test that the document does not name: a::two"]);
    let empty = "| It holds. | `a::one` |\n| This as well. | `make soak` |\n";
    assert_eq!(found(empty, other), ["a promise without a test: This as well."]);
    let both = "| `a::two`, `a::one` | of the harness |\n";
    assert_eq!(found(whole, both), ["it holds a promise, and is said to hold none: a::one"]);
    let twice = found("| It holds. | `a::one` |\n| It holds. | `a::one` |\n", &other.repeat(2));
    assert_eq!(twice, ["promised twice: It holds.", "listed twice: a::two"]);
    let table = tables("| what | why |\n|---|---|\n");
    assert_eq!(complaints(&table, &all, &set(&[])), ["a table of neither promises nor tests: what"]);
}
