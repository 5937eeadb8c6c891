//! The same for programs, with every sample.

use serde_json::{Value, json};

use super::Report;
use crate::claims::Target;

/// One object, over many lines.
pub(super) fn render(report: &Report) -> String {
    let facts: serde_json::Map<String, Value> =
        report.facts.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    let claims = report.claims.iter().map(|claim| {
        let (side, target) = match claim.target {
            Target::AtLeast(target) => ("at_least", target),
            Target::AtMost(target) => ("at_most", target),
        };
        json!({"claim": claim.says, side: target, "measured": claim.ratio, "verdict": claim.verdict()})
    });
    let series = report.results.series.iter().map(|series| {
        json!({
            "work": series.work, "what": series.what, "who": series.who, "unit": series.unit.name(),
            "median": series.median(), "samples": series.samples,
        })
    });
    let missing = report.results.missing.iter().map(|(work, why)| json!({"work": work, "why": why}));
    let all = json!({
        "facts": facts, "claims": claims.collect::<Value>(), "series": series.collect::<Value>(),
        "not_run": missing.collect::<Value>(),
    });
    format!("{all:#}\n")
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::tests::example;

    #[test]
    fn every_sample_is_there() {
        let all: Value = serde_json::from_str(&super::render(&example())).unwrap();
        assert_eq!(all["series"][0]["samples"], serde_json::json!([200.0, 300.0]));
        assert_eq!((&all["series"][0]["median"], &all["series"][0]["unit"]), (&250.0.into(), &"MiB/s".into()));
        assert_eq!((&all["facts"]["kernel"], &all["not_run"][0]["work"]), (&"Linux 6".into(), &"d".into()));
        assert_eq!(all["claims"][0]["at_least"], 2.0);
    }
}
