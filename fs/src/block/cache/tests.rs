use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::LazyLock;
use std::sync::atomic::AtomicUsize;

use proptest::prelude::*;
use tokio::sync::Semaphore;

use super::*;
use crate::block::allocation::Allocation;
use crate::block::{Begun, Map, Sink, Traffic};

const SIZE: u64 = 8 << 20;

/// The disk, whose bytes tell their place.
static DISK: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let words = (0..SIZE / 8).flat_map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    words.collect()
});

fn bytes(range: &Range<u64>) -> &'static [u8] {
    let place = |at: u64| usize::try_from(at).unwrap();
    &DISK[place(range.start)..place(range.end)]
}

fn fill(offset: u64, buf: &mut BytesMut) {
    let end = offset + u64::try_from(buf.len()).unwrap();
    buf.copy_from_slice(bytes(&(offset..end)));
}

/// A disk of bytes that tell their place; each read waits for a permit.
struct Slow {
    permits: Semaphore,
    /// How often each byte range was asked for.
    asked: Mutex<BTreeMap<(u64, usize), usize>>,
    fail: AtomicBool,
    /// It begins reads itself, and answers at once on the same thread.
    prompt: bool,
}

impl Slow {
    fn new(permits: usize) -> Arc<Self> {
        Arc::new(Self::with(permits, false))
    }

    fn with(permits: usize, prompt: bool) -> Self {
        Self { permits: Semaphore::new(permits), asked: Mutex::default(), fail: AtomicBool::new(false), prompt }
    }

    fn asked(&self) -> Vec<(u64, usize)> {
        self.asked.lock().unwrap().iter().flat_map(|(&range, &count)| std::iter::repeat_n(range, count)).collect()
    }
}

#[async_trait]
impl Source for Slow {
    async fn read(&self, offset: u64, mut buf: BytesMut) -> Result<BytesMut> {
        *self.asked.lock().unwrap().entry((offset, buf.len())).or_default() += 1;
        self.permits.acquire().await.unwrap().forget();
        if self.fail.load(Ordering::SeqCst) {
            return Err(Error::new(Kind::Timeout, "told to fail"));
        }
        fill(offset, &mut buf);
        Ok(buf)
    }

    fn begin(&self, offset: u64, mut buf: BytesMut, begun: Begun) -> Option<(BytesMut, Begun)> {
        if !self.prompt {
            return Some((buf, begun));
        }
        fill(offset, &mut buf);
        begun(Ok(buf));
        None
    }

    async fn map(&self, _: &Map, window: Range<u64>, sink: &mut Sink<'_>) -> Result<()> {
        let _: ControlFlow<()> = sink(window, true);
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

fn is_right(found: &Bytes, range: &Range<u64>) -> bool {
    found == bytes(range)
}

/// Lets all tasks go as far as they can.
async fn settle() {
    for _ in 0..64 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn who_wants_the_same_waits_for_the_same_request() {
    let source = Slow::new(0);
    let disk = Cache::new(1 << 20).disk(source.clone(), None);
    let reads = [0..4096, 0..4096, 1024..3000, 2048..8192].map(|range: Range<u64>| {
        let disk = disk.clone();
        tokio::spawn(async move { is_right(&disk.read(range.clone()).await.unwrap(), &range) })
    });
    settle().await;
    assert_eq!(source.asked(), [(0, 4096), (4096, 4096)]);
    source.permits.add_permits(2);
    for read in reads {
        assert!(read.await.unwrap());
    }
    assert!(is_right(&disk.read(100..8000).await.unwrap(), &(100..8000)));
    assert_eq!(source.asked().len(), 2, "it was at hand");
}

#[tokio::test]
async fn all_who_wait_hear_of_a_failure_and_it_is_asked_again() {
    let source = Slow::new(0);
    source.fail.store(true, Ordering::SeqCst);
    let disk = Cache::new(1 << 20).disk(source.clone(), None);
    let reads = [(); 3].map(|()| {
        let disk = disk.clone();
        tokio::spawn(async move { disk.read(0..512).await })
    });
    settle().await;
    source.permits.add_permits(1);
    for read in reads {
        let error = read.await.unwrap().unwrap_err();
        assert_eq!((error.kind(), error.to_string()), (Kind::Timeout, "told to fail".to_owned()));
    }
    source.fail.store(false, Ordering::SeqCst);
    source.permits.add_permits(1);
    assert!(is_right(&disk.read(0..512).await.unwrap(), &(0..512)));
}

#[tokio::test]
async fn reads_beyond_the_budget_take_turns() {
    let source = Slow::new(0);
    let cache = Cache::new(3 << 20);
    let disk = cache.disk(source.clone(), None);
    let reads: Vec<_> = (0..8_u64)
        .map(|number| {
            let (disk, range) = (disk.clone(), number << 20..(number + 1) << 20);
            tokio::spawn(async move { is_right(&disk.read(range.clone()).await.unwrap(), &range) })
        })
        .collect();
    for served in 0..8 {
        settle().await;
        assert!(cache.usage().bytes <= 3 << 20, "{}", cache.usage().bytes);
        assert!(source.asked().len() <= served + 2);
        source.permits.add_permits(1);
    }
    for read in reads {
        assert!(read.await.unwrap());
    }
    // However small the budget is, one is served.
    source.permits.add_permits(2);
    let tiny = Cache::new(1).disk(source.clone(), None);
    assert!(is_right(&tiny.read(0..2 << 20).await.unwrap(), &(0..2 << 20)));
}

#[tokio::test]
async fn what_is_read_ahead_leaves_room_and_stays_until_it_is_read() {
    let source = Slow::new(64);
    let cache = Cache::new(4 << 20);
    let disk = cache.disk(source.clone(), None);
    let reached = disk.read_ahead(0..SIZE);
    assert!((1 << 20..=3 << 20).contains(&reached), "{reached}");
    settle().await;
    // Others do not push it out as long as there is something else.
    for at in (4 << 20..7 << 20).step_by(64 << 10) {
        disk.read(at..at + (64 << 10)).await.unwrap();
    }
    let before = source.asked().len();
    assert!(is_right(&disk.read(0..reached).await.unwrap(), &(0..reached)));
    assert_eq!(source.asked().len(), before, "it was still there");
    assert!(cache.usage().bytes <= 4 << 20);
}

#[tokio::test]
async fn it_tells_what_it_was_good_for() {
    let source = Slow::new(64);
    let cache = Cache::new(1 << 20);
    let disk = cache.disk(source.clone(), None);
    assert_eq!(cache.usage(), Usage::default());
    for range in [0..4096, 0..4096, 1024..2048, 0..8192] {
        disk.read(range).await.unwrap();
    }
    let usage = cache.usage();
    let asked: usize = source.asked().iter().map(|read| read.1).sum();
    assert_eq!((usage.hits, usage.fetched), (2, asked as u64));
    assert!(usage.bytes >= 8192 && usage.bytes <= 1 << 20, "{usage:?}");
}

#[tokio::test]
async fn nothing_is_kept_after_the_end() {
    let source = Slow::new(1);
    let cache = Cache::new(1 << 20);
    let disk = cache.disk(source.clone(), None);
    disk.read(0..4096).await.unwrap();
    let late = tokio::spawn({
        let disk = disk.clone();
        async move { disk.read(8192..12288).await }
    });
    settle().await;
    disk.end();
    source.permits.add_permits(1);
    late.await.unwrap().unwrap();
    assert_eq!(cache.usage().bytes, 0);
}

/// Confirms when it is told to, and counts.
struct Told {
    turns: Semaphore,
    asked: AtomicUsize,
    refuse: AtomicBool,
}

#[async_trait]
impl Keeper for Told {
    async fn confirm(&self) -> Result<()> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        self.turns.acquire().await.unwrap().forget();
        let refused = self.refuse.load(Ordering::SeqCst);
        if refused { Err(Error::new(Kind::Io, "not kept")) } else { Ok(()) }
    }
}

#[tokio::test]
async fn nothing_is_given_out_before_it_is_confirmed() {
    let source = Slow::new(64);
    let keeper =
        Arc::new(Told { turns: Semaphore::new(0), asked: AtomicUsize::new(0), refuse: AtomicBool::new(false) });
    let disk = Cache::new(1 << 20).disk(source.clone(), Some(keeper.clone()));
    let read = |range: Range<u64>| {
        let disk = disk.clone();
        tokio::spawn(async move { disk.read(range).await })
    };
    let first = read(0..512);
    settle().await;
    assert!(!first.is_finished() && keeper.asked.load(Ordering::SeqCst) == 1);
    // These come while the first is being confirmed: that does not cover them, the next time covers all.
    let others = [512..1024, 1024..1536, 0..512].map(read);
    settle().await;
    keeper.turns.add_permits(1);
    assert!(is_right(&first.await.unwrap().unwrap(), &(0..512)));
    settle().await;
    assert!(!others[0].is_finished() && !others[1].is_finished() && others[2].is_finished());
    assert_eq!(keeper.asked.load(Ordering::SeqCst), 2);
    keeper.refuse.store(true, Ordering::SeqCst);
    keeper.turns.add_permits(1);
    let [second, third, again] = others;
    assert!(second.await.unwrap().is_err() && third.await.unwrap().is_err());
    assert!(again.await.unwrap().is_ok(), "what was confirmed once stays right");
    keeper.refuse.store(false, Ordering::SeqCst);
    keeper.turns.add_permits(1);
    assert!(read(512..1024).await.unwrap().is_ok(), "what was not is fetched again");
}

#[tokio::test]
async fn what_was_learnt_of_holes_is_used_unasked_only_once_it_is_confirmed() {
    for refuse in [false, true] {
        let (turns, asked) = (Semaphore::new(0), AtomicUsize::new(0));
        let keeper = Arc::new(Told { turns, asked, refuse: AtomicBool::new(refuse) });
        let allocation = Allocation::new(Slow::new(0), SIZE, Some(keeper.clone()));
        allocation.complete().await.unwrap();
        settle().await;
        assert_eq!(allocation.within_if_known(0..SIZE), None);
        keeper.turns.add_permits(1);
        settle().await;
        assert_eq!(allocation.within_if_known(0..SIZE).is_some(), !refuse);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Buffers are used again, budgets are small: the bytes are right, and the budget is kept to.
    #[test]
    fn every_read_is_right(
        budget in 1_u64..4 << 20,
        steps in proptest::collection::vec((any::<bool>(), 0..SIZE, 1_u64..3 << 20), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let cache = Cache::new(budget);
            let disks = [(); 2].map(|()| cache.disk(Arc::new(Slow::with(0, true)), None));
            for (number, (ahead, start, length)) in steps.into_iter().enumerate() {
                let (disk, range) = (&disks[number % 2], start..(start + length).min(SIZE));
                if ahead {
                    disk.read_ahead(range);
                } else {
                    prop_assert!(is_right(&disk.read(range.clone()).await.unwrap(), &range));
                }
                prop_assert!(cache.usage().bytes <= budget.max(3 << 20) + 4096, "{} of {budget}", cache.usage().bytes);
            }
            for disk in &disks {
                disk.end();
            }
            prop_assert_eq!(cache.usage().bytes, 0);
            Ok(())
        })?;
    }
}
