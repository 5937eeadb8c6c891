//! `pullfs-notices`: prints the notices of all crates that are linked into pullfs, as paragraphs of Debian's
//! machine-readable copyright file, for `make deb`.
//!
//! ```text
//! cargo tree: what is linked ─┐
//! cargo metadata: where it is ┴▶ licence files of each ─▶ one paragraph for all crates with the same text
//! ```
//! Neither asks the network, and the same lock file gives the same text.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

/// Between these, a text is the Apache License, of which Debian has a copy.
const APACHE: [&str; 2] =
    ["TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION", "END OF TERMS AND CONDITIONS"];

/// What stands in its place.
const APACHE_IS_THERE: &str = "[its terms and conditions are in /usr/share/common-licenses/Apache-2.0]";

/// What is packed.
const PROGRAMS: [&str; 4] = ["-p", "pullfs", "-p", "pullfs-mount-helpers"];

/// What the names of licence files begin with, in capital letters.
const FILES: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    manifest_path: String,
    /// None for those of the workspace.
    source: Option<String>,
}

impl Package {
    /// Its licences, as Debian writes alternatives.
    fn licenses(&self) -> String {
        let expression = self.license.as_deref().unwrap_or("other");
        expression.replace('/', " OR ").split_whitespace().collect::<Vec<_>>().join(" ").replace(" OR ", " or ")
    }

    /// The text of its notices; only that of the MIT licence where it may be chosen.
    fn notices(&self) -> anyhow::Result<String> {
        let dir = Path::new(&self.manifest_path).parent().unwrap_or(Path::new("/"));
        let mut files = licence_files(dir)?;
        let name =
            |file: &PathBuf| file.file_name().map(|name| name.to_string_lossy().to_uppercase()).unwrap_or_default();
        let is_mit = |file: &PathBuf| name(file).contains("-MIT");
        if self.licenses().split(" or ").any(|license| license == "MIT") && files.iter().any(is_mit) {
            let others = ["COPYRIGHT", "NOTICE", "LICENSE-THIRD-PARTY"];
            files.retain(|file| is_mit(file) || others.iter().any(|other| name(file).starts_with(other)));
        }
        let Self { name, version, .. } = self;
        let place = dir.display();
        ensure!(
            !files.is_empty(),
            "{name} {version} has no licence in {place}; write its notice into ctl/debian/copyright"
        );
        // What others wrote of it.
        for entry in fs::read_dir(dir.join("third_party")).into_iter().flatten() {
            let path = entry?.path();
            if path.is_dir() {
                files.extend(licence_files(&path)?);
            }
        }
        files.sort();
        let mut texts = Vec::new();
        for file in files {
            texts.push(fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?);
        }
        Ok(texts.join("\n\n"))
    }
}

fn licence_files(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_uppercase();
        if FILES.iter().any(|begin| name.starts_with(begin)) && entry.path().is_file() {
            files.push(entry.path());
        }
    }
    Ok(files)
}

fn main() -> anyhow::Result<()> {
    let tree =
        cargo(&[&["tree", "--prefix=none", "--edges=normal,no-proc-macro", "--format={p}"], &PROGRAMS[..]].concat())?;
    // `NAME vVERSION`, and more of some.
    let linked: BTreeSet<(&str, &str)> =
        tree.lines().filter_map(|line| line.split_once(" v")).map(|(name, rest)| (name, word(rest))).collect();
    let platform = format!("--filter-platform={}", told("rustc", "RUSTC", &["--print=host-tuple"])?.trim());
    let metadata: Metadata = serde_json::from_str(&cargo(&["metadata", "--format-version=1", &platform])?)?;
    // By text, and then by licence.
    let mut paragraphs: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for package in metadata.packages {
        if package.source.is_some() && linked.contains(&(&*package.name, &*package.version)) {
            let crates = paragraphs.entry((package.notices()?, package.licenses())).or_default();
            crates.insert(format!("crates/{}-{}/*", package.name, package.version));
        }
    }
    ensure!(!paragraphs.is_empty(), "nothing is linked into pullfs");
    // In the order of the crates.
    let mut paragraphs: Vec<_> = paragraphs.into_iter().map(|(text, crates)| (crates, text)).collect();
    paragraphs.sort();
    for (crates, (text, licenses)) in paragraphs {
        print!("{}", paragraph(&crates, &licenses, &text));
    }
    Ok(())
}

fn word(text: &str) -> &str {
    text.split(' ').next().unwrap_or(text)
}

/// What cargo prints; it asks nobody, and takes the versions of the lock file.
fn cargo(arguments: &[&str]) -> anyhow::Result<String> {
    told("cargo", "CARGO", &[arguments, &["--locked", "--offline"]].concat())
}

/// What a program prints, which a variable of cargo's may name.
fn told(program: &str, variable: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let path = std::env::var_os(variable).unwrap_or_else(|| program.into());
    let output = Command::new(path).args(arguments).output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!("{program} {}: {}", arguments[0], String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn paragraph(crates: &BTreeSet<String>, licenses: &str, text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    let holders: BTreeSet<&str> = lines.iter().map(|line| line.trim()).filter(|line| names_a_holder(line)).collect();
    let holders = if holders.is_empty() { BTreeSet::from(["those who wrote them"]) } else { holders };
    let list = |values: &mut dyn Iterator<Item = &str>| values.collect::<Vec<_>>().join("\n ");
    let mut paragraph = vec![
        String::new(),
        format!("Files: {}", list(&mut crates.iter().map(String::as_str))),
        format!("Copyright: {}", list(&mut holders.into_iter())),
        format!("License: {licenses}"),
    ];
    let mut left_out = false;
    for line in lines {
        let [begin, end] = APACHE.map(|mark| line.trim() == mark);
        if begin {
            paragraph.push(format!(" {APACHE_IS_THERE}"));
        }
        left_out |= begin;
        if !left_out {
            paragraph.push(if line.is_empty() { " .".to_owned() } else { format!(" {line}") });
        }
        left_out &= !end;
    }
    paragraph.join("\n") + "\n"
}

/// Whether a line is one like `Copyright (c) 2026 Somebody`, rather than one about copyright.
fn names_a_holder(line: &str) -> bool {
    line.strip_prefix("Copyright ")
        .is_some_and(|rest| rest.starts_with("(c)") || rest.starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paragraph_is_one_whatever_the_text_is() {
        let crates = BTreeSet::from(["crates/a-1.0.0/*".to_owned(), "crates/b-2.0.0/*".to_owned()]);
        let text = "The licence\r\n\n  Copyright (c) 2026 Somebody\nCopyright law is not a holder \n\
                    TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION\nall\n END OF TERMS AND CONDITIONS\nend";
        let expected = "\nFiles: crates/a-1.0.0/*\n crates/b-2.0.0/*\nCopyright: Copyright (c) 2026 Somebody\n\
                        License: MIT or Apache-2.0\n The licence\n .\n   Copyright (c) 2026 Somebody\n \
                        Copyright law is not a holder\n [its terms and conditions are in \
                        /usr/share/common-licenses/Apache-2.0]\n end\n";
        assert_eq!(paragraph(&crates, "MIT or Apache-2.0", text), expected);
    }
}
