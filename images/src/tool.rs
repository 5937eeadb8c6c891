//! Tools, which have to succeed.

use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

/// Runs a command, with nothing to read; what it says.
pub fn ok(command: &mut Command) -> String {
    finish(command.stdin(Stdio::null()))
}

/// The same of a tool and its arguments.
pub fn run(tool: &str, arguments: &[&str]) -> String {
    ok(Command::new(tool).args(arguments))
}

/// As [`ok`], with something to read.
pub fn feed(command: &mut Command, input: &str) -> String {
    let stdin = tempfile::tempfile().expect("a file");
    stdin.write_all_at(input.as_bytes(), 0).expect("written");
    finish(command.stdin(stdin))
}

fn finish(command: &mut Command) -> String {
    let output = command.env("LC_ALL", "C.UTF-8").output();
    let output = output.unwrap_or_else(|error| panic!("{command:?} (see PACKAGES_TEST in the Makefile): {error}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {} {said} {complaint}", output.status);
    said
}
