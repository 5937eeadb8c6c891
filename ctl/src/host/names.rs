//! The directories of domains: their names, or their UUIDs where a name cannot be one of a file.

use std::collections::BTreeMap;

use pullfs_fs::vm::libvirt::roster::Member;

/// `NAME_MAX`, in bytes.
const LONGEST: usize = 255;

/// UUIDs by the names of the directories. A name that is the UUID of another domain, which is shown by that, is not shown.
pub(super) fn directories(members: &[Member]) -> BTreeMap<String, String> {
    let (named, others): (Vec<&Member>, Vec<&Member>) = members.iter().partition(|member| is_file_name(&member.name));
    let named = named.into_iter().map(|member| (member.name.clone(), member.uuid.clone()));
    let others = others.into_iter().map(|member| (member.uuid.clone(), member.uuid.clone()));
    named.chain(others).collect()
}

fn is_file_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && name.len() <= LONGEST && !name.contains(['/', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_name_is_shown_by_its_uuid() {
        let long = "x".repeat(256);
        let names = ["db", "a b\n", ".hidden", "a/b", ".", "..", "", &long, &long[1..]];
        let member =
            |(number, name): (usize, &&str)| Member { name: (*name).to_owned(), uuid: format!("uuid-{number}") };
        let members: Vec<Member> = names.iter().enumerate().map(member).collect();
        let directories = directories(&members);
        assert_eq!(directories.len(), names.len());
        for (number, name) in names.iter().enumerate() {
            let uuid = format!("uuid-{number}");
            let shown = if [3, 4, 5, 6, 7].contains(&number) { &*uuid } else { *name };
            assert_eq!(directories.get(shown), Some(&uuid), "{name}");
        }
        let twice = [Member { name: "a/b".into(), uuid: "u".into() }, Member { name: "u".into(), uuid: "v".into() }];
        assert_eq!(
            super::directories(&twice),
            BTreeMap::from([("u".into(), "u".into())]),
            "the one that has no other name"
        );
    }
}
