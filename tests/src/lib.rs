//! The harness of pullfs' integration tests: real QEMU, real mounts, foreign oracles.
//!
//! A test starts a [`Machine`](machine::Machine) (QEMU 10, QEMU 7.2, qemu-storage-daemon or a domain of libvirt's) with disks of
//! known content, mounts it with the `pullfs` binary ([`mount::Mount`]), lets the machine write
//! ([`machine::Machine::write`] stands in for the guest, [`guest::Guest`] is a real one), and lets tools that are not ours
//! decide ([`oracle`]).
//!
//! A machine has two QMP sockets: pullfs gets one, the test keeps the other ([`qmp::Qmp`], a client of its own) and asks
//! QEMU itself what was started and what was left ([`leftovers::Leftovers`]). Of a [`libvirt::Domain`], pullfs asks libvirt, a
//! [`libvirt::Libvirtd`] of the tests' own; the test keeps its socket.
//!
//! Every server is killed by its process id when its value is dropped, also when the test panics; every socket and file is
//! in a temporary directory. A tool or a machine that is missing makes a test fail, never pass.

pub mod agent;
pub mod bacula;
pub mod builder;
pub mod disk;
pub mod fake_qmp;
pub mod flavor;
pub mod guest;
pub mod leftovers;
pub mod libvirt;
pub mod machine;
pub mod model;
pub mod mount;
pub mod namespace;
pub mod network;
pub mod oracle;
pub mod ports;
pub mod process;
pub mod prometheus;
pub mod proxy;
pub mod qmp;
pub mod random;
pub mod relay;
pub mod s3;
pub mod scattered;
pub mod schema;
pub mod snapshot;
pub mod ssh;
pub mod stalls;
pub mod tmpfs;
pub mod tools;
pub mod turncoat;
pub mod user;
pub mod write_times;
