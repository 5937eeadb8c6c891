//! The file system behind pullfs: a running machine's disks at a point in time, as files.
//!
//! ```text
//! kernel ─▶ fuse ─▶ fs ─▶ image.map(range) ─▶ segments ─▶ block ─▶ nbd-pool ─▶ QEMU      data
//!                   │
//!                   └──▶ point (policy, owner, plan) ─▶ vm ─▶ QEMU                       control
//! ```
//! [`fuse`] is the only module that knows the kernel's side; [`fs`] has the operations on our own types and is tested
//! without a mount; [`tree`] names the nodes; [`image`] says what is in a file; [`block`] reads a frozen disk;
//! [`point`] holds the point in time; [`vm`] is the machine; [`metrics`] tells Prometheus of all of them.
//!
//! Invariants: nothing but an open (or a command) takes a point in time; no byte is given out unless its point in time
//! was held after it was read; everything made in the machine is in a ledger before it is made.

mod beside;
pub mod block;
pub mod error;
pub mod fs;
pub mod fuse;
#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
pub mod guardian;
pub mod guest;
pub mod image;
mod lines;
pub mod metrics;
pub mod options;
mod patience;
pub mod point;
pub mod quiesce;
pub mod recovery;
pub mod tree;
pub mod vm;
