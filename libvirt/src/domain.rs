//! A domain: libvirt's word for a machine.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::ptr;

use crate::connection::{Connection, taken, text};
use crate::error::{Error, Result};
use crate::sys::{self, constants as c};

/// A domain. It may end, or be forgotten by libvirt, at any time; calls then fail.
pub struct Domain {
    connection: Connection,
    domain: *mut sys::Domain,
}

// SAFETY: as with connections.
unsafe impl Send for Domain {}
// SAFETY: as with connections.
unsafe impl Sync for Domain {}

impl Clone for Domain {
    fn clone(&self) -> Self {
        // SAFETY: a live domain; each clone gives back the reference it takes here.
        unsafe { (self.connection.api().virDomainRef)(self.domain) };
        Self { connection: self.connection.clone(), domain: self.domain }
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: the one reference that this value owns.
        unsafe { (self.connection.api().virDomainFree)(self.domain) };
    }
}

/// What a domain does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It runs.
    Running,
    /// It stands still.
    Paused(PauseReason),
    /// Something else, mostly nothing at all.
    Other,
}

/// Why a domain stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PauseReason {
    /// A write of the guest failed.
    IoError,
    /// Somebody wants it so, or anything else.
    Other,
}

/// Sizes of a disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockInfo {
    /// What the guest sees.
    pub capacity: u64,
    /// What of it takes room on the host, roughly.
    pub allocation: u64,
}

/// The job that a domain has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobStats {
    /// Whether it is a backup.
    pub backup: bool,
    /// Of a backup: the bytes of the disks that scratch space is kept for. It counts those disks alone whose jobs QEMU has,
    /// and libvirt has not begun to end.
    pub scratch_total: u64,
}

impl Domain {
    /// # Safety
    /// `domain` is a reference of this connection that nobody else frees.
    pub(crate) unsafe fn owned(connection: Connection, domain: *mut sys::Domain) -> Self {
        Self { connection, domain }
    }

    pub(crate) fn pointer(&self) -> *mut sys::Domain {
        self.domain
    }

    fn done(&self, result: c_int) -> Result<()> {
        if result < 0 { Err(Error::last(self.connection.api())) } else { Ok(()) }
    }

    /// As [`Connection::versions`], of the libvirt that it is of.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn versions(&self) -> Result<(u64, u64)> {
        self.connection.versions()
    }

    /// Its name.
    pub fn name(&self) -> String {
        // SAFETY: a live domain; its name is its own and copied here.
        let name = unsafe { (self.connection.api().virDomainGetName)(self.domain) };
        if name.is_null() {
            return String::new();
        }
        // SAFETY: a string that ends in a zero.
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    }

    /// Its UUID, as text.
    ///
    /// # Errors
    /// Practically none: it is known without asking.
    pub fn uuid(&self) -> Result<String> {
        // SAFETY: a live domain.
        unsafe { uuid_of(self.domain) }.ok_or_else(|| Error::last(self.connection.api()))
    }

    /// Its definition as it is now, in XML.
    ///
    /// # Errors
    /// When it is gone, or the connection is broken. The same goes for all that follow.
    pub fn xml(&self) -> Result<String> {
        let api = self.connection.api();
        // SAFETY: a live domain; the string is ours.
        unsafe { taken(api, (api.virDomainGetXMLDesc)(self.domain, 0)) }
    }

    /// What it does.
    ///
    /// # Errors
    /// As [`Domain::xml`].
    pub fn state(&self) -> Result<State> {
        let (mut state, mut reason) = (0, 0);
        // SAFETY: a live domain, and places for the two numbers.
        let result =
            unsafe { (self.connection.api().virDomainGetState)(self.domain, &raw mut state, &raw mut reason, 0) };
        self.done(result)?;
        Ok(match (state, reason) {
            (c::VIR_DOMAIN_RUNNING, _) => State::Running,
            (c::VIR_DOMAIN_PAUSED, c::VIR_DOMAIN_PAUSED_IOERROR) => State::Paused(PauseReason::IoError),
            (c::VIR_DOMAIN_PAUSED, _) => State::Paused(PauseReason::Other),
            _ => State::Other,
        })
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// As [`Domain::xml`].
    pub fn resume(&self) -> Result<()> {
        // SAFETY: a live domain.
        self.done(unsafe { (self.connection.api().virDomainResume)(self.domain) })
    }

    /// How large a disk is, by its target.
    ///
    /// # Errors
    /// As [`Domain::xml`]; when it has no such disk, or no medium is in it.
    pub fn block_info(&self, target: &str) -> Result<BlockInfo> {
        let target = text(target)?;
        let mut info = sys::DomainBlockInfo::default();
        // SAFETY: a live domain, a string that ends in a zero, and a place for the answer.
        let result =
            unsafe { (self.connection.api().virDomainGetBlockInfo)(self.domain, target.as_ptr(), &raw mut info, 0) };
        self.done(result)?;
        Ok(BlockInfo { capacity: info.capacity, allocation: info.allocation })
    }

    /// Begins a backup, and makes a checkpoint at the same instant where one is given. The scratch images of the backup are
    /// there already, and stay when it ends (`VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL`).
    ///
    /// # Errors
    /// [`Code::Timeout`] after half a minute in which the domain was busy otherwise, [`Code::Invalid`] when it has a backup
    /// already; as [`Domain::xml`].
    pub fn backup_begin(&self, backup: &str, checkpoint: Option<&str>) -> Result<()> {
        let backup = text(backup)?;
        let checkpoint = checkpoint.map(text).transpose()?;
        let checkpoint = checkpoint.as_ref().map_or(ptr::null(), |checkpoint| checkpoint.as_ptr());
        // SAFETY: a live domain, strings that end in a zero.
        self.done(unsafe {
            (self.connection.api().virDomainBackupBegin)(
                self.domain,
                backup.as_ptr(),
                checkpoint,
                c::VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL,
            )
        })
    }

    /// The backup that it has now, in XML.
    ///
    /// # Errors
    /// [`Code::NoBackup`]; as [`Domain::xml`].
    pub fn backup_xml(&self) -> Result<String> {
        let api = self.connection.api();
        // SAFETY: a live domain; the string is ours.
        unsafe { taken(api, (api.virDomainBackupGetXMLDesc)(self.domain, 0)) }
    }

    /// Ends the job that it has, whatever that is. A backup ends a moment after.
    ///
    /// # Errors
    /// [`Code::Invalid`] when it has none; as [`Domain::xml`].
    pub fn abort_job(&self) -> Result<()> {
        // SAFETY: a live domain.
        self.done(unsafe { (self.connection.api().virDomainAbortJob)(self.domain) })
    }

    /// The job that it has, if it has one.
    ///
    /// # Errors
    /// As [`Domain::xml`].
    pub fn job_stats(&self) -> Result<Option<JobStats>> {
        let api = self.connection.api();
        let (mut kind, mut count, mut params) = (0, 0, ptr::null_mut());
        // SAFETY: a live domain, and places for the answer.
        let result =
            unsafe { (api.virDomainGetJobStats)(self.domain, &raw mut kind, &raw mut params, &raw mut count, 0) };
        self.done(result)?;
        let mut stats = JobStats { backup: false, scratch_total: 0 };
        // SAFETY: the parameters are ours, and freed once.
        unsafe {
            with_params(params, count, |name, value| match name {
                "operation" => stats.backup = value == i128::from(c::VIR_DOMAIN_JOB_OPERATION_BACKUP),
                "disk_temp_total" => stats.scratch_total = u64::try_from(value).unwrap_or(0),
                _ => {}
            });
            (api.virTypedParamsFree)(params, count);
        }
        Ok((kind != c::VIR_DOMAIN_JOB_NONE).then_some(stats))
    }

    /// Has an event told when an image is written to beyond so many bytes from its start. `device` is a disk's target and
    /// the image's index, such as `vda[5]`.
    ///
    /// # Errors
    /// As [`Domain::xml`]; when there is no such image.
    pub fn set_block_threshold(&self, device: &str, bytes: u64) -> Result<()> {
        let device = text(device)?;
        // SAFETY: a live domain, a string that ends in a zero.
        self.done(unsafe { (self.connection.api().virDomainSetBlockThreshold)(self.domain, device.as_ptr(), bytes, 0) })
    }

    /// Freezes the guest's file systems, through its agent; how many there were.
    ///
    /// # Errors
    /// [`Code::Agent`]; as [`Domain::xml`].
    pub fn freeze(&self) -> Result<u32> {
        // SAFETY: a live domain; no list means all of them.
        let count = unsafe { (self.connection.api().virDomainFSFreeze)(self.domain, ptr::null_mut(), 0, 0) };
        u32::try_from(count).map_err(|_| Error::last(self.connection.api()))
    }

    /// Thaws them.
    ///
    /// # Errors
    /// As [`Domain::freeze`].
    pub fn thaw(&self) -> Result<u32> {
        // SAFETY: as above.
        let count = unsafe { (self.connection.api().virDomainFSThaw)(self.domain, ptr::null_mut(), 0, 0) };
        u32::try_from(count).map_err(|_| Error::last(self.connection.api()))
    }

    /// Its checkpoints, parents before children.
    ///
    /// # Errors
    /// As [`Domain::xml`].
    pub fn checkpoints(&self) -> Result<Vec<Checkpoint>> {
        let api = self.connection.api();
        let mut list: *mut *mut sys::Checkpoint = ptr::null_mut();
        // SAFETY: a live domain, and a place for the list.
        let count = unsafe {
            (api.virDomainListAllCheckpoints)(self.domain, &raw mut list, c::VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL)
        };
        let Ok(count) = usize::try_from(count) else { return Err(Error::last(api)) };
        // SAFETY: a list of `count` references, ours from now on; the list itself is for free(3).
        unsafe {
            let each = |index| Checkpoint { domain: self.clone(), checkpoint: *list.add(index) };
            let checkpoints = (0..count).map(each).collect();
            sys::free(list.cast());
            Ok(checkpoints)
        }
    }

    /// How many checkpoints it has; nothing in the domain is waited for.
    ///
    /// # Errors
    /// As [`Domain::xml`].
    pub fn checkpoint_count(&self) -> Result<usize> {
        let api = self.connection.api();
        // SAFETY: a live domain; without a place for a list they are only counted.
        let count = unsafe { (api.virDomainListAllCheckpoints)(self.domain, ptr::null_mut(), 0) };
        usize::try_from(count).map_err(|_| Error::last(api))
    }

    /// The checkpoint of that name.
    ///
    /// # Errors
    /// [`Code::NoCheckpoint`]; as [`Domain::xml`].
    pub fn checkpoint(&self, name: &str) -> Result<Checkpoint> {
        let name = text(name)?;
        // SAFETY: a live domain, a string that ends in a zero.
        self.owned_checkpoint(unsafe {
            (self.connection.api().virDomainCheckpointLookupByName)(self.domain, name.as_ptr(), 0)
        })
    }

    /// Makes libvirt know a checkpoint again; nothing is made in QEMU. With `validate`, only if its bitmaps are there, record
    /// and are whole: the domain must run.
    ///
    /// # Errors
    /// [`Code::Inconsistent`] for bitmaps that are not; as [`Domain::xml`]; when the description does not fit the domain.
    pub fn redefine_checkpoint(&self, xml: &str, validate: bool) -> Result<Checkpoint> {
        let xml = text(xml)?;
        let validate = if validate { c::VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE } else { 0 };
        let flags = c::VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE | validate;
        // SAFETY: a live domain, a string that ends in a zero.
        self.owned_checkpoint(unsafe {
            (self.connection.api().virDomainCheckpointCreateXML)(self.domain, xml.as_ptr(), flags)
        })
    }

    fn owned_checkpoint(&self, checkpoint: *mut sys::Checkpoint) -> Result<Checkpoint> {
        if checkpoint.is_null() {
            return Err(Error::last(self.connection.api()));
        }
        Ok(Checkpoint { domain: self.clone(), checkpoint })
    }
}

/// A checkpoint of a domain.
pub struct Checkpoint {
    domain: Domain,
    checkpoint: *mut sys::Checkpoint,
}

// SAFETY: as with connections.
unsafe impl Send for Checkpoint {}
// SAFETY: as with connections.
unsafe impl Sync for Checkpoint {}

impl Drop for Checkpoint {
    fn drop(&mut self) {
        // SAFETY: the one reference that this value owns.
        unsafe { (self.domain.connection.api().virDomainCheckpointFree)(self.checkpoint) };
    }
}

impl Checkpoint {
    /// Its name.
    pub fn name(&self) -> String {
        // SAFETY: a live checkpoint; its name is its own and copied here.
        let name = unsafe { (self.domain.connection.api().virDomainCheckpointGetName)(self.checkpoint) };
        if name.is_null() {
            return String::new();
        }
        // SAFETY: a string that ends in a zero.
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    }

    /// Its description, without that of the domain. With `sizes`, each disk says how many bytes an incremental backup since
    /// then has now: QEMU is asked, and the domain must run.
    ///
    /// # Errors
    /// [`Code::Invalid`] with `sizes` when the domain does not run; as [`Domain::xml`].
    pub fn xml(&self, sizes: bool) -> Result<String> {
        let api = self.domain.connection.api();
        let sizes = if sizes { c::VIR_DOMAIN_CHECKPOINT_XML_SIZE } else { 0 };
        let flags = c::VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN | sizes;
        // SAFETY: a live checkpoint; the string is ours.
        unsafe { taken(api, (api.virDomainCheckpointGetXMLDesc)(self.checkpoint, flags)) }
    }

    /// Deletes it, and its bitmaps.
    ///
    /// # Errors
    /// [`Code::NoCheckpoint`]; as [`Domain::xml`].
    pub fn delete(&self) -> Result<()> {
        self.delete_with(0)
    }

    /// Makes libvirt know it no more; its bitmaps stay.
    ///
    /// # Errors
    /// As [`Checkpoint::delete`].
    pub fn forget(&self) -> Result<()> {
        self.delete_with(c::VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
    }

    fn delete_with(&self, flags: c_uint) -> Result<()> {
        // SAFETY: a live checkpoint.
        let result = unsafe { (self.domain.connection.api().virDomainCheckpointDelete)(self.checkpoint, flags) };
        self.domain.done(result)
    }
}

/// The UUID of a domain, as text.
///
/// # Safety
/// `domain` is a live domain.
pub(crate) unsafe fn uuid_of(domain: *mut sys::Domain) -> Option<String> {
    let api = sys::api().ok()?;
    let mut text: [c_char; c::VIR_UUID_STRING_BUFLEN] = [0; c::VIR_UUID_STRING_BUFLEN];
    // SAFETY: as above, and a place of the length that libvirt asks for.
    unsafe {
        let known = (api.virDomainGetUUIDString)(domain, text.as_mut_ptr()) == 0;
        known.then(|| CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned())
    }
}

/// Looks at parameters that are numbers, by name.
///
/// # Safety
/// `params` are `count` parameters, or null if there are none.
pub(crate) unsafe fn with_params(params: *const sys::TypedParameter, count: c_int, mut look: impl FnMut(&str, i128)) {
    let count = if params.is_null() { 0 } else { usize::try_from(count).unwrap_or(0) };
    for index in 0..count {
        // SAFETY: as above; the kind says which part of the union it is; a field ends in a zero.
        unsafe {
            let param = &*params.add(index);
            let value = match param.kind {
                c::VIR_TYPED_PARAM_INT => i128::from(param.value.int),
                c::VIR_TYPED_PARAM_ULLONG => i128::from(param.value.ulong),
                _ => continue,
            };
            look(&CStr::from_ptr(param.field.as_ptr()).to_string_lossy(), value);
        }
    }
}
