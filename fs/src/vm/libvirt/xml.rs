//! libvirt's descriptions of domains, backups and checkpoints, as far as they matter here (libvirt.org/formatdomain.html,
//! formatbackup.html, formatcheckpoint.html).

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use roxmltree::{Document, Node, ParsingOptions};

use crate::error::{Error, Kind, Result, printable};

/// Longest description that is read, in bytes: a domain of a thousand disks has some 1 MiB.
const MAX_SIZE: usize = 16 << 20;

/// Most elements and attributes of one; each takes some 50 bytes.
const MAX_NODES: u32 = 1 << 20;

/// What backups need to know of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Domain {
    pub(super) name: String,
    pub(super) uuid: String,
    /// Whether it has a QEMU: libvirt describes one that has ended, too, as it would start it.
    pub(super) active: bool,
    pub(super) disks: Vec<Disk>,
    /// libvirt's names of the host's SCSI devices that the guest has as they are, which libvirt counts among no disks.
    pub(super) passed: Vec<String>,
    /// The user and group that its QEMU runs as, where libvirt says so.
    pub(super) user: Option<(u32, u32)>,
    /// Whether a thread of QEMU's other than the main one may serve a disk.
    pub(super) iothreads: bool,
    /// The QEMU that its machine type came with, major and minor number, where that tells: it runs in that or a later one.
    pub(super) least: Option<(u32, u32)>,
}

/// A disk of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Disk {
    /// Its name to the user, such as `vda`.
    pub(super) target: String,
    /// libvirt's name of the guest's device.
    pub(super) alias: Option<String>,
    pub(super) format: String,
    /// Where its image is.
    pub(super) image: String,
    /// Why it cannot be backed up, if it cannot.
    pub(super) refused: Option<&'static str>,
}

/// A checkpoint of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Checkpoint {
    pub(super) name: String,
    pub(super) parent: Option<String>,
    /// What pullfs noted when it made it; none if somebody else made it.
    pub(super) made: Option<Made>,
    pub(super) disks: Vec<CheckpointDisk>,
}

/// A disk that a checkpoint has a bitmap of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CheckpointDisk {
    pub(super) target: String,
    /// Bytes that changed since; none where libvirt cannot tell.
    pub(super) size: Option<u64>,
}

/// What pullfs notes of a checkpoint that it makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Made {
    pub(super) time: SystemTime,
    /// The sizes of the disks at that instant, in bytes.
    pub(super) sizes: Vec<(String, u64)>,
}

/// A disk of a backup that is to begin.
pub(super) struct BackupDisk<'a> {
    pub(super) target: &'a str,
    pub(super) export: &'a str,
    pub(super) scratch: &'a Path,
    /// The checkpoint since which its changes are told, and the name that they are told by.
    pub(super) since: Option<(&'a str, &'a str)>,
}

pub(super) fn document<'a>(what: &str, xml: &'a str) -> Result<Document<'a>> {
    let wrong = |why: String| {
        let why = printable(&why);
        Error::with_source(Kind::Invalid, format!("libvirt's description of {what} is not understood"), why)
    };
    if xml.len() > MAX_SIZE {
        return Err(wrong(format!("it has {} bytes", xml.len())));
    }
    let options = ParsingOptions { nodes_limit: MAX_NODES, ..ParsingOptions::default() };
    Document::parse_with_options(xml, options).map_err(|error| wrong(error.to_string()))
}

pub(super) fn child<'a, 'input>(node: Node<'a, 'input>, name: &str) -> Option<Node<'a, 'input>> {
    node.children().find(|child| child.has_tag_name(name))
}

pub(super) fn text(node: Node<'_, '_>, name: &str) -> Option<String> {
    child(node, name)?.text().map(str::to_owned)
}

pub(super) fn children<'a, 'input>(node: Node<'a, 'input>, list: &str, name: &'static str) -> Vec<Node<'a, 'input>> {
    child(node, list).into_iter().flat_map(|list| list.children()).filter(|each| each.has_tag_name(name)).collect()
}

/// Reads the description of a domain.
pub(super) fn domain(xml: &str) -> Result<Domain> {
    let document = document("the domain", xml)?;
    let root = document.root_element();
    let missing = || Error::new(Kind::Invalid, "libvirt's description of the domain has no name and UUID");
    let disks: Vec<Node<'_, '_>> = children(root, "devices", "disk");
    let threads =
        disks.iter().any(|disk| child(*disk, "driver").is_some_and(|driver| driver.has_attribute("iothread")));
    let scsi = children(root, "devices", "controller");
    let threads = threads
        || disks.iter().chain(&scsi).any(|each| {
            child(*each, "driver")
                .is_some_and(|driver| driver.has_attribute("iothread") || child(driver, "iothreads").is_some())
        });
    Ok(Domain {
        name: text(root, "name").ok_or_else(missing)?,
        uuid: text(root, "uuid").ok_or_else(missing)?,
        // conf/domain_conf.c, virDomainDefFormatInternalSetRootName
        active: root.has_attribute("id"),
        disks: disks.into_iter().filter_map(disk).collect(),
        passed: passed(root),
        user: user(root),
        iothreads: threads,
        least: child(root, "os")
            .and_then(|os| child(os, "type"))
            .and_then(|kind| kind.attribute("machine"))
            .and_then(least),
    })
}

fn passed(root: Node<'_, '_>) -> Vec<String> {
    let is_scsi = |device: &Node<'_, '_>| matches!(device.attribute("type"), Some("scsi" | "scsi_host"));
    let alias =
        |device: Node<'_, '_>| child(device, "alias").and_then(|alias| alias.attribute("name")).map(str::to_owned);
    let devices = children(root, "devices", "hostdev").into_iter().filter(is_scsi);
    devices.map(|device| alias(device).unwrap_or_else(|| "hostdev".to_owned())).collect()
}

/// The version in a machine type, such as `pc-q35-9.1`. Distributions' own, such as `pc-q35-rhel9.6.0`, count otherwise.
fn least(machine: &str) -> Option<(u32, u32)> {
    let (major, minor) = machine.rsplit('-').next()?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// What QEMU runs as, by the label of libvirt's own security driver, such as `+64055:+64055`.
fn user(root: Node<'_, '_>) -> Option<(u32, u32)> {
    let dac = root.children().find(|node| node.has_tag_name("seclabel") && node.attribute("model") == Some("dac"))?;
    let label = text(dac, "label")?;
    let (user, group) = label.split_once(':')?;
    let number = |text: &str| text.trim_start_matches('+').parse().ok();
    Some((number(user)?, number(group)?))
}

fn disk(node: Node<'_, '_>) -> Option<Disk> {
    let target = child(node, "target")?.attribute("dev")?.to_owned();
    let driver = child(node, "driver");
    let source = child(node, "source").filter(|source| source.attributes().len() > 0);
    let refused = match node.attribute("device").unwrap_or("disk") {
        _ if source.is_none() => Some("there is no medium in it"),
        "cdrom" | "floppy" => Some("it is a removable medium"),
        "lun" => Some("its commands go to the host's device as they are"),
        _ if child(node, "readonly").is_some() => Some("it is read-only"),
        _ if child(node, "shareable").is_some() => Some("other machines may write to it"),
        _ if child(node, "transient").is_some() => Some("what is written to it is thrown away"),
        _ if node.attribute("type") == Some("vhostuser") => Some("another program than QEMU serves it"),
        _ if node.attribute("type") == Some("vhostvdpa") => Some("another program than QEMU serves it"),
        _ => None,
    };
    Some(Disk {
        target,
        alias: child(node, "alias").and_then(|alias| alias.attribute("name")).map(str::to_owned),
        image: source
            .and_then(|source| {
                ["file", "dev", "name", "volume", "dir"].into_iter().find_map(|kind| source.attribute(kind))
            })
            .unwrap_or_default()
            .to_owned(),
        format: driver.and_then(|driver| driver.attribute("type")).unwrap_or("raw").to_owned(),
        refused,
    })
}

/// Reads the description of a checkpoint.
pub(super) fn checkpoint(xml: &str) -> Result<Checkpoint> {
    let document = document("a checkpoint", xml)?;
    let root = document.root_element();
    let name = text(root, "name");
    let name = name.ok_or_else(|| Error::new(Kind::Invalid, "libvirt's description of a checkpoint has no name"))?;
    let disks =
        children(root, "disks", "disk").into_iter().filter(|disk| disk.attribute("checkpoint") == Some("bitmap"));
    let disks = disks.filter_map(|disk| {
        let size = disk.attribute("size").and_then(|size| size.parse().ok());
        Some(CheckpointDisk { target: disk.attribute("name")?.to_owned(), size })
    });
    Ok(Checkpoint {
        name,
        parent: child(root, "parent").and_then(|parent| text(parent, "name")),
        made: text(root, "description").and_then(|description| Made::read(&description)),
        disks: disks.collect(),
    })
}

/// What no other backup has: the socket of its NBD server, or over TCP the names of its exports.
pub(super) fn marks(xml: &str) -> Result<Vec<String>> {
    let document = document("the backup", xml)?;
    let root = document.root_element();
    let socket = child(root, "server").and_then(|server| server.attribute("socket"));
    if let Some(socket) = socket {
        return Ok(vec![socket.to_owned()]);
    }
    let disks = children(root, "disks", "disk").into_iter();
    Ok(disks.filter_map(|disk| disk.attribute("exportname").map(str::to_owned)).collect())
}

/// Whether a backup is the one that is known by this.
pub(super) fn is_marked(xml: &str, mark: &str) -> Result<bool> {
    Ok(marks(xml)?.iter().any(|found| found == mark))
}

/// The type of a storage pool.
pub(super) fn pool_kind(xml: &str) -> Result<String> {
    let document = document("a storage pool", xml)?;
    Ok(printable(document.root_element().attribute("type").unwrap_or_default()))
}

/// Describes a volume of so many bytes, all of them allocated, for nobody but its owner.
pub(super) fn volume(name: &str, size: u64, owner: Option<(u32, u32)>) -> String {
    let owner = owner.map_or_else(String::new, |(user, group)| format!("<owner>{user}</owner><group>{group}</group>"));
    format!(
        "<volume><name>{}</name><capacity unit='bytes'>{size}</capacity><allocation unit='bytes'>{size}</allocation>\
         <target><format type='raw'/><permissions><mode>0600</mode>{owner}</permissions></target></volume>",
        escape(name)
    )
}

/// Where the NBD server of a backup listens.
pub(super) enum Listens<'a> {
    /// On a socket of this host.
    Socket(&'a str),
    /// On an address of the libvirt's host, for clients that it knows by TLS.
    Tls(IpAddr, u16),
}

/// What libvirt calls the scratch image of a disk's target, such as `vda[5]`, if the backup is known by this.
pub(super) fn scratch_image(xml: &str, mark: &str, target: &str) -> Result<Option<String>> {
    if !is_marked(xml, mark)? {
        return Ok(None);
    }
    let document = document("the backup", xml)?;
    let root = document.root_element();
    let disk = children(root, "disks", "disk").into_iter().find(|disk| disk.attribute("name") == Some(target));
    let index = disk.and_then(|disk| disk.attribute("index")?.parse::<u32>().ok());
    Ok(index.map(|index| format!("{target}[{index}]")))
}

/// Describes a backup; `others` are the disks that are left out.
pub(super) fn backup(listens: &Listens<'_>, disks: &[BackupDisk<'_>], others: &[&str]) -> Result<String> {
    let server = match listens {
        Listens::Socket(path) => format!("transport='unix' socket='{}'", escape(path)),
        Listens::Tls(address, port) => format!("transport='tcp' tls='yes' name='{address}' port='{port}'"),
    };
    let mut xml = format!("<domainbackup mode='pull'><server {server}/><disks>");
    for disk in disks {
        let scratch = disk.scratch.to_str().ok_or_else(|| {
            let path = disk.scratch.display();
            Error::new(Kind::Invalid, format!("{path} is not UTF-8, which libvirt needs for scratch="))
        })?;
        let (target, export) = (escape(disk.target), escape(disk.export));
        let (mode, since) = match disk.since {
            Some((checkpoint, bitmap)) => {
                let (checkpoint, bitmap) = (escape(checkpoint), escape(bitmap));
                ("incremental", format!("incremental='{checkpoint}' exportbitmap='{bitmap}'"))
            }
            None => ("full", String::new()),
        };
        let _ = write!(
            xml,
            "<disk name='{target}' backup='yes' type='file' exportname='{export}' backupmode='{mode}' {since}>"
        );
        let _ = write!(xml, "<driver type='qcow2'/><scratch file='{}'/></disk>", escape(scratch));
    }
    for target in others {
        let _ = write!(xml, "<disk name='{}' backup='no'/>", escape(target));
    }
    xml.push_str("</disks></domainbackup>");
    Ok(xml)
}

/// Describes a checkpoint of these disks; `others` are the disks that have none.
pub(super) fn new_checkpoint(name: &str, made: &Made, others: &[&str]) -> String {
    let note = escape(&made.write());
    let mut xml = format!("<domaincheckpoint><name>{}</name><description>{note}</description><disks>", escape(name));
    for (target, _) in &made.sizes {
        let _ = write!(xml, "<disk name='{}' checkpoint='bitmap'/>", escape(target));
    }
    for target in others {
        let _ = write!(xml, "<disk name='{}' checkpoint='no'/>", escape(target));
    }
    xml.push_str("</disks></domaincheckpoint>");
    xml
}

/// Describes a checkpoint that is there, from its description, as one of this disk alone.
pub(super) fn checkpoint_of_one(described: &str, target: &str) -> Result<String> {
    let document = document("a checkpoint", described)?;
    let root = document.root_element();
    let mut xml = "<domaincheckpoint>".to_owned();
    let mut put = |element: &str, text: Option<String>| {
        if let Some(text) = text {
            let _ = write!(xml, "<{element}>{}</{element}>", escape(&text));
        }
    };
    for element in ["name", "description", "creationTime"] {
        put(element, text(root, element));
    }
    if let Some(parent) = child(root, "parent").and_then(|parent| text(parent, "name")) {
        let _ = write!(xml, "<parent><name>{}</name></parent>", escape(&parent));
    }
    let bitmap = escape(&text(root, "name").unwrap_or_default());
    let target = escape(target);
    let _ =
        write!(xml, "<disks><disk name='{target}' checkpoint='bitmap' bitmap='{bitmap}'/></disks></domaincheckpoint>");
    Ok(xml)
}

pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&apos;"),
            '"' => escaped.push_str("&quot;"),
            other => escaped.push(other),
        }
    }
    escaped
}

const PREFIX: &str = "pullfs-checkpoint:1:";

/// Times from here on cannot be written down: the year 10000, in milliseconds since 1970.
const END_OF_TIME: u64 = 253_402_300_800_000;

impl Made {
    /// `pullfs-checkpoint:1:MILLISECONDS:TARGET=SIZE,…`, as the description of a checkpoint: libvirt keeps it with it.
    pub(super) fn write(&self) -> String {
        let millis = self.time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis();
        let sizes: Vec<String> = self.sizes.iter().map(|(target, size)| format!("{target}={size}")).collect();
        format!("{PREFIX}{millis}:{}", sizes.join(","))
    }

    fn read(description: &str) -> Option<Self> {
        let (millis, sizes) = description.strip_prefix(PREFIX)?.split_once(':')?;
        let millis = millis.parse().ok().filter(|millis| *millis < END_OF_TIME)?;
        let size = |pair: &str| {
            let (target, size) = pair.rsplit_once('=')?;
            Some((target.to_owned(), size.parse().ok()?))
        };
        let sizes = sizes.split(',').map(size).collect::<Option<_>>()?;
        Some(Self { time: UNIX_EPOCH.checked_add(Duration::from_millis(millis))?, sizes })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DOMAIN: &str = "<domain type='qemu' id='1'><name>vm &amp; 1</name><uuid>u-1</uuid>
        <metadata><x:disk xmlns:x='http://other/'/></metadata>
        <devices>
          <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/a' index='1'/>
            <backingStore/><target dev='vda' bus='virtio'/><alias name='ua-vda'/></disk>
          <disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/b'/><target dev='sda'/></disk>
          <disk type='file' device='cdrom'><target dev='sdb'/><readonly/></disk>
          <disk type='file' device='cdrom'><source file='/c'/><target dev='sdc'/><readonly/></disk>
          <disk type='file' device='disk'><source file='/d'/><target dev='sdd'/><readonly/></disk>
          <disk type='file' device='disk'><source file='/e'/><target dev='sde'/><transient/></disk>
          <disk type='block' device='lun'><source dev='/f'/><target dev='sdf'/></disk>
          <disk type='file' device='disk'><source file='/g'/><target dev='sdg'/><shareable/></disk>
          <hostdev mode='subsystem' type='scsi'><source><adapter name='scsi_host0'/></source><alias name='hostdev0'/></hostdev>
          <hostdev mode='subsystem' type='usb'><alias name='hostdev1'/></hostdev>
        </devices>
        <seclabel type='dynamic' model='apparmor'><label>x</label></seclabel>
        <seclabel type='dynamic' model='dac' relabel='yes'><label>+64055:+107</label></seclabel></domain>";

    #[test]
    fn domains_are_read() {
        let domain = domain(DOMAIN).unwrap();
        assert_eq!((&*domain.name, &*domain.uuid, domain.user), ("vm & 1", "u-1", Some((64055, 107))));
        assert!(!domain.iothreads && domain.passed == ["hostdev0"]);
        let ended = DOMAIN.replace(" id='1'>", ">");
        assert!(domain.active && !super::domain(&ended).unwrap().active);
        for (machine, version) in [
            ("pc-i440fx-7.2", Some((7, 2))),
            ("pc-q35-10.0", Some((10, 0))),
            ("pc-q35-rhel9.6.0", None),
            ("virt", None),
        ] {
            let xml = DOMAIN.replace("<devices>", &format!("<os><type machine='{machine}'>hvm</type></os><devices>"));
            assert_eq!(super::domain(&xml).unwrap().least, version, "{machine}");
        }
        let told: Vec<_> =
            domain.disks.iter().map(|disk| (&*disk.target, &*disk.format, disk.refused.is_some())).collect();
        let raw = |name| (name, "raw", true);
        assert_eq!(
            told,
            [
                ("vda", "qcow2", false),
                ("sda", "raw", false),
                raw("sdb"),
                raw("sdc"),
                raw("sdd"),
                raw("sde"),
                raw("sdf"),
                raw("sdg")
            ]
        );
        assert_eq!((domain.disks[0].alias.as_deref(), &*domain.disks[0].image), (Some("ua-vda"), "/a"));
        for with in ["<driver iothread='1'/>", "<driver><iothreads><iothread id='1'/></iothreads></driver>"] {
            let xml = DOMAIN.replace("<driver name='qemu' type='raw'/>", with);
            assert!(super::domain(&xml).unwrap().iothreads, "{with}");
        }
    }

    #[test]
    fn what_is_written_is_xml() {
        let disks = [
            BackupDisk { target: "vda", export: "p-0", scratch: Path::new("/a'b"), since: Some(("m<1>", "c0")) },
            BackupDisk { target: "vdb", export: "p-1", scratch: Path::new("/b"), since: None },
        ];
        let xml = backup(&Listens::Socket("/run/a&b"), &disks, &["sda"]).unwrap();
        assert_eq!(marks(&xml).unwrap(), ["/run/a&b"]);
        let document = Document::parse(&xml).unwrap();
        let told: Vec<_> = document.descendants().filter(|node| node.has_tag_name("disk")).collect();
        assert_eq!(told.len(), 3);
        assert_eq!(told[0].attribute("incremental"), Some("m<1>"));
        assert_eq!(child(told[0], "scratch").unwrap().attribute("file"), Some("/a'b"));
        assert_eq!(told[2].attribute("backup"), Some("no"));
    }

    #[test]
    fn a_scratch_image_is_known_by_its_index() {
        let xml = "<domainbackup mode='pull'><server transport='unix' socket='/s'/><disks>
            <disk name='vda' backup='yes' index='7'><scratch file='/a'/></disk><disk name='vdb' backup='no'/>
            <disk name='vdc' backup='yes' index='-1'/></disks></domainbackup>";
        let image = |socket: &str, target: &str| scratch_image(xml, socket, target).unwrap();
        assert_eq!(image("/s", "vda").as_deref(), Some("vda[7]"));
        for (socket, target) in [("/other", "vda"), ("/s", "vdb"), ("/s", "vdc"), ("/s", "vdd")] {
            assert_eq!(image(socket, target), None, "{socket} {target}");
        }
    }

    #[test]
    fn foreign_checkpoints_are_read() {
        let xml = "<domaincheckpoint><name>virtnbdbackup.1</name><parent><name>virtnbdbackup.0</name></parent>
            <description>by somebody</description><disks><disk name='vda' checkpoint='bitmap' bitmap='x' size='131072'/>
            <disk name='vdb' checkpoint='no'/><disk name='vdc' checkpoint='bitmap' bitmap='x'/></disks></domaincheckpoint>";
        let checkpoint = checkpoint(xml).unwrap();
        assert_eq!(checkpoint.parent.as_deref(), Some("virtnbdbackup.0"));
        assert_eq!(checkpoint.made, None);
        let disk = |target: &str, size| CheckpointDisk { target: target.to_owned(), size };
        assert_eq!(checkpoint.disks, [disk("vda", Some(131_072)), disk("vdc", None)]);
    }

    proptest! {
        #[test]
        fn what_is_noted_is_read_again(
            name in "[ -~é€]{1,40}", millis in 0..END_OF_TIME,
            sizes in prop::collection::vec(("[a-z]{1,8}", any::<u64>()), 1..5),
        ) {
            let made = Made { time: UNIX_EPOCH + Duration::from_millis(millis), sizes };
            let xml = new_checkpoint(&name, &made, &["sr0"]);
            let read = checkpoint(&xml).unwrap();
            prop_assert_eq!(read.name, name);
            prop_assert_eq!(read.made, Some(made.clone()));
            prop_assert_eq!(read.disks.len(), made.sizes.len());
        }

        #[test]
        fn anything_may_be_described(xml in "\\PC{0,200}") {
            let _ = (domain(&xml), checkpoint(&xml), marks(&xml), pool_kind(&xml), scratch_image(&xml, "s", "vda"));
        }
    }
}
