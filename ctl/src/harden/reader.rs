//! What a process gives up that reads what a guest has written on its disks: everything but thinking, and the conversation
//! at its standard input. Whoever takes it over has just that.
//!
//! Before it reads the first byte. Where a kernel cannot filter system calls, nothing is read; the rest is there for the
//! case that the filter has a hole.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::RawFd;

use anyhow::{Context, ensure};
use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, Scope};
use rustix::process::{DumpableBehavior, Gid, Resource, Rlimit, Signal, Uid, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Its conversation, and what it says in words; standard output is `/dev/null`.
const CONVERSATION: u64 = 0;
const WORDS: u64 = 2;
const LAST_OWN: RawFd = 2;

/// All memory that it may map, in bytes, the program and its libraries among it. A cache of blocks takes 16 MiB.
const MEMORY: u64 = 256 << 20;

/// The user and group that own nothing, by their numbers in every distribution.
const NOBODY: u32 = 65534;

/// The newest version of Landlock whose rights are handled, as for the daemon.
const TESTED: ABI = ABI::V6;

/// Allowed whatever the arguments. All of them are about this process alone, and none gets it anything.
const ALLOWED: &[i64] = &[
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // The C library's allocator asks for it when memory runs out.
    libc::SYS_sched_getaffinity,
    // Locks, clocks, seeds of hash tables.
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    // Its end, in order and not.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_getpid,
    libc::SYS_gettid,
];

/// Restricts this process, which has one thread.
pub(crate) fn restrict() -> anyhow::Result<()> {
    close_the_rest().context("cannot close what does not belong to a reader")?;
    std::env::set_current_dir("/").context("cannot leave the current directory")?;
    for (resource, limit) in [
        (Resource::As, MEMORY),
        (Resource::Core, 0),
        (Resource::Nproc, 0),
        (Resource::Fsize, 0),
        (Resource::Memlock, 0),
    ] {
        limit_to(resource, limit)?;
    }
    become_nobody()?;
    rustix::thread::set_no_new_privs(true).context("cannot set no_new_privs")?;
    // A kernel that has none of it has the filter.
    Ruleset::default()
        .handle_access(AccessFs::from_all(TESTED))?
        .handle_access(AccessNet::from_all(TESTED))?
        .scope(Scope::from_all(TESTED))?
        .create()?
        .restrict_self()?;
    // Landlock took a descriptor; from now on there is none to be had.
    limit_to(Resource::Nofile, 0)?;
    // Changing the user would have undone both.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).context("cannot become undumpable")?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).context("cannot be tied to the daemon")?;
    seccompiler::apply_filter(&filter()?).context("this kernel takes no filter")
}

fn limit_to(resource: Resource, limit: u64) -> anyhow::Result<()> {
    let limit = Rlimit { current: Some(limit), maximum: Some(limit) };
    setrlimit(resource, limit).with_context(|| format!("cannot limit {resource:?}"))
}

/// Everything is closed by the daemon already, when it starts a program; a library of others might not.
fn close_the_rest() -> anyhow::Result<()> {
    for descriptor in others()? {
        // That of the directory which was looked at is closed by now.
        nix::unistd::close(descriptor).ok();
    }
    let left = others()?;
    // Again the directory's own.
    ensure!(left.len() <= 1, "{left:?} are open");
    Ok(())
}

/// The descriptors that are open and not its own, one of them for looking.
fn others() -> anyhow::Result<Vec<RawFd>> {
    let names = fs::read_dir("/proc/self/fd").context("cannot look at its descriptors")?;
    let numbers = names.map(|name| Ok(name?.file_name().to_string_lossy().parse::<RawFd>()?));
    let numbers: anyhow::Result<Vec<RawFd>> = numbers.collect();
    Ok(numbers?.into_iter().filter(|number| *number > LAST_OWN).collect())
}

/// As far as it may: a daemon that has given its capabilities up cannot give its reader another user, nor kill one that has.
fn become_nobody() -> anyhow::Result<()> {
    let held = rustix::thread::capabilities(None)?.effective;
    if held.contains(CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::KILL) {
        let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        rustix::thread::set_thread_groups(&[]).context("cannot become nobody")?;
        rustix::thread::set_thread_res_gid(group, group, group).context("cannot become nobody")?;
        rustix::thread::set_thread_res_uid(user, user, user).context("cannot become nobody")?;
    }
    rustix::thread::clear_ambient_capability_set()?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets).context("cannot drop capabilities")
}

/// Whatever is not named kills the process.
fn filter() -> anyhow::Result<BpfProgram> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED.iter().map(|call| (*call, vec![])).collect();
    let equal = SeccompCmpOp::Eq;
    let own = u64::try_from(rustix::process::getpid().as_raw_nonzero().get())?;
    let anonymous = u64::try_from(libc::MAP_ANONYMOUS)?;
    let executable = SeccompCmpOp::MaskedEq(u64::try_from(libc::PROT_EXEC)?);
    let limited = [
        (libc::SYS_read, vec![vec![(0, equal.clone(), CONVERSATION)]]),
        (libc::SYS_write, vec![vec![(0, equal.clone(), CONVERSATION)], vec![(0, equal.clone(), WORDS)]]),
        // Memory that holds no code, and is no file's.
        (libc::SYS_mmap, vec![vec![(2, executable.clone(), 0), (3, SeccompCmpOp::MaskedEq(anonymous), anonymous)]]),
        (libc::SYS_mprotect, vec![vec![(2, executable, 0)]]),
        // It may abort.
        (libc::SYS_tgkill, vec![vec![(0, equal, own)]]),
    ];
    for (call, alternatives) in limited {
        let alternatives = alternatives.into_iter().map(rule).collect::<anyhow::Result<_>>()?;
        rules.insert(call, alternatives);
    }
    let arch = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch)?;
    Ok(filter.try_into()?)
}

/// All of its conditions: number of the argument, comparison, value.
fn rule(conditions: Vec<(u8, SeccompCmpOp, u64)>) -> anyhow::Result<SeccompRule> {
    let conditions = conditions
        .into_iter()
        .map(|(argument, operator, value)| SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value));
    Ok(SeccompRule::new(conditions.collect::<Result<_, _>>()?)?)
}
