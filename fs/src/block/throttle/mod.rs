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

mod polite;
mod rate;

use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::BytesMut;
use futures_util::future::try_join_all;
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use self::polite::Polite;
use self::rate::Rate;
use super::{Map, Sink, Source, Traffic};
use crate::error::{Error, Kind, Result};
use crate::options::Options;

/// How much of a disk one question about its allocation covers, in bytes: reads have their turn in between.
const QUESTION: u64 = 4 << 30;

/// What the mount's options say.
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
    limits: Limits,
    /// Bytes of a request.
    request_size: usize,
    /// Held, in order of arrival, by the read that is next to be within the rate; before `turn`.
    paying: tokio::sync::Mutex<()>,
    /// Held, in order of arrival, by whoever is next to get a place.
    turn: tokio::sync::Mutex<()>,
    /// Held for a moment only.
    state: Mutex<State>,
    /// A place became free.
    freed: Notify,
}

#[derive(Debug)]
struct State {
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
    /// None if nothing is limited. Reads are cut into requests of `request_size` bytes, which the machine gets one by one.
    pub fn new(limits: Limits, request_size: u32) -> Option<Arc<Self>> {
        if limits == Limits::default() {
            return None;
        }
        let now = Instant::now();
        let request_size = request_size.max(1);
        let state = State {
            rate: limits.max_rate.map(|rate| Rate::new(rate, u64::from(request_size), now)),
            polite: limits.polite.then(|| Polite::new(now)),
            in_flight: 0,
        };
        Some(Arc::new(Self {
            limits,
            request_size: usize::try_from(request_size).unwrap_or(usize::MAX),
            paying: tokio::sync::Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            state: Mutex::new(state),
            freed: Notify::new(),
        }))
    }

    /// How it is used.
    pub fn now(&self) -> Now {
        let state = self.state();
        Now { limits: self.limits, in_flight: state.in_flight, window: state.polite.as_ref().map(Polite::window) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a read of so many bytes may be sent.
    async fn read(self: &Arc<Self>, length: usize) -> Place {
        let bytes = u64::try_from(length).unwrap_or(u64::MAX);
        let paying = self.paying.lock().await;
        let ready = self.state().rate.as_ref().map(|rate| rate.ready(Instant::now(), bytes));
        if let Some(ready) = ready {
            sleep_until(ready).await;
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
        loop {
            let freed = self.freed.notified();
            let admission = self.state().admit(Instant::now(), self.limits.max_inflight, read);
            match admission {
                Admission::Granted => return Place { throttle: self.clone(), sent: Instant::now() },
                Admission::At(then) => sleep_until(then).await,
                Admission::WhenOneIsAnswered => freed.await,
            }
        }
    }
}

impl State {
    fn admit(&mut self, now: Instant, max_inflight: Option<usize>, read: bool) -> Admission {
        let polite = self.polite.as_ref().map_or(usize::MAX, Polite::at_once);
        if self.in_flight >= max_inflight.unwrap_or(usize::MAX).min(polite) {
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
        let size = self.throttle.request_size;
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

    async fn map(&self, map: &Map, window: Range<u64>, sink: &mut Sink<'_>) -> Result<()> {
        // A dirty bitmap is in QEMU's memory, and is had at once.
        let step = if *map == Map::Allocation { QUESTION } else { u64::MAX };
        let mut at = window.start;
        while at < window.end {
            let end = window.end.min(at.saturating_add(step));
            let mut flow = ControlFlow::Continue(());
            let mut follow = |range: Range<u64>, inside: bool| {
                flow = sink(range, inside);
                flow
            };
            let place = self.unless_closed(self.throttle.place(false)).await?;
            let asked = self.source.map(map, at..end, &mut follow).await;
            drop(place);
            asked?;
            if flow.is_break() {
                break;
            }
            at = end;
        }
        Ok(())
    }

    async fn give_back(&self, range: Range<u64>) -> Result<()> {
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
