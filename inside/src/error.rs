//! What can go wrong inside a disk.

use std::io;

/// What an error means to whoever asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What was read cannot be right: a checksum, a loop, a number out of its range.
    Corrupt,
    /// It may well be right, but it is nothing that is read here: an unknown feature, encryption, another device.
    Unsupported,
    /// It was in use when it was cut off, and what was under way cannot be brought to an end.
    Unclean,
    /// There is no such file.
    NotFound,
    /// The file is of another kind: no directory, no symbolic link.
    WrongKind,
    /// A bound of ours was reached.
    TooLarge,
    /// The disk could not be read.
    Disk,
}

/// An error: what, and where.
#[derive(Debug, thiserror::Error)]
#[error("{context}")]
pub struct Error {
    kind: Kind,
    context: String,
    #[source]
    source: Option<io::Error>,
}

/// The result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error with its context, in the words of who uses the disk.
    pub fn new(kind: Kind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None }
    }

    /// [`Kind::Corrupt`].
    pub fn corrupt(context: impl Into<String>) -> Self {
        Self::new(Kind::Corrupt, context)
    }

    /// [`Kind::Unsupported`].
    pub fn unsupported(context: impl Into<String>) -> Self {
        Self::new(Kind::Unsupported, context)
    }

    /// What it means.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

impl From<io::Error> for Error {
    fn from(source: io::Error) -> Self {
        // Who was sent past the end of the disk was sent there by what it read.
        let kind = if source.kind() == io::ErrorKind::UnexpectedEof { Kind::Corrupt } else { Kind::Disk };
        Self { kind, context: source.to_string(), source: Some(source) }
    }
}
