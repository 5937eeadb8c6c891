//! A domain of libvirt's: what a [`Builder`] describes, and what only libvirt can be asked for.
//!
//! A disk's target and the id of its device follow the test's name for it (`vda`, `ua-vda`: libvirt allows no other ids); its
//! node has a name of libvirt's. The test has monitors of its own, which libvirt does not know of.

use std::fmt::Write as _;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Account, Libvirtd};
use crate::builder::Builder;
use crate::process::{Finished, wait_for, wait_until};
use crate::qmp::Qmp;

/// For libvirt to see that a domain ended, or to end it.
const LIMIT: Duration = Duration::from_secs(60);

/// A domain that libvirt keeps a description of, until it is dropped.
#[derive(Debug)]
pub struct Domain {
    libvirtd: Arc<Libvirtd>,
    name: String,
    /// What libvirt was told of it.
    description: PathBuf,
    /// Whether libvirt forgets it when it ends.
    transient: AtomicBool,
}

impl Domain {
    /// Describes it to libvirt.
    #[track_caller]
    pub(crate) fn define(libvirtd: Arc<Libvirtd>, spec: &Builder, arguments: &[String]) -> Self {
        let dir = spec.dir.path();
        let name = dir.file_name().and_then(|name| name.to_str()).expect("a directory's name").to_owned();
        let description = dir.join("domain.xml");
        std::fs::write(&description, describe(&name, &libvirtd.emulator(), spec, arguments))
            .expect("the domain's description");
        if libvirtd.account() == Account::LibvirtQemu {
            // Its sockets are there.
            chown(dir, Some(Account::UID), Some(Account::UID)).expect("the domain's directory");
        }
        libvirtd.virsh(&["define", &description.display().to_string()]).success();
        Self { libvirtd, name, description, transient: AtomicBool::new(false) }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The libvirtd that has it.
    pub fn libvirtd(&self) -> &Arc<Libvirtd> {
        &self.libvirtd
    }

    /// `virsh VERB DOMAIN ARGUMENTS`.
    #[track_caller]
    pub fn virsh(&self, verb: &str, arguments: &[&str]) -> Finished {
        self.libvirtd.virsh(&[&[verb, &self.name], arguments].concat())
    }

    /// What the guest's agent answers libvirt; `None` if it does not, or refuses.
    #[track_caller]
    pub fn ask_agent(&self, command: &str) -> Option<Value> {
        let question = json!({ "execute": command }).to_string();
        let answer = self.virsh("qemu-agent-command", &["--timeout", "5", &question]);
        let answer = Some(answer).filter(|answer| answer.code == Some(0))?.stdout;
        Some(serde_json::from_str::<Value>(&answer).expect("an answer in JSON")["return"].take())
    }

    /// Whether libvirt knows it as running.
    #[track_caller]
    pub fn is_running(&self) -> bool {
        self.virsh("domstate", &[]).success().trim() == "running"
    }

    /// Has libvirt forget it when it ends, with all that it knows of it. It runs.
    #[track_caller]
    pub fn make_transient(&self) {
        self.virsh("undefine", &[]).success();
        self.transient.store(true, Ordering::Relaxed);
    }

    /// Starts it, once libvirt has seen that it ended before.
    #[track_caller]
    pub(crate) fn start(&self) {
        if self.transient.load(Ordering::Relaxed) {
            let known = || self.libvirtd.virsh(&["list", "--all", "--name"]).success();
            wait_until("libvirt to forget the domain", LIMIT, || !known().lines().any(|name| name == self.name));
            self.libvirtd.virsh(&["create", &self.description.display().to_string()]).success();
            return;
        }
        let ended = || self.virsh("domstate", &[]).success().trim() == "shut off";
        wait_until("libvirt to see the domain's end", LIMIT, ended);
        self.virsh("start", &[]).success();
    }

    /// What QEMU writes, in which libvirt notes what it does.
    pub(crate) fn log(&self) -> PathBuf {
        self.libvirtd.path(&format!("log/qemu/{}.log", self.name))
    }

    /// Makes the bitmap `name`, which is there, libvirt's own checkpoint of this disk, beside others.
    ///
    /// libvirt makes its checkpoints of all disks at once and with granules of its own choice; noting one is free in both.
    #[track_caller]
    pub(crate) fn note_checkpoint(&self, dir: &Path, name: &str, disk: &str) {
        let known = self.virsh("checkpoint-dumpxml", &[name, "--no-domain"]);
        let others = known.stdout.lines().filter(|line| line.contains("checkpoint='bitmap'")).collect::<String>();
        let xml = format!(
            "<domaincheckpoint><name>{name}</name><creationTime>{now}</creationTime><disks>{others}\
             <disk name='{disk}' checkpoint='bitmap' bitmap='{name}'/></disks></domaincheckpoint>",
            name = escape(name),
            now = std::time::UNIX_EPOCH.elapsed().expect("a time after 1970").as_secs(),
        );
        let file = dir.join("checkpoint.xml");
        std::fs::write(&file, xml).expect("a checkpoint's description");
        self.virsh("checkpoint-create", &[&file.display().to_string(), "--redefine"]).success();
    }

    /// Takes an external snapshot: each disk with the overlay that it gets, which is there, or none.
    #[track_caller]
    pub(crate) fn snapshot(&self, dir: &Path, disks: &[(&str, Option<&Path>)]) {
        let mut xml = "<domainsnapshot><disks>".to_owned();
        for (disk, overlay) in disks {
            let _ = match overlay.map(|overlay| escape(&overlay.display().to_string())) {
                Some(file) => write!(
                    xml,
                    "<disk name='{disk}' snapshot='external'><driver type='qcow2'/><source file='{file}'/></disk>"
                ),
                None => write!(xml, "<disk name='{disk}' snapshot='no'/>"),
            };
        }
        xml.push_str("</disks></domainsnapshot>");
        let file = dir.join("snapshot.xml");
        std::fs::write(&file, xml).expect("a snapshot's description");
        let arguments = [&file.display().to_string(), "--disk-only", "--no-metadata", "--reuse-external"];
        self.virsh("snapshot-create", &arguments).success();
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // It may have ended, and whatever is left ends with libvirtd, which a test may have ended before.
        let metadata = ["--checkpoints-metadata", "--snapshots-metadata"];
        for (verb, arguments) in [("destroy", [].as_slice()), ("undefine", &metadata)] {
            let mut virsh = self.libvirtd.command(&[&[verb, &self.name], arguments].concat());
            virsh.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            if let Ok(mut virsh) = virsh.spawn() {
                let _ = wait_for(&mut virsh, LIMIT);
            }
        }
    }
}

/// The node of a disk's active layer. Only while no job has a filter on it.
#[track_caller]
pub fn node(qmp: &mut Qmp, disk: &str) -> String {
    let devices = qmp.must("query-block", json!({}));
    let id = format!("ua-{disk}");
    let device = format!("/machine/peripheral/{id}");
    let path = |found: &&Value| {
        let qdev = found["qdev"].as_str().unwrap_or_default();
        // A SCSI disk goes by its id.
        qdev == id || qdev == device || qdev.strip_prefix(&device) == Some("/virtio-backend")
    };
    let found = devices.as_array().into_iter().flatten().find(path);
    let node = found.and_then(|found| found["inserted"]["node-name"].as_str());
    node.unwrap_or_else(|| panic!("no node of {disk} in {devices}")).to_owned()
}

/// A description for libvirt: what QEMU is told by itself, in libvirt's words where it has any.
fn describe(name: &str, emulator: &Path, spec: &Builder, arguments: &[String]) -> String {
    let mut memory = "64";
    let mut others = String::new();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        // Only with libvirt's own word for it does the rest of its command line fit.
        if word == "-m" {
            memory = words.next().expect("how much memory");
        } else {
            let _ = write!(others, "<qemu:arg value='{}'/>", escape(word));
        }
    }
    let iothreads = if spec.iothread { "<iothreads>1</iothreads>" } else { "" };
    let scsi = if spec.scsi { "<controller type='scsi' model='virtio-scsi'/>" } else { "" };
    let disks = spec.disks.iter().map(|disk| disk.xml(spec.scsi, spec.iothread)).collect::<String>();
    let devices = &spec.devices;
    format!(
        "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
           <name>{name}</name>
           <memory unit='MiB'>{memory}</memory>
           <vcpu>1</vcpu>
           {iothreads}
           <os><type arch='x86_64' machine='pc'>hvm</type></os>
           <features><acpi/></features>
           <devices>
             <emulator>{emulator}</emulator>
             {scsi}{disks}{devices}
             <controller type='usb' model='none'/>
             <memballoon model='none'/>
           </devices>
           <qemu:commandline>{others}</qemu:commandline>
         </domain>",
        emulator = escape(&emulator.display().to_string()),
    )
}

/// Text between quotes, or between elements.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '\'' => escaped.push_str("&apos;"),
            '"' => escaped.push_str("&quot;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[test]
fn descriptions_are_quoted() {
    assert_eq!(escape("a'b\"<&>ü"), "a&apos;b&quot;&lt;&amp;&gt;ü");
}
