//! What is waited for, once that takes longer than a second: on a terminal, gone without a trace afterwards.

use std::io::IsTerminal;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// So long nobody wonders.
const PATIENCE: Duration = Duration::from_secs(1);

/// Between two pictures of the spinner.
const TICK: Duration = Duration::from_millis(100);

const SPINNER: &str = "{spinner} {wide_msg} {elapsed}";

/// Does `work`. Standard error shows `what` is waited for, if that is a terminal; nothing else may write there meanwhile.
pub(crate) fn waiting<T>(what: &str, work: impl FnOnce() -> T) -> T {
    if !std::io::stderr().is_terminal() {
        return work();
    }
    let (done, is_done) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if is_done.recv_timeout(PATIENCE) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            let style = ProgressStyle::with_template(SPINNER).unwrap_or_else(|_| ProgressStyle::default_spinner());
            let spinner = ProgressBar::new_spinner().with_style(style).with_elapsed(PATIENCE);
            spinner.set_message(what.to_owned());
            spinner.enable_steady_tick(TICK);
            // Ends when the work has, also with a panic.
            is_done.recv().ok();
            spinner.finish_and_clear();
        });
        let outcome = work();
        drop(done);
        outcome
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spinner_is_one() {
        assert!(ProgressStyle::with_template(SPINNER).is_ok());
    }
}
