//! Access control lists in the form that ext4 has them in.

use crate::acl::{List, is_named};
use crate::numbers::{le16, le32};
use crate::{Error, Result};

/// The list as getxattr(2) gives it; none if it has no entries, as for the kernel.
pub(super) fn convert(value: &[u8]) -> Result<Option<Vec<u8>>> {
    if le32(value, 0)? != 1 {
        return Err(Error::unsupported("an access control list is of an unknown version"));
    }
    let mut list = List::new();
    let mut at = 4;
    while at < value.len() {
        let (tag, permissions) = (le16(value, at)?, le16(value, at + 2)?);
        at += 4;
        let who = match tag {
            0x1 | 0x4 | 0x10 | 0x20 => 0,
            _ if is_named(tag) => {
                at += 4;
                le32(value, at - 4)?
            }
            _ => return Err(Error::corrupt("an access control list names an unknown kind of user")),
        };
        list.push(tag, permissions, who);
    }
    Ok((!list.is_empty()).then(|| list.into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_gets_numbers_where_the_disk_has_none() {
        let disk = [1, 0, 0, 0, 1, 0, 6, 0, 2, 0, 4, 0, 0xe8, 3, 0, 0, 0x20, 0, 4, 0];
        let list = convert(&disk).unwrap().unwrap();
        assert_eq!(list[..12], [2, 0, 0, 0, 1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(list[12..20], [2, 0, 4, 0, 0xe8, 3, 0, 0]);
        assert_eq!(list.len(), 28);
        assert_eq!(convert(&disk[..4]).unwrap(), None);
        assert!(convert(&disk[..10]).is_err());
        assert!(convert(&[2, 0, 0, 0]).is_err());
    }
}
