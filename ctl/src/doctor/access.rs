//! Whether the user that libvirt runs QEMU as gets into a directory, by its mode and its access control list (acl(5)).

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::getxattr;

use super::finding::Finding;

const ACL: &str = "system.posix_acl_access";

/// The right to go through a directory.
const SEARCH: u16 = 1;

/// Longest list that is read, in bytes: some thousand entries.
const MAX_LIST: usize = 64 << 10;

/// A user and its groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) groups: Vec<u32>,
}

impl User {
    /// With this group, and those that `/etc/group` has it in, as libvirt starts QEMU.
    pub(super) fn new(uid: u32, gid: u32) -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let mut groups = vec![gid];
        if let Some(name) = name_of(&read("/etc/passwd"), uid) {
            groups.extend(groups_of(&read("/etc/group"), &name));
        }
        Self { uid, groups }
    }
}

fn name_of(passwd: &str, uid: u32) -> Option<String> {
    let mut lines = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines.find(|fields| fields.get(2).is_some_and(|id| id.parse() == Ok(uid))).map(|fields| fields[0].to_owned())
}

fn groups_of(group: &str, name: &str) -> Vec<u32> {
    let lines = group.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let of = lines.filter(|fields| fields.get(3).is_some_and(|members| members.split(',').any(|each| each == name)));
    of.filter_map(|fields| fields[2].parse().ok()).collect()
}

/// Whether a user of QEMU's gets to the scratch directory.
pub(super) fn reachable(dir: &Path, user: &User) -> Finding {
    const CHECK: &str = "scratch-reach";
    let (shown, uid) = (dir.display(), user.uid);
    match first_closed(dir, user) {
        Ok(None) => Finding::ok(CHECK, format!("QEMU's user {uid} gets to {shown}")),
        Ok(Some(closed)) => {
            let closed = closed.display();
            let cure = format!("setfacl -m u:{uid}:x {closed}, or name another directory with -o scratch=DIR");
            Finding::wrong(CHECK, format!("QEMU's user {uid} may not go through {closed}, on the way to {shown}"), cure)
        }
        Err(error) => Finding::wrong(CHECK, format!("{shown}: {error}"), "name another directory with -o scratch=DIR"),
    }
}

/// The first directory on the way to `dir`, itself among them, that the user may not go through.
///
/// # Errors
/// When one cannot be looked at.
fn first_closed(dir: &Path, user: &User) -> std::io::Result<Option<PathBuf>> {
    let whole = dir.canonicalize()?;
    let mut way: Vec<&Path> = whole.ancestors().collect();
    way.reverse();
    for place in way {
        let found = std::fs::metadata(place)?;
        let mut list = vec![0; MAX_LIST];
        // Where there is no list, or none that can be read, the mode says it all.
        let length = getxattr(place, ACL, &mut list).unwrap_or(0);
        let entries = parse(&list[..length]);
        let owned = Owned { mode: found.mode(), uid: found.uid(), gid: found.gid() };
        if !may_search(owned, &entries, user) {
            return Ok(Some(place.to_owned()));
        }
    }
    Ok(None)
}

#[derive(Clone, Copy)]
struct Owned {
    mode: u32,
    uid: u32,
    gid: u32,
}

/// An entry of a list: its tag, rights and id (`include/uapi/linux/posix_acl_xattr.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    tag: u16,
    rights: u16,
    id: u32,
}

const NAMED_USER: u16 = 0x02;
const OWNING_GROUP: u16 = 0x04;
const NAMED_GROUP: u16 = 0x08;
const MASK: u16 = 0x10;

fn parse(list: &[u8]) -> Vec<Entry> {
    let Some((version, entries)) = list.split_at_checked(4) else { return Vec::new() };
    if version != 2_u32.to_le_bytes() {
        return Vec::new();
    }
    let entry = |bytes: &[u8]| {
        let (tag, bytes) = bytes.split_first_chunk()?;
        let (rights, bytes) = bytes.split_first_chunk()?;
        let id = bytes.first_chunk()?;
        Some(Entry { tag: u16::from_le_bytes(*tag), rights: u16::from_le_bytes(*rights), id: u32::from_le_bytes(*id) })
    };
    entries.chunks(8).filter_map(entry).collect()
}

/// The kernel's own order (acl(5), "access check algorithm"). root goes everywhere.
fn may_search(owned: Owned, entries: &[Entry], user: &User) -> bool {
    let bits = |shift: u32| owned.mode >> shift & u32::from(SEARCH) != 0;
    if user.uid == 0 {
        return true;
    }
    if user.uid == owned.uid {
        return bits(6);
    }
    let is_in = |gid: u32| user.groups.contains(&gid);
    if entries.is_empty() {
        return if is_in(owned.gid) { bits(3) } else { bits(0) };
    }
    let mask = entries.iter().find(|entry| entry.tag == MASK).map_or(u16::MAX, |entry| entry.rights);
    let allows = |entry: &Entry| entry.rights & mask & SEARCH != 0;
    if let Some(entry) = entries.iter().find(|entry| entry.tag == NAMED_USER && entry.id == user.uid) {
        return allows(entry);
    }
    let of_group = |entry: &&Entry| match entry.tag {
        OWNING_GROUP => is_in(owned.gid),
        NAMED_GROUP => is_in(entry.id),
        _ => false,
    };
    let mut groups = entries.iter().filter(of_group).peekable();
    if groups.peek().is_some() { groups.any(allows) } else { bits(0) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::finding::State;
    use super::*;

    fn user(groups: &[u32]) -> User {
        User { uid: 5, groups: groups.to_vec() }
    }

    #[test]
    fn modes_decide_where_there_is_no_list() {
        let may = |mode, uid, gid| may_search(Owned { mode, uid, gid }, &[], &user(&[7]));
        assert!(may(0o755, 0, 0) && may(0o701, 0, 0) && may(0o710, 0, 7) && may(0o100, 5, 0));
        assert!(!may(0o700, 0, 0) && !may(0o701, 0, 7) && !may(0o077, 5, 0), "the first class that fits decides");
        assert!(may_search(Owned { mode: 0, uid: 1, gid: 1 }, &[], &User { uid: 0, groups: Vec::new() }));
    }

    #[test]
    fn lists_decide_where_there_is_one() {
        let entry = |tag, rights, id| Entry { tag, rights, id };
        let owned = Owned { mode: 0o770, uid: 0, gid: 0 };
        let others = [entry(0x01, 7, 0), entry(OWNING_GROUP, 0, 0), entry(0x20, 0, 0)];
        let may = |more: &[Entry], user: &User| may_search(owned, &[&others, more].concat(), user);
        assert!(!may(&[], &user(&[7])));
        assert!(may(&[entry(NAMED_USER, 7, 5), entry(MASK, 7, 0)], &user(&[])));
        assert!(!may(&[entry(NAMED_USER, 7, 5), entry(MASK, 6, 0)], &user(&[])), "the mask takes it");
        assert!(!may(&[entry(NAMED_USER, 7, 6), entry(MASK, 7, 0)], &user(&[])), "another one's");
        assert!(may(&[entry(NAMED_GROUP, 1, 7), entry(MASK, 1, 0)], &user(&[7])));
        assert!(!may(&[entry(NAMED_GROUP, 1, 7), entry(MASK, 1, 0)], &user(&[8])));
    }

    #[test]
    fn lists_are_read_as_the_kernel_writes_them() {
        let list = [2, 0, 0, 0, 2, 0, 7, 0, 0x37, 0xfa, 0, 0, 1];
        assert_eq!(parse(&list), [Entry { tag: NAMED_USER, rights: 7, id: 64055 }]);
        assert!(parse(&[1, 0, 0, 0, 2, 0, 7, 0, 0, 0, 0, 0]).is_empty() && parse(&[2]).is_empty());
    }

    #[test]
    fn groups_are_those_of_the_host() {
        let name = name_of("root:x:0:0::/:/bin/sh\nlibvirt-qemu:x:64055:109::/:/x\nbroken\n", 64055);
        assert_eq!(name.as_deref(), Some("libvirt-qemu"));
        assert_eq!(groups_of("kvm:x:106:libvirt-qemu\na:x:1:b\nc:x:2:b,libvirt-qemu\nodd\n", "libvirt-qemu"), [106, 2]);
    }

    #[test]
    fn the_directory_that_is_closed_is_named() {
        let base = tempfile::tempdir_in("/var/tmp").unwrap();
        let inner = base.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        let set = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        let user = User { uid: 64055, groups: vec![64055] };
        set(base.path(), 0o755);
        set(&inner, 0o755);
        assert_eq!(reachable(&inner, &user).state, State::Ok);
        set(base.path(), 0o700);
        let found = reachable(&inner, &user);
        let place = base.path().display().to_string();
        assert!(found.state == State::Wrong && found.cure.unwrap().contains(&format!("u:64055:x {place},")));
    }
}
