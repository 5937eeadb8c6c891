use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;

fn document(change: impl FnOnce(&mut Value)) -> Status {
    let mut document = json!({
        "pid": 7,
        "machine": {"source": "qmp:/run/vm1.qmp", "name": "vm1", "qemu": "10.0.2", "fleece": "job"},
        "disks": [{"name": "vda", "format": "qcow2", "size": 8 << 20}, {"name": "data", "format": "raw", "size": 512}],
        "skipped": [], "checkpoints": [],
        "point": {"state": "none", "number": 0, "time": null, "checkpoint": null, "open_files": 0, "scratch": null},
        "last_end": null, "last_error": null,
        "reads": {"count": 0, "bytes": 0}, "cache": {"fetched": 0},
    });
    change(&mut document);
    serde_json::from_value(document).expect("a status")
}

fn described(status: &Status, width: Option<usize>) -> String {
    anstream::adapter::strip_str(&describe(status, None, width)).to_string()
}

#[test]
fn nothing_held() {
    let expected = "\
machine        vm1, qmp:/run/vm1.qmp, QEMU 10.0.2, fleece=job
point in time  none
disks          vda   qcow2  8.0 MiB
               data  raw    512 B
";
    assert_eq!(described(&document(|_| ()), None), expected);
}

#[test]
fn held_with_room_and_nearly_full() {
    let held = |free: u64| {
        document(|status| {
            status["point"] = json!({
                "state": "held", "number": 1, "time": "2020-01-01T00:00:00.123Z", "checkpoint": "monday",
                "open_files": 1, "scratch": {"used": 8 << 20, "free": free, "limit": null},
            });
        })
    };
    let text = described(&held(1 << 30), None);
    assert!(text.contains(" days, since 2020-01-01 00:00:00, at checkpoint monday; 1 file open\n"), "{text}");
    assert!(text.contains("scratch        8.0 MiB used, room for 1.0 GiB more\n"), "{text}");
    let full = describe(&held(1 << 20), None, None);
    assert!(full.contains(&paint(WARNING, "8.0 MiB used, room for 1.0 MiB more, NEARLY FULL")), "{full}");
}

#[test]
fn what_is_wrong_stands_out() {
    let status = document(|status| {
        status["unreachable"] = "QEMU ended".into();
        status["skipped"] = json!([{"name": "cd0", "reason": "no medium"}]);
        status["last_error"] = json!({"message": "cannot read", "time": "2020-01-01T00:00:00Z"});
        let bitmap = json!({"dirty_bytes": 0, "persistent": true, "unusable": "it is inconsistent"});
        status["checkpoints"] = json!([{"name": "old", "created": null, "dirty_bytes": 0, "disks": {"vda": bitmap}}]);
    });
    let text = describe(&status, None, None);
    for warning in ["QEMU ended", "0 B changed since: vda UNUSABLE, it is inconsistent"] {
        assert!(text.contains(&paint(WARNING, warning)), "{text}");
    }
    assert!(text.contains(&paint(NOTICE, "cd0: no medium")), "{text}");
    assert!(described(&status, None).contains("ago: cannot read\n"), "{text}");
}

#[test]
fn the_smaller_of_limit_and_file_system_is_room() {
    let text = |free: u64, limit: u64| describe_scratch(&Scratch { used: 4 << 20, free, limit: Some(limit) }).1;
    assert_eq!(text(1 << 30, 12 << 20), "4.0 MiB used, room for 8.0 MiB more");
    assert_eq!(text(16 << 20, 1 << 30), "4.0 MiB used, room for 16.0 MiB more");
    assert_eq!(text(1 << 30, 1 << 20), "4.0 MiB used, room for 0 B more, NEARLY FULL");
}

#[test]
fn each_kind_of_bitmap_is_told_apart() {
    let status = document(|status| {
        let bitmap = |persistent: bool| json!({"dirty_bytes": 65536, "persistent": persistent});
        let mut whole = bitmap(true);
        whole["whole"] = "it is new".into();
        status["checkpoints"] = json!([
            {"name": "monday", "created": "2026-01-02T03:04:05.678Z", "dirty_bytes": 196_608,
             "disks": {"vda": bitmap(true), "vdb": bitmap(false), "vdc": whole}},
            {"name": "theirs", "created": null, "dirty_bytes": 0, "disks": {}},
        ]);
    });
    let text = described(&status, None);
    let monday = "monday  2026-01-02 03:04:05  192.0 KiB changed since: vda 64.0 KiB, vdb 64.0 KiB (transient), \
                  vdc all of it (it does not have this checkpoint)\n";
    assert!(text.contains(monday), "{text}");
    assert!(text.contains("theirs  foreign              0 B changed since:\n"), "{text}");
}

#[test]
fn the_last_end_is_told_with_its_age_and_its_reason() {
    let ago = |seconds: u64| {
        let time = SystemTime::now() - std::time::Duration::from_secs(seconds);
        humantime::format_rfc3339_millis(time).to_string()
    };
    let status = document(|status| {
        status["last_end"] = json!({"reason": "scratch is full", "time": ago(7205)});
        status["point"] = json!({"state": "held", "number": 2, "time": ago(130), "checkpoint": null, "open_files": 2,
                                 "scratch": null});
    });
    let text = described(&status, None);
    assert!(text.contains("last ended     2 h ago: scratch is full\n"), "{text}");
    assert!(text.contains("held for 2 min, since 20") && text.contains("; 2 files open\n"), "{text}");
    let ages = [5, 59 * 60, 47 * 3600, 49 * 3600].map(|seconds| age(&ago(seconds)).unwrap());
    assert_eq!(ages, ["5 s", "59 min", "47 h", "2 days"]);
    assert_eq!([age("no time"), age("9999-01-01T00:00:00Z")], [None, None]);
}

#[test]
fn a_narrow_terminal_is_kept_to() {
    let status = document(|status| status["unreachable"] = "words that go on and on ".repeat(9).into());
    let text = described(&status, Some(50));
    assert!(text.lines().all(|line| display_width(line) <= 50), "{text}");
    assert!(text.contains("\n               words"), "continued below the first: {text}");
}

#[test]
fn rates_have_a_line() {
    let rates = Rates { read: 3 << 20, fetched: 1 << 20, reads_per_second: 24 };
    let text = describe(&document(|_| ()), Some(&rates), None);
    assert!(text.contains("3.0 MiB/s read in 24 reads/s, 1.0 MiB/s from the machine"), "{text}");
}

#[test]
fn a_name_cannot_write_on_the_terminal() {
    let checkpoint =
        Checkpoint { name: "a\x1b[2J\n\u{202e}b".into(), created: None, dirty_bytes: 0, disks: BTreeMap::default() };
    assert!(describe_checkpoint(&checkpoint).starts_with("a?[2J??b"));
    assert_eq!(plain("\u{2066}a\u{61c}b\u{200f}c\u{9b}"), "?a?b?c?");
    let name = "vm\x1b[2J\u{2069}";
    let status = document(|status| {
        status["machine"]["name"] = name.into();
        status["disks"][0]["name"] = name.into();
        status["skipped"] = json!([{"name": name, "reason": "no medium"}]);
    });
    let text = described(&status, None);
    assert_eq!(text.matches("vm?[2J?").count(), 3, "{text:?}");
}

#[test]
fn wide_characters_are_aligned() {
    let rows = vec![vec!["\u{78c1}\u{76d8}".to_owned(), "x".to_owned()], vec!["abc".to_owned(), "y".to_owned()]];
    assert_eq!(table(rows), "\u{78c1}\u{76d8}  x\nabc   y\n");
}
