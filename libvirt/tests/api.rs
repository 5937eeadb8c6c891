//! The calls, against the driver for tests that libvirt's library has in itself: no daemon, no QEMU.

use std::sync::mpsc;
use std::time::Duration;

use libvirt::{Code, Connection, Event, State};

const LIMIT: Duration = Duration::from_secs(20);

fn connection() -> Connection {
    Connection::open(Some("test:///default")).expect("libvirt's driver for tests")
}

#[test]
fn a_domain_is_found_and_told_of() {
    let connection = connection();
    assert!(connection.is_alive());
    let (library, _) = connection.versions().unwrap();
    assert!(library >= 6_000_000, "{library}");
    let domains = connection.running_domains().unwrap();
    let names: Vec<String> = domains.iter().map(libvirt::Domain::name).collect();
    assert_eq!(names, ["test"]);
    let domain = connection.domain_by_name("test").unwrap();
    let uuid = domain.uuid().unwrap();
    assert_eq!(connection.domain_by_uuid(&uuid).unwrap().name(), "test");
    assert!(domain.xml().unwrap().contains(&uuid));
    assert_eq!(domain.state().unwrap(), State::Running);
    let again = domain.clone();
    drop((domain, domains, connection));
    assert_eq!(again.name(), "test", "it keeps its connection");
}

#[test]
fn failures_are_told_apart() {
    let connection = connection();
    let error = connection.domain_by_name("none").err().unwrap();
    assert_eq!(error.code(), Code::NoDomain);
    assert!(error.to_string().contains("not found"), "{error}");
    assert!(connection.domain_by_name("a\0b").is_err());
    let domain = connection.domain_by_name("test").unwrap();
    assert_eq!(domain.checkpoint("none").err().unwrap().code(), Code::NoCheckpoint);
    let error = Connection::open(Some("qemu+unix:///system?socket=/nowhere/socket")).err().unwrap();
    assert_eq!(error.code(), Code::Connection, "{error}");
}

#[test]
fn checkpoints_are_made_listed_and_deleted() {
    let connection = connection();
    let domain = connection.domain_by_name("test").unwrap();
    let described = |name: &str, parent: &str| {
        format!(
            "<domaincheckpoint><name>{name}</name>{parent}<creationTime>1000</creationTime>{}</domaincheckpoint>",
            domain.xml().unwrap()
        )
    };
    domain.redefine_checkpoint(&described("first", ""), false).unwrap();
    let parent = "<parent><name>first</name></parent>";
    let second = domain.redefine_checkpoint(&described("second", parent), false).unwrap();
    assert_eq!(second.name(), "second");
    let xml = second.xml(false).unwrap();
    assert!(xml.contains("<name>first</name>") && !xml.contains("<domain "), "{xml}");
    let names: Vec<String> = domain.checkpoints().unwrap().iter().map(libvirt::Checkpoint::name).collect();
    assert_eq!(names, ["first", "second"], "parents come first");
    second.delete().unwrap();
    assert_eq!(domain.checkpoints().unwrap().len(), 1);
    assert_eq!(second.delete().unwrap_err().code(), Code::NoCheckpoint);
}

/// A host with so many domains, as a file for libvirt's driver for tests.
fn host(domains: usize) -> tempfile::NamedTempFile {
    use std::fmt::Write as _;
    let mut xml = String::from("<node>");
    for number in 0..domains {
        write!(
            xml,
            "<domain type='test'><name>vm{number}</name><memory>1024</memory><os><type>hvm</type></os><devices>\
             <disk type='file' device='disk'><source file='/{number}'/><target dev='vda'/></disk></devices></domain>"
        )
        .unwrap();
    }
    xml.push_str("</node>");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), xml).unwrap();
    file
}

#[test]
fn all_domains_are_told_of_in_one_call() {
    let host = host(300);
    let connection = Connection::open(Some(&format!("test://{}", host.path().display()))).unwrap();
    let domains = connection.running_stats().unwrap();
    assert_eq!(domains.len(), 300);
    let names: std::collections::BTreeSet<String> = domains.iter().map(|stats| stats.domain.name()).collect();
    assert!(names.len() == 300 && names.contains("vm299"), "{names:?}");
    drop(connection);
    let first = &domains[0].domain;
    assert_eq!(first.uuid().unwrap().len(), 36, "they keep their connection");
    assert_eq!(first.checkpoint_count().unwrap(), 0);
}

#[test]
fn a_subscription_takes_what_it_was_given_along() {
    let connection = connection();
    let domain = connection.domain_by_name("test").unwrap();
    let (tell, told) = mpsc::channel::<Event>();
    let subscription = connection.subscribe(Some(&domain), move |event| drop(tell.send(event))).unwrap();
    drop((subscription, domain, connection));
    assert_eq!(
        told.recv_timeout(LIMIT),
        Err(mpsc::RecvTimeoutError::Disconnected),
        "it is freed, and nothing was told"
    );
}

#[test]
fn volumes_are_made_found_and_deleted() {
    let connection = connection();
    assert_eq!(connection.pool("none").err().unwrap().code(), Code::NoPool);
    let pool = connection.pool("default-pool").unwrap();
    pool.refresh().unwrap();
    let info = pool.info().unwrap();
    assert!(info.active && info.available > 1 << 20, "{info:?}");
    assert!(pool.xml().unwrap().contains("<pool type='dir'>"));
    assert_eq!(pool.volume("a").err().unwrap().code(), Code::NoVolume);
    let xml = "<volume><name>a</name><capacity>1048576</capacity><allocation>1048576</allocation></volume>";
    let volume = pool.create(xml).unwrap();
    assert_eq!(volume.allocation().unwrap(), 1 << 20);
    assert!(volume.path().unwrap().ends_with("/a"));
    assert!(pool.create(xml).is_err(), "it is there");
    pool.volume("a").unwrap().delete().unwrap();
    assert_eq!(volume.delete().unwrap_err().code(), Code::NoVolume);
}
