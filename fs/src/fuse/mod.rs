//! The kernel's side: the only module that knows fuser.
//!
//! A read is begun on the thread that takes it from the kernel, and answered there if the data is at hand, else by the thread
//! that receives the data. What is asked of names and attributes is answered there too if the machine need not be asked for
//! it; every other request becomes a task. So a thread that takes requests never waits for a machine, and
//! one read never holds up another. The mount itself is made and ended in [`mount`].

pub mod mount;

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Waker};
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, Notifier, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, Session, SessionACL,
    TimeOrNow, WriteFlags,
};
use inside::FileKind;
use tokio::runtime::Handle;

use crate::error::{Error, Kind, Result};
use crate::fs::{Access, Asked, Attr, DirEntry, Fs, Lasts, Space};
use crate::image::Seek;
use crate::metrics::requests::Operation;
use crate::tree::inode::Inodes;

/// How long the kernel may believe a name or an attribute: disks and checkpoints come and go.
const TTL: Duration = Duration::from_secs(1);

/// How long it may believe the name of a file that shows a disk: with each open it asks which point in time the file is of
/// now. Else an open could come through a node of the last one, after another look-up was told of the new one, and the
/// kernel would cut the new file off as soon as it saw the answer to that look-up.
const FILE_TTL: Duration = Duration::ZERO;

/// Attributes that change when a point in time begins, or when more is known of it, are not believed at all.
const UNSETTLED_TTL: Duration = Duration::ZERO;

/// What is believed for as long as the point in time. Who comes by a path asks for the partition's name each time, and finds another
/// node there once it has ended; nothing of the old one is below that.
const HELD_TTL: Duration = Duration::from_secs(3600);

/// Threads that take requests from the kernel.
const THREADS: usize = 2;

/// Reads ahead and of `O_DIRECT` that the kernel may have under way at once.
const MAX_BACKGROUND: u16 = 64;

/// Largest request, in bytes; also lets the kernel read so much at once.
const MAX_REQUEST: u32 = 1 << 20;

/// `O_DIRECT` of open(2), on this architecture.
const O_DIRECT: i32 = rustix::fs::OFlags::DIRECT.bits().cast_signed();

/// `SEEK_DATA` and `SEEK_HOLE` of lseek(2).
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

/// Tells the kernel to forget what it cached; empty until the mount answers.
#[derive(Default)]
pub struct Forgetter {
    notifier: OnceLock<Notifier>,
}

impl Forgetter {
    /// Drops the pages and attributes of all files that show disks. Waits for pages that are just being read.
    pub fn forget(&self, inodes: &Inodes) {
        let Some(notifier) = self.notifier.get() else { return };
        for number in inodes.files() {
            // The kernel may have dropped the node by itself; then there is nothing to forget.
            if let Err(error) = notifier.inval_inode(INodeNo(number), 0, 0) {
                tracing::trace!("inode {number}: {error}");
            }
        }
    }
}

/// A mount that answers.
pub struct Serving {
    session: Session<Adapter>,
}

/// Shakes hands with the kernel over a mounted `/dev/fuse` descriptor.
///
/// # Errors
/// When the kernel's protocol is too old, or the mount is gone already.
pub fn serve(fs: Arc<Fs>, device: OwnedFd, allow_other: bool, forgetter: &Forgetter) -> Result<Serving> {
    let adapter = Adapter { fs, runtime: Handle::current() };
    let acl = if allow_other { SessionACL::All } else { SessionACL::Owner };
    let mut config = Config::default();
    config.acl = acl;
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    let session = Session::from_fd(adapter, device, acl, config).map_err(|error| {
        Error::with_source(Kind::Unsupported, "the kernel does not take up the FUSE session", error)
    })?;
    // Set once: a forgetter belongs to one mount.
    forgetter.notifier.set(session.notifier()).ok();
    Ok(Serving { session })
}

impl Serving {
    /// Answers the kernel until the file system is unmounted. Blocks.
    ///
    /// # Errors
    /// When reading requests fails otherwise than by the unmount.
    pub fn run(self) -> io::Result<()> {
        self.session.run()
    }
}

struct Adapter {
    fs: Arc<Fs>,
    runtime: Handle,
}

impl Adapter {
    fn answer<F: Future<Output = ()> + Send + 'static>(&self, with: impl FnOnce(Arc<Fs>) -> F) {
        self.runtime.spawn(with(self.fs.clone()));
    }

    /// The same, at once if nothing has to be waited for: a listing is tens of thousands of such questions.
    fn answer_at_once<F: Future<Output = ()> + Send + 'static>(&self, with: impl FnOnce(Arc<Fs>) -> F) {
        let _runtime = self.runtime.enter();
        let mut answer = Box::pin(with(self.fs.clone()));
        // Spawned, it is polled again, so nothing is lost with this waker.
        if answer.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            self.runtime.spawn(answer);
        }
    }
}

fn errno(error: &Error) -> Errno {
    Errno::from_i32(error.kind().errno().raw_os_error())
}

fn file_attr(attr: &Attr) -> FileAttr {
    let guest = attr.guest.as_ref();
    let plain = if attr.kind == FileKind::Directory { 2 } else { 1 };
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: guest.map_or(attr.mtime, |guest| guest.atime),
        mtime: attr.mtime,
        ctime: guest.map_or(attr.mtime, |guest| guest.ctime),
        crtime: SystemTime::UNIX_EPOCH,
        kind: file_type(attr.kind),
        perm: attr.mode,
        nlink: guest.map_or(plain, |guest| guest.links),
        uid: attr.uid,
        gid: attr.gid,
        rdev: guest.map_or(0, |guest| rdev(guest.device)),
        blksize: Space::BLOCK,
        flags: 0,
    }
}

fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
    }
}

/// A device's number as the kernel packs it in 32 bits (`include/linux/kdev_t.h`, `new_encode_dev`).
fn rdev((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

fn ttl(attr: &Attr) -> Duration {
    match attr.lasts {
        Lasts::Not => UNSETTLED_TTL,
        Lasts::Briefly => TTL,
        Lasts::Held => HELD_TTL,
    }
}

/// Who gives no room wants to know how much it takes.
fn tell_xattr(reply: ReplyXattr, value: &[u8], room: u32) {
    match u32::try_from(value.len()) {
        Ok(length) if room == 0 => reply.size(length),
        Ok(length) if length <= room => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

/// Whether an attribute is an access control list (`include/uapi/linux/xattr.h`).
fn is_acl(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b"system.posix_acl_")
}

/// What setting or removing an extended attribute is answered.
fn unchangeable(name: &OsStr) -> Errno {
    if Asked::by(name) == Asked::Unsupported { Errno::EOPNOTSUPP } else { Errno::EPERM }
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let refused = |what: &str| io::Error::other(format!("the kernel refuses {what}"));
        config.set_max_write(MAX_REQUEST).map_err(|_| refused("requests of 1 MiB"))?;
        config.set_max_background(MAX_BACKGROUND).map_err(|_| refused("64 background requests"))?;
        // Look-ups in one directory need not wait for each other, nor need reads of one process that waits for none of
        // them (io_submit(2) with O_DIRECT). Who has a handle of a file may come back when the kernel has forgotten it. An
        // older kernel does without.
        for wanted in [InitFlags::FUSE_PARALLEL_DIROPS, InitFlags::FUSE_ASYNC_DIO, InitFlags::FUSE_EXPORT_SUPPORT] {
            config.add_capabilities(wanted).ok();
        }
        // A mode alone would give a file's group what its list gives to some only.
        if self.fs.shows_owners_to_others() {
            config.add_capabilities(InitFlags::FUSE_POSIX_ACL).map_err(|_| refused("access control lists"))?;
        }
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.answer_at_once(|fs| async move {
            match fs.timed(Operation::Lookup, fs.lookup(parent.0, &name)).await {
                Ok(entry) => {
                    let attr = file_attr(&entry.attr);
                    let name = match entry.lasts {
                        Lasts::Not => FILE_TTL,
                        Lasts::Briefly => TTL,
                        Lasts::Held => HELD_TTL,
                    };
                    reply.entry_with_ttls(&ttl(&entry.attr), &name, &attr, Generation(entry.generation));
                }
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn forget(&self, _request: &Request, ino: INodeNo, lookups: u64) {
        self.fs.forget(ino.0, lookups);
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        self.answer_at_once(move |fs| async move {
            match fs.timed(Operation::Getattr, fs.getattr(ino.0, handle.map(|handle| handle.0))).await {
                Ok(attr) => reply.attr(&ttl(&attr), &file_attr(&attr)),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    /// Only for `echo … > control`, which truncates first: nothing has a size or a mode that can be set.
    fn setattr(
        &self,
        _request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let owner = mode.is_some() || uid.is_some() || gid.is_some();
        self.answer(|fs| async move {
            let asked = fs.asked();
            let outcome = match fs.getattr(ino.0, None).await {
                Ok(attr) if attr.writable() && !owner => Ok(attr),
                Ok(_) => Err(Errno::EPERM),
                Err(error) => Err(errno(&error)),
            };
            fs.answered(Operation::Setattr, asked, outcome.is_ok());
            match outcome {
                Ok(attr) => reply.attr(&ttl(&attr), &file_attr(&attr)),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        self.answer_at_once(move |fs| async move {
            match fs.timed(Operation::Readlink, fs.readlink(ino.0)).await {
                Ok(target) => reply.data(&target),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    /// access(2) and chdir(2), where the kernel does not look at the modes itself: whoever mounted it asks, and nobody else can.
    fn access(&self, _request: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let mask = u16::try_from(mask.bits()).unwrap_or(u16::MAX);
        self.answer_at_once(move |fs| async move {
            match fs.timed(Operation::Access, fs.getattr(ino.0, None)).await {
                Ok(attr) if attr.grants(mask) => reply.ok(),
                Ok(_) => reply.error(Errno::EACCES),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn open(&self, _request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let access = match flags.acc_mode() {
            OpenAccMode::O_RDONLY => Access::Read,
            OpenAccMode::O_WRONLY | OpenAccMode::O_RDWR => Access::Write,
        };
        self.answer(move |fs| async move {
            match fs.timed(Operation::Open, fs.open(ino.0, access)).await {
                Ok(opened) => {
                    // What the kernel has of this node is of this point in time: another one has another generation.
                    // Who opens with O_DIRECT wants no cache in between, and is spared the kernel's look into it.
                    let cached = opened.cached && flags.0 & O_DIRECT == 0;
                    let flags = if cached { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::FOPEN_DIRECT_IO };
                    reply.opened(FileHandle(opened.handle), flags | FopenFlags::FOPEN_NOFLUSH);
                }
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn mkdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, _mode: u32, _umask: u32, reply: ReplyEntry) {
        let name = name.to_owned();
        self.answer(|fs| async move {
            match fs.timed(Operation::Mkdir, fs.mkdir(parent.0, &name)).await {
                Ok(entry) => reply.entry(&TTL, &file_attr(&entry.attr), Generation(entry.generation)),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.answer(|fs| async move {
            match fs.timed(Operation::Rmdir, fs.rmdir(parent.0, &name)).await {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    /// No file is ever removed, so `rm -rf` breaks no chain.
    fn unlink(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    /// Nor is any made but by mkdir(2) in `checkpoints`: this is also what open(2) asks first to create one.
    fn mknod(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EPERM);
    }

    fn rename(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _new_parent: INodeNo,
        _new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EPERM);
    }

    fn read(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let counted = self.fs.asked().map(|asked| (self.fs.clone(), asked));
        self.fs.begin_read(handle.0, offset, size, move |outcome| {
            // Before the answer: whoever has it finds it counted.
            if let Some((fs, asked)) = counted {
                fs.answered(Operation::Read, Some(asked), outcome.is_ok());
            }
            match outcome {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn write(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let data = data.to_vec();
        self.answer(|fs| async move {
            match fs.timed(Operation::Write, fs.write(handle.0, &data)).await {
                Ok(written) => reply.written(u32::try_from(written).unwrap_or(u32::MAX)),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn flush(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.fs.release(handle.0);
        reply.ok();
    }

    fn lseek(
        &self,
        _request: &Request,
        _ino: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let what = match whence {
            SEEK_DATA => Seek::Data,
            SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        self.answer(|fs| async move {
            match fs.timed(Operation::Lseek, fs.seek(handle.0, offset, what)).await {
                Ok(found) => match i64::try_from(found) {
                    Ok(found) => reply.offset(found),
                    Err(_) => reply.error(Errno::EOVERFLOW),
                },
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.answer_at_once(|fs| async move {
            match fs.timed(Operation::Opendir, fs.opendir(ino.0)).await {
                Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn readdir(&self, _request: &Request, _ino: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.answer_at_once(move |fs| async move {
            let add = |next, entry: &DirEntry| reply.add(INodeNo(entry.ino), next, file_type(entry.kind), &entry.name);
            match fs.timed(Operation::Readdir, fs.readdir(handle.0, offset, add)).await {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn releasedir(&self, _request: &Request, _ino: INodeNo, handle: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.fs.release(handle.0);
        reply.ok();
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let root = request.uid() == 0;
        self.answer_at_once(move |fs| async move {
            let names = if fs.is_guest(ino.0) {
                fs.guest_xattr_names(ino.0, root).await
            } else {
                fs.xattr_names(ino.0).await.map(String::into_bytes)
            };
            match names {
                Ok(names) => tell_xattr(reply, &names, size),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    /// Tools that list directories ask for access lists and labels. Where they hear that there is no such thing, rather than
    /// that this file has none, they ask once for all files.
    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if self.fs.is_guest(ino.0) {
            let name = name.to_owned();
            return self.answer_at_once(move |fs| async move {
                match fs.guest_xattr(ino.0, &name).await {
                    Ok(Some(value)) => tell_xattr(reply, &value, size),
                    Ok(None) => reply.error(Errno::ENODATA),
                    Err(error) => reply.error(errno(&error)),
                }
            });
        }
        let attribute = match Asked::by(name) {
            Asked::Ours(attribute) => attribute,
            Asked::Other => return reply.error(Errno::ENODATA),
            // Whom a file lets in the kernel asks of ours as well as of the guest's.
            Asked::Unsupported if self.fs.shows_owners_to_others() && is_acl(name) => {
                return reply.error(Errno::ENODATA);
            }
            Asked::Unsupported => return reply.error(Errno::EOPNOTSUPP),
        };
        self.answer_at_once(move |fs| async move {
            match fs.xattr(ino.0, attribute).await {
                Ok(Some(value)) => tell_xattr(reply, value.as_bytes(), size),
                Ok(None) => reply.error(Errno::ENODATA),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn setxattr(
        &self,
        _request: &Request,
        _ino: INodeNo,
        name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(unchangeable(name));
    }

    fn removexattr(&self, _request: &Request, _ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply.error(unchangeable(name));
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.answer(|fs| async move {
            let asked = fs.asked();
            let space = fs.statfs().await;
            fs.answered(Operation::Statfs, asked, true);
            reply.statfs(space.blocks, 0, 0, space.files, 0, Space::BLOCK, 255, Space::BLOCK);
        });
    }
}
