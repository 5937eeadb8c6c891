//! Children that say anything but what they should. That of the program itself is tested with it:
//! `ctl/src/look_inside/tests.rs`.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;

use super::*;
use crate::error::Kind;

struct Disk;

#[async_trait]
impl Blocks for Disk {
    fn size(&self) -> u64 {
        1 << 20
    }

    fn name(&self) -> &'static str {
        "vda"
    }

    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        Ok(vec![0; usize::try_from(range.end - range.start).unwrap()].into())
    }
}

/// A child that is a script, whose standard input is the conversation in both directions.
fn script(script: &str) -> Children {
    let limits = Limits { thinking: Duration::from_secs(1), call: Duration::from_secs(2), ..Limits::default() };
    Children::with(Path::new("/bin/sh"), vec!["-c".into(), script.into()], limits)
}

async fn refused(said: &str, expected: &str) {
    let children = script(said);
    let began = Instant::now();
    for error in [children.open(Arc::new(Disk)).await.err(), children.table(Arc::new(Disk)).await.err()] {
        let error = error.unwrap_or_else(|| panic!("{said}"));
        assert!(error.to_string().contains(expected), "{said}: {error}");
        assert!(matches!(error.kind(), Kind::Io | Kind::Timeout), "{said}: {error:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(8), "{said}: {:?}", began.elapsed());
    assert!(children.pids().is_empty(), "{said}: nobody is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_speaks_nonsense_is_ended() {
    let frames = [
        ("exit 7", "died (exit status: 7)"),
        ("kill -9 $$", "signal: 9 (SIGKILL)"),
        ("exec 0<&-; sleep 60", "died"),
        ("echo it is broken >&2", "it said: it is broken"),
        ("sleep 60", "it thought about one question for more than 1s"),
        ("printf '\\377\\377\\377\\377' >&0; sleep 60", "the length in a message cannot be right"),
        ("printf '\\0\\0\\0\\0' >&0; sleep 60", "the length in a message cannot be right"),
        // Two million bytes are announced, and one comes.
        ("printf '\\0\\036\\204\\200x' >&0; sleep 60", "it thought about one question"),
        ("printf '\\0\\0\\0\\1\\143' >&0; sleep 60", "the answer in a message cannot be right"),
        ("printf '\\0\\0\\0\\1\\041' >&0; sleep 60", "the end in a message cannot be right"),
        ("cat /dev/zero >&0", "the length in a message cannot be right"),
        ("yes >&0", "in a message cannot be right"),
        // Blocks past the end of the disk; more of them than may be asked for at once; none.
        (
            "printf '\\0\\0\\0\\021\\040\\0\\0\\0\\0\\0\\017\\377\\377\\0\\0\\0\\0\\0\\0\\0\\2' >&0; sleep 60",
            "the range in a message",
        ),
        (
            "printf '\\0\\0\\0\\021\\040\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\020\\0\\1' >&0; sleep 60",
            "the range in a message",
        ),
        (
            "printf '\\0\\0\\0\\021\\040\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0' >&0; sleep 60",
            "the range in a message",
        ),
        (
            "printf '\\0\\0\\0\\021\\040\\377\\377\\377\\377\\377\\377\\377\\377\\0\\0\\0\\0\\0\\0\\0\\2' >&0; sleep 60",
            "the range in a message",
        ),
        // It asks for a mebibyte and does not read it.
        (
            "printf '\\0\\0\\0\\021\\040\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\020\\0\\0' >&0; sleep 60",
            "it thought about one question",
        ),
        // It asks for blocks for ever: the limit of the whole call.
        (
            "cat <&0 >/dev/null & while :; do printf '\\0\\0\\0\\021\\040\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\1'; done >&0",
            "was ended: ",
        ),
    ];
    for (said, expected) in frames {
        refused(said, expected).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_not_there_is_an_error() {
    let children = Children::new(Path::new("/nonexistent"));
    let error = children.open(Arc::new(Disk)).await.err().unwrap();
    assert_eq!(error.to_string(), "cannot start the reader of vda");
    assert!(children.pids().is_empty());
}
