//! Tests of what is given back.

use proptest::prelude::*;

use super::*;

/// A disk whose bytes are their cluster's number, and that cannot be read where it was given back.
#[derive(Default)]
struct Disk {
    given: Mutex<Vec<Range<u64>>>,
}

impl Disk {
    fn is_given(&self, range: &Range<u64>) -> bool {
        self.given.lock().unwrap().iter().any(|given| given.start < range.end && range.start < given.end)
    }
}

#[async_trait]
impl Source for Disk {
    async fn read(&self, offset: u64, mut buf: BytesMut) -> Result<BytesMut> {
        let range = offset..offset + u64::try_from(buf.len()).unwrap();
        if self.is_given(&range) {
            return Err(Error::new(Kind::Broken, "given back"));
        }
        for (at, byte) in (offset..).zip(buf.iter_mut()) {
            *byte = u8::try_from(at / CLUSTER % 251).unwrap();
        }
        Ok(buf)
    }

    async fn map(&self, _: &Map, window: Range<u64>, sink: &mut Sink<'_>) -> Result<()> {
        if self.is_given(&window) {
            return Err(Error::new(Kind::Broken, "given back"));
        }
        let _ = sink(window, false);
        Ok(())
    }

    async fn give_back(&self, range: Range<u64>) -> Result<()> {
        assert!(!self.is_given(&range), "nothing is given back twice");
        self.given.lock().unwrap().push(range);
        Ok(())
    }

    fn traffic(&self) -> Traffic {
        Traffic::default()
    }

    async fn close(&self) {}
}

const SIZE: u64 = 4 * LAG + 1000;

async fn read(once: &ReadOnce, offset: u64, length: u64) -> Result<()> {
    let buf = once.read(offset, BytesMut::zeroed(usize::try_from(length).unwrap())).await?;
    assert_eq!(u64::from(buf[0]), offset / CLUSTER % 251);
    Ok(())
}

#[tokio::test]
async fn a_pass_gives_back_all_but_its_end() {
    let disk = Arc::new(Disk::default());
    let once = ReadOnce::new(disk.clone(), SIZE);
    for at in (0..SIZE).step_by(1 << 20) {
        read(&once, at, (SIZE - at).min(1 << 20)).await.unwrap();
        // What was lately read can be read again, once or often.
        read(&once, at.saturating_sub(LAG / 2), 4096).await.unwrap();
    }
    let given: u64 = disk.given.lock().unwrap().iter().map(|run| run.end - run.start).sum();
    assert!((SIZE - LAG - LAG / 8..=SIZE - LAG / 2).contains(&given), "{given} of {SIZE}");
    let error = read(&once, 0, 512).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Io);
    assert!(error.to_string().contains("read_once"), "{error}");
    // The map tells what was given back as data, and the rest as it is.
    let mut extents = Vec::new();
    let mut sink = |range: Range<u64>, data| {
        extents.push((range, data));
        ControlFlow::Continue(())
    };
    once.map(&Map::Allocation, 0..SIZE, &mut sink).await.unwrap();
    assert!(extents[0].1 && extents[0].0.start == 0);
    assert_eq!(extents.last().unwrap(), &(extents[0].0.end..SIZE, false));
}

#[tokio::test]
async fn small_reads_in_any_order_are_a_pass_too() {
    let disk = Arc::new(Disk::default());
    let once = ReadOnce::new(disk.clone(), SIZE);
    for window in (0..2 * LAG).step_by(1 << 17) {
        for at in [3, 0, 2, 1, 6, 7, 5, 4] {
            read(&once, window + at * (1 << 14), 1 << 14).await.unwrap();
        }
    }
    let given: u64 = disk.given.lock().unwrap().iter().map(|run| run.end - run.start).sum();
    assert!(given >= LAG - LAG / 8, "{given}");
}

proptest! {
    #[test]
    fn runs_are_what_was_added(adds in proptest::collection::vec((0_u64..60, 1_u64..9), 0..20), from in 0_u64..70, length in 1_u64..9) {
        let mut runs = Runs::default();
        let mut model = [false; 80];
        for (start, length) in adds {
            prop_assert!(runs.add(start..start + length));
            (start..start + length).for_each(|at| model[usize::try_from(at).unwrap()] = true);
        }
        let is = |at: u64| model[usize::try_from(at).unwrap()];
        prop_assert_eq!(runs.overlap(&(from..from + length)), (from..from + length).find(|at| is(*at)));
        let (inside, end) = runs.at(from, 79);
        prop_assert_eq!(inside, is(from));
        prop_assert_eq!(end, (from..79).find(|at| is(*at) != inside).unwrap_or(79));
        let ends: Vec<(u64, u64)> = runs.0.iter().map(|(from, to)| (*from, *to)).collect();
        prop_assert!(ends.windows(2).all(|pair| pair[0].1 < pair[1].0), "{:?}", ends);
    }
}
