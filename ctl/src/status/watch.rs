//! `pullfs status --watch`: a reading every few seconds, until it is interrupted or the mount goes away.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::Context;
use pullfs_fs::fuse::mount::find;
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::{Code, Failure, Outcome};
use crate::mounted::{Mounted, Status};
use crate::status::text::{Rates, describe};
use crate::status::{painted, width};

/// The other screen, without a cursor; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

pub(super) fn run(mounted: &Mounted, seconds: u32, json: bool, color: clap::ColorChoice) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    let screen = Screen::new(!json && std::io::stdout().is_terminal());
    let outcome = runtime.block_on(watch(mounted, Duration::from_secs(seconds.into()), json, color, &screen));
    drop(screen);
    // A reading of a mount that hangs must not keep the process.
    runtime.shutdown_background();
    outcome
}

async fn watch(mounted: &Mounted, period: Duration, json: bool, color: clap::ColorChoice, screen: &Screen) -> Outcome {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut ticks = tokio::time::interval(period);
    let readings = async {
        let mut before = None;
        loop {
            ticks.tick().await;
            let text = read(mounted).await?;
            let block = if json { one_line(&text)? } else { block(&text, &mut before, color)? };
            if !screen.show(&block, !json)? {
                return Ok(());
            }
        }
    };
    tokio::select! {
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        outcome = readings => outcome,
    }
}

async fn read(mounted: &Mounted) -> Outcome<String> {
    let reader = Mounted::of(mounted.path().to_owned());
    let text = tokio::task::spawn_blocking(move || reader.status_text()).await.context("a reading ended early")?;
    // An unmount leaves the directory below, where the file is not found.
    if find(mounted.path())?.is_none() {
        let place = mounted.path().display();
        return Err(Failure::message(Code::NotFound, format!("no machine is mounted on {place} any more")));
    }
    text
}

fn one_line(text: &str) -> Outcome<String> {
    let value: serde_json::Value = serde_json::from_str(text).context("status.json is not JSON")?;
    Ok(format!("{value}\n"))
}

fn block(text: &str, before: &mut Option<(Instant, Status)>, color: clap::ColorChoice) -> Outcome<String> {
    let status: Status = serde_json::from_str(text).context("status.json is of another version of pullfs")?;
    let now = Instant::now();
    let rates = before.as_ref().map(|(then, before)| rates(before, &status, now - *then));
    let block = painted(&describe(&status, rates.as_ref(), width()), color);
    *before = Some((now, status));
    Ok(block)
}

fn rates(before: &Status, after: &Status, time: Duration) -> Rates {
    let rate = |before: u64, after: u64| {
        let more = u128::from(after.saturating_sub(before));
        u64::try_from(more * 1000 / time.as_millis().max(1)).unwrap_or(u64::MAX)
    };
    Rates {
        read: rate(before.reads.bytes, after.reads.bytes),
        fetched: rate(before.cache.fetched, after.cache.fetched),
        reads_per_second: rate(before.reads.count, after.reads.count),
    }
}

/// Where blocks go: a terminal's other screen, or one after the other.
struct Screen {
    terminal: bool,
}

impl Screen {
    fn new(terminal: bool) -> Self {
        if terminal {
            // What fails here fails with the first block, too.
            std::io::stdout().write_all(ENTER.as_bytes()).ok();
        }
        Self { terminal }
    }

    /// Whether anybody is left who reads.
    fn show(&self, block: &str, apart: bool) -> Outcome<bool> {
        let text = match () {
            () if self.terminal => redrawn(block, height()),
            () if apart => format!("{block}\n"),
            () => block.to_owned(),
        };
        let mut out = std::io::stdout();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.terminal {
            let mut out = std::io::stdout();
            out.write_all(LEAVE.as_bytes()).and_then(|()| out.flush()).ok();
        }
    }
}

fn height() -> usize {
    terminal_size::terminal_size_of(std::io::stdout()).map_or(usize::MAX, |(_, height)| usize::from(height.0))
}

/// Over what is there, in one write, so that nothing flickers; what does not fit is left out.
fn redrawn(block: &str, height: usize) -> String {
    let lines: Vec<&str> = block.lines().take(height.max(1)).collect();
    format!("\x1b[H{}\x1b[K\x1b[J", lines.join("\x1b[K\r\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_what_came_in_between_in_a_second() {
        let status = |count: u64, bytes: u64, fetched: u64| -> Status {
            let document = serde_json::json!({
                "pid": 7, "machine": {"source": "qmp:/a", "qemu": "10.0", "fleece": "job"}, "disks": [], "skipped": [],
                "checkpoints": [], "point": {"state": "none", "number": 0, "open_files": 0},
                "reads": {"count": count, "bytes": bytes}, "cache": {"fetched": fetched},
            });
            serde_json::from_value(document).unwrap()
        };
        let Rates { read, fetched, reads_per_second } =
            rates(&status(10, 1000, 300), &status(30, 5000, 500), Duration::from_millis(500));
        assert_eq!((read, fetched, reads_per_second), (8000, 400, 40));
        // Another daemon has begun again from nothing.
        assert_eq!(rates(&status(10, 1000, 300), &status(1, 10, 3), Duration::ZERO).read, 0);
    }

    #[test]
    fn a_block_that_is_too_high_is_cut() {
        assert_eq!(redrawn("a\nb\nc\n", 2), "\x1b[Ha\x1b[K\r\nb\x1b[K\x1b[J");
    }
}
