//! Leaving the guest's disk alone (mount options `max_rate=`, `max_inflight=`, `polite`).
//!
//! ```text
//!          cut into     in order of arrival             with the machine
//!  read ──▶ requests ──▶ [rate] ──▶ [turn: a place] ──▶ ░░░ until it is answered
//!  map, give_back ───────────────▶ [      "      ] ──▶ ░░░
//! ```
//! One [`Throttle`] is shared by all disks of a mount, over all its points in time; a [`Throttled`] is one disk behind it.
//! `rate` and `polite` are the rules. What waits has not been sent: its time limit has not begun, and it ends at once when
//! its disk is closed. What was sent has a place until it is answered, whoever still waits for the answer. How many wait is
//! for those who ask: the kernel bounds its requests, and each holds its own buffer already.
//!
//! The limits may change at any time ([`Throttle::change`]). Who waits is told, and waits by the new ones; what is with the
//! machine stays there. While nothing is limited a read goes straight through, for the price of one flag that is read.

mod polite;
mod rate;

use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::BytesMut;
use futures_util::future::try_join_all;
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use self::polite::Polite;
use self::rate::Rate;
use super::{Begun, Map, Sink, Source, Traffic};
use crate::error::{Error, Kind, Result};
use crate::options::Options;

/// How much of a disk one question about its allocation covers, in bytes: reads have their turn in between.
const QUESTION: u64 = 4 << 30;

/// What the mount's options say; by default nothing is limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Bytes a second.
    pub max_rate: Option<u64>,
    /// Requests with the machine at once.
    pub max_inflight: Option<usize>,
    /// Whether a busy guest is made room for.
    pub polite: bool,
}

impl From<&Options> for Limits {
    fn from(options: &Options) -> Self {
        Self { max_rate: options.max_rate, max_inflight: options.max_inflight, polite: options.polite }
    }
}

/// The limits, and how they are used at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Now {
    #[serde(flatten)]
    limits: Limits,
    /// Requests with the machine.
    pub in_flight: usize,
    /// Reads at once that `polite` allows; below 1 the part of the time in which there is one.
    pub window: Option<f64>,
}

/// What all disks of a mount share.
#[derive(Debug)]
pub struct Throttle {
    /// Whether there is any limit; changes together with those of `state`, and may be read without.
    limited: AtomicBool,
    /// Bytes of a request, which the machine gets one by one.
    request_size: u32,
    /// Held, in order of arrival, by the read that is next to be within the rate; before `turn`.
    paying: tokio::sync::Mutex<()>,
    /// Held, in order of arrival, by whoever is next to get a place.
    turn: tokio::sync::Mutex<()>,
    /// Held for a moment only.
    state: Mutex<State>,
    /// A place became free.
    freed: Notify,
    /// The limits became others.
    changed: watch::Sender<()>,
}

#[derive(Debug)]
struct State {
    limits: Limits,
    rate: Option<Rate>,
    polite: Option<Polite>,
    in_flight: usize,
}

/// Whether a request may be sent.
enum Admission {
    Granted,
    At(Instant),
    WhenOneIsAnswered,
}

impl Throttle {
    /// Reads are cut into requests of `request_size` bytes while anything is limited.
    pub fn new(limits: Limits, request_size: u32) -> Arc<Self> {
        let throttle = Self {
            limited: AtomicBool::new(false),
            request_size: request_size.max(1),
            paying: tokio::sync::Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            state: Mutex::new(State { limits: Limits::default(), rate: None, polite: None, in_flight: 0 }),
            freed: Notify::new(),
            changed: watch::Sender::new(()),
        };
        throttle.change(limits);
        Arc::new(throttle)
    }

    /// From now on these limits hold, also for what waits already. What is with the machine stays there, and counts if it
    /// was sent under a limit.
    pub fn change(&self, limits: Limits) {
        let now = Instant::now();
        let largest = u64::from(self.request_size);
        {
            let mut state = self.state();
            state.rate = limits.max_rate.map(|rate| match &state.rate {
                Some(before) => before.changed(rate, largest, now),
                None => Rate::new(rate, largest, now),
            });
            state.polite = limits.polite.then(|| state.polite.take().unwrap_or_else(|| Polite::new(now)));
            state.limits = limits;
            self.limited.store(limits != Limits::default(), Ordering::Relaxed);
        }
        self.changed.send_replace(());
    }

    /// How it is used; none while nothing is limited.
    pub fn now(&self) -> Option<Now> {
        let state = self.state();
        let now =
            Now { limits: state.limits, in_flight: state.in_flight, window: state.polite.as_ref().map(Polite::window) };
        self.is_limited().then_some(now)
    }

    /// In the way of each read. A limit that came this moment may count from the next one on.
    fn is_limited(&self) -> bool {
        self.limited.load(Ordering::Relaxed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a read of so many bytes may be sent.
    async fn read(self: &Arc<Self>, length: usize) -> Place {
        let bytes = u64::try_from(length).unwrap_or(u64::MAX);
        let paying = self.paying.lock().await;
        let mut changed = self.changed.subscribe();
        loop {
            let now = Instant::now();
            let ready = self.state().rate.as_ref().map_or(now, |rate| rate.ready(now, bytes));
            if ready <= now {
                break;
            }
            tokio::select! { () = sleep_until(ready) => {} _ = changed.changed() => {} }
        }
        let place = self.place(true).await;
        // Now that it is certain; nobody else has taken any meanwhile.
        if let Some(rate) = &mut self.state().rate {
            rate.take(Instant::now(), bytes);
        }
        drop(paying);
        place
    }

    /// Waits for a place.
    async fn place(self: &Arc<Self>, read: bool) -> Place {
        let _turn = self.turn.lock().await;
        let mut changed = self.changed.subscribe();
        loop {
            let freed = self.freed.notified();
            let admission = self.state().admit(Instant::now(), read);
            let then = match admission {
                Admission::Granted => return Place { throttle: self.clone(), sent: Instant::now() },
                Admission::At(then) => Some(then),
                Admission::WhenOneIsAnswered => None,
            };
            let due = async {
                match then {
                    Some(then) => sleep_until(then).await,
                    None => freed.await,
                }
            };
            tokio::select! { () = due => {} _ = changed.changed() => {} }
        }
    }
}

impl State {
    fn admit(&mut self, now: Instant, read: bool) -> Admission {
        let polite = self.polite.as_ref().map_or(usize::MAX, Polite::at_once);
        if self.in_flight >= self.limits.max_inflight.unwrap_or(usize::MAX).min(polite) {
            return Admission::WhenOneIsAnswered;
        }
        let ready = self.polite.as_ref().filter(|_| read).map_or(now, |polite| polite.ready(now));
        if ready > now {
            return Admission::At(ready);
        }
        self.in_flight += 1;
        Admission::Granted
    }
}

/// A request with the machine; dropped when it is answered.
struct Place {
    throttle: Arc<Throttle>,
    sent: Instant,
}

impl Place {
    /// It was a read of so many bytes, and went well.
    fn answered(self, length: usize) {
        let now = Instant::now();
        if let Some(polite) = &mut self.throttle.state().polite {
            polite.answered(now, length, now - self.sent);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.throttle.state().in_flight -= 1;
        self.throttle.freed.notify_one();
    }
}

/// A source that waits for its turn.
pub struct Throttled {
    source: Arc<dyn Source>,
    throttle: Arc<Throttle>,
    closed: watch::Sender<bool>,
}

impl Throttled {
    /// `throttle` is shared by all disks of the mount.
    pub fn new(source: Arc<dyn Source>, throttle: Arc<Throttle>) -> Self {
        Self { source, throttle, closed: watch::Sender::new(false) }
    }

    async fn unless_closed(&self, place: impl Future<Output = Place>) -> Result<Place> {
        let mut closed = self.closed.subscribe();
        tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => {
                Err(Error::new(Kind::Io, "the point in time ended while a read waited for its turn"))
            }
            place = place => Ok(place),
        }
    }

    async fn request(&self, offset: u64, buf: BytesMut) -> Result<BytesMut> {
        let length = buf.len();
        let place = self.unless_closed(self.throttle.read(length)).await?;
        let source = self.source.clone();
        // The machine has it from here on, also when its reader does not wait any more.
        let sent = tokio::spawn(async move {
            let read = source.read(offset, buf).await;
            if read.is_ok() {
                place.answered(length);
            }
            read
        });
        sent.await.unwrap_or_else(|_| Err(Error::new(Kind::Io, "the mount ends")))
    }
}

#[async_trait]
impl Source for Throttled {
    async fn read(&self, offset: u64, mut buf: BytesMut) -> Result<BytesMut> {
        if !self.throttle.is_limited() {
            return self.source.read(offset, buf).await;
        }
        let size = usize::try_from(self.throttle.request_size).unwrap_or(usize::MAX);
        let mut requests = Vec::with_capacity(buf.len() / size + 2);
        let mut at = offset;
        // At multiples of their size, where the pool would cut them.
        while !buf.is_empty() {
            let into = usize::try_from(at % u64::try_from(size).unwrap_or(u64::MAX)).unwrap_or(0);
            let part = buf.split_to((size - into).min(buf.len()));
            let start = at;
            at = at.saturating_add(u64::try_from(part.len()).unwrap_or(u64::MAX));
            requests.push(self.request(start, part));
        }
        let mut whole = BytesMut::new();
        for part in try_join_all(requests).await? {
            whole.unsplit(part);
        }
        Ok(whole)
    }

    fn begin(&self, offset: u64, buf: BytesMut, begun: Begun) -> Option<(BytesMut, Begun)> {
        if self.throttle.is_limited() { Some((buf, begun)) } else { self.source.begin(offset, buf, begun) }
    }

    async fn map(&self, map: &Map, window: Range<u64>, sink: &mut Sink<'_>) -> Result<()> {
        // A dirty bitmap is in QEMU's memory, and is had at once.
        let step = if *map == Map::Allocation { QUESTION } else { u64::MAX };
        let mut at = window.start;
        while at < window.end {
            let limited = self.throttle.is_limited();
            let end = if limited { window.end.min(at.saturating_add(step)) } else { window.end };
            let (mut flow, mut next) = (ControlFlow::Continue(()), end);
            let mut follow = |range: Range<u64>, inside: bool| {
                let reached = range.end;
                flow = sink(range, inside);
                // The rest is asked for within a limit that came meanwhile.
                if flow.is_continue() && !limited && self.throttle.is_limited() {
                    next = reached;
                    return ControlFlow::Break(());
                }
                flow
            };
            let place = if limited { Some(self.unless_closed(self.throttle.place(false)).await?) } else { None };
            let asked = self.source.map(map, at..end, &mut follow).await;
            drop(place);
            asked?;
            if flow.is_break() {
                break;
            }
            at = next;
        }
        Ok(())
    }

    async fn give_back(&self, range: Range<u64>) -> Result<()> {
        if !self.throttle.is_limited() {
            return self.source.give_back(range).await;
        }
        let _place = self.unless_closed(self.throttle.place(false)).await?;
        self.source.give_back(range).await
    }

    fn traffic(&self) -> Traffic {
        self.source.traffic()
    }

    async fn close(&self) {
        self.closed.send_replace(true);
        self.source.close().await;
    }
}

#[cfg(test)]
mod tests;
