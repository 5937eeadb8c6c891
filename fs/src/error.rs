//! Errors of the file system: a kind that code matches, what and where, and a source.
//!
//! `Display` of an [`Error`] is its own context only; whoever prints it walks `source()` once (see [`chain`]). The
//! kernel gets an errno from one exhaustive table, [`Kind::errno`].

use rustix::io::Errno;

/// What went wrong, as far as a caller may want to act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The name, handle or checkpoint does not exist.
    NotFound,
    /// The point in time of this handle was released; its data cannot be had any more.
    Stale,
    /// The point in time of this handle was lost, or its data could not be read.
    Io,
    /// The machine broke the point in time of this handle rather than let the guest wait for it.
    Broken,
    /// Something else holds what is needed: another backup, an NBD server, open files.
    Busy,
    /// No point in time is held, and this request may not take one.
    NothingHeld,
    /// A request that makes no sense: a bad command, option or offset.
    Invalid,
    /// No data or hole lies past the offset of a seek.
    NoSuchData,
    /// This machine or this version of QEMU cannot do it safely.
    Unsupported,
    /// The user may not do it.
    Denied,
    /// It belongs to somebody else, so it is left alone.
    NotOurs,
    /// There is one of that name already.
    Exists,
    /// A time limit passed.
    Timeout,
    /// The machine does not answer any more.
    Gone,
    /// A bound of ours was reached.
    TooLarge,
    /// There is not enough scratch space.
    NoSpace,
}

impl Kind {
    /// One word for it, which stays the same whatever the messages say.
    pub fn word(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Stale => "stale",
            Self::Io => "io",
            Self::Broken => "broken",
            Self::Busy => "busy",
            Self::NothingHeld => "nothing_held",
            Self::Invalid => "invalid",
            Self::NoSuchData => "no_such_data",
            Self::Unsupported => "unsupported",
            Self::Denied => "denied",
            Self::NotOurs => "not_ours",
            Self::Exists => "exists",
            Self::Timeout => "timeout",
            Self::Gone => "gone",
            Self::TooLarge => "too_large",
            Self::NoSpace => "no_space",
        }
    }

    /// The errno that the kernel, and so the program that reads, gets to see.
    pub fn errno(self) -> Errno {
        match self {
            Self::NotFound => Errno::NOENT,
            Self::Stale => Errno::STALE,
            Self::Io | Self::Broken => Errno::IO,
            Self::Busy => Errno::BUSY,
            Self::NothingHeld => Errno::NODATA,
            Self::Invalid => Errno::INVAL,
            Self::NoSuchData => Errno::NXIO,
            Self::Unsupported => Errno::OPNOTSUPP,
            Self::Denied => Errno::ACCESS,
            Self::NotOurs => Errno::PERM,
            Self::Exists => Errno::EXIST,
            Self::Timeout => Errno::TIMEDOUT,
            Self::Gone => Errno::NOTCONN,
            Self::TooLarge => Errno::FBIG,
            Self::NoSpace => Errno::NOSPC,
        }
    }
}

type Source = Box<dyn std::error::Error + Send + Sync + 'static>;

/// An error with its kind, its context (what, where, what to do), and what caused it.
#[derive(Debug, thiserror::Error)]
#[error("{context}")]
pub struct Error {
    kind: Kind,
    context: String,
    #[source]
    source: Option<Source>,
}

/// The result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error that nothing else caused.
    pub fn new(kind: Kind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None }
    }

    /// An error with its cause.
    pub fn with_source(kind: Kind, context: impl Into<String>, source: impl Into<Source>) -> Self {
        Self { kind, context: context.into(), source: Some(source.into()) }
    }

    /// The same kind, seen from one level further up.
    #[must_use]
    pub fn context(self, context: impl Into<String>) -> Self {
        Self { kind: self.kind, context: context.into(), source: Some(Box::new(self)) }
    }

    /// What went wrong.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

/// The whole chain of an error in one line: `what: why: why`.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        next = cause.source();
    }
    line
}

/// The longest text of somebody else's that is shown, in characters.
const SHOWN: usize = 1000;

/// A text that came from outside, fit to be a part of one line of a log or a terminal: cut, and without control
/// characters or such as reorder what is shown.
pub(crate) fn printable(text: &str) -> String {
    let plain = |c: char| match c {
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' => '?',
        c if c.is_control() => '?',
        c => c,
    };
    let mut shown: String = text.chars().take(SHOWN).map(plain).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_is_told_once() {
        let error = Error::new(Kind::Gone, "the socket closed")
            .context("query-jobs failed")
            .context("cannot take a point in time");
        assert_eq!(chain(&error), "cannot take a point in time: query-jobs failed: the socket closed");
        assert_eq!(error.kind().errno(), Errno::NOTCONN);
    }
}
