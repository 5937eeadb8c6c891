//! Names of what pullfs makes in QEMU: all begin with the mount's id, so that ours can be told from others'.
//!
//! Node names have at most 31 characters of `[A-Za-z0-9._-]` and begin with a letter (QEMU util/id.c); the longest here
//! has 10 + 1 + 10 + 1 + 4 + 1 = 27.

use std::fmt;

/// What every mount id begins with.
pub(super) const PREFIX: &str = "pullfs-";

/// The id of one mount: [`PREFIX`] and six hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountId(String);

impl MountId {
    /// A new one, by the system's random numbers.
    pub fn random() -> Self {
        let mut bytes = [0; 3];
        let drawn = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        if drawn != Ok(bytes.len()) {
            // Without random numbers the process id still tells mounts apart.
            bytes.copy_from_slice(&std::process::id().to_be_bytes()[1..]);
        }
        Self(format!("{PREFIX}{:02x}{:02x}{:02x}", bytes[0], bytes[1], bytes[2]))
    }
}

impl fmt::Display for MountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a node or job is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The scratch file.
    File,
    /// The scratch image in it.
    Scratch,
    /// The filter that copies before the guest writes.
    Filter,
    /// The node that reads as the disk did.
    Access,
    /// The backup job; also the export, and its name.
    Point,
}

impl Role {
    /// What the names of this role end in.
    pub(super) fn letter(self) -> &'static str {
        match self {
            Self::File => "p",
            Self::Scratch => "s",
            Self::Filter => "f",
            Self::Access => "x",
            Self::Point => "",
        }
    }
}

/// Names of one disk of one point in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DiskIds {
    prefix: String,
    index: usize,
}

impl DiskIds {
    pub(super) fn new(mount: &MountId, number: u64, index: usize) -> Self {
        Self { prefix: format!("{mount}-{number}-"), index }
    }

    pub(super) fn of(&self, role: Role) -> String {
        format!("{}{}{}", self.prefix, self.index, role.letter())
    }
}

/// The number of the point in time that an id of this mount belongs to.
pub(super) fn number_of(mount: &MountId, id: &str) -> Option<u64> {
    let rest = id.strip_prefix(&mount.0)?.strip_prefix('-')?;
    rest.split('-').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_tell_their_number() {
        let mount = MountId::random();
        let ids = DiskIds::new(&mount, 9_999_999_999, 9_999);
        for role in [Role::File, Role::Scratch, Role::Filter, Role::Access, Role::Point] {
            let id = ids.of(role);
            assert!(id.len() <= 31, "{id} is too long for a node name");
            assert_eq!(number_of(&mount, &id), Some(9_999_999_999));
        }
        assert_eq!(number_of(&mount, "pullfs-other-1-0"), None);
    }
}
