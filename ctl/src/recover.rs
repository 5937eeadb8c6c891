//! `pullfs recover`: undoes what mounts that died have left in a machine.

use anyhow::Context;
use pullfs_fs::error::{Kind, chain};
use pullfs_fs::options::Options;
use pullfs_fs::point::journal::Header;
use pullfs_fs::recovery;
use pullfs_fs::vm::qmp::recover::{connect, mounts_in};
use pullfs_fs::vm::source::{HOST, Reach, Source};

use crate::args::Recover;
use crate::config;
use crate::failure::{Code, Failure, Outcome};
use crate::waiting::waiting;

pub(crate) fn run(arguments: &Recover) -> Outcome {
    let source: Source = arguments.source.parse()?;
    let Options { tls, insecure, uri, .. } = config::resolve(Some(&source), &arguments.options)?.options;
    let reach = || Reach::new(&source, tls.as_deref(), insecure, uri.as_deref());
    // A whole host has nothing in any machine: its domains' mounts have.
    let reach = if source.to_string() == HOST { None } else { Some(reach()?) };
    let source = source.to_string();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    let (dead, living) = waiting("waiting for the machine", || {
        runtime.block_on(recovery::of_source(&recovery::state_dir(), &source, uri.as_deref()))
    })?;
    let mut unburied = Ok(());
    for dead in &dead {
        let names = dead.names();
        // One that cannot be reached keeps nobody else's things.
        if let Err(error) = waiting("waiting for the machine", || runtime.block_on(dead.bury())) {
            // The first is what is told at the end.
            if unburied.is_err() {
                eprintln!("pullfs: {}", chain(&error));
            }
            unburied = unburied.and(Err(error));
            continue;
        }
        let Header { mount, mount_point, .. } = dead.header();
        println!("cleaned up after {mount}, which was mounted on {}", mount_point.display());
        for name in names {
            println!("  removed {name}");
        }
    }
    unburied?;
    if let Some(mount) = living.first() {
        return Err(lives(&source, mount));
    }
    let others = waiting("waiting for the machine", || {
        runtime.block_on(async {
            // A domain of libvirt has one backup, of which libvirt says whose it is.
            let Some(monitor) = reach.as_ref().and_then(Reach::monitor) else { return Ok(Vec::new()) };
            match connect(monitor).await {
                Ok(qmp) => mounts_in(&qmp).await,
                // A machine that has ended has nothing left in it.
                Err(error) if error.kind() == Kind::Gone && !dead.is_empty() => Ok(Vec::new()),
                Err(error) => Err(error),
            }
        })
    })?;
    for id in &others {
        println!("{id} has things in {source}, but no journal here: it may live, on another monitor; left alone");
    }
    if dead.is_empty() && others.is_empty() {
        println!("nothing to recover in {source}");
    }
    Ok(())
}

fn lives(source: &str, mount: &Header) -> Failure {
    let Header { mount, mount_point, pid, .. } = mount;
    let place = mount_point.display();
    let why = if recovery::has_ended(*pid) {
        format!(
            "{mount}, which was mounted on {place}, is still being cleaned up after by its guardian; try again later"
        )
    } else {
        format!("{source} is mounted on {place} by {mount}, whose daemon (pid {pid}) lives; unmount it, that cleans up")
    };
    Failure::message(Code::Busy, why)
}
