use bytes::{Buf, BufMut};
use proptest::prelude::*;

use super::option::{self, Info};
use super::*;
use crate::testing::{Framing, Seen, Wire};

fn seen(cookie: u64, offset: u64) -> Seen {
    Seen { flags: 0, command: CMD_READ, cookie, offset, length: 0, only: None }
}

#[test]
fn requests_are_the_bytes_of_the_specification() {
    let request = Request { command: Command::Read, cookie: 0x0102, offset: 0x0304, length: 0x0506 };
    let mut compact = Vec::new();
    request.encode(Headers::Compact, &mut compact);
    assert_eq!(
        compact,
        [0x25, 0x60, 0x95, 0x13, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 3, 4, 0, 0, 5, 6]
    );
    let mut extended = Vec::new();
    request.encode(Headers::Extended, &mut extended);
    assert_eq!(
        extended,
        [0x21, 0xe4, 0x1c, 0x71, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 3, 4, 0, 0, 0, 0, 0, 0, 5, 6]
    );
}

#[test]
fn a_filtered_status_request_carries_length_and_context() {
    let command = Command::BlockStatus { only: Some(9) };
    let request = Request { command, cookie: 1, offset: 2, length: 3 };
    let mut bytes = Vec::new();
    request.encode(Headers::Extended, &mut bytes);
    let mut bytes = &bytes[4..];
    assert_eq!(bytes.get_u16(), CMD_FLAG_PAYLOAD_LEN);
    assert_eq!(bytes.get_u16(), CMD_BLOCK_STATUS);
    assert_eq!((bytes.get_u64(), bytes.get_u64(), bytes.get_u64()), (1, 2, 12));
    assert_eq!((bytes.get_u64(), bytes.get_u32(), bytes.len()), (3, 9, 0));
}

#[test]
fn a_chunk_type_not_known_is_a_fault_unless_it_is_an_error() {
    assert!(ChunkKind::decode(3).is_err());
    assert_eq!(ChunkKind::decode(0x8003).ok(), Some(ChunkKind::OtherError));
}

#[test]
fn error_chunks_are_held_to_their_length() {
    for (kind, least) in [(ChunkKind::Error, 6), (ChunkKind::ErrorOffset, 14)] {
        assert!(check_error_length(kind, least - 1).is_err());
        assert!(check_error_length(kind, least).is_ok());
        assert!(check_error_length(kind, MAX_ERROR_PAYLOAD + 1).is_err());
        assert!(check_error_length(kind, u64::MAX).is_err());
    }
    let decode = |errno: u32, length: u16, rest: &[u8]| {
        let payload = [&errno.to_be_bytes()[..], &length.to_be_bytes(), rest].concat();
        decode_error(ChunkKind::Error, &payload)
    };
    assert!(decode(0, 0, b"").is_err(), "no error");
    assert!(decode(5, 3, b"ab").is_err(), "a message longer than its chunk");
    let error = decode(5, 2, b"no, and fields of a later specification").expect("valid");
    assert_eq!((error.errno, error.message.as_str(), error.offset), (5, "no", None));
}

#[test]
fn block_sizes_are_held_to_the_specification() {
    let decode = |minimum: u32, preferred: u32, maximum: u32| {
        let mut payload = option::INFO_BLOCK_SIZE.to_be_bytes().to_vec();
        for size in [minimum, preferred, maximum] {
            payload.put_u32(size);
        }
        Info::decode(&payload)
    };
    assert!(decode(1, 4096, 32 << 20).is_ok());
    assert!(decode(512, 4096, u32::MAX).is_ok());
    for (minimum, preferred, maximum) in
        [(0, 4096, 1 << 20), (3, 4096, 1 << 20), (1 << 17, 1 << 17, 1 << 20), (512, 0, 1 << 20)]
    {
        assert!(decode(minimum, preferred, maximum).is_err(), "{minimum} {preferred}");
    }
    assert!(decode(4096, 512, 1 << 20).is_err());
    assert!(decode(1, 4096, 4095).is_err());
}

proptest! {
    #[test]
    fn chunk_headers_survive_the_wire(
        cookie: u64, offset: u64, length: u32, flags: u16, kind in 0_u16..3, extended: bool,
    ) {
        let framing = if extended { Framing::Extended } else { Framing::Structured };
        let bytes = Wire::new(framing).header(&seen(cookie, offset), flags, kind, u64::from(length));
        let headers = Headers::from(framing);
        let (start, rest) = bytes.split_at(REPLY_START);
        let Ok(ReplyStart::Chunk(start)) = decode_start(headers, start) else {
            panic!("a chunk");
        };
        let header = start.with_rest(headers, rest).expect("whole");
        let expected = ChunkHeader {
            done: flags & 1 == 1,
            kind: ChunkKind::decode(kind).expect("known"),
            cookie,
            offset: extended.then_some(offset),
            length: u64::from(length),
        };
        prop_assert_eq!(header, expected);
    }

    #[test]
    fn errors_survive_the_wire(errno in 1_u32.., message in "[a-z ]{0,150}", at: Option<u64>) {
        let wire = Wire::new(Framing::Extended);
        let bytes = wire.error(&seen(1, 2), errno, &message, at);
        let kind = if at.is_some() { ChunkKind::ErrorOffset } else { ChunkKind::Error };
        let decoded = decode_error(kind, &bytes[32..]).expect("valid");
        prop_assert_eq!(decoded, ErrorChunk { errno, message, offset: at });
    }

    /// Whatever arrives, decoding gives a value or an error.
    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        magic in 0_usize..4,
        option_code: u32,
    ) {
        let magics = [SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, EXTENDED_REPLY_MAGIC, 0];
        let framed = [&magics[magic].to_be_bytes()[..], &bytes].concat();
        for bytes in [&bytes, &framed] {
            for headers in [Headers::Compact, Headers::Extended] {
                if let Ok(ReplyStart::Chunk(header)) = decode_start(headers, bytes) {
                    let _ = header.with_rest(headers, &bytes[REPLY_START..]);
                }
            }
            let _ = decode_hole(bytes);
            for kind in [ChunkKind::Error, ChunkKind::ErrorOffset, ChunkKind::OtherError] {
                let _ = decode_error(kind, bytes);
            }
            let _ = Info::decode(bytes);
            let _ = option::decode_meta_context(bytes);
            let _ = option::ReplyHeader::decode(option_code, bytes);
        }
    }

    #[test]
    fn option_replies_are_bounded(kind: u32, length: u32, code: u32) {
        let mut bytes = option::OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
        bytes.put_u32(code);
        bytes.put_u32(kind);
        bytes.put_u32(length);
        match option::ReplyHeader::decode(code, &bytes) {
            Ok(header) => prop_assert!(header.length <= 4096 + 16),
            Err(_) => prop_assert!(length > 4096 + 16),
        }
    }
}
