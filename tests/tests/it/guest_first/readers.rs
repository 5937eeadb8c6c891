//! Readers that do not read, in any way in which a process can fail to: they cost scratch space, and nothing else.

use std::fs::File;
use std::io::Read;
use std::process::{Child, Stdio};

use pullfs_tests::flavor::Flavor;
use pullfs_tests::leftovers::Leftovers;
use pullfs_tests::mount::Mount;
use pullfs_tests::oracle;
use pullfs_tests::process::{signal_child, signal_pid, wait_until};
use pullfs_tests::stalls::Stalls;
use pullfs_tests::tools::tool;
use rustix::process::Signal;
use serde_json::json;

use super::{NOTICE_LIMIT, goes_on};

/// MiB of the guest's disk.
const SIZE: u64 = 64;

/// Processes that read the disk, each from its own place, and are killed when dropped.
struct Readers(Vec<Child>);

impl Readers {
    #[track_caller]
    fn start(mount: &Mount, count: u64) -> Self {
        let disk = mount.disk("vda");
        let reader = |number: u64| {
            let mut dd = tool("dd");
            dd.arg(format!("if={}", disk.display())).args(["of=/dev/null", "bs=256k", "iflag=direct"]);
            dd.arg(format!("skip={}", number % SIZE * 4)).stderr(Stdio::null());
            dd.spawn().expect("dd")
        };
        Self((0..count).map(reader).collect())
    }

    fn signal(&self, signal: Signal) {
        self.0.iter().for_each(|reader| signal_child(reader, signal));
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        for reader in &mut self.0 {
            let _ = reader.kill();
            let _ = reader.wait();
        }
    }
}

on!(readers_that_are_stopped_cost_the_guest_nothing: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn readers_that_are_stopped_cost_the_guest_nothing(flavor: Flavor) {
    let guest = Stalls::boot(flavor, SIZE);
    let nothing = Leftovers::of(guest.machine());
    let mount = Mount::of(guest.machine());
    // The guest stands still only for the oracle's copy.
    guest.machine().qmp().must("stop", json!({}));
    mount.command(&["begin"]).success();
    let before = guest.machine().copy("vda", "before");
    guest.machine().qmp().must("cont", json!({}));
    assert_eq!(guest.stops().len(), 1, "the test's own");

    // One that reads a little and then nothing any more.
    let mut slow = File::open(mount.disk("vda")).expect("a disk");
    slow.read_exact(&mut vec![0; 1 << 20]).expect("a read");
    let readers = Readers::start(&mount, 64);
    wait_until("readers that read", NOTICE_LIMIT, || {
        mount.status()["reads"]["count"].as_u64().is_some_and(|count| count > 64)
    });
    readers.signal(Signal::STOP);
    guest.wait_more(2 * SIZE);
    goes_on(&guest, "64 stopped readers");
    assert_eq!(mount.state(), "held");
    readers.signal(Signal::CONT);
    oracle::same(&mount.disk("vda"), &before);
    drop((readers, slow));
    assert!(mount.unmount().success());
    nothing.come_back(guest.machine(), NOTICE_LIMIT);
    assert_eq!(guest.stops(), [json!(null); 0]);
}

// A daemon that is killed under 64 readers.
on!(a_daemon_that_is_killed_costs_the_guest_nothing: new = New, old = Old, libvirt = Libvirt, libvirt_old = LibvirtOld);
fn a_daemon_that_is_killed_costs_the_guest_nothing(flavor: Flavor) {
    let guest = Stalls::boot(flavor, SIZE);
    let nothing = Leftovers::of(guest.machine());
    for _ in 0..3 {
        let mut mount = Mount::of(guest.machine());
        let mut readers = Readers::start(&mount, 64);
        wait_until("a point in time", NOTICE_LIMIT, || mount.state() == "held");
        guest.wait_more(4);
        signal_pid(mount.pid(), Signal::KILL);
        mount.ended();
        wait_until("the end of all readers", NOTICE_LIMIT, || {
            readers.0.iter_mut().all(|reader| reader.try_wait().expect("a child").is_some())
        });
        nothing.come_back(guest.machine(), NOTICE_LIMIT);
    }
    goes_on(&guest, "a daemon that was killed under 64 readers");
    assert_eq!(guest.stops(), [json!(null); 0]);
}
