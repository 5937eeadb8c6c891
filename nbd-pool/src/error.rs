//! What can go wrong: a kind that code can match, a context for people, and a source.

use std::fmt;

/// The kind of an [`Error`]; callers decide by it, never by the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ErrorKind {
    /// The socket could not be connected within the limit.
    #[error("cannot connect")]
    Connect,
    /// The server answered the handshake and said no: unknown export, TLS required, policy.
    #[error("refused by the server")]
    Refused,
    /// The handshake did not end within its limit, or was not NBD.
    #[error("handshake failed")]
    Handshake,
    /// The server is not the one that it should be, by its certificate.
    #[error("server not trusted")]
    Untrusted,
    /// The files that TLS needs are not there, or not what they should be.
    #[error("TLS credentials")]
    Credentials,
    /// The server broke the protocol; the connection was killed and nothing of that reply released.
    #[error("protocol fault")]
    Protocol,
    /// A time limit passed.
    #[error("time limit passed")]
    Timeout,
    /// The connection was lost.
    #[error("connection lost")]
    Disconnected,
    /// The server answered the request with this NBD error value (spec "Error values").
    #[error("server error {0}{name}", name = errno_name(*.0))]
    Server(u32),
    /// The request does not lie within the export.
    #[error("out of range")]
    OutOfRange,
    /// The pool was closed.
    #[error("pool closed")]
    Closed,
    /// After a reconnect the export is not the one it was; this is permanent.
    #[error("export changed")]
    Changed,
    /// The server, or this export of it, lacks something that is needed.
    #[error("not supported by the server")]
    Unsupported,
}

/// The symbolic name of an NBD error value, for messages.
fn errno_name(errno: u32) -> &'static str {
    match errno {
        1 => " (EPERM)",
        5 => " (EIO)",
        12 => " (ENOMEM)",
        22 => " (EINVAL)",
        28 => " (ENOSPC)",
        75 => " (EOVERFLOW)",
        95 => " (ENOTSUP)",
        108 => " (ESHUTDOWN)",
        _ => "",
    }
}

type Source = Box<dyn std::error::Error + Send + Sync>;

/// An error of this crate.
///
/// `Display` gives the kind and the context; the source is left to whoever prints the chain.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<Source>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self { kind, context: context.into(), source: None }
    }

    pub(crate) fn protocol(context: impl Into<String>) -> Self {
        Self::new(ErrorKind::Protocol, context)
    }

    pub(crate) fn with_source(mut self, source: impl Into<Source>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What kind of error this is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What was being done, and where.
    pub fn context(&self) -> &str {
        &self.context
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.context)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// The longest text of a server that is shown, in characters.
const SHOWN: usize = 200;

/// Makes a text sent by the server fit for one line of a log or a terminal.
///
/// Control characters and those that reorder text become `?`; what is too long is cut.
pub(crate) fn sanitise(text: &[u8]) -> String {
    // Four bytes a character is the most UTF-8 needs, so no more than these can be shown.
    let text = String::from_utf8_lossy(&text[..text.len().min(SHOWN * 4)]);
    let mut shown: String = text
        .chars()
        .take(SHOWN)
        .map(|c| match c {
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' => '?',
            c if c.is_control() => '?',
            c => c,
        })
        .collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    #[test]
    fn display_leaves_the_source_to_the_chain() {
        let inner = Error::protocol("inner words");
        let outer = Error::new(ErrorKind::Timeout, "reading 5 bytes at 0").with_source(inner);
        assert_eq!(outer.to_string(), "time limit passed: reading 5 bytes at 0");
        assert_eq!(outer.source().expect("a source").to_string(), "protocol fault: inner words");
    }

    #[test]
    fn server_errors_have_names() {
        let shown = |errno| ErrorKind::Server(errno).to_string();
        assert_eq!(shown(5), "server error 5 (EIO)");
        assert_eq!(shown(7), "server error 7");
    }

    #[test]
    fn server_text_is_bounded_and_printable() {
        assert_eq!(sanitise(b"no\x1b[2J\nsuch\xff"), "no?[2J?such\u{fffd}");
        assert_eq!(sanitise("a\u{202e}b".as_bytes()), "a?b");
        assert_eq!(sanitise(&[b'x'; 5000]).chars().count(), SHOWN + 1);
        assert_eq!(sanitise(&[b'x'; SHOWN]).chars().count(), SHOWN);
    }
}
