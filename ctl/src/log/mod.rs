//! Where messages go: to standard error, and to the system's journal where nobody would see them there.
//!
//! | process | its messages |
//! |---|---|
//! | in the foreground | standard error |
//! | of a unit of systemd, whose standard error is the journal | the journal, in its own protocol |
//! | in the background | the journal, and the terminal until the mount answers |
//!
//! Where there is no journal, those of the background go nowhere; `status.json` still has the last error. The guardian and
//! the guard of a frozen guest are processes of their own: their standard error is `/dev/null` where the daemon is in the
//! background.

mod journal;

use rustix::fs::{major, minor};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

pub(crate) use self::journal::Fields;
use self::journal::Journal;

/// The variable in which systemd says which stream is the journal's (systemd.exec(5)).
const STREAM: &str = "JOURNAL_STREAM";

/// The kernel's number of `/dev/null` (devices.txt): 1, 3.
const NULL: (u32, u32) = (1, 3);

/// Begins to take messages of at least `level`, unless `RUST_LOG` says otherwise; `background` is whether nobody will read
/// standard error.
pub(crate) fn start(level: &str, background: bool, fields: &Fields) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let stderr = rustix::fs::fstat(std::io::stderr()).ok();
    let told = std::env::var(STREAM).unwrap_or_default();
    let of_unit = stderr.as_ref().is_some_and(|stderr| told == format!("{}:{}", stderr.st_dev, stderr.st_ino));
    let null = stderr.is_some_and(|stderr| (major(stderr.st_rdev), minor(stderr.st_rdev)) == NULL);
    let journal = Journal::open(fields).filter(|journal| background || null || (of_unit && journal.is_there()));
    let stderr = (!of_unit || journal.is_none()).then(|| fmt::layer().with_writer(std::io::stderr).with_target(false));
    tracing_subscriber::registry().with(filter).with(stderr).with(journal).init();
}
