//! What comes in with a dependency, by Cargo's own account: `deny.toml` is held to also where cargo-deny is not installed.

use std::collections::BTreeSet;
use std::fs;

use pullfs_tests::process::ok;
use pullfs_tests::tools::{tool, workspace};
use serde_json::Value;

/// Where crates may come from.
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Every package of the lock file that is used on Linux.
fn packages() -> Vec<Value> {
    let mut cargo = tool("cargo");
    cargo.args(["metadata", "--format-version", "1", "--locked", "--all-features"]);
    for target in ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"] {
        cargo.args(["--filter-platform", target]);
    }
    let metadata: Value = serde_json::from_str(&ok(cargo.current_dir(workspace()))).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages").clone();
    assert!(packages.len() > 50, "{} packages", packages.len());
    packages
}

fn allowed() -> BTreeSet<String> {
    let text = fs::read_to_string(workspace().join("deny.toml")).expect("deny.toml");
    let list = text.lines().find_map(|line| line.strip_prefix("allow = [")).expect("the licences, on one line");
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Whether a licence may be had, of an SPDX expression such as `(MIT OR Apache-2.0) AND Unicode-3.0`. AND binds stronger
/// than OR; old crates write `/` for OR.
fn fits(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let fits = any(&mut words, allowed);
    assert!(words.next().is_none(), "an expression that is not understood: {expression}");
    fits
}

fn any<'a>(words: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>, allowed: &BTreeSet<String>) -> bool {
    let mut fits = all(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        fits |= all(words, allowed);
    }
    fits
}

fn all<'a>(words: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>, allowed: &BTreeSet<String>) -> bool {
    let mut fits = true;
    loop {
        fits &= match words.next() {
            Some("(") => {
                let fits = any(&mut *words, allowed);
                assert_eq!(words.next(), Some(")"), "an open bracket");
                fits
            }
            Some(licence) => allowed.contains(licence),
            None => false,
        };
        // An exception takes nothing away.
        if words.next_if_eq(&"WITH").is_some() {
            words.next();
        }
        if words.next_if_eq(&"AND").is_none() {
            return fits;
        }
    }
}

#[test]
fn every_dependency_has_a_licence_that_may_be_combined_with_ours() {
    let allowed = allowed();
    assert!(allowed.contains("MIT") && !allowed.contains("GPL-3.0-only"), "{allowed:?}");
    let refused: Vec<_> = packages()
        .iter()
        .map(|package| format!("{} {}", package["name"], package["license"].as_str().unwrap_or_default()))
        .filter(|named| !fits(named.split_once("\" ").expect("a name").1, &allowed))
        .collect();
    assert!(refused.is_empty(), "licences that deny.toml does not allow: {refused:#?}");
}

#[test]
fn every_dependency_comes_from_the_registry() {
    let foreign: Vec<_> = packages()
        .iter()
        .filter(|package| !package["source"].is_null() && package["source"] != CRATES_IO)
        .map(|package| format!("{} from {}", package["name"], package["source"]))
        .collect();
    assert!(foreign.is_empty(), "{foreign:#?}");
}

#[test]
fn licence_expressions_are_understood() {
    let allowed = ["MIT", "Apache-2.0", "Unicode-3.0"].map(str::to_owned).into();
    for (expression, expected) in [
        ("MIT", true),
        ("MIT/Apache-2.0", true),
        ("GPL-2.0-only", false),
        ("GPL-2.0-only OR MIT", true),
        ("(MIT OR GPL-2.0-only) AND Unicode-3.0", true),
        ("MIT AND GPL-2.0-only", false),
        ("MIT AND GPL-2.0-only OR Apache-2.0", true),
        ("Apache-2.0 WITH LLVM-exception OR BSL-1.0", true),
        ("", false),
    ] {
        assert_eq!(fits(expression, &allowed), expected, "{expression:?}");
    }
}
