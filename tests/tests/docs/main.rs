//! What docs/ says of the sources, held against them: no QEMU, no mount, no tool.
//!
//! [`semantics`] compares the promises with the tests that are named for them, [`troubleshooting`] the explained error texts
//! with those in the sources. Each comparison is a function of two lists, so that its own tests can show what it finds.

mod markdown;
mod semantics;
mod source;
mod troubleshooting;
