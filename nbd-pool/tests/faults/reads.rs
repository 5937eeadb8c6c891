//! Faults that both framings can have, in answer to a read of 8192 bytes at 4096.

use nbd_pool::testing::{Seen, Wire};

use crate::{ALLOCATION, Fault, fault};

/// Faults of data and holes.
pub(crate) fn data_faults() -> Vec<(&'static str, Fault)> {
    let whole = |wire: Wire, seen: &Seen, done| wire.data(seen, 4096, &[0xbd; 8192], done);
    vec![
        (
            "wrong magic",
            fault(move |wire, seen| {
                let mut bytes = whole(wire, seen, true);
                bytes[0] ^= 0x80;
                bytes
            }),
        ),
        (
            "unknown cookie",
            fault(move |wire, seen| {
                let other = Seen { cookie: seen.cookie + 1, ..seen.clone() };
                whole(wire, &other, true)
            }),
        ),
        (
            "a second reply to one request",
            fault(move |wire, seen| {
                let early = wire.data(seen, 4096, &[0xbd; 100], false);
                let other = Seen { cookie: u64::MAX, ..seen.clone() };
                [early, whole(wire, &other, true)].concat()
            }),
        ),
        ("data before the request", fault(|wire, seen| wire.data(seen, 4095, &[0xbd; 16], false))),
        ("data after the request", fault(|wire, seen| wire.data(seen, 12287, &[0xbd; 2], false))),
        (
            "data longer than the request",
            fault(|wire, seen| wire.header(seen, Wire::DONE, Wire::OFFSET_DATA, 8 + 8193)),
        ),
        ("data of 4 GiB", fault(|wire, seen| wire.header(seen, Wire::DONE, Wire::OFFSET_DATA, u64::from(u32::MAX)))),
        ("data of no bytes", fault(|wire, seen| wire.data(seen, 4096, &[], false))),
        ("a data chunk without an offset", fault(|wire, seen| wire.chunk(seen, 0, Wire::OFFSET_DATA, &[0; 4]))),
        (
            "overlapping data",
            fault(|wire, seen| {
                let first = wire.data(seen, 4096, &[0xbd; 8000], false);
                [first, wire.data(seen, 12000, &[0xbd; 288], true)].concat()
            }),
        ),
        (
            "a hole over data",
            fault(move |wire, seen| [whole(wire, seen, false), wire.hole(seen, 4096, 1, true)].concat()),
        ),
        ("a hole outside the request", fault(|wire, seen| wire.hole(seen, 4096, u32::MAX, true))),
        ("a hole of no bytes", fault(|wire, seen| wire.hole(seen, 4096, 0, false))),
        ("a hole of the wrong length", fault(|wire, seen| wire.chunk(seen, 0, Wire::OFFSET_HOLE, &[0; 13]))),
        ("data missing at the end", fault(|wire, seen| wire.data(seen, 4096, &[0xbd; 8191], true))),
        (
            "data missing at an empty end",
            fault(|wire, seen| [wire.data(seen, 4097, &[0xbd; 8191], false), wire.none(seen)].concat()),
        ),
    ]
}

/// Faults of everything else.
pub(crate) fn other_faults() -> Vec<(&'static str, Fault)> {
    vec![
        ("an end without anything", fault(Wire::none)),
        ("an end that is not one", fault(|wire, seen| wire.chunk(seen, 0, Wire::NONE, &[]))),
        ("an end with payload", fault(|wire, seen| wire.chunk(seen, Wire::DONE, Wire::NONE, &[0]))),
        ("an unknown chunk type", fault(|wire, seen| wire.chunk(seen, 0, 77, &[]))),
        ("block status in answer to a read", fault(|wire, seen| wire.status(seen, ALLOCATION, &[(8192, 0)], true))),
        ("an error without an error", fault(|wire, seen| wire.error(seen, 0, "", None))),
        ("an error outside the request", fault(|wire, seen| wire.error(seen, 5, "", Some(12288)))),
        ("an error too short", fault(|wire, seen| wire.chunk(seen, 1, Wire::ERROR, &[0; 5]))),
        ("an error too long", fault(|wire, seen| wire.header(seen, 1, Wire::ERROR, u64::from(u32::MAX)))),
        (
            "an error with a message too long",
            fault(|wire, seen| wire.chunk(seen, 1, Wire::ERROR, &[0, 0, 0, 5, 0, 2, b'x'])),
        ),
        ("a simple reply", fault(|wire, seen| wire.simple(seen, 0))),
        ("a simple error", fault(|wire, seen| wire.simple(seen, 5))),
    ]
}
