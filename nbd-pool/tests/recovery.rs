//! Loss of the server, and limits of time.

mod scripted;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use nbd_pool::testing::{Listener, Offer};
use nbd_pool::{Address, BlockSize, Config, ErrorKind, Pool};
use scripted::{PATIENCE, SIZE, config, connect, disk, in_time, offer};

#[tokio::test]
async fn what_a_lost_connection_owed_is_asked_for_again() {
    let listener = Listener::bind().expect("a socket");
    let address = listener.address();
    let server = async {
        for requests in [3, 1, 9] {
            let mut peer = listener.accept(&offer()).await.expect("a client");
            let mut replies = Vec::new();
            for _ in 0..requests {
                let seen = peer.request().await.expect("valid").expect("a request");
                replies.push(peer.reply(&disk(), &seen).expect("a read"));
            }
            // One whole answer, half of another, and the machine is gone.
            peer.send(&replies[0]).await.expect("sent");
            if let Some(second) = replies.get(1) {
                peer.send(&second[..second.len() / 2]).await.expect("sent");
            }
        }
        let mut peer = listener.accept(&offer()).await.expect("a client");
        peer.serve(&disk()).await.expect("served");
    };
    let client = async {
        let config = config();
        let meter = config.meter.clone();
        let pool = connect(address, config).await;
        let buf = BytesMut::zeroed(SIZE);
        let place = buf.as_ptr();
        let buf = pool.read(0, buf).await.expect("read");
        assert!(buf[..] == disk().content[..], "wrong bytes");
        assert_eq!(buf.as_ptr(), place, "the same allocation");
        assert_eq!(pool.stats().reconnects, 3);
        assert_eq!(pool.stats().bytes, u64::try_from(SIZE).expect("small"));
        let metered = meter.now();
        assert_eq!(metered.in_flight, 0, "those that were lost are not waited for: {metered:?}");
        assert!(metered.latency.count() < metered.requests, "{metered:?}");
        pool.close().await;
    };
    in_time(Box::pin(async { tokio::join!(server, client) })).await;
}

#[tokio::test]
async fn an_export_that_changed_is_given_up_for_good() {
    for changed in [
        Offer { size: 4096, ..offer() },
        Offer { contexts: Vec::new(), ..offer() },
        Offer { block_size: Some(BlockSize { minimum: 512, preferred: 4096, maximum: 1 << 20 }), ..offer() },
    ] {
        let listener = Listener::bind().expect("a socket");
        let address = listener.address();
        let server = async {
            let mut first = listener.accept(&offer()).await.expect("a client");
            first.request().await.expect("valid").expect("a request");
            drop(first);
            let mut second = listener.accept(&changed).await.expect("a client");
            assert!(matches!(second.request().await, Ok(None | Some(_)) | Err(_)), "no read may come");
        };
        let client = async {
            let pool = connect(address, config()).await;
            for _ in 0..2 {
                let error = pool.read(0, BytesMut::zeroed(10)).await.expect_err("changed");
                assert_eq!(error.kind(), ErrorKind::Changed);
                assert!(std::error::Error::source(&error).is_some(), "says what changed");
            }
        };
        in_time(Box::pin(async { tokio::join!(server, client) })).await;
    }
}

#[tokio::test]
async fn an_export_that_is_gone_is_an_answer() {
    let listener = Listener::bind().expect("a socket");
    let address = listener.address();
    let server = async {
        drop(listener.accept(&offer()).await.expect("a client"));
        let gone = Offer { refuse: Some((1 << 31) | 6), ..offer() };
        tokio::select! {
            _ = listener.accept(&gone) => {}
            () = tokio::time::sleep(PATIENCE) => {}
        }
    };
    let client = async {
        let pool = connect(address, config()).await;
        let error = loop {
            // The loss may be noticed only once a request is under way.
            if let Err(error) = pool.read(0, BytesMut::zeroed(10)).await {
                break error;
            }
        };
        assert_eq!(error.kind(), ErrorKind::Refused);
    };
    in_time(Box::pin(async { tokio::join!(server, client) })).await;
}

#[tokio::test]
async fn a_server_that_never_answers_is_waited_for_no_longer_than_agreed() {
    let listener = Listener::bind().expect("a socket");
    let address = listener.address();
    let config = Config { request_timeout: Duration::from_millis(300), ..config() };
    let server = async {
        let mut peer = listener.accept(&offer()).await.expect("a client");
        // It reads and stays mute, until it is left; then it is deaf as well.
        while let Ok(Some(_)) = peer.request().await {}
        std::future::pending::<()>().await;
    };
    let client = async {
        let pool = connect(address, config).await;
        let began = Instant::now();
        let error = pool.read(0, BytesMut::zeroed(10)).await.expect_err("mute");
        assert_eq!(error.kind(), ErrorKind::Timeout);
        let error = pool.block_status("base:allocation", 0..10, |_| ControlFlow::Continue(())).await.expect_err("deaf");
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(began.elapsed() >= Duration::from_millis(600));
        assert_eq!(pool.stats().faults, 1, "the connection was killed");
    };
    in_time(Box::pin(async {
        tokio::select! { () = server => {}, () = client => {} }
    }))
    .await;
}

#[tokio::test]
async fn connect_and_handshake_have_limits() {
    let listener = Listener::bind().expect("a socket");
    let config = Config { handshake_timeout: Duration::from_millis(50), ..config() };
    let error = in_time(Pool::connect(listener.address(), "", &[], config)).await;
    assert_eq!(error.expect_err("silent").kind(), ErrorKind::Handshake);

    let address = listener.address();
    drop(listener);
    let error = in_time(Pool::connect(address, "", &[], Config::default())).await;
    assert_eq!(error.expect_err("nobody there").kind(), ErrorKind::Connect);
}

#[tokio::test]
async fn a_server_that_comes_back_is_found() {
    let listener = Listener::bind().expect("a socket");
    let Address::Unix(path) = listener.address() else { panic!("a unix socket") };
    let offered = offer();
    let (first, pool) = tokio::join!(listener.accept(&offered), connect(listener.address(), config()));
    drop(first);
    // Moved away, connecting fails; moved back, the same socket serves again.
    let away = path.with_extension("away");
    std::fs::rename(&path, &away).expect("renamed");
    let client = async {
        let buf = pool.read(100, BytesMut::zeroed(100)).await.expect("read");
        assert_eq!(buf[..], disk().content[100..200]);
        assert_eq!(pool.stats().reconnects, 1);
        pool.close().await;
    };
    let server = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        std::fs::rename(&away, &path).expect("renamed");
        let mut peer = listener.accept(&offered).await.expect("the pool is back");
        peer.serve(&disk()).await.expect("served");
    };
    in_time(Box::pin(async { tokio::join!(server, client) })).await;
}
