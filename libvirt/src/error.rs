//! What libvirt says went wrong.

use std::ffi::{CStr, c_int};

use crate::sys::{self, constants as c};

/// Kinds of failure that somebody acts on differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// libvirt is not installed here.
    NoLibrary,
    /// Nobody answers at the other end, or not any more: the connection is of no use.
    Connection,
    /// The user may not do that.
    Denied,
    /// There is no such domain, or it is gone.
    NoDomain,
    /// The domain has no such checkpoint.
    NoCheckpoint,
    /// The domain has no backup at the moment.
    NoBackup,
    /// There is no such storage pool.
    NoPool,
    /// The pool has no such volume.
    NoVolume,
    /// A checkpoint's bitmap is broken.
    Inconsistent,
    /// Something else is going on in the domain; libvirt waits for it for half a minute first.
    Timeout,
    /// The domain is not in a state for it; among others, there is nothing to be aborted.
    Invalid,
    /// This libvirt or this QEMU cannot do it.
    Unsupported,
    /// The guest agent does not answer.
    Agent,
    /// Anything else.
    Other,
}

impl Code {
    fn of(code: c_int, domain: c_int) -> Self {
        match code {
            c::VIR_ERR_NO_CONNECT | c::VIR_ERR_INVALID_CONN | c::VIR_ERR_RPC => Self::Connection,
            // A socket that is closed, or cannot be connected to; the same codes from elsewhere are about other things.
            c::VIR_ERR_SYSTEM_ERROR | c::VIR_ERR_INTERNAL_ERROR
                if domain == c::VIR_FROM_RPC || domain == c::VIR_FROM_REMOTE =>
            {
                Self::Connection
            }
            c::VIR_ERR_AUTH_FAILED
            | c::VIR_ERR_AUTH_CANCELLED
            | c::VIR_ERR_AUTH_UNAVAILABLE
            | c::VIR_ERR_ACCESS_DENIED => Self::Denied,
            c::VIR_ERR_NO_DOMAIN => Self::NoDomain,
            c::VIR_ERR_NO_DOMAIN_CHECKPOINT => Self::NoCheckpoint,
            c::VIR_ERR_NO_DOMAIN_BACKUP => Self::NoBackup,
            c::VIR_ERR_NO_STORAGE_POOL => Self::NoPool,
            c::VIR_ERR_NO_STORAGE_VOL => Self::NoVolume,
            c::VIR_ERR_CHECKPOINT_INCONSISTENT => Self::Inconsistent,
            c::VIR_ERR_OPERATION_TIMEOUT => Self::Timeout,
            c::VIR_ERR_OPERATION_INVALID => Self::Invalid,
            c::VIR_ERR_OPERATION_UNSUPPORTED | c::VIR_ERR_NO_SUPPORT => Self::Unsupported,
            c::VIR_ERR_AGENT_UNRESPONSIVE => Self::Agent,
            _ => Self::Other,
        }
    }
}

/// An error of libvirt, in its own words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    code: Code,
    message: String,
}

/// What calls give.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// What kind it is.
    pub fn code(&self) -> Code {
        self.code
    }

    pub(crate) fn no_library(why: &str) -> Self {
        let message = format!("libvirt's library (libvirt.so.0, Debian's package libvirt0) cannot be loaded: {why}");
        Self { code: Code::NoLibrary, message }
    }

    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// What the call before, in the same thread, failed of.
    pub(crate) fn last(api: &sys::Api) -> Self {
        // SAFETY: the error is this thread's own; it is read before the thread calls libvirt again.
        unsafe {
            let error = (api.virGetLastError)();
            if error.is_null() {
                return Self::new(Code::Other, "libvirt does not say why");
            }
            let message = (*error).message;
            let message = if message.is_null() {
                "libvirt does not say why".to_owned()
            } else {
                CStr::from_ptr(message).to_string_lossy().replace(char::is_control, " ")
            };
            Self { code: Code::of((*error).code, (*error).domain), message }
        }
    }
}
