//! Faults that both framings can have, in answer to the block status of 32 KiB at 8 KiB, with two
//! contexts negotiated.

use nbd_pool::testing::Wire;

use crate::{ALLOCATION, DIRTY, Fault, fault};

/// Every fault of extents and contexts.
pub(crate) fn faults() -> Vec<(&'static str, Fault)> {
    vec![
        ("a context not negotiated", fault(|wire, seen| wire.status(seen, 13, &[(4096, 0)], false))),
        (
            "a context twice",
            fault(|wire, seen| {
                let once = wire.status(seen, ALLOCATION, &[(4096, 0)], false);
                [once.clone(), once].concat()
            }),
        ),
        ("a context missing", fault(|wire, seen| wire.status(seen, ALLOCATION, &[(4096, 0)], true))),
        ("no context at all", fault(Wire::none)),
        ("an extent of no bytes", fault(|wire, seen| wire.status(seen, ALLOCATION, &[(4096, 0), (0, 1)], false))),
        (
            "an extent after the end of the request",
            fault(|wire, seen| wire.status(seen, ALLOCATION, &[(32 << 10, 0), (4096, 1)], false)),
        ),
        ("an extent beyond the export", fault(|wire, seen| wire.status(seen, DIRTY, &[((56 << 10) + 1, 0)], false))),
        ("no extents", fault(|wire, seen| wire.status(seen, DIRTY, &[], false))),
        (
            "half an extent",
            fault(|wire, seen| {
                let kind = if wire.none(seen).len() == 32 { Wire::STATUS_EXT } else { Wire::STATUS };
                wire.chunk(seen, 0, kind, &[0; 10])
            }),
        ),
        (
            "more extents than a reply may have",
            fault(|wire, seen| {
                let (kind, length) = if wire.none(seen).len() == 32 {
                    (Wire::STATUS_EXT, 8 + 16 * ((1 << 20) + 1))
                } else {
                    (Wire::STATUS, 4 + 8 * ((1 << 20) + 1))
                };
                wire.header(seen, 0, kind, length)
            }),
        ),
        (
            "the other framing's extents",
            fault(|wire, seen| {
                let kind = if wire.none(seen).len() == 32 { Wire::STATUS } else { Wire::STATUS_EXT };
                wire.chunk(seen, 0, kind, &[0; 8 + 16])
            }),
        ),
        ("data in answer to block status", fault(|wire, seen| wire.data(seen, seen.offset, &[1; 16], true))),
        ("success in a simple reply", fault(|wire, seen| wire.simple(seen, 0))),
    ]
}
