use super::*;

fn read(offset: u64, length: usize) -> ReadReply {
    ReadReply::new(offset, BytesMut::zeroed(length))
}

fn error(errno: u32, offset: Option<u64>) -> ErrorChunk {
    ErrorChunk { errno, message: "broken".to_owned(), offset }
}

fn status(expected: &[u32], headers: Headers) -> StatusReply {
    StatusReply::new(StatusTerms {
        offset: 1000,
        length: 100,
        limit: 2000,
        wanted: expected[0],
        expected: expected.to_vec(),
        headers,
    })
}

#[test]
fn a_read_takes_every_byte_once_in_any_order() {
    let mut reply = read(100, 10);
    reply.claim(105, 5).expect("free").copy_from_slice(b"fghij");
    reply.hole(100, 2).expect("free");
    reply.claim(102, 3).expect("free").copy_from_slice(b"cde");
    let Ok(Verdict::Whole(buf)) = reply.finish() else { panic!("the reply is whole") };
    assert_eq!(&buf[..], b"\0\0cdefghij");
}

#[test]
fn a_hole_overwrites_what_the_buffer_held() {
    let mut reply = ReadReply::new(0, BytesMut::from(&[7; 4][..]));
    reply.hole(0, 4).expect("free");
    let Ok(Verdict::Whole(buf)) = reply.finish() else { panic!("the reply is whole") };
    assert_eq!(&buf[..], [0; 4]);
}

#[test]
fn a_read_refuses_what_lies_outside_or_overlaps() {
    for (offset, length) in [(99, 2), (0, 1), (105, 6), (110, 1), (u64::MAX, 1), (100, usize::MAX)] {
        assert!(read(100, 10).claim(offset, length).is_err(), "{length} at {offset}");
    }
    let mut reply = read(100, 10);
    reply.claim(102, 4).expect("free");
    assert!(reply.claim(105, 1).is_err());
    assert!(reply.hole(100, 3).is_err());
    assert!(reply.finish().is_err(), "bytes are missing");
}

#[test]
fn the_length_of_data_is_checked_before_it_is_read() {
    for (payload, expected) in [(9, Some(1)), (18, Some(10)), (8, None), (0, None), (19, None)] {
        assert_eq!(read(0, 10).data_length(payload).ok(), expected, "{payload}");
    }
    assert!(read(0, 10).data_length(u64::MAX).is_err());
}

#[test]
fn the_first_error_stands_and_must_lie_within() {
    let mut reply = read(100, 10);
    reply.fail(error(5, Some(109))).expect("within");
    reply.fail(error(22, None)).expect("no place");
    assert!(reply.fail(error(5, Some(110))).is_err());
    assert!(reply.fail(error(5, Some(99))).is_err());
    let Ok(Verdict::Refused(error)) = reply.finish() else { panic!("the server reported an error") };
    assert_eq!(error.kind(), ErrorKind::Server(5));
    assert_eq!(error.context(), "read of 10 bytes at 100: broken");
}

#[test]
fn block_status_merges_and_keeps_the_wanted_context() {
    let mut reply = status(&[7, 9], Headers::Compact);
    reply.begin(9).expect("expected");
    reply.push(50, 3).expect("within");
    reply.begin(7).expect("expected");
    for (length, flags) in [(10, 0), (20, 0), (5, 1), (900, 1)] {
        reply.push(length, flags).expect("within");
    }
    let Ok(Verdict::Whole(extents)) = reply.finish() else { panic!("the reply is whole") };
    let expected = [Extent { offset: 1000, length: 30, flags: 0 }, Extent { offset: 1030, length: 905, flags: 1 }];
    assert_eq!(extents, expected);
}

#[test]
fn block_status_refuses_nonsense() {
    let mut reply = status(&[7, 9], Headers::Compact);
    assert!(reply.begin(8).is_err(), "not negotiated");
    reply.begin(7).expect("expected");
    assert!(reply.push(0, 0).is_err(), "empty");
    assert!(reply.push(1001, 0).is_err(), "beyond the export");
    assert!(reply.push(u64::MAX, 0).is_err(), "overflow");
    reply.push(100, 0).expect("up to the end of the request");
    assert!(reply.push(1, 0).is_err(), "an extent after the end of the request");
    assert!(reply.begin(7).is_err(), "repeated");
    assert!(reply.finish().is_err(), "context 9 is missing");
}

#[test]
fn the_list_of_extents_is_checked_before_it_is_read() {
    let count = |headers, kind, payload| status(&[7], headers).descriptors(kind, payload).ok();
    let (compact, extended) = (ChunkKind::BlockStatus, ChunkKind::BlockStatusExt);
    assert_eq!(count(Headers::Compact, compact, 4 + 8 * 3), Some(3));
    assert_eq!(count(Headers::Compact, compact, 4 + 8 * (1 << 20)), Some(1 << 20));
    assert_eq!(count(Headers::Compact, compact, 4 + 8 * ((1 << 20) + 1)), None);
    assert_eq!(count(Headers::Compact, compact, 4), None);
    assert_eq!(count(Headers::Compact, compact, 0), None);
    assert_eq!(count(Headers::Compact, compact, 4 + 7), None);
    assert_eq!(count(Headers::Compact, extended, 8 + 16), None);
    assert_eq!(count(Headers::Extended, extended, 8 + 16), Some(1));
    assert_eq!(count(Headers::Extended, extended, 4 + 16), None);
    assert_eq!(count(Headers::Extended, compact, 4 + 8), None);
}

#[test]
fn a_trim_is_answered_by_its_success_or_by_an_error() {
    let mut reply = PlainReply::new(4096, 512);
    assert!(matches!(reply.finish(), Verdict::Whole(())));
    let error = |offset| ErrorChunk { errno: 28, message: "full".to_owned(), offset };
    assert_eq!(reply.fail(error(Some(0))).unwrap_err().kind(), ErrorKind::Protocol, "an error elsewhere");
    reply.fail(error(Some(4100))).unwrap();
    let Verdict::Refused(error) = reply.finish() else { panic!("it was refused") };
    assert_eq!(error.kind(), ErrorKind::Server(28));
    assert!(error.to_string().contains("trim of 512 bytes at 4096: full"), "{error}");
}
