//! Every way a server can break the protocol kills the connection, and nobody notices but the log:
//! the request goes out again on a new one, and what comes back is right.

mod reads;
mod status;

use std::ops::ControlFlow;
use std::time::Duration;

use bytes::BytesMut;
use nbd_pool::testing::{Disk, Framing, Listener, Offer, Seen, Wire};
use nbd_pool::{Config, ErrorKind, Extent, Pool};

const SIZE: usize = 64 << 10;
const ALLOCATION: u32 = 11;
const DIRTY: u32 = 12;
/// Longer than any of these tests takes, shorter than anyone wants to wait for a broken one.
const PATIENCE: Duration = Duration::from_secs(20);

fn disk() -> Disk {
    Disk {
        content: (0..SIZE).map(|at| u8::try_from(at % 253).expect("below 253")).collect(),
        status: vec![
            ("base:allocation".to_owned(), vec![(16 << 10, 0), (48 << 10, 3)]),
            ("qemu:dirty-bitmap:x".to_owned(), vec![(32 << 10, 1), (32 << 10, 0)]),
        ],
    }
}

fn offer(framing: Framing) -> Offer {
    Offer {
        size: u64::try_from(SIZE).expect("small"),
        framing,
        contexts: vec![(ALLOCATION, "base:allocation".to_owned()), (DIRTY, "qemu:dirty-bitmap:x".to_owned())],
        ..Offer::default()
    }
}

fn config() -> Config {
    Config {
        backoff_min: Duration::from_millis(1),
        backoff_max: Duration::from_millis(5),
        request_timeout: PATIENCE,
        ..Config::default()
    }
}

fn contexts() -> Vec<String> {
    disk().status.into_iter().map(|(name, _)| name).collect()
}

/// What the first connection says in answer to its first request.
type Fault = Box<dyn Fn(Wire, &Seen) -> Vec<u8> + Send>;

fn fault(answer: impl Fn(Wire, &Seen) -> Vec<u8> + Send + 'static) -> Fault {
    Box::new(answer)
}

/// What the pool asks for.
#[derive(Clone, Copy)]
enum Asked {
    Read,
    Status,
}

/// Serves `fault` on the first connection and the truth on the second.
async fn survives(name: &str, framing: Framing, asked: Asked, fault: Fault) {
    let listener = Listener::bind().expect("a socket");
    let address = listener.address();
    let server = async {
        let mut peer = listener.accept(&offer(framing)).await.expect("the first connection");
        let seen = peer.request().await.expect("valid").expect("a request");
        peer.send(&fault(peer.wire(), &seen)).await.expect("sent");
        // The client leaves without a word: after a fault nothing on this stream can be trusted.
        let next = peer.request().await;
        assert!(matches!(next, Ok(None) | Err(_)), "{name}: not hung up but {next:?}");
        let mut peer = listener.accept(&offer(framing)).await.expect("the second connection");
        peer.serve(&disk()).await.expect("served");
    };
    let client = async {
        let pool = Pool::connect(address, "disk", &contexts(), config()).await.expect("connected");
        match asked {
            Asked::Read => {
                let buf = pool.read(4096, BytesMut::zeroed(8192)).await;
                let buf = buf.unwrap_or_else(|error| panic!("{name}: {error}"));
                assert!(buf[..] == disk().content[4096..4096 + 8192], "{name}: wrong bytes");
            }
            Asked::Status => {
                let extents = extents(&pool, 8 << 10, 40 << 10).await;
                let expected = [
                    Extent { offset: 8 << 10, length: 8 << 10, flags: 0 },
                    Extent { offset: 16 << 10, length: 24 << 10, flags: 3 },
                ];
                assert_eq!(extents, expected, "{name}");
            }
        }
        let stats = pool.stats();
        assert_eq!((stats.faults, stats.reconnects), (1, 1), "{name}");
        pool.close().await;
    };
    let both = async { tokio::join!(server, client) };
    tokio::time::timeout(PATIENCE, both).await.unwrap_or_else(|_| panic!("{name}: stuck"));
}

async fn extents(pool: &Pool, start: u64, end: u64) -> Vec<Extent> {
    let mut extents = Vec::new();
    pool.block_status("base:allocation", start..end, |extent| {
        extents.push(extent);
        ControlFlow::Continue(())
    })
    .await
    .expect("block status");
    extents
}

#[tokio::test]
async fn reads_survive_every_fault() {
    for framing in [Framing::Structured, Framing::Extended] {
        for (name, fault) in reads::data_faults().into_iter().chain(reads::other_faults()) {
            survives(name, framing, Asked::Read, fault).await;
        }
    }
}

#[tokio::test]
async fn block_status_survives_every_fault() {
    for framing in [Framing::Structured, Framing::Extended] {
        for (name, fault) in status::faults() {
            survives(name, framing, Asked::Status, fault).await;
        }
    }
}

#[tokio::test]
async fn extended_headers_have_faults_of_their_own() {
    let wrong_offset = fault(|wire, seen| {
        let other = Seen { offset: seen.offset + 1, ..seen.clone() };
        wire.data(&other, 4096, &[0xbd; 8192], true)
    });
    survives("another request's offset", Framing::Extended, Asked::Read, wrong_offset).await;
    let wrong_count = fault(|wire, seen| {
        let mut bytes = wire.status(seen, ALLOCATION, &[(4096, 0), (4096, 1)], false);
        bytes[32 + 7] = 1;
        bytes
    });
    survives("a wrong descriptor count", Framing::Extended, Asked::Status, wrong_count).await;
    let enormous = fault(|wire, seen| wire.header(seen, 1, Wire::OFFSET_DATA, u64::MAX));
    survives("a length of 2^64 - 1", Framing::Extended, Asked::Read, enormous).await;
}

#[tokio::test]
async fn the_same_fault_every_time_is_the_answer() {
    let listener = Listener::bind().expect("a socket");
    let address = listener.address();
    let server = async {
        loop {
            let mut peer = listener.accept(&offer(Framing::Structured)).await.expect("a client");
            let seen = peer.request().await.expect("valid").expect("a request");
            peer.send(&peer.wire().none(&seen)).await.expect("sent");
        }
    };
    let client = async {
        let pool = Pool::connect(address, "", &[], config()).await.expect("connected");
        let error = pool.read(0, BytesMut::zeroed(10)).await.expect_err("never right");
        assert_eq!(error.kind(), ErrorKind::Protocol);
        assert_eq!(pool.stats().faults, 3);
        assert_eq!(pool.stats().bytes, 0, "nothing was released");
    };
    tokio::select! {
        () = server => unreachable!(),
        result = tokio::time::timeout(PATIENCE, client) => result.expect("in time"),
    }
}

#[tokio::test]
async fn an_error_of_the_server_is_an_answer_and_the_connection_stays() {
    let listener = Listener::bind().expect("a socket");
    let address = listener.address();
    let server = async {
        let mut peer = listener.accept(&offer(Framing::Extended)).await.expect("a client");
        let wire = peer.wire();
        let mut answers: Vec<Fault> = vec![
            fault(|wire, seen| wire.error(seen, 5, "bad sector", Some(seen.offset))),
            fault(|wire, seen| wire.error(seen, 22, "", None)),
            // An error of a later specification, after good data, is an error still.
            fault(|wire, seen| {
                let payload = [0, 0, 0, 95, 0, 2, b'n', b'o', 9, 9];
                let data = wire.data(seen, seen.offset, &[1; 10], false);
                [data, wire.chunk(seen, 1, 0x8099, &payload)].concat()
            }),
        ];
        answers.reverse();
        while let Some(answer) = answers.pop() {
            let seen = peer.request().await.expect("valid").expect("a request");
            peer.send(&answer(wire, &seen)).await.expect("sent");
        }
        peer.serve(&disk()).await.expect("served");
    };
    let client = async {
        let pool = Pool::connect(address, "", &contexts(), config()).await.expect("connected");
        for errno in [5, 22, 95] {
            let error = pool.read(0, BytesMut::zeroed(10)).await.expect_err("an error");
            assert_eq!(error.kind(), ErrorKind::Server(errno));
        }
        assert_eq!(pool.read(1, BytesMut::zeroed(2)).await.expect("data")[..], [1, 2]);
        let stats = pool.stats();
        assert_eq!((stats.faults, stats.reconnects, stats.requests), (0, 0, 4));
        pool.close().await;
    };
    let both = async { tokio::join!(server, client) };
    tokio::time::timeout(PATIENCE, both).await.expect("in time");
}
