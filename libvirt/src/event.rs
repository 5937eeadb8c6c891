//! What libvirt tells of its own accord, and the thread that it tells it in.

use std::ffi::{CStr, c_char, c_int, c_ulonglong, c_void};
use std::sync::{Arc, OnceLock, Weak};

use crate::domain::{uuid_of, with_params};
use crate::error::{Code, Error, Result};
use crate::sys::{self, constants as c};

/// What happened. Domains are named by their UUID, which no other domain has and which stays when they are renamed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A domain went on to another state.
    Lifecycle {
        /// Which.
        uuid: String,
        /// Which state.
        change: Lifecycle,
    },
    /// A backup, or another job of a domain, ended.
    JobCompleted {
        /// Which domain's.
        uuid: String,
        /// Whether it was a backup.
        backup: bool,
    },
    /// A device of a domain is gone.
    DeviceRemoved {
        /// Which domain's.
        uuid: String,
        /// libvirt's alias of the device.
        alias: String,
    },
    /// An image was written to beyond the mark that was set on it; the mark is gone.
    BlockThreshold {
        /// Which domain's.
        uuid: String,
        /// The disk's target and the image's index, such as `vda[5]`.
        device: String,
    },
    /// The connection ended; nothing more is told.
    Closed,
}

/// A state of a domain, as far as it matters to a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifecycle {
    /// It runs.
    Started,
    /// It stands still.
    Suspended,
    /// It stands still because a write of the guest failed.
    SuspendedByError,
    /// It ended.
    Stopped,
    /// It goes on at another host.
    Migrated,
    /// It ended by a failure.
    Crashed,
    /// It is not known any more.
    Undefined,
    /// Anything else.
    Other,
}

impl Lifecycle {
    fn of(event: c_int, detail: c_int) -> Self {
        match (event, detail) {
            (c::VIR_DOMAIN_EVENT_STARTED, _) => Self::Started,
            (c::VIR_DOMAIN_EVENT_SUSPENDED, c::VIR_DOMAIN_EVENT_SUSPENDED_IOERROR) => Self::SuspendedByError,
            (c::VIR_DOMAIN_EVENT_SUSPENDED, _) => Self::Suspended,
            (c::VIR_DOMAIN_EVENT_STOPPED, c::VIR_DOMAIN_EVENT_STOPPED_MIGRATED) => Self::Migrated,
            (c::VIR_DOMAIN_EVENT_STOPPED, _) => Self::Stopped,
            (c::VIR_DOMAIN_EVENT_CRASHED, _) => Self::Crashed,
            (c::VIR_DOMAIN_EVENT_UNDEFINED, _) => Self::Undefined,
            _ => Self::Other,
        }
    }
}

/// Whom events are told: called in libvirt's thread, so it must not wait, nor call libvirt.
pub(crate) type Sink = Arc<dyn Fn(Event) + Send + Sync>;

/// What libvirt keeps of it: it may let go of a callback late, or (a driver that never closes) never.
type Opaque = Weak<dyn Fn(Event) + Send + Sync>;

/// Starts libvirt's event loop, unless that was done before. It must be there before a connection is.
pub(crate) fn start_loop() -> Result<()> {
    static STARTED: OnceLock<Result<()>> = OnceLock::new();
    STARTED.get_or_init(begin_loop).clone()
}

fn begin_loop() -> Result<()> {
    let api = sys::api()?;
    // SAFETY: no arguments; once in the process, before any connection.
    if unsafe { (api.virEventRegisterDefaultImpl)() } != 0 {
        return Err(Error::last(api));
    }
    let run = move || {
        loop {
            // SAFETY: no arguments; the only thread that runs it. It waits until there is something to do.
            if unsafe { (api.virEventRunDefaultImpl)() } != 0 {
                // Not a busy loop where it fails at once each time.
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        }
    };
    let spawned = std::thread::Builder::new().name("libvirt".to_owned()).spawn(run);
    spawned.map(drop).map_err(|error| Error::new(Code::Other, format!("cannot start libvirt's event loop: {error}")))
}

/// What is given to libvirt with a callback.
pub(crate) fn into_opaque(sink: &Sink) -> *mut c_void {
    Box::into_raw(Box::<Opaque>::new(Arc::downgrade(sink))).cast()
}

/// `virFreeCallback` for [`into_opaque`].
pub(crate) unsafe extern "C" fn free_opaque(opaque: *mut c_void) {
    // SAFETY: libvirt calls it once, with what it was given together with the callback.
    drop(unsafe { Box::from_raw(opaque.cast::<Opaque>()) });
}

/// Tells.
///
/// # Safety
/// `opaque` is of [`into_opaque`] and was not freed.
unsafe fn tell(opaque: *mut c_void, event: Option<Event>) {
    // SAFETY: as above; libvirt frees it after the last call only.
    let sink = unsafe { &*opaque.cast::<Opaque>() }.upgrade();
    if let (Some(sink), Some(event)) = (sink, event) {
        sink(event);
    }
}

/// A copy of a string of a callback's arguments.
///
/// # Safety
/// `text` is null or a string that ends in a zero.
unsafe fn copied(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: as above.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// `virConnectDomainEventCallback`
pub(crate) unsafe extern "C" fn lifecycle(
    _: *mut sys::Connect,
    domain: *mut sys::Domain,
    event: c_int,
    detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    // SAFETY: libvirt's arguments, valid during the call.
    unsafe {
        let change = Lifecycle::of(event, detail);
        tell(opaque, uuid_of(domain).map(|uuid| Event::Lifecycle { uuid, change }));
    }
    0
}

/// `virConnectDomainEventJobCompletedCallback`
pub(crate) unsafe extern "C" fn job_completed(
    _: *mut sys::Connect,
    domain: *mut sys::Domain,
    params: *mut sys::TypedParameter,
    count: c_int,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt's arguments, valid during the call; the parameters stay libvirt's.
    unsafe {
        let mut backup = false;
        with_params(params, count, |name, value| {
            backup |= name == "operation" && value == i128::from(c::VIR_DOMAIN_JOB_OPERATION_BACKUP);
        });
        tell(opaque, uuid_of(domain).map(|uuid| Event::JobCompleted { uuid, backup }));
    }
}

/// `virConnectDomainEventDeviceRemovedCallback`
pub(crate) unsafe extern "C" fn device_removed(
    _: *mut sys::Connect,
    domain: *mut sys::Domain,
    alias: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt's arguments, valid during the call.
    unsafe {
        let alias = copied(alias);
        tell(opaque, uuid_of(domain).map(|uuid| Event::DeviceRemoved { uuid, alias }));
    }
}

/// `virConnectDomainEventBlockThresholdCallback`
pub(crate) unsafe extern "C" fn block_threshold(
    _: *mut sys::Connect,
    domain: *mut sys::Domain,
    device: *const c_char,
    _: *const c_char,
    _: c_ulonglong,
    _: c_ulonglong,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt's arguments, valid during the call.
    unsafe {
        let device = copied(device);
        tell(opaque, uuid_of(domain).map(|uuid| Event::BlockThreshold { uuid, device }));
    }
}

/// `virConnectCloseFunc`
pub(crate) unsafe extern "C" fn closed(_: *mut sys::Connect, _: c_int, opaque: *mut c_void) {
    // SAFETY: the opaque is ours.
    unsafe { tell(opaque, Some(Event::Closed)) }
}
