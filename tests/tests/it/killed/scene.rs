//! A machine behind a relay, what is known of its checkpoints, and whether all of it is as it was.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use pullfs_tests::disk::Disk;
use pullfs_tests::flavor::Flavor;
use pullfs_tests::leftovers::Leftovers;
use pullfs_tests::machine::{MIB, Machine};
use pullfs_tests::mount::{Mount, is_mounted, recover};
use pullfs_tests::oracle;
use pullfs_tests::process::{Finished, kill_at_once, run, wait_until};
use pullfs_tests::relay::{Moment, Relay};
use pullfs_tests::tools::pullfs;
use serde_json::json;

pub(crate) const DISKS: [&str; 2] = ["vda", "vdb"];
pub(crate) const CLUSTER: u64 = 65536;
const SIZE: u64 = 16 * MIB;

/// How long whoever cleans up may take on a busy machine.
pub(crate) const RESCUE_LIMIT: Duration = Duration::from_secs(15);

/// When somebody is killed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum When {
    /// At the n-th command of those that change something, from 1.
    At(usize, Moment),
    /// So long after the operation began: nobody counts libvirt's commands.
    After(Duration),
    Never,
}

/// A machine with the checkpoint `monday`, since which the guest writes.
pub(crate) struct Scene {
    pub(crate) machine: Machine,
    /// None before libvirt, which is spoken to in its own way.
    relay: Option<Relay>,
    /// Who kills after a while, where there is no relay; and what calls that off.
    killer: RefCell<Option<(mpsc::Sender<()>, JoinHandle<bool>)>>,
    /// The process that holds the disks.
    server: u32,
    /// Its descriptors without a client at the monitor.
    descriptors: Vec<String>,
    /// By disk: where the guest has written since `monday`.
    written: RefCell<BTreeMap<&'static str, BTreeSet<u64>>>,
}

/// What a mount leaves in the host when it dies.
pub(crate) struct Traces {
    mnt: PathBuf,
    scratch: PathBuf,
    runtime_dir: PathBuf,
}

impl Traces {
    #[track_caller]
    pub(crate) fn of(mount: &Mount) -> Self {
        let runtime_dir = Path::new("/run/pullfs").join(mount.id());
        Self { mnt: mount.mnt(), scratch: mount.scratch(), runtime_dir }
    }

    fn left(&self) -> Vec<String> {
        let files = fs::read_dir(&self.scratch).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut left: Vec<String> = files.map(|path| path.display().to_string()).collect();
        if is_mounted(&self.mnt) {
            left.push(format!("{} is mounted", self.mnt.display()));
        }
        if self.runtime_dir.exists() {
            left.push(self.runtime_dir.display().to_string());
        }
        left
    }

    /// Panics unless the mount goes within `limit`.
    #[track_caller]
    pub(crate) fn mount_goes(&self, limit: Duration) {
        wait_until("a mount that is gone", limit, || !is_mounted(&self.mnt));
    }

    /// Panics unless they go within `limit`.
    #[track_caller]
    pub(crate) fn go(&self, limit: Duration) {
        let mut left = self.left();
        wait_until(&format!("nothing on the host: {left:?} is left"), limit, || {
            left = self.left();
            left.is_empty()
        });
    }
}

impl Scene {
    #[track_caller]
    pub(crate) fn new(flavor: Flavor) -> Self {
        let mut machine = Machine::build(flavor)
            .disk(Disk::qcow2("vda", SIZE).filled(&[(0, MIB)]))
            .disk(Disk::with_checkpoints(flavor, "vdb", SIZE).filled(&[(0, MIB)]))
            .start();
        let server = machine.server().pid();
        let relay = flavor.libvirt().is_none().then(|| Relay::before(&machine.dir().join("pull.qmp")));
        let descriptors = descriptors(server);
        let scene =
            Self { machine, relay, killer: RefCell::default(), server, descriptors, written: RefCell::default() };
        let mount = scene.mount();
        mount.checkpoint("create", "monday").success();
        assert!(mount.unmount().success());
        scene.guest_writes();
        scene
    }

    #[track_caller]
    pub(crate) fn mount(&self) -> Mount {
        match &self.relay {
            Some(relay) => Mount::source(&relay.source(), ""),
            None => Mount::of(&self.machine),
        }
    }

    /// Kills these processes then.
    #[track_caller]
    pub(crate) fn kill(&self, when: When, pids: &[u32]) {
        let after = match when {
            When::At(nth, moment) => return self.relay().kill_at(nth, moment, pids),
            When::After(after) => after,
            When::Never => return,
        };
        let (cancel, cancelled) = mpsc::channel::<()>();
        let pids = pids.to_vec();
        let killer = thread::spawn(move || {
            let in_time = cancelled.recv_timeout(after) == Err(mpsc::RecvTimeoutError::Timeout);
            if in_time {
                kill_at_once(&pids);
            }
            in_time
        });
        self.killer.replace(Some((cancel, killer)));
    }

    /// Whether it has come to that; from now on it will not.
    #[track_caller]
    pub(crate) fn has_killed(&self) -> bool {
        if let Some(relay) = &self.relay {
            return relay.has_killed();
        }
        let Some((cancel, killer)) = self.killer.take() else { return false };
        cancel.send(()).ok();
        killer.join().expect("a thread")
    }

    /// Whether the machine is a domain of libvirt's.
    pub(crate) fn is_libvirts(&self) -> bool {
        self.relay.is_none()
    }

    /// What is between pullfs and the machine.
    #[track_caller]
    pub(crate) fn relay(&self) -> &Relay {
        self.relay.as_ref().expect("a machine that is reached by QMP")
    }

    /// A mount that holds a point in time, and its traces.
    #[track_caller]
    pub(crate) fn holding(&self) -> (Mount, Traces) {
        let mount = self.mount();
        let traces = Traces::of(&mount);
        self.monday_tells(&mount);
        (mount, traces)
    }

    /// `pullfs recover` of the machine.
    #[track_caller]
    pub(crate) fn recover(&self) -> Finished {
        match &self.relay {
            Some(relay) => run(std::process::Command::new(pullfs()).arg("recover").arg(relay.source())),
            None => recover(&self.machine),
        }
    }

    /// The guest writes where it has not yet, on both disks.
    #[track_caller]
    pub(crate) fn guest_writes(&self) {
        for id in DISKS {
            let mut written = self.written.borrow_mut();
            let clusters = written.entry(id).or_default();
            let offset = u64::try_from(clusters.len()).expect("a number") * 7 % (SIZE / CLUSTER) * CLUSTER;
            self.machine.write(id, offset, 4096, 0x21);
            clusters.insert(offset);
        }
    }

    /// Panics unless QEMU says that `monday` counted what the guest has written, no more and no less.
    #[track_caller]
    pub(crate) fn monday_counts(&self) {
        let nodes = self.machine.qmp().must("query-named-block-nodes", json!({ "flat": true }));
        for (id, clusters) in &*self.written.borrow() {
            let node = self.machine.node(id);
            let found = nodes.as_array().expect("nodes").iter().find(|found| found["node-name"] == *node);
            let bitmaps = found.expect("the disk's node")["dirty-bitmaps"].as_array().cloned().unwrap_or_default();
            let monday = bitmaps.iter().find(|bitmap| bitmap["name"] == "monday").expect("monday's bitmap");
            let expected = u64::try_from(clusters.len()).expect("a number") * CLUSTER;
            assert_eq!(monday["count"], expected, "{id}: {monday}");
        }
    }

    /// Panics unless a mount's maps tell exactly what the guest has written since `monday`. Takes a point in time.
    #[track_caller]
    pub(crate) fn monday_tells(&self, mount: &Mount) {
        for (id, clusters) in &*self.written.borrow() {
            let map = fs::read_to_string(mount.path(&format!("checkpoints/monday/{id}/dirty.map"))).expect("a map");
            let told: BTreeSet<u64> = oracle::read_map(&map, |_| true)
                .into_iter()
                .flat_map(|(offset, length)| {
                    (offset / CLUSTER..(offset + length) / CLUSTER).map(|cluster| cluster * CLUSTER)
                })
                .collect();
            assert_eq!(&told, clusters, "{id}");
        }
    }

    /// Panics unless QEMU and the host are within `limit` as they were before a mount that died.
    #[track_caller]
    pub(crate) fn is_as_before(&self, before: &Leftovers, traces: &Traces, limit: Duration) {
        before.come_back(&self.machine, limit);
        traces.go(limit);
        self.monday_counts();
        // QEMU notices a moment later that a client has gone.
        let mut now = Vec::new();
        wait_until("QEMU's descriptors", RESCUE_LIMIT, || {
            now = descriptors(self.server);
            now == self.descriptors
        });
    }
}

/// What a process has open: what named descriptors there are in QEMU no command tells.
fn descriptors(pid: u32) -> Vec<String> {
    let all = fs::read_dir(format!("/proc/{pid}/fd")).expect("a process").flatten();
    let target = |entry: fs::DirEntry| Some(fs::read_link(entry.path()).ok()?.display().to_string());
    let kind = |target: String| match target.split_once(":[") {
        Some((kind, _inode)) => kind.to_owned(),
        None => target,
    };
    let mut open: Vec<String> = all.filter_map(target).map(kind).collect();
    open.sort();
    open
}
