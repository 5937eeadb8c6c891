//! Tests of what waits, on tokio's paused clock: times are exact.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{sleep, timeout};

use super::*;

const KIB: usize = 1 << 10;
const REQUEST: usize = 256 * KIB;

/// A disk that does one thing at a time, in order of arrival, and takes as long for each. Its bytes tell where they are.
#[derive(Default)]
struct Disk {
    service: Duration,
    busy: tokio::sync::Mutex<()>,
    /// Requests with it now, and how many there were at most.
    now: AtomicUsize,
    most: AtomicUsize,
    served: AtomicUsize,
    /// Offsets in the order of their arrival.
    order: Mutex<Vec<u64>>,
    /// Offsets of reads that were begun without waiting.
    begun: Mutex<Vec<u64>>,
}

impl Disk {
    fn new(service: Duration) -> Arc<Self> {
        Arc::new(Self { service, ..Self::default() })
    }

    async fn serve(&self) {
        let _turn = self.busy.lock().await;
        sleep(self.service).await;
    }

    async fn request(&self) {
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(now, Ordering::Relaxed);
        self.serve().await;
        self.now.fetch_sub(1, Ordering::Relaxed);
        self.served.fetch_add(1, Ordering::Relaxed);
    }
}

fn byte(at: u64) -> u8 {
    u8::try_from(at / 512 % 251).unwrap()
}

#[async_trait]
impl Source for Disk {
    async fn read(&self, offset: u64, mut buf: BytesMut) -> Result<BytesMut> {
        self.order.lock().unwrap().push(offset);
        self.request().await;
        for (at, place) in (offset..).zip(buf.iter_mut()) {
            *place = byte(at);
        }
        Ok(buf)
    }

    fn begin(&self, offset: u64, _: BytesMut, _: Begun) -> Option<(BytesMut, Begun)> {
        self.begun.lock().unwrap().push(offset);
        None
    }

    async fn map(&self, _: &Map, window: Range<u64>, sink: &mut Sink<'_>) -> Result<()> {
        self.request().await;
        let half = window.start.midpoint(window.end);
        if sink(window.start..half, true).is_continue() {
            let _ = sink(half..window.end, true);
        }
        Ok(())
    }

    async fn give_back(&self, _: Range<u64>) -> Result<()> {
        self.request().await;
        Ok(())
    }

    fn traffic(&self) -> Traffic {
        Traffic::default()
    }

    async fn close(&self) {}
}

const SERVICE: Duration = Duration::from_millis(5);

fn throttle(limits: Limits) -> Arc<Throttle> {
    Throttle::new(limits, u32::try_from(REQUEST).unwrap())
}

async fn read(source: &Throttled, offset: u64, length: usize) {
    let read = source.read(offset, BytesMut::zeroed(length)).await.unwrap();
    assert_eq!(read.len(), length);
    assert!((offset..).zip(&read).all(|(at, byte_read)| *byte_read == byte(at)), "right bytes");
}

fn in_flight(throttle: &Throttle) -> usize {
    throttle.now().expect("a limit").in_flight
}

#[tokio::test(start_paused = true)]
async fn nothing_is_in_the_way_where_nothing_is_limited() {
    let throttle = throttle(Limits::default());
    let disk = Disk::new(SERVICE);
    let source = Throttled::new(disk.clone(), throttle.clone());
    // In one piece, and from the thread that begins it.
    read(&source, 5, 4 * REQUEST).await;
    assert_eq!(*disk.order.lock().unwrap(), [5]);
    let begin = |length| source.begin(7, BytesMut::zeroed(length), Box::new(|_| {}));
    assert!(begin(4 * REQUEST).is_none());
    assert_eq!(*disk.begun.lock().unwrap(), [7]);
    assert!(throttle.now().is_none());
    throttle.change(Limits { max_inflight: Some(1), ..Limits::default() });
    assert!(begin(512).is_some(), "it waits for its turn elsewhere");
    throttle.change(Limits::default());
    assert!(begin(512).is_none() && throttle.now().is_none());
}

/// Reads 16 MiB with four readers, with a limit of 1 MiB a second from the beginning on and another one a while later;
/// how long it took.
async fn changed(after: Duration, limits: Limits) -> Duration {
    let throttle = throttle(Limits { max_rate: Some(1 << 20), ..Limits::default() });
    let disk = Disk::new(Duration::ZERO);
    let sources = [0, 1].map(|_| Throttled::new(disk.clone(), throttle.clone()));
    let begin = Instant::now();
    let reads = join_all((0..4_u64).map(|index| read(&sources[usize::from(index % 2 == 1)], index << 22, 4 << 20)));
    let change = async {
        sleep(after).await;
        throttle.change(limits);
    };
    tokio::join!(reads, change);
    assert_eq!(disk.order.lock().unwrap().len(), 64, "each request once");
    begin.elapsed()
}

#[tokio::test(start_paused = true)]
async fn who_waits_has_the_new_limit_from_the_next_request_on() {
    let after = Duration::from_millis(2100);
    let rate = |max_rate| Limits { max_rate: Some(max_rate), ..Limits::default() };
    let soon = Duration::from_millis(1);
    // Taken back: what waits goes at once.
    assert!((after..after + soon).contains(&changed(after, Limits::default()).await));
    assert!((after..after + soon).contains(&changed(after, Limits { polite: false, ..rate(1 << 40) }).await));
    // Raised: 2.35 MiB were through, 0.75 MiB more are in the larger bucket, and the rest comes at the new rate.
    let raised = changed(after, rate(4 << 20)).await;
    assert!((Duration::from_millis(5300)..Duration::from_millis(5400)).contains(&raised), "{raised:?}");
    // Lowered: nobody gets a bucket of the old size, nor waits for what would have filled it.
    let lowered = changed(after, rate(512 << 10)).await;
    assert!((Duration::from_secs(29)..Duration::from_millis(29_800)).contains(&lowered), "{lowered:?}");
    // The same again and again gives nothing away.
    let same = changed(after, rate(1 << 20)).await;
    assert!((Duration::from_millis(15_750)..Duration::from_millis(15_760)).contains(&same), "{same:?}");
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_comes_holds_for_readers_who_are_under_way() {
    let throttle = throttle(Limits::default());
    let disk = Disk::new(SERVICE);
    let source = Throttled::new(disk.clone(), throttle.clone());
    let reads = join_all((0..8_u64).map(async |reader| {
        for index in 0..40 {
            read(&source, (reader * 40 + index) * REQUEST as u64, REQUEST).await;
        }
    }));
    let changes = async {
        sleep(SERVICE * 20).await;
        assert_eq!(disk.now.load(Ordering::Relaxed), 8);
        throttle.change(Limits { max_inflight: Some(2), ..Limits::default() });
        // Those that were with the machine are answered first.
        sleep(SERVICE * 11).await;
        disk.most.store(0, Ordering::Relaxed);
        sleep(SERVICE * 30).await;
        assert_eq!((disk.most.load(Ordering::Relaxed), in_flight(&throttle)), (2, 2));
        throttle.change(Limits { max_inflight: Some(3), polite: true, max_rate: None });
        sleep(SERVICE * 60).await;
        assert!(throttle.now().unwrap().window.is_some());
        throttle.change(Limits::default());
    };
    let begin = Instant::now();
    tokio::join!(reads, changes);
    // The disk does one at a time: limits or not, it was never without work, but for the pauses of `polite`.
    assert!(begin.elapsed() <= SERVICE * (320 + 60), "{:?}", begin.elapsed());
    assert_eq!(disk.served.load(Ordering::Relaxed), 320);
}

#[tokio::test(start_paused = true)]
async fn a_question_that_is_under_way_is_broken_off_for_a_limit_and_answered_without_gaps() {
    let throttle = throttle(Limits::default());
    let disk = Disk::new(SERVICE);
    let source = Throttled::new(disk.clone(), throttle.clone());
    let window = 5..4 * QUESTION + 7;
    let mut at = window.start;
    let mut sink = |range: Range<u64>, _| {
        assert_eq!(range.start, at);
        at = range.end;
        // As soon as the first answer has come.
        throttle.change(Limits { max_inflight: Some(1), ..Limits::default() });
        ControlFlow::Continue(())
    };
    source.map(&Map::Allocation, window.clone(), &mut sink).await.unwrap();
    assert_eq!(at, window.end);
    assert_eq!(disk.served.load(Ordering::Relaxed), 1 + 3, "the first half at once, the rest by steps");
    assert_eq!(in_flight(&throttle), 0);
}

#[tokio::test(start_paused = true)]
async fn all_disks_together_are_within_the_rate() {
    let throttle = throttle(Limits { max_rate: Some(4 << 20), ..Limits::default() });
    let disks = [0, 1].map(|_| Throttled::new(Disk::new(Duration::ZERO), throttle.clone()));
    let begin = Instant::now();
    // 16 MiB, in reads that are larger than a request and fit none.
    let reads = (0..16_u64).map(|index| read(&disks[usize::from(index % 2 == 1)], index * 1_000_000 + 5, 1 << 20));
    join_all(reads).await;
    let took = begin.elapsed();
    // A quarter of a second's worth passes at once.
    let least = Duration::from_millis(3750);
    assert!((least..least + Duration::from_millis(250)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn the_machine_never_has_more_requests_than_it_may() {
    for most in [1, 3] {
        let throttle = throttle(Limits { max_inflight: Some(most), ..Limits::default() });
        let disk = Disk::new(SERVICE);
        let sources = [0, 1].map(|_| Throttled::new(disk.clone(), throttle.clone()));
        let reads = (0..20_u64).map(|index| read(&sources[usize::from(index % 2 == 1)], index * 700_000, 700_000));
        let mut data = 0;
        let mut sink = |range: Range<u64>, _| {
            data += range.end - range.start;
            ControlFlow::Continue(())
        };
        let window = 0..3 * QUESTION + 5;
        let (mapped, given, _) = tokio::join!(
            sources[0].map(&Map::Allocation, window.clone(), &mut sink),
            sources[1].give_back(0..REQUEST as u64),
            join_all(reads)
        );
        mapped.unwrap();
        given.unwrap();
        assert_eq!(data, window.end);
        assert_eq!(disk.most.load(Ordering::Relaxed), most);
        assert_eq!(in_flight(&throttle), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn reads_are_sent_in_order_and_questions_wait_for_no_rate() {
    let throttle = throttle(Limits { max_rate: Some(1 << 20), max_inflight: Some(1), polite: false });
    let disk = Disk::new(SERVICE);
    let source = Throttled::new(disk.clone(), throttle);
    let begin = Instant::now();
    let reads = join_all((0..8).map(|index| read(&source, (7 - index) * REQUEST as u64, REQUEST)));
    let question = async {
        source.map(&Map::Dirty("x".into()), 0..1 << 40, &mut |_, _| ControlFlow::Continue(())).await.unwrap();
        begin.elapsed()
    };
    let (_, asked) = tokio::join!(reads, question);
    assert!(asked <= SERVICE * 3, "{asked:?}");
    let order: Vec<u64> = (0..8).map(|index| (7 - index) * REQUEST as u64).collect();
    assert_eq!(*disk.order.lock().unwrap(), order);
}

#[tokio::test(start_paused = true)]
async fn what_waits_ends_when_its_disk_is_closed_and_no_other_disk_does() {
    let throttle = throttle(Limits { max_rate: Some(1 << 16), ..Limits::default() });
    let sources = [0, 1].map(|_| Throttled::new(Disk::new(SERVICE), throttle.clone()));
    read(&sources[0], 0, REQUEST).await;
    let begin = Instant::now();
    let first = sources[0].read(0, BytesMut::zeroed(REQUEST));
    let second = async {
        read(&sources[1], 0, REQUEST).await;
        begin.elapsed()
    };
    let close = async {
        sleep(Duration::from_secs(1)).await;
        sources[0].close().await;
        begin.elapsed()
    };
    let (first, second, closed) = tokio::join!(first, second, close);
    assert_eq!(first.unwrap_err().kind(), Kind::Io);
    assert_eq!(closed.as_secs(), 1, "closing waits for nothing");
    // It paid for nothing: the other one has its turn.
    assert_eq!(second.as_secs(), 4, "{second:?}");
    let later = timeout(Duration::from_millis(1), sources[0].read(0, BytesMut::zeroed(512))).await;
    assert!(later.expect("at once").is_err());
}

#[tokio::test(start_paused = true)]
async fn a_request_counts_until_it_is_answered_though_its_reader_is_gone() {
    let throttle = throttle(Limits { max_inflight: Some(1), ..Limits::default() });
    let disk = Disk::new(SERVICE);
    let source = Throttled::new(disk.clone(), throttle.clone());
    let gone = timeout(SERVICE / 5, source.read(0, BytesMut::zeroed(512))).await;
    assert!(gone.is_err());
    assert_eq!(in_flight(&throttle), 1);
    let begin = Instant::now();
    read(&source, 512, 512).await;
    assert!(begin.elapsed() >= SERVICE, "after the one before: {:?}", begin.elapsed());
    assert_eq!(disk.most.load(Ordering::Relaxed), 1);
    // Who goes while he waits leaves nothing.
    let first = read(&source, 0, 512);
    let waits = timeout(SERVICE / 5, source.read(0, BytesMut::zeroed(512)));
    let ((), gone) = tokio::join!(first, waits);
    assert!(gone.is_err());
    assert_eq!(in_flight(&throttle), 0);
}

/// Requests that a guest gets served in a minute, one after the other, and ours, beside as many readers as there may be.
async fn minute(limits: Limits, guest_begins: Duration) -> (usize, usize) {
    let disk = Disk::new(SERVICE);
    let source = Throttled::new(disk.clone(), throttle(limits));
    let readers = join_all((0..16).map(async |_| {
        loop {
            read(&source, 0, 512).await;
        }
    }));
    let guest = async {
        sleep(guest_begins).await;
        let (mut served, begin) = (0, Instant::now());
        let before = disk.served.load(Ordering::Relaxed);
        while begin.elapsed() < Duration::from_secs(60) {
            disk.serve().await;
            served += 1;
        }
        (served, disk.served.load(Ordering::Relaxed) - before)
    };
    tokio::select! { _ = readers => unreachable!("they read on"), counts = guest => counts }
}

/// What the disk can do in a minute.
const MINUTE: usize = 12_000;

#[tokio::test(start_paused = true)]
async fn polite_leaves_a_slow_disk_to_the_guest() {
    let unlimited = Limits { max_inflight: Some(16), ..Limits::default() };
    let polite = Limits { polite: true, ..Limits::default() };
    // A guest that was busy from the beginning is a part of what the disk is known as.
    for (begins, least) in [(Duration::ZERO, MINUTE / 3), (Duration::from_secs(40), MINUTE / 2)] {
        let (rude, _) = minute(unlimited, begins).await;
        let (guest, ours) = minute(polite, begins).await;
        eprintln!("of {MINUTE} the guest had {guest} with polite, {rude} without; ours {ours}");
        assert!(rude < MINUTE / 15, "one of seventeen: {rude}");
        assert!(guest > least, "{guest}");
        assert!(ours > 400, "it goes on: {ours}");
    }
}

#[tokio::test(start_paused = true)]
async fn polite_reads_a_disk_that_nobody_else_uses() {
    let disk = Disk::new(SERVICE);
    let source = Throttled::new(disk.clone(), throttle(Limits { polite: true, ..Limits::default() }));
    let readers = join_all((0..16).map(async |_| {
        loop {
            read(&source, 0, 512).await;
        }
    }));
    assert!(timeout(Duration::from_secs(60), readers).await.is_err(), "they read on");
    let served = disk.served.load(Ordering::Relaxed);
    assert!(served > MINUTE * 3 / 4, "{served}");
}
