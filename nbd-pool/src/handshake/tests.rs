use tokio::io::duplex;

use super::*;
use crate::proto::option::*;
use crate::testing::{Framing, Offer, Peer};

const GREETING: [u8; 18] = *b"NBDMAGICIHAVEOPT\0\x03";

/// A reply to an option.
fn reply(option: u32, kind: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short");
    let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
    for word in [option, kind, length] {
        bytes.extend(word.to_be_bytes());
    }
    bytes.extend(payload);
    bytes
}

fn export_info(size: u64, flags: u16) -> Vec<u8> {
    let mut payload = INFO_EXPORT.to_be_bytes().to_vec();
    payload.extend(size.to_be_bytes());
    payload.extend(flags.to_be_bytes());
    reply(OPT_GO, REP_INFO, &payload)
}

fn context(id: u32, name: &str) -> Vec<u8> {
    let payload = [&id.to_be_bytes()[..], name.as_bytes()].concat();
    reply(OPT_SET_META_CONTEXT, REP_META_CONTEXT, &payload)
}

/// Shakes hands with a server that says all of this and closes, whatever it hears.
async fn against(said: &[Vec<u8>], contexts: &[&str]) -> Result<Negotiated, Error> {
    let (mut client, mut server) = duplex(1 << 16);
    server.write_all(&said.concat()).await.expect("room");
    let (mut heard, mut say) = tokio::io::split(server);
    say.shutdown().await.expect("open");
    let contexts: Vec<String> = contexts.iter().map(ToString::to_string).collect();
    let drain = async {
        let _ = tokio::io::copy(&mut heard, &mut tokio::io::sink()).await;
    };
    tokio::select! {
        result = negotiate(&mut client, "disk", &contexts) => result,
        () = drain => unreachable!("the client is still there"),
    }
}

async fn kind(said: &[Vec<u8>], contexts: &[&str]) -> ErrorKind {
    against(said, contexts).await.expect_err("a handshake that fails").kind()
}

fn greeting() -> Vec<u8> {
    GREETING.to_vec()
}

fn extended() -> Vec<u8> {
    reply(OPT_EXTENDED_HEADERS, REP_ACK, &[])
}

#[tokio::test]
async fn the_shortest_handshake() {
    let said = [greeting(), extended(), export_info(77, 3), reply(OPT_GO, REP_ACK, &[])];
    let negotiated = against(&said, &[]).await.expect("accepted");
    assert_eq!(negotiated.info.size, 77);
    assert!(negotiated.info.read_only && !negotiated.info.multi_conn);
    assert_eq!(negotiated.info.block_size, BlockSize::default());
    assert_eq!(negotiated.headers, Headers::Extended);
}

#[tokio::test]
async fn structured_replies_are_the_least() {
    let unsupported = |option| reply(option, REP_ERR_UNSUP, b"never heard of it");
    let said = [greeting(), unsupported(OPT_EXTENDED_HEADERS), unsupported(OPT_STRUCTURED_REPLY)];
    assert_eq!(kind(&said, &[]).await, ErrorKind::Unsupported);
}

#[tokio::test]
async fn what_is_not_nbd_is_told_apart() {
    assert_eq!(kind(&[b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()], &[]).await, ErrorKind::Handshake);
    assert_eq!(kind(&[b"NBDMAGIC".to_vec(), vec![0; 16]], &[]).await, ErrorKind::Handshake);
    assert_eq!(kind(&[b"NBDMA".to_vec()], &[]).await, ErrorKind::Disconnected);
    let oldstyle = OLDSTYLE_MAGIC.to_be_bytes().to_vec();
    assert_eq!(kind(&[b"NBDMAGIC".to_vec(), oldstyle, vec![0; 136]], &[]).await, ErrorKind::Unsupported);
    assert_eq!(kind(&[b"NBDMAGICIHAVEOPT\0\0".to_vec()], &[]).await, ErrorKind::Unsupported);
}

#[tokio::test]
async fn a_refusal_is_told_with_the_server_s_words() {
    let no = reply(OPT_GO, (1 << 31) | 6, b"no export\x07 here");
    let error = against(&[greeting(), extended(), no], &[]).await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert_eq!(error.context(), "no such export: no export? here");
    let tls = reply(OPT_EXTENDED_HEADERS, REP_ERR_TLS_REQD, &[]);
    assert_eq!(kind(&[greeting(), tls], &[]).await, ErrorKind::Refused);
    let no_go = reply(OPT_GO, REP_ERR_UNSUP, &[]);
    assert_eq!(kind(&[greeting(), extended(), no_go], &[]).await, ErrorKind::Unsupported);
}

#[tokio::test]
async fn replies_that_make_no_sense_end_the_handshake() {
    let go = reply(OPT_GO, REP_ACK, &[]);
    let mut wrong_magic = extended();
    wrong_magic[0] ^= 1;
    let mut too_long = reply(OPT_GO, REP_INFO, &[]);
    too_long[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
    let flood: Vec<u8> = reply(OPT_GO, REP_INFO, &[0, 1]).repeat(MAX_INFOS + 1);
    let cases: [(&str, Vec<Vec<u8>>); 8] = [
        ("wrong magic", vec![wrong_magic]),
        ("another option's reply", vec![reply(OPT_GO, REP_ACK, &[])]),
        ("a reply of 4 GiB", vec![extended(), too_long]),
        ("no export information", vec![extended(), go.clone()]),
        ("flags without HAS_FLAGS", vec![extended(), export_info(1, 2), go.clone()]),
        ("a size beyond 2^63", vec![extended(), export_info(1 << 63, 1), go.clone()]),
        ("information without end", vec![extended(), flood]),
        ("an unknown reply type", vec![extended(), reply(OPT_GO, 99, &[])]),
    ];
    for (name, mut said) in cases {
        said.insert(0, greeting());
        assert_eq!(kind(&said, &[]).await, ErrorKind::Handshake, "{name}");
    }
}

#[tokio::test]
async fn contexts_are_those_asked_for() {
    let ack = reply(OPT_SET_META_CONTEXT, REP_ACK, &[]);
    let go = [export_info(1, 1), reply(OPT_GO, REP_ACK, &[])].concat();
    let wanted = ["base:allocation", "qemu:dirty-bitmap:a", "qemu:dirty-bitmap:b"];
    let granted = |replies: Vec<Vec<u8>>| {
        let (ack, go) = (ack.clone(), go.clone());
        async move {
            let said = [greeting(), extended(), replies.concat(), ack, go];
            against(&said, &wanted).await.map(|n| (n.info.contexts, n.context_ids))
        }
    };
    let (names, ids) = granted(vec![context(8, wanted[2]), context(5, wanted[0])]).await.expect("accepted");
    assert_eq!((names, ids), (vec![wanted[0].to_owned(), wanted[2].to_owned()], vec![5, 8]));
    assert_eq!(granted(vec![]).await.expect("none granted").0, Vec::<String>::new());
    for (name, replies) in [
        ("not asked for", vec![context(1, "x:y")]),
        ("twice", vec![context(1, wanted[0]), context(2, wanted[0])]),
        ("one id for two", vec![context(1, wanted[0]), context(1, wanted[1])]),
        ("too short", vec![reply(OPT_SET_META_CONTEXT, REP_META_CONTEXT, &[0, 0])]),
    ] {
        let error = granted(replies).await.expect_err(name);
        assert_eq!(error.kind(), ErrorKind::Handshake, "{name}");
    }
    let unsupported = reply(OPT_SET_META_CONTEXT, REP_ERR_UNSUP, &[]);
    let said = [greeting(), extended(), unsupported, go.clone()];
    assert!(against(&said, &wanted).await.expect("accepted").info.contexts.is_empty());
}

#[tokio::test]
async fn names_are_bounded() {
    let long = "x".repeat(5000);
    let said = [greeting(), extended()];
    assert_eq!(kind(&said, &[&long]).await, ErrorKind::Unsupported);
}

#[tokio::test]
async fn the_scripted_server_is_understood() {
    for framing in [Framing::Structured, Framing::Extended] {
        let (mut client, server) = duplex(4096);
        let offer = Offer {
            size: 12345,
            multi_conn: true,
            framing,
            contexts: vec![(4, "a:b".to_owned())],
            block_size: Some(BlockSize { minimum: 512, preferred: 4096, maximum: 1 << 20 }),
            ..Offer::default()
        };
        let contexts = ["c:d".to_owned(), "a:b".to_owned()];
        let (negotiated, peer) = tokio::join!(negotiate(&mut client, "", &contexts), Peer::shake_hands(server, &offer));
        peer.expect("shaken");
        let negotiated = negotiated.expect("accepted");
        assert_eq!(negotiated.info.contexts, ["a:b"]);
        assert_eq!(negotiated.info.block_size.minimum, 512);
        assert!(negotiated.info.multi_conn);
        assert_eq!(negotiated.info.extended_headers, framing == Framing::Extended);
    }
}
