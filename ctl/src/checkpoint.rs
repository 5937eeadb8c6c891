//! `pullfs checkpoint`.

use std::path::Path;

use anyhow::Context;
use serde_json::Value;

use crate::failure::Outcome;
use crate::mounted::Mounted;
use crate::status::{describe_checkpoint, print};
use crate::waiting::waiting;

pub(crate) fn list(mount_point: &Path, json: bool) -> Outcome {
    let mounted = Mounted::find(mount_point)?;
    if json {
        let status: Value = serde_json::from_str(&waiting("waiting for the machine", || mounted.status_text())?)
            .context("status.json is not JSON")?;
        let checkpoints = status.get("checkpoints").unwrap_or(&Value::Null);
        return print(&format!("{checkpoints:#}\n"));
    }
    let lines: Vec<String> = waiting("waiting for the machine", || mounted.status())?
        .checkpoints
        .iter()
        .map(|checkpoint| describe_checkpoint(checkpoint) + "\n")
        .collect();
    print(&lines.concat())
}
