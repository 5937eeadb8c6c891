//! An asynchronous NBD client for reading: many requests in flight, over several connections,
//! within fixed bounds, through loss of the server.
//!
//! ```text
//! Pool::read ──▶ pieces ──▶ permits ──▶ least-loaded Connection ──▶ writer task ──▶ socket
//!                             (bounds)      in-flight table
//! caller's buffer ◀── pieces joined ◀── outcome ◀── reader task ◀────────────────── socket
//! ```
//!
//! * `proto` is a pure codec; `reply` assembles one reply and holds it to its request;
//!   [`Pool`] and the connections beneath it do the I/O.
//! * A reply that breaks the protocol kills its connection. No byte of it is released, and every
//!   request in flight there is issued again elsewhere.
//! * An error that the server reports in due form ([`ErrorKind::Server`]) is an answer: it goes to
//!   the caller, and the connection lives on.
//! * A length sent by the server is checked against the request before it sizes or fills anything.
//! * Where TLS is asked for ([`tls`]), nothing is sent or taken without it.
//! * Bytes and requests in flight are bounded over the pool; every wait has a limit.
//! * Dropping a future abandons its answer and nothing else: the request stays in the table, with
//!   its buffer and permits, until the server has answered.
//!
//! Structured replies are required (a simple reply cannot report an error half way through, nor
//! carry extents); extended headers are used where the server has them.

mod config;
mod connection;
pub mod context;
mod error;
mod extent;
mod handshake;
mod info;
mod meter;
mod pool;
mod proto;
mod reply;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tls;

pub use config::{Address, Config};
pub use error::{Error, ErrorKind};
pub use extent::Extent;
pub use info::{BlockSize, ExportInfo, Stats};
pub use meter::{Latencies, Latency, Meter, Metered};
pub use pool::{Begun, Pool};

/// A length in memory as a length on the wire.
fn wide(length: usize) -> u64 {
    u64::try_from(length).expect("usize is at most 64 bits on every target of Rust")
}
