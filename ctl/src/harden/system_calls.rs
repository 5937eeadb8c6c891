//! A filter of system calls: those that a file system daemon never makes fail with EPERM.
//!
//! A list of what is denied, rather than of what is allowed: the C library may call something else tomorrow, and a daemon
//! that is killed for it would be worse than what the list lets through.

use std::collections::BTreeMap;

use anyhow::Context;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// System calls of x32, which x86-64 kernels may have beside their own: the same numbers with this bit.
const X32: i64 = 0x4000_0000;

/// Newer than the C library's list.
const SYS_OPEN_TREE_ATTR: i64 = 467;

/// Never made, whatever the arguments.
pub(super) const DENIED: &[i64] = &[
    // Other processes' memory and descriptors.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Mounts, roots and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    SYS_OPEN_TREE_ATTR,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    // Files past their paths.
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    // The kernel itself.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_personality,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    // Where the kernel's own mistakes were found.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
];

/// Those that only x86-64 has, and x32's own numbers of some that are denied above.
#[cfg(target_arch = "x86_64")]
pub(super) const DENIED_HERE: &[i64] = &[
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
    libc::SYS_kexec_file_load,
    X32 + 521, // ptrace
    X32 + 528, // kexec_load
    X32 + 539, // process_vm_readv
    X32 + 540, // process_vm_writev
];
#[cfg(not(target_arch = "x86_64"))]
pub(super) const DENIED_HERE: &[i64] = &[libc::SYS_kexec_file_load];

/// The families of sockets that it opens: unix and TCP, and what the C library asks when it looks up a host's name.
const FAMILIES: &[i32] = &[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// Restricts this thread and those that it starts.
pub(super) fn restrict() -> anyhow::Result<()> {
    for filter in [denied()?, unknown()?] {
        seccompiler::apply_filter(&filter).context("this kernel takes no filter")?;
    }
    Ok(())
}

fn denied() -> anyhow::Result<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        DENIED.iter().chain(DENIED_HERE).flat_map(|call| [(*call, vec![]), (*call | X32, vec![])]).collect();
    let other = FAMILIES.iter().map(|family| condition(SeccompCmpOp::Ne, u64::try_from(*family)?));
    let new_user = u64::try_from(libc::CLONE_NEWUSER)?;
    let new_user = [condition(SeccompCmpOp::MaskedEq(new_user), new_user)?].to_vec();
    for (call, conditions) in [(libc::SYS_socket, other.collect::<Result<_, _>>()?), (libc::SYS_clone, new_user)] {
        for call in [call, call | X32] {
            rules.insert(call, vec![SeccompRule::new(conditions.clone())?]);
        }
    }
    compile(rules, libc::EPERM)
}

/// The flags of clone3 are in memory, where a filter cannot look: the C library is told that there is only clone.
fn unknown() -> anyhow::Result<BpfProgram> {
    let calls = [libc::SYS_clone3, libc::SYS_clone3 | X32];
    compile(calls.into_iter().map(|call| (call, vec![])).collect(), libc::ENOSYS)
}

/// A condition on the first argument.
fn condition(operator: SeccompCmpOp, value: u64) -> anyhow::Result<SeccompCondition> {
    Ok(SeccompCondition::new(0, SeccompCmpArgLen::Dword, operator, value)?)
}

fn compile(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: i32) -> anyhow::Result<BpfProgram> {
    let errno = SeccompAction::Errno(errno.try_into()?);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, errno, std::env::consts::ARCH.try_into()?)?;
    Ok(filter.try_into()?)
}
