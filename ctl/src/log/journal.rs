//! The journal's native protocol: a datagram a message, made of fields (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL>).
//!
//! A journal that hangs, or is just restarted, holds nobody up: a message that does not fit into its socket at once is
//! dropped and counted, and the count is the first that it hears afterwards. Each message looks the socket up again, so a new
//! journal is found.

use std::fmt::{Debug, Write as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Where the journal listens.
const SOCKET: &str = "/run/systemd/journal/socket";

/// Longest message, in bytes: a socket takes some 200 KiB at once, and lines of others are cut much shorter.
const MAX_MESSAGE: usize = 32 << 10;

/// What comes with each message.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    encoded: Vec<u8>,
}

impl Fields {
    /// Those of a process of this kind: `daemon`, `guardian`, `thaw-guard`.
    pub(crate) fn of(process: &str) -> Self {
        Self::default().with("SYSLOG_IDENTIFIER", "pullfs").with("PULLFS_PROCESS", process)
    }

    /// One more; `name` has capital letters and underscores.
    #[must_use]
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        put(&mut self.encoded, name, value);
        self
    }

    /// What a mount is known by.
    #[must_use]
    pub(crate) fn of_mount(self, source: &str, mount_point: &Path) -> Self {
        self.with("PULLFS_SOURCE", source).with("PULLFS_MOUNT", &mount_point.display().to_string())
    }
}

/// A field whose value may have any character.
fn put(entry: &mut Vec<u8>, name: &str, value: &str) {
    entry.extend_from_slice(name.as_bytes());
    entry.push(b'\n');
    // As long as it is in memory, which is less than 2^64 bytes.
    entry.extend_from_slice(&u64::try_from(value.len()).unwrap_or(u64::MAX).to_le_bytes());
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

/// Where messages are sent to.
pub(super) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
    fields: Vec<u8>,
    /// Messages that it did not take since it took one.
    dropped: AtomicU64,
}

impl Journal {
    /// The system's; none where there can be no socket.
    pub(super) fn open(fields: &Fields) -> Option<Self> {
        Self::at(Path::new(SOCKET), fields)
    }

    fn at(path: &Path, fields: &Fields) -> Option<Self> {
        let socket = UnixDatagram::unbound().ok()?;
        socket.set_nonblocking(true).ok()?;
        let (path, fields) = (path.to_owned(), fields.encoded.clone());
        Some(Self { socket, path, fields, dropped: AtomicU64::new(0) })
    }

    /// Whether there is one.
    pub(super) fn is_there(&self) -> bool {
        self.path.exists()
    }

    fn send(&self, level: Level, message: &str) {
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        let lost = format!("{dropped} messages were dropped: the journal did not take them");
        if dropped > 0 && !self.put(Level::WARN, &lost) {
            self.dropped.fetch_add(dropped + 1, Ordering::Relaxed);
        } else if !self.put(level, message) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn put(&self, level: Level, message: &str) -> bool {
        let mut entry = self.fields.clone();
        put(&mut entry, "PRIORITY", priority(level));
        put(&mut entry, "MESSAGE", message);
        self.socket.send_to(&entry, &self.path).is_ok()
    }
}

/// As syslog(3) counts.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        _ => "7",
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let end = (0..=MAX_MESSAGE.min(text.0.len())).rev().find(|end| text.0.is_char_boundary(*end));
        text.0.truncate(end.unwrap_or(0));
        self.send(*event.metadata().level(), &text.0);
    }
}

/// A message as standard error shows it: its words, then what else there is.
#[derive(Default)]
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let gap = if self.0.is_empty() { "" } else { " " };
        // Writing to a string does not fail.
        if field.name() == "message" {
            write!(self.0, "{gap}{value:?}").ok();
        } else {
            write!(self.0, "{gap}{}={value:?}", field.name()).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// The fields of an entry.
    fn parse(mut entry: &[u8]) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let mut fields = Vec::new();
        while let Some(end) = entry.iter().position(|byte| *byte == b'\n') {
            let (name, rest) = (&entry[..end], &entry[end + 1..]);
            let length = usize::try_from(u64::from_le_bytes(rest[..8].try_into().unwrap())).unwrap();
            fields.push((text(name), text(&rest[8..8 + length])));
            assert_eq!(rest[8 + length], b'\n');
            entry = &rest[9 + length..];
        }
        fields
    }

    fn heard(journal: &UnixDatagram) -> Vec<(String, String)> {
        let mut entry = vec![0; 1 << 20];
        let length = journal.recv(&mut entry).unwrap();
        parse(&entry[..length])
    }

    fn value<'a>(entry: &'a [(String, String)], name: &str) -> &'a str {
        &entry.iter().find(|(known, _)| known == name).unwrap_or_else(|| panic!("no {name} in {entry:?}")).1
    }

    #[test]
    fn a_message_has_its_fields_whatever_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let system = UnixDatagram::bind(&path).unwrap();
        let fields = Fields::of("daemon").of_mount("qmp:/a\nPRIORITY=0", Path::new("/mnt"));
        let subscriber = tracing_subscriber::registry().with(Journal::at(&path, &fields));
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(number = 7, "a line\nMESSAGE=and another");
            tracing::info!("{}", "é".repeat(MAX_MESSAGE));
            tracing::error!("worse");
            tracing::debug!("of no weight");
        });
        let entry = heard(&system);
        assert_eq!(value(&entry, "MESSAGE"), "a line\nMESSAGE=and another number=7");
        assert_eq!((value(&entry, "PRIORITY"), value(&entry, "SYSLOG_IDENTIFIER")), ("4", "pullfs"));
        assert_eq!((value(&entry, "PULLFS_SOURCE"), value(&entry, "PULLFS_MOUNT")), ("qmp:/a\nPRIORITY=0", "/mnt"));
        let long = heard(&system);
        assert_eq!((value(&long, "MESSAGE").len(), value(&long, "PRIORITY")), (MAX_MESSAGE, "6"));
        assert_eq!([(); 2].map(|()| value(&heard(&system), "PRIORITY").to_owned()), ["3", "7"]);
    }

    #[test]
    fn a_journal_that_does_not_read_holds_nobody_up_and_hears_how_much_it_missed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let journal = Journal::at(&path, &Fields::of("daemon")).unwrap();
        journal.send(Level::WARN, "nobody listens");
        let system = UnixDatagram::bind(&path).unwrap();
        let taken = (0..100_000).take_while(|_| journal.put(Level::INFO, "one more")).count();
        assert!(taken < 100_000, "the socket is never full");
        journal.send(Level::WARN, "there is no room");
        (0..taken).for_each(|_| drop(heard(&system)));
        journal.send(Level::INFO, "it reads again");
        let lost = heard(&system);
        assert!(value(&lost, "MESSAGE").starts_with("2 messages were dropped"));
        assert_eq!(value(&lost, "PRIORITY"), "4");
        assert_eq!(value(&heard(&system), "MESSAGE"), "it reads again");
    }
}
