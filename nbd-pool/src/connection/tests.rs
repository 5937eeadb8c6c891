use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split};
use tokio::sync::Semaphore;

use super::*;
use crate::info::ExportInfo;
use crate::testing::{Framing, Seen, Wire};

const CONTEXTS: [(u32, &str); 2] = [(3, "base:allocation"), (6, "qemu:dirty-bitmap:x")];

fn negotiated(framing: Framing) -> Negotiated {
    Negotiated {
        info: ExportInfo {
            size: 1 << 30,
            read_only: true,
            can_trim: false,
            multi_conn: true,
            block_size: crate::BlockSize::default(),
            extended_headers: framing == Framing::Extended,
            contexts: CONTEXTS.iter().map(|(_, name)| (*name).to_owned()).collect(),
        },
        headers: framing.into(),
        context_ids: CONTEXTS.iter().map(|(id, _)| *id).collect(),
        status_filter: false,
    }
}

struct Fixture {
    connection: Connection,
    server: DuplexStream,
    permits: Arc<Semaphore>,
}

const PERMITS: usize = 64;

fn start(framing: Framing) -> Fixture {
    let (client, server) = duplex(1 << 20);
    let (reader, writer) = split(client);
    let limits = Limits { requests: PERMITS, request_timeout: Duration::from_secs(10) };
    let connection = Connection::start(reader, writer, negotiated(framing), limits, Arc::default());
    Fixture { connection, server, permits: Arc::new(Semaphore::new(PERMITS)) }
}

impl Fixture {
    fn permits(&self) -> Permits {
        let permit = Arc::clone(&self.permits).try_acquire_owned().expect("a free permit");
        Permits { _request: permit, _bytes: None }
    }

    fn read(&self, offset: u64, length: usize) -> oneshot::Receiver<ReadOutcome> {
        let buf = BytesMut::zeroed(length);
        self.connection.read(offset, buf, self.permits()).expect("alive")
    }

    /// Waits for a request in compact framing; gives it as seen.
    async fn request(&mut self) -> Seen {
        let mut header = [0; 28];
        self.server.read_exact(&mut header).await.expect("a request");
        let word = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().expect("8 bytes"));
        Seen {
            flags: 0,
            command: u16::from_be_bytes([header[6], header[7]]),
            cookie: word(8),
            offset: word(16),
            length: word(20) & 0xffff_ffff,
            only: None,
        }
    }

    async fn say(&mut self, bytes: &[u8]) {
        self.server.write_all(bytes).await.expect("the client reads");
    }
}

fn wire() -> Wire {
    Wire::new(Framing::Structured)
}

/// The byte that every test disk has at `offset`.
fn byte_at(offset: u64) -> u8 {
    u8::try_from(offset % 251).expect("below 251")
}

fn bytes_at(offset: u64, length: usize) -> Vec<u8> {
    (offset..).take(length).map(byte_at).collect()
}

#[tokio::test(start_paused = true)]
async fn the_oldest_request_has_a_limit_and_everything_comes_back() {
    let mut fixture = start(Framing::Structured);
    let first = fixture.read(0, 100);
    tokio::time::sleep(Duration::from_secs(6)).await;
    let second = fixture.read(100, 10);
    let seen = fixture.request().await;
    // Half an answer does not stop the clock.
    fixture.say(&wire().data(&seen, 0, &[7; 50], false)).await;
    fixture.say(&wire().data(&seen, 50, &[7; 50], true)[..40]).await;
    let began = Instant::now();
    for (outcome, length) in [(first, 100), (second, 10)] {
        let Ok(Outcome::Lost(buf, cause)) = outcome.await else { panic!("no answer came") };
        assert_eq!((buf.len(), cause.kind()), (length, ErrorKind::Timeout));
    }
    assert_eq!(began.elapsed(), Duration::from_secs(4), "the limit of the first, not the second");
    assert_eq!(fixture.permits.available_permits(), PERMITS);
    assert_eq!(fixture.connection.shared.counters.faults.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_lives_and_then_keeps_the_limit() {
    let fixture = start(Framing::Structured);
    tokio::time::sleep(Duration::from_secs(3605)).await;
    assert!(fixture.connection.death().is_none());
    let began = Instant::now();
    let Ok(Outcome::Lost(..)) = fixture.read(0, 1).await else { panic!("no answer came") };
    assert_eq!(began.elapsed(), Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_request_keeps_its_permit_until_it_is_answered() {
    let mut fixture = start(Framing::Structured);
    drop(fixture.read(0, 4));
    let kept = fixture.read(4, 4);
    let (first, second) = (fixture.request().await, fixture.request().await);
    assert_eq!(fixture.permits.available_permits(), PERMITS - 2);
    fixture.say(&wire().data(&first, 0, b"gone", true)).await;
    fixture.say(&wire().data(&second, 4, b"kept", true)).await;
    let Ok(Outcome::Done(buf)) = kept.await else { panic!("the connection is usable") };
    assert_eq!(&buf[..], b"kept");
    assert_eq!(fixture.permits.available_permits(), PERMITS);
    assert_eq!(fixture.connection.load(), 0);
}

#[tokio::test(start_paused = true)]
async fn dropping_says_goodbye() {
    let mut fixture = start(Framing::Structured);
    let outcome = fixture.read(0, 4);
    fixture.request().await;
    let (connection, mut server) = (fixture.connection, fixture.server);
    drop(connection);
    let mut heard = Vec::new();
    server.read_to_end(&mut heard).await.expect("closed in due form");
    assert_eq!((heard.len(), heard[7]), (28, 2), "NBD_CMD_DISC");
    let Ok(Outcome::Lost(buf, cause)) = outcome.await else { panic!("nobody answered") };
    assert_eq!((buf.len(), cause.kind()), (4, ErrorKind::Closed));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_listen_cannot_hold_the_end_up() {
    let (client, server) = duplex(8);
    let (reader, writer) = split(client);
    let limits = Limits { requests: 4, request_timeout: Duration::from_secs(3600) };
    let connection = Connection::start(reader, writer, negotiated(Framing::Structured), limits, Arc::default());
    let permits = Arc::new(Semaphore::new(1));
    let permit = Arc::clone(&permits).try_acquire_owned().expect("free");
    let permits = Permits { _request: permit, _bytes: None };
    let outcome = connection.read(0, BytesMut::zeroed(1), permits).expect("alive");
    tokio::time::sleep(Duration::from_millis(1)).await;
    connection.hang_up();
    connection.gone().await;
    assert!(matches!(outcome.await, Ok(Outcome::Lost(..))));
    drop(server);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_shuts_down_is_left() {
    let mut fixture = start(Framing::Structured);
    let (refused, lost) = (fixture.read(0, 4), fixture.read(4, 4));
    let seen = fixture.request().await;
    fixture.request().await;
    fixture.say(&wire().error(&seen, 108, "bye", None)).await;
    let Ok(Outcome::Server(error)) = refused.await else { panic!("an answer") };
    assert_eq!(error.kind(), ErrorKind::Server(108));
    assert!(matches!(lost.await, Ok(Outcome::Lost(..))), "to be issued again");
    assert_eq!(fixture.request().await.command, Wire::DISC);
    assert_eq!(fixture.connection.shared.counters.faults.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_request_that_cannot_be_queued_ends_the_connection() {
    // As it is between the end of the writer task and the moment the reader task hears of it.
    let (queue, requests) = mpsc::channel(1);
    drop(requests);
    let fixture = start(Framing::Structured);
    fixture.connection.shared.table().queue = Some(Outlet::Task(queue));
    let buf = BytesMut::zeroed(7);
    let refused = fixture.connection.read(0, buf, fixture.permits());
    assert_eq!(refused.expect_err("no queue").0.len(), 7);
    assert!(fixture.connection.death().is_some(), "it must not be picked again");
    fixture.connection.gone().await;
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_after_the_end_is_no_fault() {
    let mut fixture = start(Framing::Structured);
    let lost = fixture.read(0, 4);
    let seen = fixture.request().await;
    fixture.say(&wire().data(&seen, 0, b"late", true)).await;
    // The reader has not heard it yet, and the sender finds that nothing can be sent any more.
    fixture.connection.hang_up();
    fixture.connection.gone().await;
    assert!(matches!(lost.await, Ok(Outcome::Lost(..))));
    assert_eq!(fixture.connection.shared.counters.faults.load(Ordering::Relaxed), 0);
}

/// A step of a server that answers several reads at once: which one, from where, how long, hole.
type Step = (usize, usize, usize, bool);

/// Cuts each read at arbitrary places, and puts all parts in arbitrary order.
fn steps() -> impl Strategy<Value = (Vec<usize>, Vec<Step>)> {
    prop::collection::vec(
        (1_usize..3000, prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..12)),
        1..5,
    )
    .prop_flat_map(|reads| {
        let lengths: Vec<usize> = reads.iter().map(|(length, _)| *length).collect();
        let mut steps = Vec::new();
        for (read, (length, cuts)) in reads.into_iter().enumerate() {
            let mut places: Vec<_> = cuts.iter().map(|(at, hole)| (at.index(length), *hole)).collect();
            places.push((0, false));
            places.sort_unstable();
            places.dedup_by_key(|(at, _)| *at);
            let ends = places.iter().skip(1).map(|(at, _)| *at).chain([length]);
            steps.extend(places.iter().zip(ends).map(|((at, hole), end)| (read, *at, end - at, *hole)));
        }
        (Just(lengths), Just(steps).prop_shuffle())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any partition of several reads, interleaved in any order, gives the right bytes.
    #[test]
    fn replies_are_assembled_whatever_their_order(
        (lengths, steps) in steps(), extended: bool, none_at_end: bool,
    ) {
        let framing = if extended { Framing::Extended } else { Framing::Structured };
        let wire = Wire::new(framing);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.expect("a runtime").block_on(async {
            let mut fixture = start(framing);
            let base = |read: usize| 10_000 * wide(read);
            let mut expected: Vec<_> =
                lengths.iter().enumerate().map(|(read, length)| bytes_at(base(read), *length)).collect();
            let outcomes: Vec<_> = lengths
                .iter()
                .enumerate()
                // What the buffer held before must not shine through.
                .map(|(read, length)| {
                    let buf = BytesMut::from(&vec![0xee; *length][..]);
                    fixture.connection.read(base(read), buf, fixture.permits()).expect("alive")
                })
                .collect();
            let mut left: Vec<usize> =
                (0..lengths.len()).map(|read| steps.iter().filter(|step| step.0 == read).count()).collect();
            let mut said = Vec::new();
            for (read, at, length, hole) in steps {
                left[read] -= 1;
                let last = left[read] == 0;
                let seen = Seen {
                    flags: 0,
                    command: Wire::READ,
                    cookie: wide(read) + 1,
                    offset: base(read),
                    length: wide(lengths[read]),
                    only: None,
                };
                let offset = base(read) + wide(at);
                let done = last && !none_at_end;
                if hole {
                    expected[read][at..at + length].fill(0);
                    let length = u32::try_from(length).expect("short");
                    said.extend(wire.hole(&seen, offset, length, done));
                } else {
                    let data = expected[read][at..at + length].to_vec();
                    said.extend(wire.data(&seen, offset, &data, done));
                }
                if last && none_at_end {
                    said.extend(wire.none(&seen));
                }
            }
            fixture.say(&said).await;
            for (outcome, expected) in outcomes.into_iter().zip(expected) {
                match outcome.await {
                    Ok(Outcome::Done(buf)) => prop_assert_eq!(&buf[..], &expected[..]),
                    other => prop_assert!(false, "{:?}", other),
                }
            }
            Ok(())
        })?;
    }

    /// Bytes that are no reply never panic and never answer anything.
    #[test]
    fn garbage_answers_nothing(
        garbage in prop::collection::vec(any::<u8>(), 32..300), framed: bool, extended: bool,
    ) {
        let framing = if extended { Framing::Extended } else { Framing::Structured };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        runtime.expect("a runtime").block_on(async {
            let mut fixture = start(framing);
            let outcome = fixture.read(5, 1 << 20);
            let mut said = garbage;
            if framed {
                // A header that fits, up to its type and length.
                let seen = Seen {
                    flags: 0, command: 0, cookie: 1, offset: 5, length: 1 << 20, only: None,
                };
                let header = Wire::new(framing).header(&seen, 0, 0, 0);
                said[..4].copy_from_slice(&header[..4]);
                said[8..24].copy_from_slice(&header[8..].iter().copied().chain([0; 8]).take(16).collect::<Vec<_>>());
            }
            fixture.say(&said).await;
            fixture.server.shutdown().await.expect("open");
            prop_assert!(matches!(outcome.await, Ok(Outcome::Lost(..) | Outcome::Server(_))));
            Ok(())
        })?;
    }
}

#[tokio::test(start_paused = true)]
async fn block_status_of_each_context() {
    for framing in [Framing::Structured, Framing::Extended] {
        let mut fixture = start(framing);
        for (context, expected) in [(0, vec![(0, 10, 1), (10, 30, 0)]), (1, vec![(0, 40, 3)])] {
            let permits = fixture.permits();
            let outcome = fixture.connection.block_status(context, 0, 40, permits).expect("alive");
            let cookie = fixture.connection.shared.table().last_cookie;
            let seen = Seen { flags: 0, command: Wire::BLOCK_STATUS, cookie, offset: 0, length: 40, only: None };
            let wire = Wire::new(framing);
            // The spec lets contexts answer in any order.
            fixture.say(&wire.status(&seen, 6, &[(20, 3), (20, 3)], false)).await;
            fixture.say(&wire.status(&seen, 3, &[(10, 1), (30, 0)], true)).await;
            let Ok(Outcome::Done(extents)) = outcome.await else { panic!("an answer") };
            let found: Vec<_> = extents.iter().map(|extent| (extent.offset, extent.length, extent.flags)).collect();
            assert_eq!(found, expected);
        }
    }
}
