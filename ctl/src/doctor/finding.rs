//! What a check found, and how that is shown.

use anstyle::{AnsiColor, Style};
use pullfs_fs::error::Error;
use serde::Serialize;

use super::chain;
use crate::failure::Outcome;
use crate::status::{NOTICE, WARNING, paint, plain, print, show, table};

const GOOD: Style = AnsiColor::Green.on_default();

/// How it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// As it should be.
    Ok,
    /// A mount works, and may be less than somebody expects.
    Hint,
    /// A mount, or a point in time, would fail.
    Wrong,
}

/// What one check found: what and where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// Which check.
    pub(super) check: &'static str,
    pub(super) state: State,
    pub(super) what: String,
    /// What to do; none where nothing is to be done.
    #[serde(rename = "do")]
    pub(super) cure: Option<String>,
}

impl Finding {
    pub(super) fn ok(check: &'static str, what: impl Into<String>) -> Self {
        Self { check, state: State::Ok, what: what.into(), cure: None }
    }

    pub(super) fn hint(check: &'static str, what: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { check, state: State::Hint, what: what.into(), cure: Some(cure.into()) }
    }

    pub(super) fn wrong(check: &'static str, what: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { check, state: State::Wrong, what: what.into(), cure: Some(cure.into()) }
    }

    /// A check that failed, or somebody who was asked in vain.
    pub(super) fn failed(check: &'static str, error: &Error, cure: impl Into<String>) -> Self {
        Self::wrong(check, chain(error), cure)
    }
}

/// All findings of a source.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    source: String,
    /// The worst of them.
    state: State,
    findings: Vec<Finding>,
}

impl Report {
    pub(super) fn new(source: String, findings: Vec<Finding>) -> Self {
        let state = findings.iter().map(|finding| finding.state).max().unwrap_or(State::Ok);
        Self { source, state, findings }
    }

    pub(super) fn count(&self, state: State) -> usize {
        self.findings.iter().filter(|finding| finding.state == state).count()
    }

    pub(super) fn show(&self, json: bool, color: clap::ColorChoice) -> Outcome {
        if json {
            let text = serde_json::to_string_pretty(self).map_err(anyhow::Error::from)?;
            return print(&(text + "\n"));
        }
        show(&self.text(), color)
    }

    /// One line each, with the escapes of colours.
    fn text(&self) -> String {
        let row = |finding: &Finding| {
            let state = match finding.state {
                State::Ok => paint(GOOD, "ok"),
                State::Hint => paint(NOTICE, "hint"),
                State::Wrong => paint(WARNING, "WRONG"),
            };
            let cure = finding.cure.as_ref().map(|cure| format!("; {cure}")).unwrap_or_default();
            vec![state, finding.check.to_owned(), plain(&format!("{}{cure}", finding.what))]
        };
        table(self.findings.iter().map(row).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_whatever_is_in_it() {
        let findings = vec![
            Finding::ok("kernel", "Linux 6.1"),
            Finding::hint("agent", "none\nis given", "give one"),
            Finding::wrong("socket", "it is\u{1b}[31m in use", "let go"),
        ];
        let report = Report::new("qmp:/a".to_owned(), findings);
        assert_eq!((report.count(State::Wrong), report.state), (1, State::Wrong));
        let text = anstream::adapter::strip_str(&report.text()).to_string();
        assert_eq!(
            text,
            "ok     kernel  Linux 6.1\nhint   agent   none?is given; give one\nWRONG  socket  it is?[31m in use; let go\n"
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!((&json["state"], &json["findings"][1]["do"]), (&"wrong".into(), &"give one".into()));
        assert_eq!(Report::new(String::new(), Vec::new()).state, State::Ok);
    }
}
