//! Bounds, block sizes, the number of connections, and the end of a pool.

mod scripted;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use nbd_pool::testing::{Listener, Offer, Wire};
use nbd_pool::{BlockSize, Config, ErrorKind, Pool};
use scripted::{SIZE, config, connect, disk, in_time, offer};

/// Serves every client that comes, as offered.
fn serve_all(listener: Listener, offer: Offer) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let Ok(mut peer) = listener.accept(&offer).await else {
                continue;
            };
            tokio::spawn(async move { peer.serve(&disk()).await });
        }
    })
}

#[tokio::test]
async fn a_dropped_read_harms_nobody() {
    let listener = Listener::bind().expect("a socket");
    let address = listener.address();
    let (ready, wait) = tokio::sync::oneshot::channel::<()>();
    let server = async {
        let mut peer = listener.accept(&offer()).await.expect("a client");
        let seen = peer.request().await.expect("valid").expect("a request");
        wait.await.expect("the reader left");
        let reply = peer.reply(&disk(), &seen).expect("a read");
        peer.send(&reply).await.expect("sent");
        peer.serve(&disk()).await.expect("served");
    };
    let client = async {
        // Only one request fits: the second can only start when the first was answered.
        let pool = connect(address, Config { max_in_flight_requests: 1, ..config() }).await;
        let dropped = pool.read(0, BytesMut::zeroed(100));
        let dropped = tokio::time::timeout(Duration::from_millis(100), dropped).await;
        assert!(dropped.is_err(), "nobody answered");
        ready.send(()).expect("the server waits");
        let buf = pool.read(200, BytesMut::zeroed(100)).await.expect("read");
        assert_eq!(buf[..], disk().content[200..300]);
        assert_eq!(pool.stats().reconnects, 0);
        pool.close().await;
    };
    in_time(Box::pin(async { tokio::join!(server, client) })).await;
}

#[tokio::test]
async fn large_reads_pass_through_small_bounds() {
    let listener = Listener::bind().expect("a socket");
    let address = listener.address();
    let server = serve_all(listener, offer());
    let config = Config { max_in_flight_bytes: 10_000, max_in_flight_requests: 3, request_size: 4096, ..config() };
    let pool = connect(address, config).await;
    let readers: Vec<_> = (0..6)
        .map(|at| {
            let pool = pool.clone();
            tokio::spawn(async move {
                let offset = at * 1000;
                let buf = pool.read(offset, BytesMut::zeroed(500_000)).await.expect("read");
                let start = usize::try_from(offset).expect("small");
                assert!(buf[..] == disk().content[start..start + 500_000], "wrong bytes");
            })
        })
        .collect();
    for reader in readers {
        in_time(reader).await.expect("no panic");
    }
    server.abort();
}

#[tokio::test]
async fn block_sizes_are_kept() {
    let sizes = BlockSize { minimum: 4096, preferred: 4096, maximum: 12288 };
    let offer = Offer { block_size: Some(sizes), ..offer() };
    let listener = Listener::bind().expect("a socket");
    let address = listener.address();
    let server = async {
        let mut peer = listener.accept(&offer).await.expect("a client");
        while let Some(seen) = peer.request().await.expect("valid") {
            if seen.command == Wire::DISC {
                break;
            }
            assert!(seen.offset % 4096 == 0 && seen.length % 4096 == 0, "{seen:?}");
            assert!(seen.command != Wire::READ || seen.length <= 12288, "{seen:?}");
            let reply = peer.reply(&disk(), &seen).expect("within the export");
            peer.send(&reply).await.expect("sent");
        }
    };
    let client = async {
        let pool = connect(address, config()).await;
        let last = SIZE - 5;
        for (offset, length) in [(0, 4096), (1, 1), (4095, 2), (5000, 40_000), (last, 5), (7, 0)] {
            let mut buf = BytesMut::from(&vec![0xee; length][..]);
            let place = buf.as_ptr();
            buf = pool.read(u64::try_from(offset).expect("small"), buf).await.expect("read");
            assert!(buf[..] == disk().content[offset..offset + length], "{length} at {offset}");
            assert!(length == 0 || buf.as_ptr() == place, "the same allocation");
        }
        let mut found = Vec::new();
        pool.block_status("base:allocation", 4000..5000, |extent| {
            found.push((extent.offset, extent.length, extent.flags));
            ControlFlow::Continue(())
        })
        .await
        .expect("block status");
        assert_eq!(found, [(4000, 96, 0), (4096, 904, 3)]);
        pool.close().await;
    };
    in_time(Box::pin(async { tokio::join!(server, client) })).await;
}

#[tokio::test]
async fn more_connections_only_where_the_server_has_them() {
    for multi_conn in [false, true] {
        let listener = Listener::bind().expect("a socket");
        let address = listener.address();
        let server = serve_all(listener, Offer { multi_conn, ..offer() });
        let config = Config { connections: 3, request_size: 4096, ..config() };
        let pool = connect(address, config).await;
        pool.read(0, BytesMut::zeroed(4096)).await.expect("read");
        assert_eq!(pool.stats().connections, 1, "one is enough for one request");
        let most = in_time(async {
            let mut most = 0;
            for _ in 0..50 {
                let buf = pool.read(0, BytesMut::zeroed(SIZE)).await.expect("read");
                assert!(buf[..] == disk().content[..], "wrong bytes");
                most = most.max(pool.stats().connections);
            }
            most
        })
        .await;
        assert_eq!(most, if multi_conn { 3 } else { 1 });
        assert_eq!(pool.stats().reconnects, 0);
        pool.close().await;
        assert_eq!(pool.stats().connections, 0);
        server.abort();
    }
}

#[tokio::test]
async fn close_ends_everything() {
    let listener = Listener::bind().expect("a socket");
    let address = listener.address();
    let server = async {
        let mut peer = listener.accept(&offer()).await.expect("a client");
        let seen = peer.request().await.expect("valid").expect("a request");
        assert_eq!(seen.command, Wire::READ);
        let seen = peer.request().await.expect("valid").expect("leave taken");
        assert_eq!(seen.command, Wire::DISC);
        assert!(matches!(peer.request().await, Ok(None)), "closed");
    };
    let client = async {
        let pool = connect(address, config()).await;
        let reader = {
            let pool = pool.clone();
            tokio::spawn(async move { pool.read(0, BytesMut::zeroed(10)).await })
        };
        while pool.stats().requests == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        pool.close().await;
        let error = reader.await.expect("no panic").expect_err("closed under way");
        assert_eq!(error.kind(), ErrorKind::Closed);
        let error = pool.read(0, BytesMut::zeroed(10)).await.expect_err("closed before");
        assert_eq!(error.kind(), ErrorKind::Closed);
        pool.close().await;
    };
    in_time(Box::pin(async { tokio::join!(server, client) })).await;
}

#[tokio::test]
async fn the_last_clone_takes_everything_with_it() {
    let listener = Listener::bind().expect("a socket");
    let address = listener.address();
    let server = async {
        let mut peer = listener.accept(&offer()).await.expect("a client");
        let seen = peer.request().await.expect("valid").expect("leave taken");
        assert_eq!(seen.command, Wire::DISC);
        assert!(matches!(peer.request().await, Ok(None)), "closed");
    };
    let client = async {
        let pool = connect(address, config()).await;
        let other = pool.clone();
        drop(pool);
        drop(other);
    };
    in_time(Box::pin(async { tokio::join!(server, client) })).await;
}

#[tokio::test]
async fn a_range_outside_is_refused_without_asking() {
    let listener = Listener::bind().expect("a socket");
    let address = listener.address();
    let server = serve_all(listener, offer());
    let pool = connect(address, config()).await;
    let size = u64::try_from(SIZE).expect("small");
    for (offset, length) in [(size, 1), (size - 1, 2), (u64::MAX, 1), (size + 1, 0)] {
        let error = pool.read(offset, BytesMut::zeroed(length)).await.expect_err("outside");
        assert_eq!(error.kind(), ErrorKind::OutOfRange, "{length} at {offset}");
    }
    let go_on = |_| ControlFlow::Continue(());
    let error = pool.block_status("base:allocation", 0..size + 1, go_on).await;
    assert_eq!(error.expect_err("outside").kind(), ErrorKind::OutOfRange);
    let error = pool.block_status("qemu:dirty-bitmap:x", 0..size, go_on).await;
    assert_eq!(error.expect_err("not granted").kind(), ErrorKind::Unsupported);
    pool.block_status("base:allocation", size..size, go_on).await.expect("nothing to say");
    assert_eq!(pool.stats().requests, 0);
    server.abort();
}

#[tokio::test]
async fn the_sink_can_break_off_and_a_status_request_names_its_context() {
    let listener = Listener::bind().expect("a socket");
    let address = listener.address();
    let contexts = vec![(1, "base:allocation".to_owned()), (2, "x:y".to_owned())];
    let offer = Offer { status_filter: true, contexts, ..offer() };
    let server = async {
        let mut peer = listener.accept(&offer).await.expect("a client");
        let seen = peer.request().await.expect("valid").expect("a request");
        assert_eq!((seen.command, seen.only), (Wire::BLOCK_STATUS, Some(1)));
        let reply = peer.reply(&disk(), &seen).expect("within the export");
        peer.send(&reply).await.expect("sent");
        peer.serve(&disk()).await.expect("served");
    };
    let client = async {
        let wanted = ["base:allocation".to_owned(), "x:y".to_owned()];
        let pool = Pool::connect(address, "", &wanted, config()).await.expect("connected");
        let mut calls = 0;
        pool.block_status("base:allocation", 0..16384, |_| {
            calls += 1;
            ControlFlow::Break(())
        })
        .await
        .expect("broken off");
        assert_eq!((calls, pool.stats().requests), (1, 1));
        pool.close().await;
    };
    in_time(Box::pin(async { tokio::join!(server, client) })).await;
}

#[tokio::test]
async fn a_server_that_tells_of_a_disk_in_crumbs_is_not_heard_out() {
    let listener = Listener::bind().expect("a socket");
    let address = listener.address();
    let server = tokio::spawn(async move {
        let mut peer = listener.accept(&offer()).await.expect("a client");
        while let Some(seen) = peer.request().await.expect("valid") {
            // Each answer in good time, and each a little further.
            tokio::time::sleep(Duration::from_millis(5)).await;
            let reply = peer.wire().status(&seen, 1, &[(1, 0)], true);
            peer.send(&reply).await.expect("sent");
        }
    });
    let limit = Duration::from_millis(500);
    let pool = connect(address, Config { request_timeout: limit, ..config() }).await;
    let (start, mut told) = (Instant::now(), 0);
    let count = |extent: nbd_pool::Extent| {
        told += extent.length;
        ControlFlow::Continue(())
    };
    let error = in_time(pool.block_status("base:allocation", 0..500_000, count)).await.expect_err("endless");
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(start.elapsed() >= 2 * limit, "{:?}", start.elapsed());
    assert!(told > 1 && told <= 200, "{told} bytes");
    server.abort();
}

#[tokio::test]
async fn extreme_configurations_work() {
    let listener = Listener::bind().expect("a socket");
    let address = listener.address();
    let server = serve_all(listener, offer());
    let (no, never) = (Duration::ZERO, Duration::MAX);
    let least = Config {
        connections: 0,
        request_size: 0,
        max_in_flight_bytes: 0,
        max_in_flight_requests: 0,
        backoff_min: no,
        backoff_max: no,
        ..config()
    };
    let most = Config {
        connections: usize::MAX,
        request_size: u32::MAX,
        max_in_flight_bytes: usize::MAX,
        max_in_flight_requests: usize::MAX,
        connect_timeout: never,
        handshake_timeout: never,
        request_timeout: never,
        backoff_min: never,
        backoff_max: never,
        tls: None,
        meter: Arc::default(),
    };
    for config in [least, most] {
        let pool = connect(address.clone(), config).await;
        let buf = in_time(pool.read(3, BytesMut::zeroed(50))).await.expect("read");
        assert_eq!(buf[..], disk().content[3..53]);
        pool.close().await;
    }
    server.abort();
}

/// Futures of the pool may be spawned wherever their arguments may.
#[test]
fn futures_are_send() {
    fn send<T: Send>(_: impl FnOnce(Pool) -> T) {}
    send(|pool| async move { pool.read(0, BytesMut::new()).await });
    send(|pool| async move { pool.block_status("", 0..0, |_| ControlFlow::Continue(())).await });
    send(|pool| async move { pool.close().await });
}

/// Begins a read; what it ends with.
fn begin(pool: &Pool, offset: u64, length: usize) -> tokio::sync::oneshot::Receiver<Result<BytesMut, nbd_pool::Error>> {
    let (tell, told) = tokio::sync::oneshot::channel();
    pool.begin_read(offset, BytesMut::zeroed(length), Box::new(move |outcome| drop(tell.send(outcome))));
    told
}

#[tokio::test]
async fn reads_that_are_begun_go_through_small_bounds() {
    let listener = Listener::bind().expect("a socket");
    let address = listener.address();
    let server = serve_all(listener, offer());
    let config = Config { max_in_flight_bytes: 10_000, max_in_flight_requests: 3, request_size: 4096, ..config() };
    let pool = connect(address, config).await;
    let begun: Vec<_> = (0..6).map(|at| (at * 1000, begin(&pool, at * 1000, 300_000))).collect();
    for (offset, told) in begun {
        let buf = in_time(Box::pin(told)).await.expect("told").expect("read");
        let start = usize::try_from(offset).expect("small");
        assert!(buf[..] == disk().content[start..start + 300_000], "wrong bytes");
    }
    let beyond =
        begin(&pool, u64::try_from(SIZE).expect("small"), 1).await.expect("told").expect_err("there is nothing");
    assert_eq!(beyond.kind(), ErrorKind::OutOfRange);
    assert!(begin(&pool, 0, 0).await.expect("told").expect("read").is_empty());
    pool.close().await;
    let late = begin(&pool, 0, 512).await.expect("told").expect_err("closed");
    assert_eq!(late.kind(), ErrorKind::Closed);
    server.abort();
}

#[tokio::test]
async fn what_a_lost_connection_owes_to_a_read_that_was_begun_is_asked_again() {
    let listener = Listener::bind().expect("a socket");
    let address = listener.address();
    let server = async {
        let mut first = listener.accept(&offer()).await.expect("a client");
        first.request().await.expect("valid").expect("a request");
        drop(first);
        let mut second = listener.accept(&offer()).await.expect("the client comes back");
        second.serve(&disk()).await.expect("served");
    };
    let client = async {
        let pool = connect(address, Config { connections: 1, ..config() }).await;
        let buf = begin(&pool, 4096, 8192).await.expect("told").expect("read");
        assert!(buf[..] == disk().content[4096..12288], "wrong bytes");
        assert_eq!(pool.stats().reconnects, 1);
        pool.close().await;
    };
    in_time(Box::pin(async { tokio::join!(server, client) })).await;
}
