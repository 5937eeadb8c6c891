//! The policy against a kernel, a libvirt and processes that do what they like.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

/// What may happen. Domains are few, so that things meet.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// Those that run: a bit for each domain, and how often each was started anew.
    List(u16, u8),
    Look(u8),
    Expire(u8),
    Unmounted(bool),
    Mounted(usize),
    Ended(usize, bool),
    Passes(u8),
    Close,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (any::<u16>(), 0..2u8).prop_map(|(bits, times)| Step::List(bits | 0x0ff0, times)),
        12 => (0..16u8).prop_map(Step::Look),
        4 => (0..16u8).prop_map(Step::Expire),
        4 => any::<bool>().prop_map(Step::Unmounted),
        8 => (0..20usize).prop_map(Step::Mounted),
        6 => (0..20usize, any::<bool>()).prop_map(|(which, well)| Step::Ended(which, well)),
        3 => (1..70u8).prop_map(Step::Passes),
        1 => Just(Step::Close),
    ];
    proptest::collection::vec(step, 1..120)
}

fn name(number: u8) -> String {
    format!("vm{number}")
}

/// All that is outside, and what must hold.
struct World {
    policy: Policy,
    now: Instant,
    tokens: u32,
    /// Requests without an answer, and since when.
    asked: BTreeMap<Token, (Instant, String)>,
    /// Processes that live: whether they have mounted.
    living: BTreeMap<Id, (String, bool)>,
    unmounting: Vec<Id>,
    dirs: BTreeSet<String>,
}

impl World {
    fn new() -> Self {
        Self {
            policy: Policy::default(),
            now: Instant::now(),
            tokens: 0,
            asked: BTreeMap::new(),
            living: BTreeMap::new(),
            unmounting: Vec::new(),
            dirs: BTreeSet::new(),
        }
    }

    fn ask(&mut self, number: u8) -> (String, Token) {
        self.tokens += 1;
        self.asked.insert(self.tokens, (self.now, name(number)));
        (name(number), self.tokens)
    }

    fn pick(&self, which: usize) -> Option<Id> {
        self.living.keys().nth(which % self.living.len().max(1)).copied()
    }

    fn step(&mut self, step: Step) {
        let now = self.now;
        match step {
            Step::List(bits, times) => {
                let running = (0..16u8).filter(|number| bits >> number & 1 == 1);
                let running =
                    running.map(|number| (name(number), format!("{number}-{}", times * (number % 3)))).collect();
                self.policy.list(now, &running);
            }
            Step::Look(number) => {
                let (name, token) = self.ask(number);
                self.policy.look(now, &name, token);
            }
            Step::Expire(number) => {
                let (name, token) = self.ask(number);
                self.policy.expire(&name, token);
            }
            Step::Unmounted(done) => {
                if let Some(id) = self.unmounting.pop() {
                    self.policy.unmounted(now, id, done);
                }
            }
            Step::Mounted(which) => {
                if let Some(id) = self.pick(which) {
                    self.living.get_mut(&id).unwrap().1 = true;
                    self.policy.mounted(now, id);
                }
            }
            Step::Ended(which, well) => {
                if let Some(id) = self.pick(which) {
                    self.living.remove(&id);
                    self.policy.ended(now, id, (!well).then(|| "no".to_owned()));
                }
            }
            Step::Passes(seconds) => {
                self.now += Duration::from_secs(seconds.into());
                self.policy.tick(self.now);
            }
            Step::Close => self.policy.close(now),
        }
        self.obey();
    }

    fn obey(&mut self) {
        for order in self.policy.orders() {
            match order {
                Order::Make { name } => assert!(self.dirs.insert(name), "made twice"),
                Order::Remove { name } => {
                    assert!(self.dirs.remove(&name), "not there");
                    assert!(self.living.values().all(|(of, _)| *of != name), "it is in use");
                }
                Order::Start { id, name, .. } => {
                    assert!(self.dirs.contains(&name), "nowhere to mount");
                    assert!(self.living.values().all(|(of, _)| *of != name), "a second one");
                    assert!(self.living.insert(id, (name, false)).is_none());
                }
                Order::End { id } | Order::Kill { id } => assert!(self.living.contains_key(&id)),
                Order::Unmount { id, .. } => {
                    assert!(self.living.contains_key(&id));
                    self.unmounting.push(id);
                }
                Order::Ready(token) => {
                    assert!(self.asked.remove(&token).is_some(), "answered twice");
                }
                Order::Fail(token, _) => assert!(self.asked.remove(&token).is_some(), "answered twice"),
            }
        }
        let starting = self.policy.shown().filter(|(_, _, shown)| matches!(shown, Shown::Starting(_))).count();
        assert!(starting <= MOST_AT_ONCE, "{starting} start");
        let waiting = self.policy.shown().any(|(_, _, shown)| shown == Shown::Waiting);
        assert!(!waiting || starting == MOST_AT_ONCE, "a place is free");
        let due = self.policy.due();
        assert!(due.is_none_or(|due| due > self.now) || self.asked.is_empty() || due.is_some());
    }

    /// Processes do what they are told in the end, and time passes.
    fn come_to_rest(&mut self) {
        for _ in 0..8 {
            while !self.unmounting.is_empty() {
                self.step(Step::Unmounted(false));
            }
            let ending: Vec<Id> = self
                .policy
                .shown()
                .filter_map(|(_, _, shown)| match shown {
                    Shown::Ending(id) => Some(id),
                    _ => None,
                })
                .collect();
            for id in ending {
                self.living.remove(&id);
                self.policy.ended(self.now, id, None);
                self.obey();
            }
            self.step(Step::Passes(61));
        }
    }
}

proptest! {
    #[test]
    fn each_request_gets_one_answer(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.come_to_rest();
        prop_assert!(world.asked.is_empty(), "{:?}: {:?}", world.asked, world.policy);
    }

    #[test]
    fn what_ends_leaves_nothing(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.step(Step::Close);
        while !world.living.is_empty() {
            world.step(Step::Ended(0, true));
        }
        prop_assert!(world.policy.is_empty() && world.asked.is_empty(), "{:?}", world.policy);
        prop_assert!(world.dirs.is_empty(), "{:?}", world.dirs);
    }
}

fn running(names: &[&str]) -> BTreeMap<String, String> {
    names.iter().map(|name| ((*name).to_owned(), format!("uuid of {name}"))).collect()
}

#[test]
fn fifty_looks_start_one_process_and_are_all_answered() {
    let (mut policy, now) = (Policy::default(), Instant::now());
    policy.list(now, &running(&["vm"]));
    for token in 0..50 {
        policy.look(now, "vm", token);
    }
    let start = Order::Start { id: 1, name: "vm".to_owned(), uuid: "uuid of vm".to_owned() };
    assert_eq!(policy.orders(), [Order::Make { name: "vm".to_owned() }, start]);
    policy.mounted(now, 1);
    assert_eq!(policy.orders(), (0..50).map(Order::Ready).collect::<Vec<_>>());
}

#[test]
fn starts_are_bounded_in_number_and_in_time() {
    let (mut policy, now) = (Policy::default(), Instant::now());
    let names: Vec<String> = (0..=MOST_AT_ONCE).map(|number| format!("vm{number}")).collect();
    policy.list(now, &running(&names.iter().map(String::as_str).collect::<Vec<_>>()));
    for (token, name) in (0..).zip(&names) {
        policy.look(now, name, token);
    }
    let starts = |orders: &[Order]| orders.iter().filter(|order| matches!(order, Order::Start { .. })).count();
    assert_eq!(starts(&policy.orders()), MOST_AT_ONCE);
    policy.ended(now, 1, Some("no".to_owned()));
    let orders = policy.orders();
    assert!(orders.contains(&Order::Fail(0, Errno::IO)) && starts(&orders) == 1, "{orders:?}");
    assert_eq!(policy.shown().next().unwrap().2, Shown::Failed("no"));

    assert_eq!(policy.due(), Some(now + START_LIMIT));
    policy.tick(now + START_LIMIT);
    let orders = policy.orders();
    assert!(orders.contains(&Order::Fail(8, Errno::TIMEDOUT)) && orders.contains(&Order::End { id: 9 }), "{orders:?}");
    policy.tick(now + START_LIMIT + END_LIMIT);
    assert!(policy.orders().contains(&Order::Kill { id: 9 }));
}

#[test]
fn a_look_at_what_just_ends_starts_it_anew() {
    let (mut policy, now) = (Policy::default(), Instant::now());
    policy.list(now, &running(&["vm"]));
    policy.look(now, "vm", 1);
    policy.mounted(now, 1);
    policy.expire("vm", 2);
    assert!(policy.orders().contains(&Order::Unmount { id: 1, name: "vm".to_owned() }));
    policy.unmounted(now, 1, true);
    assert_eq!(policy.orders(), [Order::Ready(2), Order::End { id: 1 }]);
    policy.look(now, "vm", 3);
    assert_eq!(policy.orders(), [], "not beside the one that lets go of the machine");
    policy.ended(now, 1, None);
    assert!(matches!(policy.orders().as_slice(), [Order::Start { id: 2, .. }]));
    policy.mounted(now, 2);
    assert_eq!(policy.orders(), [Order::Ready(3)]);
    policy.ended(now, 2, Some("killed".to_owned()));
    assert_eq!(policy.shown().next().unwrap().2, Shown::Failed("killed"));
    policy.look(now, "vm", 4);
    assert!(
        matches!(policy.orders().as_slice(), [Order::Start { id: 3, .. }]),
        "a failure is no reason not to try again"
    );
}

#[test]
fn another_domain_of_the_same_name_is_another_one() {
    let (mut policy, now) = (Policy::default(), Instant::now());
    policy.list(now, &running(&["vm"]));
    policy.look(now, "vm", 1);
    policy.mounted(now, 1);
    policy.orders();
    policy.list(now, &BTreeMap::from([("vm".to_owned(), "another".to_owned())]));
    assert_eq!(policy.orders(), [Order::End { id: 1 }]);
    policy.look(now, "vm", 2);
    policy.ended(now, 1, None);
    let start = Order::Start { id: 2, name: "vm".to_owned(), uuid: "another".to_owned() };
    assert_eq!(policy.orders(), [start]);
}
