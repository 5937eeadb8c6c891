//! More than was asked for, without an end: it is not taken, or only until the time is up, and never kept.

use std::time::Duration;

use bytes::BytesMut;
use nbd_pool::testing::{Framing, Listener, Seen, Wire, option_reply};
use nbd_pool::{Config, ErrorKind, Pool};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::{CONTEXT, config, in_time, offer};

/// Memory that all of these floods together may take, in KiB: buffers and stacks of two tasks, far from what is sent.
const MOST: u64 = 32 << 10;

/// Limit of a handshake, and of a request, that never ends.
const SHORT: Duration = Duration::from_millis(500);

const GREETING: &[u8] = b"NBDMAGICIHAVEOPT\x00\x03";
const ACK: u32 = 1;
const INFO: u32 = 3;
const META_CONTEXT: u32 = 4;
const EXTENDED_HEADERS: u32 = 11;
const SET_META_CONTEXT: u32 = 10;
const GO: u32 = 7;

/// The most memory that this process had, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Sends `first`, and `again` until the client hangs up.
async fn flood(mut stream: UnixStream, first: &[u8], again: &[u8]) {
    let again = again.repeat(4096 / again.len() + 1);
    // What the client says is read, so that its hanging up is the only end.
    let (mut reader, mut writer) = stream.split();
    let mut sink = [0; 4096];
    let talk = async {
        writer.write_all(first).await?;
        loop {
            writer.write_all(&again).await?;
        }
    };
    tokio::select! {
        outcome = talk => { let _: std::io::Result<()> = outcome; }
        () = async { while reader.read(&mut sink).await.is_ok_and(|got| got > 0) {} } => {}
    }
}

#[tokio::test]
async fn a_handshake_without_an_end_is_given_up() {
    let before = peak();
    let ext = option_reply(EXTENDED_HEADERS, ACK, &[]);
    let granted = [&0_u32.to_be_bytes()[..], b"base:allocation"].concat();
    let contexts = [option_reply(SET_META_CONTEXT, META_CONTEXT, &granted), option_reply(SET_META_CONTEXT, ACK, &[])];
    let begun = [GREETING, &ext, &contexts.concat()].concat();
    let mut huge = option_reply(EXTENDED_HEADERS, ACK, &[]);
    huge[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
    let floods: [(&str, Vec<u8>, Vec<u8>); 8] = [
        ("zeroes", Vec::new(), vec![0]),
        ("greetings", Vec::new(), GREETING.to_vec()),
        ("acknowledgements", GREETING.to_vec(), ext.clone()),
        ("a reply of 4 GiB", GREETING.to_vec(), huge),
        ("contexts", [GREETING, &ext].concat(), contexts[0].clone()),
        ("contexts not asked for", [GREETING, &ext].concat(), {
            option_reply(SET_META_CONTEXT, META_CONTEXT, &[&[0; 4][..], &[b'x'; 4000]].concat())
        }),
        ("information", begun.clone(), option_reply(GO, INFO, &[&[0, 2][..], &[b'x'; 4000]].concat())),
        ("refusals with a long reason", begun, option_reply(GO, (1 << 31) | 2, &[b'\n'; 4096])),
    ];
    for (name, first, again) in floods {
        let listener = Listener::bind().expect("a socket");
        let server = async { flood(listener.accept_silent().await.expect("a client"), &first, &again).await };
        let names = ["base:allocation".to_owned()];
        let limits = Config { handshake_timeout: SHORT, ..config(SHORT) };
        let client = Pool::connect(listener.address(), "disk", &names, limits);
        let (outcome, ()) = in_time(Box::pin(async { tokio::join!(client, server) })).await;
        let error = outcome.expect_err(name);
        assert!(matches!(error.kind(), ErrorKind::Handshake | ErrorKind::Refused), "{name}: {error}");
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        assert!(source.len() < 1000 && !source.contains('\n'), "{name}: {source}");
    }
    assert!(peak() - before < MOST, "{} KiB", peak() - before);
}

#[tokio::test]
async fn replies_without_an_end_are_given_up() {
    type Reply = fn(Wire, &Seen) -> Vec<u8>;
    let before = peak();
    let floods: [(&str, Reply, ErrorKind); 6] = [
        ("errors that are not the last", |wire, seen| wire.chunk(seen, 0, Wire::ERROR, &[0, 0, 0, 5, 0, 0]), {
            ErrorKind::Timeout
        }),
        (
            "long errors",
            |wire, seen| {
                let payload = [&[0, 0, 0, 5, 16, 0][..], &[b'x'; 4096]].concat();
                wire.chunk(seen, 0, Wire::ERROR, &payload)
            },
            ErrorKind::Timeout,
        ),
        ("answers to nobody", |wire, seen| wire.none(&Seen { cookie: 77, ..seen.clone() }), ErrorKind::Protocol),
        ("holes again and again", |wire, seen| wire.hole(seen, seen.offset, 1, false), ErrorKind::Protocol),
        ("ends that are none", |wire, seen| wire.chunk(seen, 0, Wire::NONE, &[]), ErrorKind::Protocol),
        (
            "unknown errors of 4 KiB",
            |wire, seen| wire.chunk(seen, 0, 0x8077, &[&[0, 0, 0, 5, 0, 0][..], &[7; 4000]].concat()),
            ErrorKind::Timeout,
        ),
    ];
    for (name, reply, expected) in floods {
        let listener = Listener::bind().expect("a socket");
        let server = async {
            loop {
                let mut peer = listener.accept(&offer(Framing::Extended)).await.expect("a client");
                let Ok(Some(seen)) = peer.request().await else { continue };
                let reply = reply(peer.wire(), &seen);
                flood(peer.into_stream(), &[], &reply).await;
            }
        };
        let client = async {
            let names = ["base:allocation".to_owned(), CONTEXT.to_owned()];
            let pool = Pool::connect(listener.address(), "disk", &names, config(SHORT)).await.expect("a handshake");
            let outcome = pool.read(0, BytesMut::zeroed(64)).await;
            pool.close().await;
            outcome.expect_err(name)
        };
        let error = in_time(Box::pin(async {
            tokio::select! { error = client => error, () = server => unreachable!() }
        }))
        .await;
        assert!(error.kind() == expected || error.kind() == ErrorKind::Timeout, "{name}: {error}");
        assert!(error.to_string().len() < 1000, "{name}: {error}");
    }
    assert!(peak() - before < MOST, "{} KiB", peak() - before);
}

#[tokio::test]
async fn a_flood_that_nobody_asked_for_ends_the_connection() {
    let listener = Listener::bind().expect("a socket");
    let names = ["base:allocation".to_owned()];
    let offered = offer(Framing::Extended);
    let (peer, pool) =
        tokio::join!(listener.accept(&offered), Pool::connect(listener.address(), "disk", &names, config(SHORT)));
    let (peer, pool) = (peer.expect("a client"), pool.expect("a handshake"));
    let seen = Seen { flags: 0, command: Wire::READ, cookie: 1, offset: 0, length: 64, only: None };
    let reply = peer.wire().none(&seen);
    // It ends only because the client hangs up.
    in_time(flood(peer.into_stream(), &[], &reply)).await;
    assert_eq!(pool.stats().faults, 1);
    pool.close().await;
}
