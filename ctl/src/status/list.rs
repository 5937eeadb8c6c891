//! All pullfs mounts of this computer, one line each. One that does not answer holds nothing up.

use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use pullfs_fs::fuse::mount;
use serde_json::{Value, json};

use crate::failure::Outcome;
use crate::mounted::{Mounted, Status};
use crate::status::text::{WARNING, age, paint, plain, table};
use crate::status::{print, show};

/// How long all mounts together may take: each asks its machine, which answers in milliseconds as a rule.
const LIMIT: Duration = Duration::from_secs(3);

pub(super) fn run(json: bool, color: clap::ColorChoice) -> Outcome {
    let asked: Vec<_> = mount::all()?.into_iter().map(|found| (found.clone(), ask(Mounted::of(found.path)))).collect();
    let deadline = Instant::now() + LIMIT;
    let answers = asked.into_iter().map(|(found, answer)| {
        let left = deadline.saturating_duration_since(Instant::now());
        let text = answer.recv_timeout(left).unwrap_or_else(|_| Err("it does not answer".to_owned()));
        (found, text)
    });
    if json {
        let all: Vec<Value> = answers.map(|(found, answer)| document(&found, answer)).collect();
        return print(&format!("{:#}\n", Value::Array(all)));
    }
    let rows = answers.map(|(found, answer)| row(&found, answer)).collect();
    show(&table(rows), color)
}

/// Asks on a thread of its own: a mount that does not answer would hold it for good.
fn ask(mounted: Mounted) -> Receiver<Result<String, String>> {
    let (tell, told) = channel();
    // Nobody may be waiting any more.
    std::thread::spawn(move || tell.send(mounted.status_text().map_err(|failure| failure.to_string())).ok());
    told
}

fn document(found: &mount::Mounted, answer: Result<String, String>) -> Value {
    let parsed = answer.and_then(|text| serde_json::from_str::<Value>(&text).map_err(|error| error.to_string()));
    let (status, error) = match parsed {
        Ok(status) => (status, Value::Null),
        Err(error) => (Value::Null, error.into()),
    };
    json!({
        "mount_point": found.path.to_string_lossy(), "source": found.source.to_string_lossy(),
        "status": status, "error": error,
    })
}

/// One line: where, what, and how it is.
fn row(found: &mount::Mounted, answer: Result<String, String>) -> Vec<String> {
    let place = plain(&found.path.to_string_lossy());
    let parsed = answer.and_then(|text| serde_json::from_str::<Status>(&text).map_err(|error| error.to_string()));
    let status = match parsed {
        Ok(status) => status,
        Err(error) => return vec![place, plain(&found.source.to_string_lossy()), paint(WARNING, &plain(&error))],
    };
    let name = status.machine.name.as_ref().unwrap_or(&status.machine.source);
    let held = status.point.time.as_deref().and_then(age).map(|age| format!(" for {age}")).unwrap_or_default();
    let point = format!("{}{held}", status.point.state);
    let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let counts = [count(status.disks.len(), "disk"), count(status.checkpoints.len(), "checkpoint")].join(", ");
    let state = if status.unreachable.is_some() { paint(WARNING, "machine unreachable") } else { counts };
    vec![place, plain(name), plain(&point), state]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The row of a mount whose status.json is changed, without colours.
    fn told(change: impl FnOnce(&mut Value)) -> Vec<String> {
        let mut status = json!({
            "pid": 7, "machine": {"source": "qmp:/a", "name": "vm1", "qemu": "10.0", "fleece": "job"},
            "disks": [{"name": "vda", "format": "raw", "size": 512}], "skipped": [], "checkpoints": [],
            "point": {"state": "held", "number": 1, "time": "2020-01-01T00:00:00Z", "open_files": 0},
            "reads": {"count": 0, "bytes": 0}, "cache": {"fetched": 0},
        });
        change(&mut status);
        let found = mount::Mounted {
            device: "0:50".to_owned(),
            path: "/mnt/a\nb".into(),
            kind: "fuse.pullfs".to_owned(),
            source: "qmp:/a".into(),
        };
        let cells = row(&found, Ok(status.to_string()));
        cells.iter().map(|cell| anstream::adapter::strip_str(cell).to_string()).collect()
    }

    #[test]
    fn a_row_tells_the_mount_and_its_machine() {
        let cells = told(|_| ());
        assert_eq!((&*cells[0], &*cells[1], &*cells[3]), ("/mnt/a?b", "vm1", "1 disk, 0 checkpoints"));
        assert!(cells[2].starts_with("held for ") && cells[2].ends_with(" days"), "{cells:?}");
        assert_eq!(told(|status| status["machine"]["name"] = Value::Null)[1], "qmp:/a");
        assert_eq!(told(|status| status["unreachable"] = "QEMU ended".into())[3], "machine unreachable");
    }
}
