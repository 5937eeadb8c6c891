use proptest::prelude::*;

use super::*;

fn description(name: &str, parent: Option<&str>, made: u64, disks: &[&str]) -> Description {
    Description {
        name: name.to_owned(),
        parent: parent.map(str::to_owned),
        made,
        note: Some("<'noted' & \"kept\">".to_owned()),
        disks: disks.iter().map(|&disk| disk.to_owned()).collect(),
    }
}

fn names(descriptions: &[Description]) -> Vec<&str> {
    descriptions.iter().map(|description| &*description.name).collect()
}

fn lineage(known: &[Description], given: &[Description]) -> Lineage {
    Lineage {
        known: known.iter().map(|known| (known.name.clone(), known.clone())).collect(),
        given: given.iter().map(|given| (given.name.clone(), given.parent.clone())).collect(),
    }
}

#[test]
fn what_is_written_is_read_again() {
    let all = [description("a", None, 1, &["vda"]), description("b.1", Some("a"), 2, &["vda", "vdb"])];
    let written: String = all.iter().map(|one| one.write(one.parent.as_deref())).collect();
    let read_again = read(&format!("<domaincheckpoints>{written}</domaincheckpoints>")).unwrap();
    assert_eq!(read_again, all);
    assert_eq!(read(&all[0].write(None)).unwrap(), all[..1], "one of libvirt's");
}

#[test]
fn what_describes_no_checkpoint_is_refused() {
    let described = |inside: &str| format!("<domaincheckpoint>{inside}</domaincheckpoint>");
    let (name, time, disks) = (
        "<name>a</name>",
        "<creationTime>1</creationTime>",
        "<disks><disk name='vda'/><disk name='vdb' checkpoint='no'/></disks>",
    );
    let right = read(&described(&format!("{name}{time}{disks}"))).unwrap();
    assert_eq!(right[0].disks, ["vda"], "a disk has a bitmap unless it says no");
    let other = "<disks><disk name='vda' checkpoint='bitmap' bitmap='b'/></disks>";
    for wrong in [
        "<domain/>".to_owned(),
        "no XML".to_owned(),
        described(&format!("{time}{disks}")),
        described(&format!("{name}{disks}")),
        described(&format!("{name}{time}")),
        described(&format!("{name}{time}{other}")),
        described(&format!("<name>a b</name>{time}{disks}")),
        described(&format!("<name>../a</name>{time}{disks}")),
        described(&format!("{name}<parent/>{time}{disks}")),
        described(&format!("{name}<creationTime>-1</creationTime>{disks}")),
    ] {
        assert_eq!(read(&wrong).unwrap_err().kind(), Kind::Invalid, "{wrong}");
    }
}

#[test]
fn parents_come_first_and_circles_are_refused() {
    let of = |name: &str, parent: Option<&str>, made| description(name, parent, made, &["vda"]);
    let ordered = order(vec![of("c", Some("b"), 3), of("x", Some("gone"), 2), of("a", None, 3), of("b", Some("a"), 3)]);
    assert_eq!(names(&ordered.unwrap()), ["x", "a", "b", "c"]);
    assert!(order(vec![of("a", Some("b"), 1), of("b", Some("a"), 1)]).is_err());
    assert!(order(vec![of("a", Some("a"), 1)]).is_err());
    assert!(order(vec![of("a", None, 1), of("a", None, 2)]).is_err());
}

#[test]
fn a_checkpoint_comes_after_the_nearest_that_is_there() {
    let of = |name: &str, parent: Option<&str>| description(name, parent, 1, &["vda"]);
    let given = [of("a", None), of("b", Some("a")), of("c", Some("b")), of("d", Some("never"))];
    let lineage = lineage(&given[..1], &given);
    assert_eq!(given.each_ref().map(|one| lineage.parent(one)), [None, Some("a"), Some("a"), None]);
}

#[test]
fn each_disk_is_compared_with_the_nearest_that_has_it() {
    let known = [
        description("a", None, 1, &["vda", "vdb", "vdc"]),
        description("b", Some("a"), 1, &["vda", "vdb"]),
        description("c", Some("b"), 1, &["vda"]),
    ];
    let lineage = lineage(&known, &[]);
    let newest = description("d", Some("c"), 1, &["vda", "vdb", "vdc", "vdd"]);
    let before = lineage.before(&newest).into_iter();
    let before: Vec<_> = before.map(|(name, disks)| (name, disks.into_iter().collect::<Vec<_>>())).collect();
    assert_eq!(before, [("a", vec!["vdc"]), ("b", vec!["vdb"]), ("c", vec!["vda"])]);
}

#[test]
fn only_what_is_certain_counts() {
    let of = |least: u64, own: u64, most: u64| order_of(Some(&least), Some(&own), Some(&most));
    assert_eq!((of(2, 2, 2), of(2, 1, 9)), (Some(true), Some(true)));
    assert_eq!((of(1, 3, 2), of(1, 2, 1)), (Some(false), Some(false)));
    assert_eq!((of(1, 2, 2), of(1, 2, 3)), (None, None), "the guest wrote in between");
    assert_eq!(order_of(None, Some(&1), None), None);
}

#[test]
fn what_libvirt_has_forgotten_is_said() {
    let qemu = || Error::with_source(Kind::Io, "libvirt cannot begin a backup", "Bitmap already exists: monday");
    let explained = forgotten(qemu(), Some("monday"));
    assert!(explained.kind() == Kind::Exists && explained.to_string().contains("pullfs checkpoint redefine"));
    assert_eq!(forgotten(qemu(), None).kind(), Kind::Io);
    assert_eq!(forgotten(Error::new(Kind::Io, "no"), Some("monday")).kind(), Kind::Io);
}

proptest! {
    #[test]
    fn anything_may_be_given(described in "\\PC{0,200}") {
        let _ = (read(&described), read(&format!("<domaincheckpoints>{described}</domaincheckpoints>")));
    }
}
