//! Which domains run, from now on: a thread that asks libvirt, and asks again whenever something happens.
//!
//! ```text
//! connect ─▶ subscribe ─▶ list ─▶ tell ─▶ wait for an event, or a while ─▶ list …
//!    ▲                     │ broken, or no answer in time: tell
//!    └───── a while ───────┘
//! ```
//! Events say that something happened, and the list what is: so none that is lost does harm. There is one connection, and one
//! call at a time on it; one that hangs is told, and waited for.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, channel, sync_channel};
use std::time::Duration;

use libvirt::{Connection, Event, Subscription};

use super::link::explain;
use crate::error::{Error, Kind, Result};

/// How long an answer may take until it is told that there is none.
const LIMIT: Duration = Duration::from_secs(5);

/// Events come in groups: one list answers all of them.
const SETTLE: Duration = Duration::from_millis(50);

/// Between two lists when nothing happens: a daemon that hangs is noticed.
const SELDOM: Duration = Duration::from_secs(60);

/// Before another try to connect.
const PAUSE: Duration = Duration::from_secs(1);

/// A domain that runs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its UUID, which no other domain has.
    pub uuid: String,
}

/// Starts the thread. `tell` gets the domains that run, whenever they may be others than before, and why they are not known
/// while libvirt does not answer. The thread ends when `tell` says `false`.
///
/// # Errors
/// When there is no thread to be had.
pub fn watch(uri: String, tell: impl Fn(Result<Vec<Member>>) -> bool + Send + 'static) -> Result<()> {
    let run = move || {
        while attend(&uri, &tell) {
            std::thread::sleep(PAUSE);
        }
    };
    let spawned = std::thread::Builder::new().name("roster".to_owned()).spawn(run);
    spawned.map(drop).map_err(|error| Error::with_source(Kind::Io, "cannot start a thread", error))
}

/// One connection, from its beginning to its end. Whether to go on.
fn attend(uri: &str, tell: &impl Fn(Result<Vec<Member>>) -> bool) -> bool {
    let what = format!("cannot tell which domains run of libvirt at {uri}");
    let (happened, happens) = sync_channel(1);
    let opened = uri.to_owned();
    let connected = answer(&what, tell, move || connect(&opened, happened));
    let (connection, _subscription) = match connected {
        Answer::Ended => return false,
        Answer::Failed(error) => return tell(Err(explain(&what, error))),
        Answer::Of(connected) => connected,
    };
    loop {
        let asked = connection.clone();
        match answer(&what, tell, move || list(&asked)) {
            Answer::Ended => return false,
            Answer::Failed(error) => return tell(Err(explain(&what, error))),
            Answer::Of(members) => {
                if !tell(Ok(members)) {
                    return false;
                }
            }
        }
        if !wait(&happens) || !connection.is_alive() {
            return tell(Err(Error::new(Kind::Gone, format!("{what}: the connection ended"))));
        }
    }
}

/// What became of a question.
enum Answer<T> {
    Of(T),
    Failed(libvirt::Error),
    /// Nobody wants to know any more.
    Ended,
}

/// Asks on a thread of its own, which blocks for as long as libvirt does.
fn answer<T: Send + 'static>(
    what: &str,
    tell: &impl Fn(Result<Vec<Member>>) -> bool,
    ask: impl FnOnce() -> libvirt::Result<T> + Send + 'static,
) -> Answer<T> {
    let (give, given) = channel();
    std::thread::spawn(move || give.send(ask()).ok());
    let answered = match given.recv_timeout(LIMIT) {
        Err(RecvTimeoutError::Timeout) => {
            let slow = format!("{what}: no answer within {} s", LIMIT.as_secs());
            if !tell(Err(Error::new(Kind::Timeout, slow))) {
                return Answer::Ended;
            }
            given.recv().ok()
        }
        other => other.ok(),
    };
    match answered {
        Some(Ok(answer)) => Answer::Of(answer),
        Some(Err(error)) => Answer::Failed(error),
        None => Answer::Ended,
    }
}

fn connect(uri: &str, happened: SyncSender<bool>) -> libvirt::Result<(Connection, Subscription)> {
    let connection = Connection::open(Some(uri))?;
    let sink = move |event| {
        let again = match event {
            Event::Closed => false,
            Event::Lifecycle { .. } => true,
            _ => return,
        };
        // One that waits already says the same; that a connection is closed, it says itself.
        happened.try_send(again).ok();
    };
    let subscription = connection.subscribe(None, sink)?;
    Ok((connection, subscription))
}

fn list(connection: &Connection) -> libvirt::Result<Vec<Member>> {
    let domains = connection.running_domains()?;
    let mut members = Vec::with_capacity(domains.len());
    for domain in domains {
        members.push(Member { name: domain.name(), uuid: domain.uuid()? });
    }
    members.sort();
    Ok(members)
}

/// Waits until something happened, or for long enough; `false` when the connection ended.
fn wait(happens: &Receiver<bool>) -> bool {
    match happens.recv_timeout(SELDOM) {
        Ok(true) => {
            std::thread::sleep(SETTLE);
            happens.try_recv() != Ok(false)
        }
        Err(RecvTimeoutError::Timeout) => true,
        Ok(false) | Err(RecvTimeoutError::Disconnected) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_run_are_told_in_their_order_until_nobody_asks() {
        let (give, given) = channel();
        watch("test:///default".to_owned(), move |told| give.send(told).is_ok()).unwrap();
        let members = given.recv_timeout(LIMIT).unwrap().unwrap();
        assert_eq!((members.len(), &*members[0].name, members[0].uuid.len()), (1, "test", 36));
    }

    #[test]
    fn a_libvirt_that_is_not_there_is_told() {
        let (give, given) = channel();
        let uri = "qemu+unix:///system?socket=/nowhere/socket";
        watch(uri.to_owned(), move |told| give.send(told).is_ok()).unwrap();
        let error = given.recv_timeout(LIMIT).unwrap().unwrap_err();
        assert!(error.kind() == Kind::Gone && error.to_string().contains("/nowhere/socket"), "{error}");
    }
}
