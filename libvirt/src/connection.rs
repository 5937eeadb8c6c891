//! A connection to a libvirt daemon.

use std::ffi::{CStr, CString, c_int, c_ulong};
use std::ptr;
use std::sync::Arc;

use crate::domain::Domain;
use crate::error::{Code, Error, Result};
use crate::event::{self, Event, Sink};
use crate::sys::{self, Api, constants as c};

/// An open connection. Clones are the same one; any thread may use it, one at a time: libvirt's library before 10.4 may
/// crash where a call is made, or a sign of life sent, while another one waits for its answer (CVE-2024-4418). For that
/// reason none are sent: a daemon that hangs is for the caller to notice.
#[derive(Clone)]
pub struct Connection(Arc<Inner>);

struct Inner {
    api: &'static Api,
    connect: *mut sys::Connect,
}

// SAFETY: libvirt's objects are locked and counted by libvirt itself; its calls may be made from any thread
// (libvirt.h, "virConnect", and docs/api.html, "thread safety").
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: the reference that virConnectOpen gave.
        unsafe { (self.api.virConnectClose)(self.connect) };
    }
}

impl Connection {
    /// Connects; blocks until that is done, for as long as the daemon and what lies in between take. Without a URI, to what
    /// `LIBVIRT_DEFAULT_URI` or libvirt's configuration say.
    ///
    /// # Errors
    /// [`Code::NoLibrary`], [`Code::Connection`], [`Code::Denied`].
    pub fn open(uri: Option<&str>) -> Result<Self> {
        let api = sys::api()?;
        event::start_loop()?;
        let uri = uri.map(text).transpose()?;
        // SAFETY: a string that ends in a zero, or null.
        let connect = unsafe { (api.virConnectOpen)(uri.as_ref().map_or(ptr::null(), |uri| uri.as_ptr())) };
        if connect.is_null() {
            return Err(Error::last(api));
        }
        Ok(Self(Arc::new(Inner { api, connect })))
    }

    pub(crate) fn pointer(&self) -> *mut sys::Connect {
        self.0.connect
    }

    pub(crate) fn api(&self) -> &'static Api {
        self.0.api
    }

    /// Whether the other end is there, as far as is known; asks nobody.
    pub fn is_alive(&self) -> bool {
        // SAFETY: a live connection.
        unsafe { (self.api().virConnectIsAlive)(self.0.connect) == 1 }
    }

    /// The daemon's libvirt, and the host's QEMU: major × 1,000,000 + minor × 1,000 + release.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn versions(&self) -> Result<(u64, u64)> {
        let (mut library, mut hypervisor): (c_ulong, c_ulong) = (0, 0);
        let api = self.api();
        // SAFETY: a live connection, and places for the two numbers.
        let failed = unsafe {
            (api.virConnectGetLibVersion)(self.0.connect, &raw mut library) != 0
                || (api.virConnectGetVersion)(self.0.connect, &raw mut hypervisor) != 0
        };
        if failed { Err(Error::last(api)) } else { Ok((library, hypervisor)) }
    }

    /// The domain of that name.
    ///
    /// # Errors
    /// [`Code::NoDomain`]; when the connection is broken.
    pub fn domain_by_name(&self, name: &str) -> Result<Domain> {
        let name = text(name)?;
        // SAFETY: a live connection, a string that ends in a zero.
        self.domain(unsafe { (self.api().virDomainLookupByName)(self.0.connect, name.as_ptr()) })
    }

    /// The domain of that UUID.
    ///
    /// # Errors
    /// As [`Connection::domain_by_name`].
    pub fn domain_by_uuid(&self, uuid: &str) -> Result<Domain> {
        let uuid = text(uuid)?;
        // SAFETY: a live connection, a string that ends in a zero.
        self.domain(unsafe { (self.api().virDomainLookupByUUIDString)(self.0.connect, uuid.as_ptr()) })
    }

    fn domain(&self, domain: *mut sys::Domain) -> Result<Domain> {
        if domain.is_null() {
            return Err(Error::last(self.api()));
        }
        // SAFETY: a reference that a look-up has just given.
        Ok(unsafe { Domain::owned(self.clone(), domain) })
    }

    /// The domains that run, in one question.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn running_domains(&self) -> Result<Vec<Domain>> {
        let api = self.api();
        let mut list: *mut *mut sys::Domain = ptr::null_mut();
        // SAFETY: a live connection, and a place for the list.
        let count = unsafe {
            (api.virConnectListAllDomains)(self.0.connect, &raw mut list, c::VIR_CONNECT_LIST_DOMAINS_ACTIVE)
        };
        let Ok(count) = usize::try_from(count) else { return Err(Error::last(api)) };
        // SAFETY: a list of `count` references, ours from now on; the list itself is for free(3).
        unsafe {
            let domains = (0..count).map(|index| Domain::owned(self.clone(), *list.add(index))).collect();
            sys::free(list.cast());
            Ok(domains)
        }
    }

    /// Has events of a domain told, or of all of them, until the subscription is dropped. `sink` is called in libvirt's
    /// thread: it must not wait, nor call libvirt.
    ///
    /// # Errors
    /// When the connection is broken, or the daemon does not know such events.
    pub fn subscribe(
        &self,
        domain: Option<&Domain>,
        sink: impl Fn(Event) + Send + Sync + 'static,
    ) -> Result<Subscription> {
        let sink: Sink = Arc::new(sink);
        let mut subscription =
            Subscription { connection: self.clone(), callbacks: Vec::new(), close: false, _sink: Arc::clone(&sink) };
        // SAFETY: each callback has the arguments of its event (libvirt-domain.h), which is what the generic type, by
        // libvirt's design, does not say.
        let callbacks: [(c_int, sys::GenericCallback); 4] = unsafe {
            [
                (c::VIR_DOMAIN_EVENT_ID_LIFECYCLE, cast(event::lifecycle as sys::LifecycleCallback as *const ())),
                (
                    c::VIR_DOMAIN_EVENT_ID_JOB_COMPLETED,
                    cast(event::job_completed as sys::JobCompletedCallback as *const ()),
                ),
                (
                    c::VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
                    cast(event::device_removed as sys::DeviceRemovedCallback as *const ()),
                ),
                (
                    c::VIR_DOMAIN_EVENT_ID_BLOCK_THRESHOLD,
                    cast(event::block_threshold as sys::BlockThresholdCallback as *const ()),
                ),
            ]
        };
        let domain = domain.map_or(ptr::null_mut(), Domain::pointer);
        for (id, callback) in callbacks {
            subscription.callbacks.push(self.register(domain, id, callback, &sink)?);
        }
        self.tell_of_the_end(&sink)?;
        subscription.close = true;
        Ok(subscription)
    }

    fn register(
        &self,
        domain: *mut sys::Domain,
        id: c_int,
        callback: sys::GenericCallback,
        sink: &Sink,
    ) -> Result<c_int> {
        let api = self.api();
        let opaque = event::into_opaque(sink);
        let free: sys::FreeCallback = event::free_opaque;
        // SAFETY: a live connection; the opaque is freed by libvirt once it has taken it.
        let number =
            unsafe { (api.virConnectDomainEventRegisterAny)(self.0.connect, domain, id, callback, opaque, Some(free)) };
        if number < 0 {
            let error = Error::last(api);
            // SAFETY: it was not taken.
            unsafe { free(opaque) };
            return Err(error);
        }
        Ok(number)
    }

    /// A connection has one callback for its end.
    fn tell_of_the_end(&self, sink: &Sink) -> Result<()> {
        let api = self.api();
        let opaque = event::into_opaque(sink);
        let free: sys::FreeCallback = event::free_opaque;
        // SAFETY: as with other callbacks.
        if unsafe { (api.virConnectRegisterCloseCallback)(self.0.connect, event::closed, opaque, Some(free)) } < 0 {
            let error = Error::last(api);
            // SAFETY: it was not taken.
            unsafe { free(opaque) };
            return Err(error);
        }
        Ok(())
    }
}

/// # Safety
/// `callback` is a function that libvirt calls with the arguments it has.
unsafe fn cast(callback: *const ()) -> sys::GenericCallback {
    // SAFETY: function pointers are of one size; libvirt casts it back (VIR_DOMAIN_EVENT_CALLBACK).
    unsafe { std::mem::transmute::<*const (), sys::GenericCallback>(callback) }
}

/// A string for libvirt.
pub(crate) fn text(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::new(Code::Other, "a name with a zero byte in it is none for libvirt"))
}

/// A copy of a string of libvirt's that is ours to free.
///
/// # Safety
/// `text` is null, after a failure of this thread's last call, or such a string.
pub(crate) unsafe fn taken(api: &Api, text: *mut std::ffi::c_char) -> Result<String> {
    if text.is_null() {
        return Err(Error::last(api));
    }
    // SAFETY: as above; it is freed once.
    unsafe {
        let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
        sys::free(text.cast());
        Ok(copy)
    }
}

/// Events are told for as long as this lives.
pub struct Subscription {
    connection: Connection,
    callbacks: Vec<c_int>,
    close: bool,
    /// libvirt has no more than a weak reference.
    _sink: Sink,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let api = self.connection.api();
        let connect = self.connection.0.connect;
        for number in &self.callbacks {
            // SAFETY: a live connection, a number that it gave. On a broken one it fails, and the end of the connection
            // frees the callback.
            unsafe { (api.virConnectDomainEventDeregisterAny)(connect, *number) };
        }
        if self.close {
            // SAFETY: as above.
            unsafe { (api.virConnectUnregisterCloseCallback)(connect, event::closed) };
        }
    }
}
