//! What is to be done about each domain of a host, and when. Nothing is done here.
//!
//! ```text
//!            look                place free              its mount answers
//!  Idle ───────────▶ Waiting ───────────────▶ Starting ───────────────────▶ Mounted
//!   ▲ ▲                 │ too long               │ too long, domain gone       │ unused, domain gone, looked for in vain
//!   │ └─────────────────┘                        ▼                             ▼
//!   └──────────── its process has ended ────── Ending ◀────────────────────────┘
//! ```
//! Invariants, which `policy_tests.rs` holds against a kernel that asks at random: each request gets exactly one answer, within
//! [`QUEUE_LIMIT`] + [`START_LIMIT`] + a process's end; a domain has one process at most, and no more than [`MOST_AT_ONCE`]
//! start at once.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use rustix::io::Errno;

/// Processes that start at the same time: each asks libvirt, and its QEMU, a few dozen questions.
pub(super) const MOST_AT_ONCE: usize = 8;

/// How long a look may wait until a start begins.
pub(super) const QUEUE_LIMIT: Duration = Duration::from_secs(60);

/// How long a start may take.
pub(super) const START_LIMIT: Duration = Duration::from_secs(60);

/// How long a process may take to let go of its machine before it is killed; it gives itself a little less.
pub(super) const END_LIMIT: Duration = Duration::from_secs(130);

/// A process of a domain. No number is used twice.
pub(super) type Id = u64;

/// A request of the kernel's.
pub(super) type Token = u32;

/// What is to be done now, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Order {
    /// Makes a directory.
    Make { name: String },
    /// Removes it.
    Remove { name: String },
    /// Starts the process of a domain.
    Start { id: Id, name: String, uuid: String },
    /// Has it let go of its machine and end.
    End { id: Id },
    /// Ends it at once.
    Kill { id: Id },
    /// Unmounts it if nothing is held and nobody uses it, and tells [`Policy::unmounted`].
    Unmount { id: Id, name: String },
    /// Answers a request: done.
    Ready(Token),
    /// Answers a request: not done.
    Fail(Token, Errno),
}

/// How a domain is, to people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shown<'a> {
    Idle,
    Failed(&'a str),
    Waiting,
    Starting(Id),
    Mounted(Id),
    Ending(Id),
}

#[derive(Debug)]
enum State {
    Idle { failed: Option<String> },
    Waiting { since: Instant, looks: Vec<Token> },
    Starting { id: Id, since: Instant, looks: Vec<Token> },
    Mounted { id: Id },
    Ending { id: Id, since: Instant, killed: bool, failed: Option<String>, looks: Vec<(Instant, Token)> },
}

impl State {
    fn id(&self) -> Option<Id> {
        match self {
            Self::Idle { .. } | Self::Waiting { .. } => None,
            Self::Starting { id, .. } | Self::Mounted { id } | Self::Ending { id, .. } => Some(*id),
        }
    }
}

#[derive(Debug)]
struct Domain {
    /// Which one is shown by that name; none if it does not run any more, and its process has not ended yet.
    uuid: Option<String>,
    state: State,
    /// The kernel wants to know whether it may expire.
    expiring: Option<Token>,
}

/// All domains of a host, by the names of their directories.
#[derive(Debug, Default)]
pub(super) struct Policy {
    domains: BTreeMap<String, Domain>,
    /// Those that wait, the longest first; and some that do not any more.
    queue: VecDeque<String>,
    last: Id,
    closing: bool,
    orders: Vec<Order>,
}

impl Policy {
    /// What came of it all since the last call.
    pub(super) fn orders(&mut self) -> Vec<Order> {
        std::mem::take(&mut self.orders)
    }

    /// The domains that run: UUIDs, by the names of their directories.
    pub(super) fn list(&mut self, now: Instant, running: &BTreeMap<String, String>) {
        if self.closing {
            return;
        }
        let gone = |(name, domain): (&String, &Domain)| {
            let stays = domain.uuid.is_some() && domain.uuid.as_ref() == running.get(name);
            (!stays).then(|| name.clone())
        };
        let gone: Vec<String> = self.domains.iter().filter_map(gone).collect();
        for name in gone {
            self.gone(now, &name, running.get(&name).cloned());
        }
        for (name, uuid) in running {
            if !self.domains.contains_key(name) {
                let state = State::Idle { failed: None };
                self.domains.insert(name.clone(), Domain { uuid: Some(uuid.clone()), state, expiring: None });
                self.orders.push(Order::Make { name: name.clone() });
            }
        }
    }

    /// The domain that had this name has ended; another one may have it now.
    fn gone(&mut self, now: Instant, name: &str, next: Option<String>) {
        let Some(domain) = self.domains.get_mut(name) else { return };
        domain.uuid = next;
        end(domain, now, None, Errno::NOENT, &mut self.orders);
        self.forget(name);
    }

    /// Removes what neither runs nor has a process.
    fn forget(&mut self, name: &str) {
        if self.domains.get(name).is_some_and(|domain| domain.uuid.is_none() && domain.state.id().is_none()) {
            self.domains.remove(name);
            self.orders.push(Order::Remove { name: name.to_owned() });
        }
    }

    /// Somebody looks into a directory in which nothing is mounted.
    pub(super) fn look(&mut self, now: Instant, name: &str, token: Token) {
        let running = self.domains.get_mut(name).filter(|domain| domain.uuid.is_some());
        let Some(domain) = running else {
            self.orders.push(Order::Fail(token, Errno::NOENT));
            return;
        };
        match &mut domain.state {
            State::Idle { .. } => {
                domain.state = State::Waiting { since: now, looks: vec![token] };
                self.queue.push_back(name.to_owned());
            }
            State::Waiting { looks, .. } | State::Starting { looks, .. } => looks.push(token),
            State::Ending { looks, .. } => looks.push((now, token)),
            State::Mounted { id } => {
                // Somebody unmounted it, and its process may not have noticed.
                let id = *id;
                self.orders.push(Order::End { id });
                let looks = vec![(now, token)];
                domain.state = State::Ending { id, since: now, killed: false, failed: None, looks };
            }
        }
        self.start(now);
    }

    /// The kernel asks for the end of a mount that nobody used for a while.
    pub(super) fn expire(&mut self, name: &str, token: Token) {
        match self.domains.get_mut(name) {
            Some(Domain { state: State::Mounted { id }, expiring: expiring @ None, .. }) => {
                *expiring = Some(token);
                self.orders.push(Order::Unmount { id: *id, name: name.to_owned() });
            }
            Some(Domain { state: State::Idle { .. }, .. }) | None => self.orders.push(Order::Ready(token)),
            Some(_) => self.orders.push(Order::Fail(token, Errno::BUSY)),
        }
    }

    /// What became of [`Order::Unmount`].
    pub(super) fn unmounted(&mut self, now: Instant, id: Id, done: bool) {
        let Some(domain) = self.of(id) else { return };
        let expiring = domain.expiring.take();
        let ends = done && matches!(domain.state, State::Mounted { .. });
        if ends {
            domain.state = State::Ending { id, since: now, killed: false, failed: None, looks: Vec::new() };
        }
        self.orders
            .extend(expiring.map(|token| if done { Order::Ready(token) } else { Order::Fail(token, Errno::BUSY) }));
        if ends {
            // It notices by itself, unless another mount namespace has a copy of the mount.
            self.orders.push(Order::End { id });
        }
    }

    /// The mount of a process answers.
    pub(super) fn mounted(&mut self, now: Instant, id: Id) {
        let Some(domain) = self.of(id) else { return };
        if let State::Starting { looks, .. } = &mut domain.state {
            let looks = std::mem::take(looks);
            domain.state = State::Mounted { id };
            self.orders.extend(looks.into_iter().map(Order::Ready));
        }
        self.start(now);
    }

    /// A process has ended, and nothing is mounted; `failed` says why if that is not as it should be.
    pub(super) fn ended(&mut self, now: Instant, id: Id, failed: Option<String>) {
        let Some((name, domain)) = self.domains.iter_mut().find(|(_, domain)| domain.state.id() == Some(id)) else {
            return;
        };
        let name = name.clone();
        self.orders.extend(domain.expiring.take().map(Order::Ready));
        let state = std::mem::replace(&mut domain.state, State::Idle { failed: None });
        domain.state = match state {
            State::Starting { looks, .. } => {
                self.orders.extend(looks.into_iter().map(|token| Order::Fail(token, Errno::IO)));
                State::Idle { failed: failed.or_else(|| Some("it ended before it had mounted".to_owned())) }
            }
            State::Ending { failed: why, looks, .. } => match looks.first() {
                Some((since, _)) => {
                    self.queue.push_back(name.clone());
                    State::Waiting { since: *since, looks: looks.into_iter().map(|(_, token)| token).collect() }
                }
                None => State::Idle { failed: why },
            },
            State::Idle { .. } | State::Waiting { .. } | State::Mounted { .. } => State::Idle { failed },
        };
        self.forget(&name);
        self.start(now);
    }

    /// Begins to end, as if no domain ran any more: whoever has the mount open is to find no directory there when nobody answers,
    /// rather than an empty one.
    pub(super) fn close(&mut self, now: Instant) {
        self.list(now, &BTreeMap::new());
        self.closing = true;
    }

    /// Whether no process is left.
    pub(super) fn is_empty(&self) -> bool {
        self.domains.values().all(|domain| domain.state.id().is_none())
    }

    /// Whether anything is mounted that could expire.
    pub(super) fn any_mounted(&self) -> bool {
        self.domains.values().any(|domain| matches!(domain.state, State::Mounted { .. }))
    }

    /// Does what is due.
    pub(super) fn tick(&mut self, now: Instant) {
        for domain in self.domains.values_mut() {
            match &mut domain.state {
                State::Waiting { since, .. } if due(*since, QUEUE_LIMIT) <= now => {
                    let why = format!("{MOST_AT_ONCE} others were starting for {} s", QUEUE_LIMIT.as_secs());
                    end(domain, now, Some(why), Errno::TIMEDOUT, &mut self.orders);
                }
                State::Starting { since, .. } if due(*since, START_LIMIT) <= now => {
                    let why = format!("it was not mounted within {} s", START_LIMIT.as_secs());
                    end(domain, now, Some(why), Errno::TIMEDOUT, &mut self.orders);
                }
                State::Ending { id, since, killed, looks, .. } => {
                    if !*killed && due(*since, END_LIMIT) <= now {
                        *killed = true;
                        self.orders.push(Order::Kill { id: *id });
                    }
                    let orders = &mut self.orders;
                    looks.retain(|(since, token)| {
                        let waits = due(*since, QUEUE_LIMIT) > now;
                        if !waits {
                            orders.push(Order::Fail(*token, Errno::TIMEDOUT));
                        }
                        waits
                    });
                }
                State::Idle { .. } | State::Waiting { .. } | State::Starting { .. } | State::Mounted { .. } => {}
            }
        }
        self.start(now);
    }

    /// When [`Policy::tick`] is due.
    pub(super) fn due(&self) -> Option<Instant> {
        let of = |domain: &Domain| match &domain.state {
            State::Idle { .. } | State::Mounted { .. } => None,
            State::Waiting { since, .. } => Some(due(*since, QUEUE_LIMIT)),
            State::Starting { since, .. } => Some(due(*since, START_LIMIT)),
            State::Ending { since, killed, looks, .. } => {
                let kill = (!killed).then(|| due(*since, END_LIMIT));
                kill.into_iter().chain(looks.iter().map(|(since, _)| due(*since, QUEUE_LIMIT))).min()
            }
        };
        self.domains.values().filter_map(of).min()
    }

    /// Those that are shown: name, UUID, state.
    pub(super) fn shown(&self) -> impl Iterator<Item = (&str, &str, Shown<'_>)> {
        self.domains.iter().filter_map(|(name, domain)| {
            let state = match &domain.state {
                State::Idle { failed: Some(why) } => Shown::Failed(why),
                State::Idle { failed: None } => Shown::Idle,
                State::Waiting { .. } => Shown::Waiting,
                State::Starting { id, .. } => Shown::Starting(*id),
                State::Mounted { id } => Shown::Mounted(*id),
                State::Ending { id, .. } => Shown::Ending(*id),
            };
            Some((name.as_str(), domain.uuid.as_deref()?, state))
        })
    }

    fn of(&mut self, id: Id) -> Option<&mut Domain> {
        self.domains.values_mut().find(|domain| domain.state.id() == Some(id))
    }

    /// Starts those who waited longest, as many as there are places.
    fn start(&mut self, now: Instant) {
        let starting = |domain: &&Domain| matches!(domain.state, State::Starting { .. });
        let mut free = MOST_AT_ONCE.saturating_sub(self.domains.values().filter(starting).count());
        while free > 0 {
            let Some(name) = self.queue.pop_front() else { return };
            let Some(Domain { uuid: Some(uuid), state, .. }) = self.domains.get_mut(&name) else { continue };
            let State::Waiting { looks, .. } = state else { continue };
            self.last += 1;
            let id = self.last;
            *state = State::Starting { id, since: now, looks: std::mem::take(looks) };
            self.orders.push(Order::Start { id, name, uuid: uuid.clone() });
            free -= 1;
        }
    }
}

fn due(since: Instant, limit: Duration) -> Instant {
    since + limit
}

/// Ends what goes on with a domain; whoever looks gets the error.
fn end(domain: &mut Domain, now: Instant, why: Option<String>, error: Errno, orders: &mut Vec<Order>) {
    let fail = |token| Order::Fail(token, error);
    let state = std::mem::replace(&mut domain.state, State::Idle { failed: None });
    let ending = |id, failed| State::Ending { id, since: now, killed: false, failed, looks: Vec::new() };
    domain.state = match state {
        State::Idle { .. } => State::Idle { failed: why },
        State::Waiting { looks, .. } => {
            orders.extend(looks.into_iter().map(fail));
            State::Idle { failed: why }
        }
        State::Starting { id, looks, .. } => {
            orders.extend(looks.into_iter().map(fail));
            orders.push(Order::End { id });
            ending(id, why)
        }
        State::Mounted { id } => {
            orders.push(Order::End { id });
            ending(id, why)
        }
        State::Ending { id, since, killed, failed, looks } => {
            orders.extend(looks.into_iter().map(|(_, token)| fail(token)));
            State::Ending { id, since, killed, failed, looks: Vec::new() }
        }
    };
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
