//! How far a copy is: a bar on a terminal, a line now and then elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::failure::Outcome;
use crate::status::{print, size};

/// Between two lines.
const PERIOD: Duration = Duration::from_secs(10);

const BAR: &str = "{bar:30} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";

enum Shown {
    Bar(ProgressBar),
    Lines { next: Instant },
    Nothing,
}

pub(super) struct Progress {
    shown: Shown,
    begin: Instant,
    /// May turn out to be more.
    total: u64,
    done: u64,
}

impl Progress {
    /// Says what begins, with `total` bytes to do.
    pub(super) fn begin(what: &str, total: u64, quiet: bool) -> Outcome<Self> {
        let begin = Instant::now();
        let shown = if quiet {
            Shown::Nothing
        } else {
            print(&format!("{what}\n"))?;
            if std::io::stderr().is_terminal() {
                let style = ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar());
                Shown::Bar(ProgressBar::new(total).with_style(style))
            } else {
                Shown::Lines { next: begin + PERIOD }
            }
        };
        Ok(Self { shown, begin, total, done: 0 })
    }

    pub(super) fn add(&mut self, bytes: u64) -> Outcome {
        self.done += bytes;
        self.total = self.total.max(self.done);
        match &mut self.shown {
            Shown::Bar(bar) => {
                bar.set_length(self.total);
                bar.set_position(self.done);
            }
            Shown::Lines { next } if Instant::now() >= *next => {
                *next = Instant::now() + PERIOD;
                return print(&line(self.done, self.total, self.begin.elapsed()));
            }
            Shown::Lines { .. } | Shown::Nothing => {}
        }
        Ok(())
    }

    /// Takes the bar away and says how it ended.
    pub(super) fn end(self, what: &str) -> Outcome {
        let seconds = self.begin.elapsed().as_secs_f64();
        match self.shown {
            Shown::Nothing => return Ok(()),
            Shown::Bar(bar) => bar.finish_and_clear(),
            Shown::Lines { .. } => {}
        }
        print(&format!("done in {seconds:.1} s: {what}\n"))
    }
}

fn line(done: u64, total: u64, elapsed: Duration) -> String {
    let millis = elapsed.as_millis().max(1);
    let rate = u64::try_from(u128::from(done) * 1000 / millis).unwrap_or(u64::MAX);
    let left = (total - done).checked_div(rate).map(|seconds| format!(", {} left", time(seconds))).unwrap_or_default();
    format!("{} of {}, {}/s{left}\n", size(done), size(total), size(rate))
}

fn time(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let mib = 1 << 20;
        assert_eq!(line(10 * mib, 100 * mib, Duration::from_secs(1)), "10.0 MiB of 100.0 MiB, 10.0 MiB/s, 9 s left\n");
        assert_eq!(line(mib, 7201 * mib, Duration::from_secs(1)), "1.0 MiB of 7.0 GiB, 1.0 MiB/s, 2 h 0 min left\n");
        assert_eq!(line(0, 61, Duration::ZERO), "0 B of 61 B, 0 B/s\n");
        assert_eq!(time(61), "1 min 1 s");
    }

    #[test]
    fn the_bar_is_one() {
        assert!(ProgressStyle::with_template(BAR).is_ok());
    }
}
