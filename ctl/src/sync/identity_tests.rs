use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn disk(source: &str, name: &str) -> Disk {
    Disk { machine: Machine { source: source.to_owned(), name: Some("vm1".to_owned()) }, name: name.to_owned() }
}

fn checkpoint(name: &str, created: Option<&str>) -> Checkpoint {
    Checkpoint { name: name.to_owned(), created: created.map(str::to_owned) }
}

fn copied(checkpoint: Option<Checkpoint>) -> Copied {
    Copied { size: 1000, time: Some("noon".to_owned()), checkpoint }
}

#[test]
fn a_full_copy_fits_the_checkpoint_made_with_it() {
    let vda = disk("qmp:/a", "vda");
    let monday = checkpoint("monday", None);
    let identity = after(&vda, None, &copied(Some(monday.clone())));
    assert_eq!((identity.checkpoint.as_deref(), identity.size), (Some("monday"), 1000));
    assert_eq!(fits(Some(&identity), &vda, &monday), Ok(&identity));
    let tuesday = checkpoint("tuesday", None);
    assert_eq!(fits(Some(&identity), &vda, &tuesday), Err(Misfit::OtherCheckpoint("monday".to_owned())));
    for other in [disk("qmp:/b", "vda"), disk("qmp:/a", "vdb")] {
        assert!(matches!(fits(Some(&identity), &other, &monday), Err(Misfit::OtherDisk { .. })));
    }
    let mut renamed = vda.clone();
    renamed.machine.name = None;
    assert!(matches!(fits(Some(&identity), &renamed, &monday), Err(Misfit::OtherDisk { .. })));
}

#[test]
fn a_full_copy_alone_fits_none() {
    let vda = disk("qmp:/a", "vda");
    let identity = after(&vda, None, &copied(None));
    assert_eq!(fits(Some(&identity), &vda, &checkpoint("monday", None)), Err(Misfit::Alone));
    assert_eq!(fits(None, &vda, &checkpoint("monday", None)), Err(Misfit::Unknown));
}

#[test]
fn an_increment_moves_on_only_with_a_new_checkpoint() {
    let vda = disk("qmp:/a", "vda");
    let (monday, tuesday) = (checkpoint("monday", Some("1")), checkpoint("tuesday", Some("2")));
    let still = after(&vda, Some(&monday), &copied(None));
    assert_eq!((still.checkpoint.as_deref(), still.created.as_deref()), (Some("monday"), Some("1")));
    let next = after(&vda, Some(&monday), &copied(Some(tuesday)));
    assert_eq!((next.checkpoint.as_deref(), next.created.as_deref()), (Some("tuesday"), Some("2")));
}

#[test]
fn a_checkpoint_made_anew_is_another_one() {
    let vda = disk("qmp:/a", "vda");
    let identity = after(&vda, None, &copied(Some(checkpoint("monday", Some("1")))));
    assert_eq!(fits(Some(&identity), &vda, &checkpoint("monday", Some("2"))), Err(Misfit::MadeAnew));
    assert!(fits(Some(&identity), &vda, &checkpoint("monday", None)).is_ok());
}

#[test]
fn what_is_noted_is_read_back() {
    let full = after(&disk("qmp:/a", "vda"), None, &copied(Some(checkpoint("monday", Some("1")))));
    for identity in [full, after(&disk("qmp:/a", "vda"), None, &copied(None))] {
        let text = serde_json::to_string(&identity).unwrap();
        assert_eq!(serde_json::from_str::<Identity>(&text).unwrap(), identity);
    }
    // A full copy without a checkpoint says so in as many words.
    assert!(
        serde_json::to_string(&after(&disk("a", "b"), None, &copied(None))).unwrap().contains("\"checkpoint\":null")
    );
    assert!(serde_json::from_str::<Identity>("{\"machine\": {\"source\": \"a\"}}").is_err());
}

/// A disk of a few blocks, its bitmaps, and a copy with what is noted of it.
#[derive(Default)]
struct World {
    disk: [u32; BLOCKS],
    copy: [u32; BLOCKS],
    bitmaps: BTreeMap<String, (u32, BTreeSet<usize>)>,
    noted: Option<Identity>,
    clock: u32,
}

const BLOCKS: usize = 6;

#[derive(Debug, Clone)]
enum Step {
    Write(usize),
    Make(u8),
    Delete(u8),
    /// Copies all, or what changed since a checkpoint; at a new checkpoint or not; cut off after so many blocks.
    Sync {
        since: Option<u8>,
        at: Option<u8>,
        cut_off: Option<usize>,
    },
}

impl World {
    fn name(number: u8) -> String {
        format!("c{number}")
    }

    fn checkpoint(&self, name: &str) -> Option<Checkpoint> {
        let (created, _) = self.bitmaps.get(name)?;
        Some(checkpoint(name, Some(&created.to_string())))
    }

    fn make(&mut self, number: u8) -> Option<Checkpoint> {
        self.bitmaps.entry(Self::name(number)).or_insert((self.clock, BTreeSet::new()));
        // One that exists is not made at this instant.
        self.checkpoint(&Self::name(number)).filter(|made| made.created == Some(self.clock.to_string()))
    }

    fn step(&mut self, step: &Step) {
        self.clock += 1;
        match step {
            Step::Write(block) => {
                self.disk[*block] = self.clock;
                for (_, dirty) in self.bitmaps.values_mut() {
                    dirty.insert(*block);
                }
            }
            Step::Make(number) => drop(self.make(*number)),
            Step::Delete(number) => drop(self.bitmaps.remove(&Self::name(*number))),
            Step::Sync { since, at, cut_off } => self.sync(*since, *at, *cut_off),
        }
    }

    fn sync(&mut self, since: Option<u8>, at: Option<u8>, cut_off: Option<usize>) {
        let vda = disk("qmp:/a", "vda");
        let since = since.map(Self::name);
        let blocks: Vec<usize> = match &since {
            Some(name) => match self.bitmaps.get(name) {
                Some((_, dirty)) => dirty.iter().copied().collect(),
                None => return,
            },
            None => (0..BLOCKS).collect(),
        };
        let since = since.and_then(|name| self.checkpoint(&name));
        match &since {
            Some(since) if fits(self.noted.as_ref(), &vda, since).is_err() => return,
            Some(_) => {}
            None => self.noted = None,
        }
        let made = at.and_then(|number| self.make(number));
        for block in blocks.iter().take(cut_off.unwrap_or(BLOCKS)) {
            self.copy[*block] = self.disk[*block];
        }
        if cut_off.is_none() {
            self.noted = Some(after(&vda, since.as_ref(), &copied(made)));
            assert_eq!(self.copy, self.disk, "a sync that ended made the copy the disk");
        }
    }

    fn check(&self) {
        let Some(noted) = &self.noted else { return };
        let Some(name) = &noted.checkpoint else { return };
        let Some((created, dirty)) = self.bitmaps.get(name) else { return };
        if noted.created != Some(created.to_string()) {
            return;
        }
        for block in (0..BLOCKS).filter(|block| self.copy[*block] != self.disk[*block]) {
            assert!(dirty.contains(&block), "block {block} differs and did not change since {name}");
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let number = || 0..3_u8;
    let step = prop_oneof![
        4 => (0..BLOCKS).prop_map(Step::Write),
        1 => number().prop_map(Step::Make),
        1 => number().prop_map(Step::Delete),
        4 => (
            prop_oneof![1 => Just(None), 3 => number().prop_map(Some)],
            proptest::option::of(number()),
            proptest::option::of(0..BLOCKS),
        )
            .prop_map(|(since, at, cut_off)| Step::Sync { since, at, cut_off }),
    ];
    proptest::collection::vec(step, 0..80)
}

proptest! {
    #[test]
    fn the_promise_holds_through_any_history(steps in steps()) {
        let mut world = World::default();
        for step in &steps {
            world.step(step);
            world.check();
        }
    }
}
