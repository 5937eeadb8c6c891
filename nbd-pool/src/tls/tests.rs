//! Credentials that are not what they should be, and a man in the middle. What they are good for is shown by `tests/tls/`.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::*;
use crate::handshake::start_tls;
use crate::testing::pki::Authority;

fn place() -> (Authority, TempDir) {
    let authority = Authority::new("CA");
    let dir = tempfile::tempdir().expect("a directory");
    authority.client(dir.path()).expect("written");
    (authority, dir)
}

#[track_caller]
fn refused(dir: &TempDir, words: &[&str]) {
    let error = Client::load(dir.path()).expect_err("unfit");
    assert_eq!(error.kind(), ErrorKind::Credentials);
    let text = error.to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
}

#[test]
fn a_pair_may_be_there_or_not() {
    let (authority, dir) = place();
    assert!(Client::load(dir.path()).expect("whole").certified);
    fs::remove_file(dir.path().join(KEY)).expect("removed");
    refused(&dir, &[KEY, "missing"]);
    fs::remove_file(dir.path().join(CERTIFICATE)).expect("removed");
    assert!(!Client::load(dir.path()).expect("a CA is enough").certified);
    authority.certify(dir.path()).expect("written");
    fs::remove_file(dir.path().join(CERTIFICATE)).expect("removed");
    refused(&dir, &[CERTIFICATE, "missing"]);
}

#[test]
fn what_is_not_pem_or_not_whole_is_named() {
    for (name, text, words) in [
        (CA, "hello", "nothing of the kind"),
        (CERTIFICATE, "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n", "not PEM"),
        (KEY, "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n", "encrypted"),
        (CA, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "of no use"),
        (REVOKED, "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", "not a list"),
    ] {
        let (_, dir) = place();
        fs::write(dir.path().join(name), text).expect("written");
        refused(&dir, &[name, words]);
    }
    let (_, dir) = place();
    fs::remove_file(dir.path().join(CA)).expect("removed");
    refused(&dir, &[CA, "cannot be read"]);
    fs::write(dir.path().join("keys.psk"), "user:00").expect("written");
    refused(&dir, &["keys.psk", "pre-shared keys are not supported"]);
}

#[test]
fn a_certificate_goes_with_its_key() {
    let (authority, dir) = place();
    let key = fs::read(dir.path().join(KEY)).expect("a key");
    authority.certify(dir.path()).expect("written");
    fs::write(dir.path().join(KEY), key).expect("written");
    refused(&dir, &[CERTIFICATE, "does not go with"]);
}

#[test]
fn a_key_that_others_can_read_is_no_secret() {
    let (_, dir) = place();
    let key = dir.path().join(KEY);
    fs::set_permissions(&key, Permissions::from_mode(0o644)).expect("changed");
    refused(&dir, &[KEY, "0644", "all users"]);
    fs::set_permissions(&key, Permissions::from_mode(0o640)).expect("changed");
    Client::load(dir.path()).expect("a group may have it, as QEMU's own may");
}

#[test]
fn secrets_are_not_shown() {
    let (_, dir) = place();
    let shown = format!("{:?}", Client::load(dir.path()).expect("whole"));
    assert!(shown.contains("certified: true") && !shown.contains("config"), "{shown}");
}

/// The greeting of a server, and its answer to `NBD_OPT_STARTTLS`.
const GREETING: [u8; 18] = *b"NBDMAGICIHAVEOPT\0\x03";

fn answer(kind: u32) -> Vec<u8> {
    let words = [5, kind, 0].map(u32::to_be_bytes).concat();
    [&0x0003_e889_0455_65a9_u64.to_be_bytes()[..], &words].concat()
}

#[tokio::test]
async fn what_is_slipped_in_before_tls_is_not_taken_for_its_content() {
    let (_, dir) = place();
    let client = Client::load(dir.path()).expect("whole");
    let (mut stream, mut server) = duplex(4096);
    // As the answer to the option that comes next over TLS would look: extended headers, accepted.
    let mut injected = answer(1);
    injected[11] = 11;
    server.write_all(&[&GREETING[..], &answer(1), &injected].concat()).await.expect("room");
    start_tls(&mut stream).await.expect("it was promised");
    let error = client.protect(&mut stream, "localhost").await.expect_err("no TLS");
    assert_eq!(error.kind(), ErrorKind::Handshake);
    assert!(error.to_string().contains("does not speak TLS"), "{error}");
}

#[tokio::test]
async fn without_tls_nothing_goes_out() {
    let (mut stream, mut server) = duplex(4096);
    let unsupported = (1 << 31) | 1;
    server.write_all(&[&GREETING[..], &answer(unsupported)].concat()).await.expect("room");
    let error = start_tls(&mut stream).await.expect_err("no TLS");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("offers no TLS"), "{error}");
    drop(stream);
    let mut heard = Vec::new();
    server.read_to_end(&mut heard).await.expect("open");
    // The flags, NBD_OPT_STARTTLS, and the goodbye.
    assert_eq!(heard.len(), 4 + 16 + 16);
    assert_eq!((heard[15], heard[31]), (5, 2));
}
