//! A server that breaks off at any byte, floods, or stalls: an error that says so, in time, within bounds of memory, or
//! no error where the next connection gives the right answer. What lies are worth is in `tests/faults`.

mod cut;
mod floods;

use std::future::Future;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use cut::Cut;
use nbd_pool::testing::{Disk, Framing, Listener, Offer, Peer};
use nbd_pool::{Address, Config, Error, ErrorKind, Extent, Pool};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

const SIZE: usize = 192;
const CONTEXT: &str = "qemu:dirty-bitmap:c0";

/// Longer than any of these tests takes, shorter than anyone wants to wait for a broken one.
const PATIENCE: Duration = Duration::from_secs(120);

/// Limit of a request where every connection fails.
const SHORT: Duration = Duration::from_millis(200);

/// Servers and clients at a time.
const AT_ONCE: usize = 16;

fn disk() -> Disk {
    Disk {
        content: (0..SIZE).map(|at| u8::try_from(at).expect("a byte")).collect(),
        status: vec![("base:allocation".to_owned(), vec![(192, 0)]), (CONTEXT.to_owned(), vec![(64, 1), (128, 0)])],
    }
}

fn offer(framing: Framing) -> Offer {
    Offer {
        size: u64::try_from(SIZE).expect("small"),
        framing,
        contexts: vec![(0, "base:allocation".to_owned()), (2, CONTEXT.to_owned())],
        ..Offer::default()
    }
}

fn config(request_timeout: Duration) -> Config {
    Config {
        backoff_min: Duration::from_millis(1),
        backoff_max: Duration::from_millis(20),
        request_timeout,
        ..Config::default()
    }
}

/// A whole session: the handshake, a read, and block status.
async fn session(address: Address, request_timeout: Duration) -> Result<(), Error> {
    let contexts = ["base:allocation".to_owned(), CONTEXT.to_owned()];
    let pool = Pool::connect(address, "disk", &contexts, config(request_timeout)).await?;
    let data = pool.read(16, BytesMut::zeroed(64)).await?;
    assert!(data[..] == disk().content[16..80], "wrong bytes");
    let mut extents = Vec::new();
    pool.block_status(CONTEXT, 0..192, |extent| {
        extents.push(extent);
        ControlFlow::Continue(())
    })
    .await?;
    let expected = [Extent { offset: 0, length: 64, flags: 1 }, Extent { offset: 64, length: 128, flags: 0 }];
    assert_eq!(extents, expected);
    pool.close().await;
    Ok(())
}

/// Serves connections, cutting off each that `cut` tells a number of bytes for; what the first one sent, if it came to
/// its end.
async fn serve(listener: &Listener, framing: Framing, cut: impl Fn(usize) -> Option<usize>) -> usize {
    for number in 0.. {
        let stream = Cut::new(listener.accept_silent().await.expect("a client"), cut(number));
        // Who is cut off hears no more of it.
        let Ok(mut peer) = Peer::shake_hands(stream, &offer(framing)).await else { continue };
        if peer.serve(&disk()).await.is_ok() && cut(number).is_none() {
            return peer.into_stream().sent();
        }
    }
    unreachable!("numbers do not end")
}

async fn in_time<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, test).await.expect("the test is stuck")
}

/// Bytes that an honest server sends in one session, and how many of them are the handshake.
async fn lengths(framing: Framing) -> (usize, usize) {
    let listener = Listener::bind().expect("a socket");
    let (whole, outcome) = tokio::join!(serve(&listener, framing, |_| None), session(listener.address(), PATIENCE));
    outcome.expect("a good server");
    let handshake = async {
        let stream = Cut::new(listener.accept_silent().await.expect("a client"), None);
        Peer::shake_hands(stream, &offer(framing)).await.expect("a good client").into_stream().sent()
    };
    let contexts = ["base:allocation".to_owned(), CONTEXT.to_owned()];
    let connect = Pool::connect(listener.address(), "disk", &contexts, config(PATIENCE));
    let (handshake, pool) = tokio::join!(handshake, connect);
    pool.expect("a good server");
    (whole, handshake)
}

/// Runs `test` for each number of bytes after which a server can break off.
async fn at_every_byte<F>(test: impl Fn(Framing, usize, bool) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut tests = JoinSet::new();
    for framing in [Framing::Structured, Framing::Extended] {
        let (whole, handshake) = in_time(lengths(framing)).await;
        println!("{framing:?}: {whole} bytes, {handshake} of them the handshake");
        for bytes in 0..whole {
            let (room, test) = (Arc::clone(&room), test(framing, bytes, bytes < handshake));
            tests.spawn(async move {
                let _room = room.acquire().await.expect("never closed");
                in_time(test).await;
            });
        }
    }
    while let Some(test) = tests.join_next().await {
        test.expect("no panic");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_breaks_off_at_any_byte_is_replaced() {
    at_every_byte(|framing, bytes, in_handshake| async move {
        let listener = Listener::bind().expect("a socket");
        let server = serve(&listener, framing, |number| (number == 0).then_some(bytes));
        let client = session(listener.address(), PATIENCE);
        tokio::pin!(client);
        let outcome = tokio::select! {
            outcome = &mut client => outcome,
            // It may see the goodbye first.
            _ = server => client.await,
        };
        match outcome {
            // Connecting is tried once; a pool that stands looks for another connection.
            Err(error) => assert!(in_handshake && error.kind() == ErrorKind::Disconnected, "{bytes}: {error}"),
            Ok(()) => assert!(!in_handshake, "{bytes} bytes were enough"),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_always_breaks_off_is_an_error_in_time() {
    at_every_byte(|framing, bytes, in_handshake| async move {
        let listener = Listener::bind().expect("a socket");
        let began = Instant::now();
        let outcome = tokio::select! {
            outcome = session(listener.address(), SHORT) => outcome,
            _ = serve(&listener, framing, |_| Some(bytes)) => unreachable!("every connection is cut"),
        };
        match outcome {
            Err(error) => {
                let expected = if in_handshake { ErrorKind::Disconnected } else { ErrorKind::Timeout };
                assert_eq!(error.kind(), expected, "{bytes}: {error}");
            }
            // Each connection may have been enough for one answer more.
            Ok(()) => assert!(!in_handshake, "{bytes} bytes were enough"),
        }
        assert!(began.elapsed() < PATIENCE / 2, "{:?}", began.elapsed());
    })
    .await;
}
