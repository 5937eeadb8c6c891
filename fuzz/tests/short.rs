//! The short run: every input of every corpus, and some thousand changes of them, always the same ones.

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use pullfs_fuzz::mutation::{Random, mutate};
use pullfs_fuzz::{TARGETS, Target};

/// Changed inputs for each target: some seconds in a debug build on a slow machine.
const EXECUTIONS: usize = 4000;

/// Longest changed input, in bytes.
const LONGEST: usize = 32 << 10;

fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).expect("a file of the corpus"))).collect()
}

/// Keeps what broke a target where a person finds it.
fn check(target: &Target, input: &[u8], from: &Path) {
    if catch_unwind(|| (target.run)(input)).is_err() {
        let kept = std::env::temp_dir().join(format!("pullfs-fuzz-{}", target.name));
        fs::write(&kept, input).expect("a place for the input");
        panic!("{} is broken by {}, made of {}", target.name, kept.display(), from.display());
    }
}

#[test]
fn nothing_breaks_what_reads_bytes_of_others() {
    for target in &TARGETS {
        let corpus = corpus(target);
        assert!(corpus.len() > 1, "{} has no corpus", target.name);
        for (path, input) in &corpus {
            check(target, input, path);
        }
        let mut random = Random::new(1);
        for _ in 0..EXECUTIONS {
            let (path, input) = &corpus[random.below(corpus.len())];
            let (_, other) = &corpus[random.below(corpus.len())];
            check(target, &mutate(&mut random, input, other, LONGEST), path);
        }
        println!("{}: {} inputs and {EXECUTIONS} changes of them", target.name, corpus.len());
    }
}
