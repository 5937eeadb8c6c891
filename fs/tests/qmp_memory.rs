//! A QMP server that floods: what pullfs takes for it is bounded, measured by the kernel. A test binary of its own, so
//! that nothing else is measured.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use pullfs_fs::error::{Kind, chain};
use pullfs_fs::vm::qmp::monitor::Monitor;
use pullfs_fs::vm::qmp::transport::{Message, Qmp};
use serde_json::json;

const MIB: usize = 1 << 20;

/// Most that any flood may take, in MiB: an answer of 256 MiB by our estimate, and the line of up to 64 MiB that it is
/// made of.
const MOST: usize = 400;

/// A line is given up, or a command's time limit passes, long before.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the server does after it has read a command with this id; an error of the socket ends it.
type Flood = fn(&mut UnixStream, &str) -> std::io::Result<()>;

fn serve(socket: &Path, flood: Flood) {
    let listener = UnixListener::bind(socket).expect("a socket");
    thread::spawn(move || {
        let mut stream = listener.accept().expect("a client").0;
        // One client only: a flood is not begun again.
        drop(listener);
        let mut commands = BufReader::new(stream.try_clone().expect("a second handle")).lines();
        let mut talk = || {
            stream.write_all(b"{\"QMP\": {}}\n")?;
            commands.next().transpose()?;
            stream.write_all(b"{\"return\": {}}\n")?;
            let command = commands.next().transpose()?.unwrap_or_default();
            let command: serde_json::Value = serde_json::from_str(&command)?;
            flood(&mut stream, &command["id"].to_string())
        };
        // The client hangs up in the midst of it.
        talk().ok();
        // Until the client has seen all of it.
        commands.next();
    });
}

/// Writes `piece` until `total` bytes are sent.
fn repeat(stream: &mut UnixStream, piece: &str, total: usize) -> std::io::Result<()> {
    let chunk = piece.repeat((64 << 10) / piece.len() + 1);
    for _ in 0..=total / chunk.len() {
        stream.write_all(chunk.as_bytes())?;
    }
    Ok(())
}

/// The most memory that this process had since [`forget_peak`], in MiB.
fn peak() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") >> 10
}

fn forget_peak() {
    fs::write("/proc/self/clear_refs", "5").expect("the kernel forgets the peak");
}

/// The floods by name, and the kind of error that the command ends with, if it does.
const FLOODS: [(&str, Flood, Option<Kind>); 10] = [
    ("a line without an end", |stream, _| repeat(stream, "x", 200 * MIB), Some(Kind::Gone)),
    (
        "blank lines",
        |stream, id| {
            repeat(stream, "\n\r\n", 2 * MIB)?;
            writeln!(stream, "{{\"return\": 1, \"id\": {id}}}")
        },
        None,
    ),
    (
        "small events",
        |stream, id| {
            repeat(stream, "{\"event\": \"STOP\", \"data\": {\"a\": {\"b\": [1, 2, 3]}}}\n", 4 * MIB)?;
            writeln!(stream, "{{\"return\": 1, \"id\": {id}}}")
        },
        None,
    ),
    (
        "large events",
        |stream, id| {
            for _ in 0..4 {
                write!(stream, "{{\"event\": \"STOP\", \"data\": [0")?;
                repeat(stream, ",{\"a\":0}", 2 * MIB)?;
                writeln!(stream, "]}}")?;
            }
            writeln!(stream, "{{\"return\": 1, \"id\": {id}}}")
        },
        None,
    ),
    (
        "events with long names",
        |stream, id| {
            for _ in 0..3 {
                write!(stream, "{{\"event\": \"")?;
                repeat(stream, "STOP", 4 * MIB)?;
                writeln!(stream, "\"}}")?;
            }
            writeln!(stream, "{{\"return\": 1, \"id\": {id}}}")
        },
        None,
    ),
    (
        "answers to nobody",
        |stream, id| {
            for other in 1000..1004 {
                write!(stream, "{{\"id\": {other}, \"return\": [0")?;
                repeat(stream, ",{}", 4 * MIB)?;
                writeln!(stream, "]}}")?;
            }
            writeln!(stream, "{{\"return\": 1, \"id\": {id}}}")
        },
        None,
    ),
    (
        "an answer of 24 MiB of objects",
        |stream, id| {
            write!(stream, "{{\"id\": {id}, \"return\": [0")?;
            repeat(stream, ",{\"a\":0}", 24 * MIB)?;
            writeln!(stream, "]}}")
        },
        Some(Kind::Gone),
    ),
    (
        "an answer of 24 MiB of lists in lists",
        |stream, id| {
            write!(stream, "{{\"id\": {id}, \"return\": [0")?;
            repeat(stream, "[", 24 * MIB)?;
            writeln!(stream, "]}}")
        },
        Some(Kind::Gone),
    ),
    (
        "an answer as large as is taken",
        |stream, id| {
            write!(stream, "{{\"id\": {id}, \"return\": [0")?;
            repeat(stream, ",0", 13 * MIB)?;
            writeln!(stream, "]}}")
        },
        None,
    ),
    (
        "an error of 60 MiB",
        |stream, id| {
            write!(stream, "{{\"id\": {id}, \"error\": {{\"class\": \"X\", \"desc\": \"")?;
            repeat(stream, "no\\n", 60 * MIB)?;
            writeln!(stream, "\"}}}}")
        },
        Some(Kind::Unsupported),
    ),
];

#[test]
fn no_flood_takes_more_memory_than_a_large_machine() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    for (name, flood, expected) in FLOODS {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let socket = dir.path().join("qmp");
        serve(&socket, flood);
        forget_peak();
        let (before, began) = (peak(), Instant::now());
        let outcome = runtime.block_on(async {
            let qmp = Qmp::connect(&Monitor::unix(&socket)).await.expect("a greeting");
            // Somebody who listens and never looks.
            let mut slow = qmp.messages();
            let outcome = tokio::time::timeout(PATIENCE, qmp.execute("query-block", json!({}))).await.expect("in time");
            assert!(!matches!(slow.try_recv(), Ok(Message::Disconnected(_))) || outcome.is_err());
            outcome
        });
        let taken = peak() - before;
        let said = outcome.as_ref().map_or_else(|error| chain(error), |_| "an answer".to_owned());
        println!("{name}: {taken} MiB, {} ms: {said:.100}", began.elapsed().as_millis());
        assert!(taken < MOST, "{name} took {taken} MiB");
        let kind = outcome.err().map(|error| error.kind());
        // On a machine that is busy the time limit may come first.
        assert!(kind == expected || kind == Some(Kind::Timeout), "{name}: {said}");
        assert!(said.len() < 2000 && !said.contains(char::is_control), "not one line: {said:.200}");
    }
}
