//! What a reader in a process of its own and the process that asks it say to each other.
//!
//! ```text
//! asks (the daemon)                         reads (the child: crate::serve)
//!   Request ───────────────────────────────▶
//!           ◀────────────── Said::Blocks ───   any number of times
//!   Given   ───────────────────────────────▶
//!           ◀── Said::Failed, Said::Answered   one
//! ```
//! A frame is its length (four bytes, big-endian, at most [`MAX_FRAME`]), a byte that says what it is, and the rest. One
//! request is under way at a time. Neither side believes the other: a disk may have taken the child over, and the child reads
//! what it is given. So a number is compared with its bound before it is used, a list is as long as the bytes that came
//! for it, and who says what cannot be right is not spoken to again.
//!
//! Written by hand: what has to be checked is most of it, and `serde` would check none of that.

mod answer;
mod bytes;
mod request;

pub(crate) use self::answer::is_known;
pub use self::answer::{Answer, Described, Listed, Listing, Names, PLAIN_PIECES, Said, is_plain, is_short};
pub use self::request::{Given, Request};

/// Longest frame, in bytes, without its length: blocks or extended attributes of [`MAX_BLOCKS`] together, and their names.
pub const MAX_FRAME: usize = 2 << 20;

/// Most that is asked for with one [`Said::Blocks`], in bytes.
pub const MAX_BLOCKS: u64 = 1 << 20;

/// Most names or pieces of a file in one answer.
pub const MAX_ANSWERS: usize = 1024;

/// Longest name in a directory, in bytes.
pub const MAX_NAME: usize = 1024;

/// The other end says what it cannot mean; the word is for the part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the {0} in a message cannot be right")]
pub struct Invalid(pub &'static str);

impl From<Invalid> for std::io::Error {
    fn from(invalid: Invalid) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, invalid)
    }
}

/// The length of a frame, from the four bytes before it.
///
/// # Errors
/// When it is longer than any is, or empty.
pub fn frame_length(header: [u8; 4]) -> Result<usize, Invalid> {
    let length = usize::try_from(u32::from_be_bytes(header)).unwrap_or(usize::MAX);
    if (1..=MAX_FRAME).contains(&length) { Ok(length) } else { Err(Invalid("length")) }
}
