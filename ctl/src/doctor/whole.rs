//! A whole host of libvirt: the kernel's automounter, root, and a libvirt that tells which domains run.

use std::path::Path;

use autofs::{DEVICE, TYPE};
use pullfs_fs::error::{Error, Kind};
use pullfs_fs::options::Options;
use pullfs_fs::vm::libvirt::host::running;
use pullfs_fs::vm::libvirt::load;
use pullfs_fs::vm::source::libvirt_of;
use tokio::task::spawn_blocking;

use super::finding::Finding;
use super::libvirt::cure_of;
use super::limited;

pub(super) async fn check(options: &Options) -> Vec<Finding> {
    let mut findings = vec![root(rustix::process::geteuid().is_root())];
    findings.push(kernel(&std::fs::read_to_string("/proc/filesystems").unwrap_or_default()));
    findings.push(if Path::new(DEVICE).exists() {
        Finding::ok("autofs-device", format!("{DEVICE} is there"))
    } else {
        let cure = "mknod it as /proc/misc says, so that a look that fails says why; all else works without it";
        Finding::hint("autofs-device", format!("{DEVICE} is not there"), cure)
    });
    match load() {
        Ok(()) => {
            findings.push(Finding::ok("library", "libvirt.so.0 can be loaded"));
            findings.push(domains(options).await);
        }
        Err(error) => findings.push(Finding::failed("library", &error, "apt install libvirt0")),
    }
    findings
}

fn root(root: bool) -> Finding {
    if root {
        return Finding::ok("root", "this user may mount a whole host");
    }
    let what = "mounting a whole host takes root, because the kernel's automounter does";
    Finding::wrong("root", what, "mount it as root, or single domains as this user")
}

fn kernel(filesystems: &str) -> Finding {
    if filesystems.lines().any(|line| line.split_whitespace().last() == Some(TYPE)) {
        return Finding::ok("autofs", "the kernel has its automounter");
    }
    Finding::wrong("autofs", "the kernel's automounter is not there", "modprobe autofs4")
}

async fn domains(options: &Options) -> Finding {
    let asked = limited("libvirt", async {
        let uri = libvirt_of(options.uri.as_deref())?;
        let asked = uri.clone();
        let listed = spawn_blocking(move || running(&asked)).await;
        let listed = listed.map_err(|error| Error::with_source(Kind::Io, "the list of domains broke", error))??;
        Ok((uri, listed.len()))
    });
    match asked.await {
        Ok((uri, 1)) => Finding::ok("libvirt", format!("it answers at {uri}: 1 domain runs")),
        Ok((uri, many)) => Finding::ok("libvirt", format!("it answers at {uri}: {many} domains run")),
        Err(error) => {
            let uri = options.uri.as_deref().unwrap_or("qemu:///system");
            Finding::failed("libvirt", &error, cure_of(&error, uri, "list"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::State;
    use super::*;

    #[test]
    fn what_is_missing_is_told() {
        assert_eq!((root(true).state, root(false).state), (State::Ok, State::Wrong));
        assert_eq!(kernel("nodev\tproc\nnodev\tautofs\n\text4\n").state, State::Ok);
        assert_eq!(kernel("nodev\tautofs5\n").state, State::Wrong);
    }
}
