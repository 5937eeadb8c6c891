//! The connection of a mount to its machine.

use std::path::Path;
use std::sync::Arc;

use pullfs_fs::block::throttle::{Limits, Throttle};
use pullfs_fs::error::Result;
use pullfs_fs::point::journal::Journal;
use pullfs_fs::quiesce::Quiesce;
use pullfs_fs::vm::Vm;
#[cfg(feature = "libvirt")]
use pullfs_fs::vm::libvirt::{self, LibvirtVm, elsewhere::Elsewhere};
use pullfs_fs::vm::qmp::ids::MountId;
use pullfs_fs::vm::qmp::{self, QmpVm};
use pullfs_fs::vm::source::Reach;

use crate::daemon::{SELF, Task};

/// A machine, and what stands between it and readers.
pub(crate) struct Connected {
    pub(crate) vm: Arc<dyn Vm>,
    pub(crate) throttle: Arc<Throttle>,
    pub(crate) meter: Arc<nbd_pool::Meter>,
}

/// Connects; whatever is made in the machine is noted in the journal.
pub(crate) async fn connect(task: &Task, mount: &MountId, runtime_dir: &Path, journal: Journal) -> Result<Connected> {
    let options = &task.resolved.options;
    let nbd = nbd_pool::Config { connections: options.connections, ..nbd_pool::Config::default() };
    let throttle = Throttle::new(Limits::from(options), nbd.request_size);
    let meter = nbd.meter.clone();
    let vm: Arc<dyn Vm> = match &task.reach {
        Reach::Qmp(monitor) => {
            let settings = qmp::Settings {
                source: task.source.clone(),
                monitor: monitor.clone(),
                mount: mount.clone(),
                runtime_dir: runtime_dir.to_owned(),
                scratch_dir: options.scratch.clone(),
                scratch_limit: options.scratch_limit,
                read_once: options.read_once,
                throttle: throttle.clone(),
                disks: options.disks.clone(),
                fleece: options.fleece,
                server: options.nbd.clone(),
                quiesce: options.agent.as_ref().map(|agent| Quiesce::new(agent, SELF)),
                nbd: nbd_pool::Config { tls: monitor.tls().cloned(), ..nbd },
            };
            Arc::new(QmpVm::connect(settings, Some(journal)).await?)
        }
        #[cfg(feature = "libvirt")]
        Reach::Libvirt(target) => {
            let elsewhere = Elsewhere::of(&target.uri, options)?;
            let settings = libvirt::Settings {
                source: task.source.clone(),
                target: target.clone(),
                mount: mount.clone(),
                elsewhere,
                scratch_dir: options.scratch.clone(),
                scratch_limit: options.scratch_limit,
                throttle: throttle.clone(),
                disks: options.disks.clone(),
                nbd,
            };
            Arc::new(LibvirtVm::connect(settings, Some(journal)).await?)
        }
    };
    Ok(Connected { vm, throttle, meter })
}
