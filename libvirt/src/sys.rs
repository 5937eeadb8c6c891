//! Declarations of libvirt.so.0, and the loading of it.
//!
//! Source: libvirt-domain.h, libvirt-domain-checkpoint.h, libvirt-event.h, libvirt-host.h, libvirt-storage.h,
//! libvirt-stream.h and virterror.h of libvirt 9.0;
//! its ABI has been stable since 0.1. tests/signatures.c names the same functions and constants.

use std::ffi::{c_char, c_int, c_longlong, c_uint, c_ulong, c_ulonglong, c_void};
use std::sync::OnceLock;

use libloading::Library;

use crate::error::{Error, Result};

/// `struct _virConnect`
#[repr(C)]
pub(crate) struct Connect {
    _opaque: [u8; 0],
}

/// `struct _virDomain`
#[repr(C)]
pub(crate) struct Domain {
    _opaque: [u8; 0],
}

/// `struct _virDomainCheckpoint`
#[repr(C)]
pub(crate) struct Checkpoint {
    _opaque: [u8; 0],
}

/// `struct _virStoragePool`
#[repr(C)]
pub(crate) struct StoragePool {
    _opaque: [u8; 0],
}

/// `struct _virStorageVol`
#[repr(C)]
pub(crate) struct StorageVol {
    _opaque: [u8; 0],
}

/// `struct _virStream`
#[repr(C)]
pub(crate) struct Stream {
    _opaque: [u8; 0],
}

/// `struct _virStoragePoolInfo`
#[repr(C)]
#[derive(Default)]
pub(crate) struct StoragePoolInfo {
    pub(crate) state: c_int,
    pub(crate) capacity: c_ulonglong,
    pub(crate) allocation: c_ulonglong,
    pub(crate) available: c_ulonglong,
}

/// `struct _virStorageVolInfo`
#[repr(C)]
#[derive(Default)]
pub(crate) struct StorageVolInfo {
    pub(crate) kind: c_int,
    pub(crate) capacity: c_ulonglong,
    pub(crate) allocation: c_ulonglong,
}

/// The beginning of `struct _virError`, which is only ever read where libvirt keeps it.
#[repr(C)]
pub(crate) struct VirError {
    pub(crate) code: c_int,
    pub(crate) domain: c_int,
    pub(crate) message: *const c_char,
}

/// `struct _virDomainBlockInfo`
#[repr(C)]
#[derive(Default)]
pub(crate) struct DomainBlockInfo {
    pub(crate) capacity: c_ulonglong,
    pub(crate) allocation: c_ulonglong,
    pub(crate) physical: c_ulonglong,
}

pub(crate) const FIELD_LENGTH: usize = 80;

/// `struct _virTypedParameter`
#[repr(C)]
pub(crate) struct TypedParameter {
    pub(crate) field: [c_char; FIELD_LENGTH],
    pub(crate) kind: c_int,
    pub(crate) value: TypedValue,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) union TypedValue {
    pub(crate) int: c_int,
    pub(crate) uint: c_uint,
    pub(crate) long: c_longlong,
    pub(crate) ulong: c_ulonglong,
    pub(crate) double: f64,
    pub(crate) boolean: c_char,
    pub(crate) string: *mut c_char,
}

/// `struct _virDomainStatsRecord`
#[repr(C)]
pub(crate) struct DomainStatsRecord {
    pub(crate) domain: *mut Domain,
    pub(crate) params: *mut TypedParameter,
    pub(crate) count: c_int,
}

pub(crate) type FreeCallback = unsafe extern "C" fn(*mut c_void);
pub(crate) type ErrorFunc = unsafe extern "C" fn(*mut c_void, *mut VirError);
pub(crate) type CloseFunc = unsafe extern "C" fn(*mut Connect, c_int, *mut c_void);
/// What `VIR_DOMAIN_EVENT_CALLBACK` casts a callback to; libvirt calls it with the arguments of its event.
pub(crate) type GenericCallback = unsafe extern "C" fn(*mut Connect, *mut Domain, *mut c_void);
pub(crate) type LifecycleCallback = unsafe extern "C" fn(*mut Connect, *mut Domain, c_int, c_int, *mut c_void) -> c_int;
pub(crate) type JobCompletedCallback =
    unsafe extern "C" fn(*mut Connect, *mut Domain, *mut TypedParameter, c_int, *mut c_void);
pub(crate) type DeviceRemovedCallback = unsafe extern "C" fn(*mut Connect, *mut Domain, *const c_char, *mut c_void);
pub(crate) type BlockThresholdCallback = unsafe extern "C" fn(
    *mut Connect,
    *mut Domain,
    *const c_char,
    *const c_char,
    c_ulonglong,
    c_ulonglong,
    *mut c_void,
);

/// Constants of the headers, by their names there.
pub(crate) mod constants {
    use std::ffi::{c_int, c_uint};

    pub(crate) const VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE: c_uint = 1;
    pub(crate) const VIR_CONNECT_GET_ALL_DOMAINS_STATS_BACKING: c_uint = 1 << 30;
    pub(crate) const VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT: c_uint = 1 << 29;
    pub(crate) const VIR_CONNECT_LIST_DOMAINS_ACTIVE: c_uint = 1;
    pub(crate) const VIR_DOMAIN_BACKUP_BEGIN_REUSE_EXTERNAL: c_uint = 1;
    pub(crate) const VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE: c_uint = 1;
    pub(crate) const VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE: c_uint = 4;
    pub(crate) const VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY: c_uint = 2;
    pub(crate) const VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL: c_uint = 2;
    pub(crate) const VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN: c_uint = 2;
    pub(crate) const VIR_DOMAIN_CHECKPOINT_XML_SIZE: c_uint = 4;
    pub(crate) const VIR_DOMAIN_EVENT_ID_LIFECYCLE: c_int = 0;
    pub(crate) const VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED: c_int = 15;
    pub(crate) const VIR_DOMAIN_EVENT_ID_JOB_COMPLETED: c_int = 21;
    pub(crate) const VIR_DOMAIN_EVENT_ID_BLOCK_THRESHOLD: c_int = 24;
    pub(crate) const VIR_DOMAIN_EVENT_UNDEFINED: c_int = 1;
    pub(crate) const VIR_DOMAIN_EVENT_STARTED: c_int = 2;
    pub(crate) const VIR_DOMAIN_EVENT_SUSPENDED: c_int = 3;
    pub(crate) const VIR_DOMAIN_EVENT_SUSPENDED_IOERROR: c_int = 2;
    pub(crate) const VIR_DOMAIN_EVENT_STOPPED: c_int = 5;
    pub(crate) const VIR_DOMAIN_EVENT_STOPPED_MIGRATED: c_int = 3;
    pub(crate) const VIR_DOMAIN_EVENT_CRASHED: c_int = 8;
    pub(crate) const VIR_DOMAIN_RUNNING: c_int = 1;
    pub(crate) const VIR_DOMAIN_PAUSED: c_int = 3;
    pub(crate) const VIR_DOMAIN_PAUSED_IOERROR: c_int = 5;
    pub(crate) const VIR_DOMAIN_JOB_NONE: c_int = 0;
    pub(crate) const VIR_DOMAIN_JOB_OPERATION_BACKUP: c_int = 9;
    pub(crate) const VIR_DOMAIN_STATS_BLOCK: c_uint = 1 << 5;
    pub(crate) const VIR_STORAGE_POOL_RUNNING: c_int = 2;
    pub(crate) const VIR_TYPED_PARAM_INT: c_int = 1;
    pub(crate) const VIR_TYPED_PARAM_ULLONG: c_int = 4;
    pub(crate) const VIR_TYPED_PARAM_STRING: c_int = 7;
    pub(crate) const VIR_UUID_STRING_BUFLEN: usize = 37;
    pub(crate) const VIR_FROM_RPC: c_int = 7;
    pub(crate) const VIR_FROM_REMOTE: c_int = 13;
    pub(crate) const VIR_ERR_INTERNAL_ERROR: c_int = 1;
    pub(crate) const VIR_ERR_NO_SUPPORT: c_int = 3;
    pub(crate) const VIR_ERR_NO_CONNECT: c_int = 5;
    pub(crate) const VIR_ERR_INVALID_CONN: c_int = 6;
    pub(crate) const VIR_ERR_SYSTEM_ERROR: c_int = 38;
    pub(crate) const VIR_ERR_RPC: c_int = 39;
    pub(crate) const VIR_ERR_NO_DOMAIN: c_int = 42;
    pub(crate) const VIR_ERR_AUTH_FAILED: c_int = 45;
    pub(crate) const VIR_ERR_NO_STORAGE_POOL: c_int = 49;
    pub(crate) const VIR_ERR_NO_STORAGE_VOL: c_int = 50;
    pub(crate) const VIR_ERR_OPERATION_INVALID: c_int = 55;
    pub(crate) const VIR_ERR_OPERATION_TIMEOUT: c_int = 68;
    pub(crate) const VIR_ERR_AUTH_CANCELLED: c_int = 79;
    pub(crate) const VIR_ERR_OPERATION_UNSUPPORTED: c_int = 84;
    pub(crate) const VIR_ERR_AGENT_UNRESPONSIVE: c_int = 86;
    pub(crate) const VIR_ERR_ACCESS_DENIED: c_int = 88;
    pub(crate) const VIR_ERR_AUTH_UNAVAILABLE: c_int = 94;
    pub(crate) const VIR_ERR_NO_DOMAIN_CHECKPOINT: c_int = 103;
    pub(crate) const VIR_ERR_NO_DOMAIN_BACKUP: c_int = 104;
    pub(crate) const VIR_ERR_CHECKPOINT_INCONSISTENT: c_int = 109;
}

macro_rules! functions {
    ($($name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions, by their names in the headers.
        #[allow(non_snake_case)]
        pub(crate) struct Api {
            $(pub(crate) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
            /// What the functions are in; it stays for good.
            _library: Library,
        }

        impl Api {
            fn load(library: Library) -> std::result::Result<Self, libloading::Error> {
                Ok(Self {
                    $(
                        // SAFETY: the declaration is that of the header, which tests/signatures.rs holds it to.
                        $name: unsafe { *library.get(concat!(stringify!($name), "\0"))? },
                    )*
                    _library: library,
                })
            }
        }
    };
}

functions! {
    virConnectClose: fn(*mut Connect) -> c_int;
    virConnectDomainEventDeregisterAny: fn(*mut Connect, c_int) -> c_int;
    virConnectDomainEventRegisterAny:
        fn(*mut Connect, *mut Domain, c_int, GenericCallback, *mut c_void, Option<FreeCallback>) -> c_int;
    virConnectGetAllDomainStats: fn(*mut Connect, c_uint, *mut *mut *mut DomainStatsRecord, c_uint) -> c_int;
    virConnectGetLibVersion: fn(*mut Connect, *mut c_ulong) -> c_int;
    virConnectGetVersion: fn(*mut Connect, *mut c_ulong) -> c_int;
    virConnectIsAlive: fn(*mut Connect) -> c_int;
    virConnectListAllDomains: fn(*mut Connect, *mut *mut *mut Domain, c_uint) -> c_int;
    virConnectOpen: fn(*const c_char) -> *mut Connect;
    virConnectRegisterCloseCallback: fn(*mut Connect, CloseFunc, *mut c_void, Option<FreeCallback>) -> c_int;
    virConnectUnregisterCloseCallback: fn(*mut Connect, CloseFunc) -> c_int;
    virDomainAbortJob: fn(*mut Domain) -> c_int;
    virDomainBackupBegin: fn(*mut Domain, *const c_char, *const c_char, c_uint) -> c_int;
    virDomainBackupGetXMLDesc: fn(*mut Domain, c_uint) -> *mut c_char;
    virDomainCheckpointCreateXML: fn(*mut Domain, *const c_char, c_uint) -> *mut Checkpoint;
    virDomainCheckpointDelete: fn(*mut Checkpoint, c_uint) -> c_int;
    virDomainCheckpointFree: fn(*mut Checkpoint) -> c_int;
    virDomainCheckpointGetName: fn(*mut Checkpoint) -> *const c_char;
    virDomainCheckpointGetXMLDesc: fn(*mut Checkpoint, c_uint) -> *mut c_char;
    virDomainCheckpointLookupByName: fn(*mut Domain, *const c_char, c_uint) -> *mut Checkpoint;
    virDomainFree: fn(*mut Domain) -> c_int;
    virDomainFSFreeze: fn(*mut Domain, *mut *const c_char, c_uint, c_uint) -> c_int;
    virDomainFSThaw: fn(*mut Domain, *mut *const c_char, c_uint, c_uint) -> c_int;
    virDomainGetBlockInfo: fn(*mut Domain, *const c_char, *mut DomainBlockInfo, c_uint) -> c_int;
    virDomainGetJobStats: fn(*mut Domain, *mut c_int, *mut *mut TypedParameter, *mut c_int, c_uint) -> c_int;
    virDomainGetName: fn(*mut Domain) -> *const c_char;
    virDomainGetState: fn(*mut Domain, *mut c_int, *mut c_int, c_uint) -> c_int;
    virDomainGetUUIDString: fn(*mut Domain, *mut c_char) -> c_int;
    virDomainGetXMLDesc: fn(*mut Domain, c_uint) -> *mut c_char;
    virDomainListAllCheckpoints: fn(*mut Domain, *mut *mut *mut Checkpoint, c_uint) -> c_int;
    virDomainLookupByName: fn(*mut Connect, *const c_char) -> *mut Domain;
    virDomainLookupByUUIDString: fn(*mut Connect, *const c_char) -> *mut Domain;
    virDomainRef: fn(*mut Domain) -> c_int;
    virDomainResume: fn(*mut Domain) -> c_int;
    virDomainSetBlockThreshold: fn(*mut Domain, *const c_char, c_ulonglong, c_uint) -> c_int;
    virDomainStatsRecordListFree: fn(*mut *mut DomainStatsRecord);
    virEventRegisterDefaultImpl: fn() -> c_int;
    virEventRunDefaultImpl: fn() -> c_int;
    virGetLastError: fn() -> *mut VirError;
    virInitialize: fn() -> c_int;
    virSetErrorFunc: fn(*mut c_void, Option<ErrorFunc>);
    virStoragePoolFree: fn(*mut StoragePool) -> c_int;
    virStoragePoolGetInfo: fn(*mut StoragePool, *mut StoragePoolInfo) -> c_int;
    virStoragePoolGetXMLDesc: fn(*mut StoragePool, c_uint) -> *mut c_char;
    virStoragePoolLookupByName: fn(*mut Connect, *const c_char) -> *mut StoragePool;
    virStoragePoolRefresh: fn(*mut StoragePool, c_uint) -> c_int;
    virStorageVolCreateXML: fn(*mut StoragePool, *const c_char, c_uint) -> *mut StorageVol;
    virStorageVolDelete: fn(*mut StorageVol, c_uint) -> c_int;
    virStorageVolFree: fn(*mut StorageVol) -> c_int;
    virStorageVolGetInfo: fn(*mut StorageVol, *mut StorageVolInfo) -> c_int;
    virStorageVolGetPath: fn(*mut StorageVol) -> *mut c_char;
    virStorageVolLookupByName: fn(*mut StoragePool, *const c_char) -> *mut StorageVol;
    virStorageVolUpload: fn(*mut StorageVol, *mut Stream, c_ulonglong, c_ulonglong, c_uint) -> c_int;
    virStreamAbort: fn(*mut Stream) -> c_int;
    virStreamFinish: fn(*mut Stream) -> c_int;
    virStreamFree: fn(*mut Stream) -> c_int;
    virStreamNew: fn(*mut Connect, c_uint) -> *mut Stream;
    virStreamSend: fn(*mut Stream, *const c_char, usize) -> c_int;
    virTypedParamsFree: fn(*mut TypedParameter, c_int);
}

/// What runtime linkers know it by; the number is that of the ABI.
const FILE: &str = "libvirt.so.0";

unsafe extern "C" {
    /// free(3), which libvirt says strings and lists of its are for.
    pub(crate) fn free(pointer: *mut c_void);
}

/// Errors come back from the calls; nothing is to be printed. (virterror.h, `virErrorFunc`)
unsafe extern "C" fn silent(_: *mut c_void, _: *mut VirError) {}

/// libvirt, loaded at the first call. What failed once fails for good.
pub(crate) fn api() -> Result<&'static Api> {
    static API: OnceLock<std::result::Result<Api, String>> = OnceLock::new();
    let loaded = API.get_or_init(|| {
        // SAFETY: libvirt's initialisers set up its own state, and that of libraries that it links.
        let library = unsafe { Library::new(FILE) }.map_err(|error| error.to_string())?;
        let api = Api::load(library).map_err(|error| error.to_string())?;
        // SAFETY: no arguments, may be called more than once; the error function is one that does nothing.
        let ready = unsafe {
            (api.virSetErrorFunc)(std::ptr::null_mut(), Some(silent));
            (api.virInitialize)()
        };
        if ready == 0 { Ok(api) } else { Err("it cannot be initialised".to_owned()) }
    });
    loaded.as_ref().map_err(|why| Error::no_library(why))
}
