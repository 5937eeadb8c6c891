//! What a command fails with: an exit code and one line.

use std::fmt;
use std::process::ExitCode;

use pullfs_fs::error::{Error, Kind};

/// Exit codes; those of mount(8) where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// Wrong usage.
    Usage = 1,
    /// The system or the machine failed.
    System = 2,
    /// Nothing is held, or what was named does not exist.
    NotFound = 3,
    /// Something is in use.
    Busy = 4,
    /// The mount failed.
    Mount = 32,
}

/// A failed command.
#[derive(Debug)]
pub(crate) struct Failure {
    code: Code,
    error: anyhow::Error,
}

/// The result of a command.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    pub(crate) fn new(code: Code, error: impl Into<anyhow::Error>) -> Self {
        Self { code, error: error.into() }
    }

    pub(crate) fn message(code: Code, message: impl Into<String>) -> Self {
        Self { code, error: anyhow::Error::msg(message.into()) }
    }

    /// The same, as a failure to mount.
    pub(crate) fn of_mount(self) -> Self {
        Self { code: Code::Mount, ..self }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code as u8)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `{:#}` prints the whole chain.
        write!(f, "{:#}", self.error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match error.kind() {
            Kind::Invalid => Code::Usage,
            Kind::NotFound | Kind::NothingHeld => Code::NotFound,
            Kind::Busy => Code::Busy,
            Kind::Stale
            | Kind::Io
            | Kind::Broken
            | Kind::NoSuchData
            | Kind::Unsupported
            | Kind::Denied
            | Kind::NotOurs
            | Kind::Exists
            | Kind::Timeout
            | Kind::Gone
            | Kind::TooLarge
            | Kind::NoSpace => Code::System,
        };
        Self::new(code, error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(Code::System, error)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self { code: Code::System, error }
    }
}
