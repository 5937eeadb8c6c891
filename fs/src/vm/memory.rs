//! A machine made of byte arrays, for tests of everything above the seam.
//!
//! It keeps the rules that the file system relies on: a point in time is a copy of all disks at one instant, reading it
//! fails once it is released, and [`Memory::lose`] takes it away behind the file system's back.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::BytesMut;
use tokio::sync::broadcast;

use super::{Base, Bitmap, Disk, Event, Fleece, Inventory, Machine, Made, Scratch, Taken, TakenDisk, Vm, Wanted};
use crate::block::changes::FrozenMap;
use crate::block::{Map, Sink, Source, Traffic};
use crate::error::{Error, Kind, Result};
use crate::point::reason::Reason;

/// Bytes that a bit of a dirty bitmap, and a step of the allocation, stand for here.
pub const GRANULE: usize = 512;

#[derive(Clone, Default)]
struct DiskState {
    data: Vec<u8>,
    /// Checkpoint → when it was made, and the disk's size.
    made: BTreeMap<Arc<str>, Made>,
    /// Checkpoint → granules that changed since.
    dirty: BTreeMap<Arc<str>, Vec<bool>>,
}

/// The machine.
pub struct Memory {
    machine: Machine,
    disks: Mutex<BTreeMap<Arc<str>, DiskState>>,
    events: broadcast::Sender<Event>,
    /// The number of the point in time that is held; 0 for none.
    held: Arc<AtomicU64>,
    /// How often one was taken.
    taken: AtomicU64,
    refuse: Mutex<Option<Kind>>,
    /// How long it takes to tell what it is.
    tells_in: Mutex<Duration>,
    /// Which disk is written to between the next look at it and the instant.
    meanwhile: Mutex<Option<String>>,
    /// Whether it tells the changes since one checkpoint alone.
    one_base: AtomicBool,
    /// How often it does not let go.
    clings: AtomicU64,
}

impl Memory {
    /// A machine with these disks, zeroed; `needs confirmation` is as with QEMU's `fleece=backing`.
    pub fn new(disks: &[(&str, usize)], fleece: Fleece) -> Arc<Self> {
        let machine = Machine { source: "memory".into(), name: Some("test".into()), qemu: "0.0.0".into(), fleece };
        let zeroed = |size| DiskState { data: vec![0; size], ..DiskState::default() };
        Arc::new(Self {
            machine,
            disks: Mutex::new(disks.iter().map(|(name, size)| (Arc::from(*name), zeroed(*size))).collect()),
            events: broadcast::channel(16).0,
            held: Arc::default(),
            taken: AtomicU64::new(0),
            refuse: Mutex::default(),
            tells_in: Mutex::default(),
            meanwhile: Mutex::default(),
            one_base: AtomicBool::new(false),
            clings: AtomicU64::new(0),
        })
    }

    /// The guest writes to a disk after the next point in time has looked at it, and before its instant.
    pub fn writes_meanwhile(&self, disk: &str) {
        *self.meanwhile.lock().unwrap() = Some(disk.to_owned());
    }

    /// From now on it takes so long to tell what it is.
    pub fn tells_in(&self, time: Duration) {
        *self.tells_in.lock().unwrap() = time;
    }

    /// So often it does not let go when it is told to.
    pub fn clings(&self, times: u64) {
        self.clings.store(times, Ordering::SeqCst);
    }

    /// From now on it tells the changes since one checkpoint alone, as libvirt does.
    pub fn tells_of_one_base(&self) {
        self.one_base.store(true, Ordering::SeqCst);
    }

    /// The guest writes.
    pub fn write(&self, disk: &str, offset: usize, bytes: &[u8]) {
        let mut disks = self.disks.lock().unwrap();
        let state = disks.get_mut(disk).unwrap();
        state.data[offset..offset + bytes.len()].copy_from_slice(bytes);
        let granules = offset / GRANULE..(offset + bytes.len()).div_ceil(GRANULE);
        for dirty in state.dirty.values_mut() {
            dirty[granules.clone()].fill(true);
        }
    }

    /// Adds a checkpoint to all disks.
    pub fn checkpoint(&self, name: &str) {
        for state in self.disks.lock().unwrap().values_mut() {
            let made = Made { time: SystemTime::now(), size: state.data.len() as u64 };
            state.made.insert(name.into(), made);
            state.dirty.insert(name.into(), vec![false; state.data.len().div_ceil(GRANULE)]);
        }
    }

    /// What the disk holds now.
    pub fn data(&self, disk: &str) -> Vec<u8> {
        self.disks.lock().unwrap()[disk].data.clone()
    }

    /// How many points in time were taken so far.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::SeqCst)
    }

    /// From now on taking fails, or works again.
    pub fn refuse(&self, kind: Option<Kind>) {
        *self.refuse.lock().unwrap() = kind;
    }

    /// The machine drops the point in time; `announced` says whether it tells.
    pub fn lose(&self, announced: bool) {
        let number = self.held.swap(0, Ordering::SeqCst);
        if announced {
            self.events.send(Event::Lost { number, reason: Reason::Ended, words: "lost by the test".into() }).ok();
        }
    }
}

struct Copy {
    state: DiskState,
    number: u64,
    held: Arc<AtomicU64>,
    fleece: Fleece,
}

impl Copy {
    /// As in QEMU: a `snapshot-access` node fails without its job, a scratch image with a live backing file does not.
    fn check(&self) -> Result<()> {
        match self.fleece {
            Fleece::Job if self.held.load(Ordering::SeqCst) != self.number => {
                Err(Error::new(Kind::Io, "the point in time is gone"))
            }
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Source for Copy {
    async fn read(&self, offset: u64, mut buf: BytesMut) -> Result<BytesMut> {
        self.check()?;
        let start = usize::try_from(offset).unwrap();
        let length = buf.len();
        buf.copy_from_slice(&self.state.data[start..start + length]);
        Ok(buf)
    }

    async fn map(&self, map: &Map, window: Range<u64>, sink: &mut Sink<'_>) -> Result<()> {
        self.check()?;
        let mut at = window.start;
        while at < window.end {
            let end = window.end.min((at / GRANULE as u64 + 1) * GRANULE as u64);
            let bytes = usize::try_from(at).unwrap()..usize::try_from(end).unwrap();
            let inside = match map {
                Map::Allocation => self.state.data[bytes].iter().any(|byte| *byte != 0),
                Map::Dirty(name) => self.state.dirty[name.as_str()][bytes.start / GRANULE],
            };
            if let ControlFlow::Break(()) = sink(at..end, inside) {
                break;
            }
            at = end;
        }
        Ok(())
    }

    async fn give_back(&self, _: Range<u64>) -> Result<()> {
        Ok(())
    }

    fn traffic(&self) -> Traffic {
        Traffic::default()
    }

    async fn close(&self) {}
}

#[async_trait]
impl Vm for Memory {
    fn machine(&self) -> &Machine {
        &self.machine
    }

    async fn inventory(&self) -> Result<Inventory> {
        let tells_in = *self.tells_in.lock().unwrap();
        if !tells_in.is_zero() {
            tokio::time::sleep(tells_in).await;
        }
        let count = |dirty: &[bool]| (dirty.iter().filter(|dirty| **dirty).count() * GRANULE) as u64;
        let bitmap = |dirty: &[bool], made: Option<&Made>| Bitmap {
            dirty_bytes: count(dirty),
            granularity: u32::try_from(GRANULE).unwrap(),
            recording: true,
            persistent: false,
            inconsistent: false,
            unusable: None,
            whole: None,
            made: made.copied(),
            parts: Vec::new(),
        };
        let disks = self.disks.lock().unwrap();
        let disk = |(name, state): (&Arc<str>, &DiskState)| Disk {
            name: name.clone(),
            node: name.to_string(),
            format: "memory".into(),
            size: state.data.len() as u64,
            allocated: state.data.len() as u64,
            bitmap_node: name.to_string(),
            image: name.to_string(),
            keeps_bitmaps: false,
            bitmaps: state
                .dirty
                .iter()
                .map(|(name, dirty)| (name.clone(), bitmap(dirty, state.made.get(name))))
                .collect(),
        };
        Ok(Inventory { disks: disks.iter().map(disk).collect(), skipped: Vec::new() })
    }

    async fn admit(&self, wanted: &Wanted) -> Result<()> {
        let exists = |name: &Arc<str>| self.disks.lock().unwrap().values().any(|state| state.dirty.contains_key(name));
        match &wanted.checkpoint {
            Some(name) if exists(name) => Err(Error::new(Kind::Exists, "there is one of that name")),
            _ => Ok(()),
        }
    }

    async fn take(&self, number: u64, wanted: &Wanted) -> Result<Taken> {
        if let Some(kind) = *self.refuse.lock().unwrap() {
            return Err(Error::new(kind, "told to refuse"));
        }
        self.admit(wanted).await?;
        if let Some(name) = &wanted.checkpoint {
            self.checkpoint(name);
        }
        let inventory = Arc::new(self.inventory().await?);
        if let Some(disk) = self.meanwhile.lock().unwrap().take() {
            self.write(&disk, 0, &[0xee]);
        }
        let disks = self.disks.lock().unwrap();
        let base = self.one_base.load(Ordering::SeqCst).then(|| wanted.since.clone());
        self.held.store(number, Ordering::SeqCst);
        self.taken.fetch_add(1, Ordering::SeqCst);
        let view = |disk: &Disk| {
            let state = disks[&disk.name].clone();
            let map = |name: &Arc<str>| FrozenMap { name: Some(name.to_string()), also: None, rough: None };
            let frozen = state.dirty.keys().filter(|name| base.as_ref().is_none_or(|base| base.as_ref() == Some(name)));
            let frozen = frozen.map(|name| (name.clone(), map(name))).collect();
            let copy = Copy { state, number, held: self.held.clone(), fleece: self.machine.fleece };
            TakenDisk { source: Arc::new(copy), frozen }
        };
        Ok(Taken {
            number,
            time: SystemTime::now(),
            checkpoint: wanted.checkpoint.clone(),
            quiesced: wanted.quiesce,
            disks: inventory.disks.iter().map(view).collect(),
            inventory: inventory.clone(),
            needs_confirmation: self.machine.fleece == Fleece::Backing,
            base: base.clone().map_or(Base::All, Base::One),
        })
    }

    async fn delete_checkpoint(&self, name: &str, _foreign: bool) -> Result<()> {
        let removed = self.disks.lock().unwrap().values_mut().filter_map(|state| state.dirty.remove(name)).count();
        if removed > 0 { Ok(()) } else { Err(Error::new(Kind::NotFound, "no such checkpoint")) }
    }

    async fn release(&self) -> Result<()> {
        let clings = |times: u64| times.checked_sub(1);
        if self.clings.fetch_update(Ordering::SeqCst, Ordering::SeqCst, clings).is_ok() {
            return Err(Error::new(Kind::Timeout, "told to cling"));
        }
        self.held.store(0, Ordering::SeqCst);
        Ok(())
    }

    async fn confirm(&self, number: u64) -> Result<()> {
        if self.held.load(Ordering::SeqCst) == number { Ok(()) } else { Err(Error::new(Kind::Io, "the job is gone")) }
    }

    fn is_clean(&self) -> bool {
        self.held.load(Ordering::SeqCst) == 0
    }

    fn scratch(&self) -> Option<Scratch> {
        None
    }

    async fn limit_scratch(&self, _: Option<u64>) -> Result<()> {
        Ok(())
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    async fn disconnect(&self) {}
}
