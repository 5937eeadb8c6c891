//! The ioctl(2)s of autofs (`linux/auto_fs.h`, `linux/auto_dev-ioctl.h`).

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::{Errno, Result};
use rustix::ioctl::{IntegerSetter, NoArg, Opcode, Setter, Updater, ioctl, opcode};

/// `AUTOFS_IOCTL`
const GROUP: u8 = 0x93;

const READY: Opcode = opcode::none(GROUP, 0x60);
const FAIL: Opcode = opcode::none(GROUP, 0x61);
const CATATONIC: Opcode = opcode::none(GROUP, 0x62);
const SET_TIMEOUT: Opcode = opcode::read_write::<std::ffi::c_ulong>(GROUP, 0x64);
const EXPIRE_MULTI: Opcode = opcode::write::<i32>(GROUP, 0x66);
const DEVICE_FAIL: Opcode = opcode::read_write::<DeviceArguments>(GROUP, 0x77);

/// `AUTOFS_EXP_NORMAL`: those that were not used for the time that was set.
const NORMAL: i32 = 0;

/// `struct autofs_dev_ioctl`, of version 1.0, without a path.
#[repr(C)]
struct DeviceArguments {
    major: u32,
    minor: u32,
    size: u32,
    root: i32,
    token: u32,
    status: i32,
}

/// What an ioctl takes as a number by itself.
fn number(token: u32) -> usize {
    // There is no Linux with pointers of 16 bits.
    usize::try_from(token).unwrap_or(usize::MAX)
}

pub(crate) fn ready(root: BorrowedFd<'_>, token: u32) -> Result<()> {
    // SAFETY: AUTOFS_IOC_READY takes a number.
    unsafe { ioctl(root, IntegerSetter::<READY>::new_usize(number(token))) }
}

pub(crate) fn fail(root: BorrowedFd<'_>, token: u32) -> Result<()> {
    // SAFETY: AUTOFS_IOC_FAIL takes a number.
    unsafe { ioctl(root, IntegerSetter::<FAIL>::new_usize(number(token))) }
}

pub(crate) fn catatonic(root: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: AUTOFS_IOC_CATATONIC takes nothing.
    unsafe { ioctl(root, NoArg::<CATATONIC>::new()) }
}

pub(crate) fn fail_with(device: BorrowedFd<'_>, root: BorrowedFd<'_>, token: u32, why: Errno) -> Result<()> {
    let mut arguments = DeviceArguments {
        major: 1,
        minor: 0,
        // The kernel takes what is longer for a path behind it.
        size: 24,
        root: root.as_raw_fd(),
        token,
        status: -why.raw_os_error(),
    };
    const { assert!(size_of::<DeviceArguments>() == 24) };
    // SAFETY: AUTOFS_DEV_IOCTL_FAIL takes such a structure and writes no more than one.
    unsafe { ioctl(device, Updater::<DEVICE_FAIL, _>::new(&mut arguments)) }
}

pub(crate) fn set_timeout(root: BorrowedFd<'_>, seconds: u64) -> Result<()> {
    let mut seconds = std::ffi::c_ulong::try_from(seconds).unwrap_or(std::ffi::c_ulong::MAX);
    // SAFETY: AUTOFS_IOC_SETTIMEOUT reads an unsigned long, and writes the one that was set before.
    unsafe { ioctl(root, Updater::<SET_TIMEOUT, _>::new(&mut seconds)) }
}

pub(crate) fn expire(root: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: AUTOFS_IOC_EXPIRE_MULTI reads an int.
    unsafe { ioctl(root, Setter::<EXPIRE_MULTI, i32>::new(NORMAL)) }
}
