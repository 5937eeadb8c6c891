//! Storage pools and volumes: files of the daemon's host, made and removed by the daemon.

use std::ffi::{CString, c_int};

use crate::connection::{Connection, taken, text};
use crate::error::{Code, Error, Result};
use crate::sys::{self, constants as c};

/// Most that is sent at a time, in bytes; libvirt cuts it into its own packets.
const PIECE: usize = 256 << 10;

/// A storage pool.
pub struct Pool {
    connection: Connection,
    pool: *mut sys::StoragePool,
}

// SAFETY: as with connections.
unsafe impl Send for Pool {}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: the one reference that this value owns.
        unsafe { (self.connection.api().virStoragePoolFree)(self.pool) };
    }
}

/// What a pool has, as libvirt last saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolInfo {
    /// Whether it can be used.
    pub active: bool,
    /// Free bytes.
    pub available: u64,
}

impl Connection {
    /// The storage pool of that name.
    ///
    /// # Errors
    /// [`Code::NoPool`]; [`Code::Unsupported`] where the daemon has no storage driver; when the connection is broken.
    pub fn pool(&self, name: &str) -> Result<Pool> {
        let name = text(name)?;
        // SAFETY: a live connection, a string that ends in a zero.
        let pool = unsafe { (self.api().virStoragePoolLookupByName)(self.pointer(), name.as_ptr()) };
        if pool.is_null() { Err(Error::last(self.api())) } else { Ok(Pool { connection: self.clone(), pool }) }
    }
}

impl Pool {
    /// Its description, in XML.
    ///
    /// # Errors
    /// When the connection is broken, or the pool is gone.
    pub fn xml(&self) -> Result<String> {
        let api = self.connection.api();
        // SAFETY: a live pool; the string is ours.
        unsafe { taken(api, (api.virStoragePoolGetXMLDesc)(self.pool, 0)) }
    }

    /// Has libvirt look again at what there is.
    ///
    /// # Errors
    /// [`Code::Invalid`] while somebody makes a volume in it, or it is not active; as [`Pool::xml`].
    pub fn refresh(&self) -> Result<()> {
        // SAFETY: a live pool.
        self.done(unsafe { (self.connection.api().virStoragePoolRefresh)(self.pool, 0) })
    }

    /// What it has.
    ///
    /// # Errors
    /// As [`Pool::xml`].
    pub fn info(&self) -> Result<PoolInfo> {
        let mut info = sys::StoragePoolInfo::default();
        // SAFETY: a live pool, a place for its figures.
        self.done(unsafe { (self.connection.api().virStoragePoolGetInfo)(self.pool, &raw mut info) })?;
        Ok(PoolInfo { active: info.state == c::VIR_STORAGE_POOL_RUNNING, available: info.available })
    }

    /// Makes a volume, and allocates what its description says.
    ///
    /// # Errors
    /// When there is no room for it, or one of that name is there; as [`Pool::xml`]. Then there is none, unless libvirt did
    /// not answer.
    pub fn create(&self, xml: &str) -> Result<Volume> {
        let xml = text(xml)?;
        // SAFETY: a live pool, a string that ends in a zero.
        self.volume_of(unsafe { (self.connection.api().virStorageVolCreateXML)(self.pool, xml.as_ptr(), 0) })
    }

    /// The volume of that name.
    ///
    /// # Errors
    /// [`Code::NoVolume`]; as [`Pool::xml`].
    pub fn volume(&self, name: &str) -> Result<Volume> {
        let name: CString = text(name)?;
        // SAFETY: a live pool, a string that ends in a zero.
        self.volume_of(unsafe { (self.connection.api().virStorageVolLookupByName)(self.pool, name.as_ptr()) })
    }

    fn volume_of(&self, volume: *mut sys::StorageVol) -> Result<Volume> {
        if volume.is_null() {
            return Err(Error::last(self.connection.api()));
        }
        Ok(Volume { connection: self.connection.clone(), volume })
    }

    fn done(&self, result: c_int) -> Result<()> {
        if result < 0 { Err(Error::last(self.connection.api())) } else { Ok(()) }
    }
}

/// A volume of a pool.
pub struct Volume {
    connection: Connection,
    volume: *mut sys::StorageVol,
}

// SAFETY: as with connections.
unsafe impl Send for Volume {}

impl Drop for Volume {
    fn drop(&mut self) {
        // SAFETY: the one reference that this value owns.
        unsafe { (self.connection.api().virStorageVolFree)(self.volume) };
    }
}

impl Volume {
    /// Where it is, on the daemon's host.
    ///
    /// # Errors
    /// When the connection is broken, or the volume is gone.
    pub fn path(&self) -> Result<String> {
        let api = self.connection.api();
        // SAFETY: a live volume; the string is ours.
        unsafe { taken(api, (api.virStorageVolGetPath)(self.volume)) }
    }

    /// Bytes of the daemon's host that it takes.
    ///
    /// # Errors
    /// As [`Volume::path`].
    pub fn allocation(&self) -> Result<u64> {
        let mut info = sys::StorageVolInfo::default();
        // SAFETY: a live volume, a place for its figures.
        self.done(unsafe { (self.connection.api().virStorageVolGetInfo)(self.volume, &raw mut info) })?;
        Ok(info.allocation)
    }

    /// Writes `data` to its start; the rest of it stays as it is.
    ///
    /// # Errors
    /// When it cannot be written; as [`Volume::path`].
    pub fn upload(&self, data: &[u8]) -> Result<()> {
        let api = self.connection.api();
        // SAFETY: a live connection.
        let stream = unsafe { (api.virStreamNew)(self.connection.pointer(), 0) };
        if stream.is_null() {
            return Err(Error::last(api));
        }
        let stream = Stream { connection: self.connection.clone(), stream };
        let length = u64::try_from(data.len()).map_err(|_| Error::new(Code::Other, "too much for a volume"))?;
        // SAFETY: a live volume, a live stream of the same connection.
        self.done(unsafe { (api.virStorageVolUpload)(self.volume, stream.stream, 0, length, 0) })?;
        let sent = stream.send(data);
        match sent {
            // SAFETY: a live stream.
            Ok(()) => self.done(unsafe { (api.virStreamFinish)(stream.stream) }),
            Err(error) => {
                // SAFETY: a live stream.
                unsafe { (api.virStreamAbort)(stream.stream) };
                Err(error)
            }
        }
    }

    /// Removes it.
    ///
    /// # Errors
    /// [`Code::Invalid`] while it is being made; as [`Volume::path`].
    pub fn delete(&self) -> Result<()> {
        // SAFETY: a live volume.
        self.done(unsafe { (self.connection.api().virStorageVolDelete)(self.volume, 0) })
    }

    fn done(&self, result: c_int) -> Result<()> {
        if result < 0 { Err(Error::last(self.connection.api())) } else { Ok(()) }
    }
}

struct Stream {
    connection: Connection,
    stream: *mut sys::Stream,
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the one reference that this value owns.
        unsafe { (self.connection.api().virStreamFree)(self.stream) };
    }
}

impl Stream {
    fn send(&self, data: &[u8]) -> Result<()> {
        let api = self.connection.api();
        let mut rest = data;
        while !rest.is_empty() {
            let piece = &rest[..rest.len().min(PIECE)];
            // SAFETY: a live stream, and so many bytes.
            let sent = unsafe { (api.virStreamSend)(self.stream, piece.as_ptr().cast(), piece.len()) };
            match usize::try_from(sent) {
                Ok(sent) if sent > 0 && sent <= piece.len() => rest = &rest[sent..],
                _ => return Err(Error::last(api)),
            }
        }
        Ok(())
    }
}
