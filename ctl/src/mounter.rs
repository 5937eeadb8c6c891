//! The one thread that keeps the daemon's privileges: it mounts, and ends.
//!
//! It is started before [`crate::harden`]; what mounting takes is known only after the machine was spoken to.

use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::Context;
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// The thread. It ends when this is dropped, too.
pub(crate) struct Mounter {
    tell: mpsc::Sender<Job>,
    thread: JoinHandle<()>,
}

impl Mounter {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let (tell, told) = mpsc::channel::<Job>();
        let thread = std::thread::Builder::new()
            .name("mounter".to_owned())
            .spawn(move || told.into_iter().for_each(|job| job()))
            .context("cannot start a thread")?;
        Ok(Self { tell, thread })
    }

    /// Runs `job` with the privileges that the program was started with. They are gone when this returns.
    pub(crate) async fn run<T: Send + 'static>(self, job: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<T> {
        let (answer, answered) = oneshot::channel();
        let job = move || {
            // Whoever asked may have given up.
            answer.send(job()).ok();
        };
        self.tell.send(Box::new(job)).ok().context("the mounting thread is gone")?;
        let outcome = answered.await.context("the mounting thread panicked");
        drop(self.tell);
        // It has nothing left to do.
        self.thread.join().ok();
        outcome
    }
}
