//! `pullfs checkpoint save` and `redefine`: what libvirt knows of checkpoints, kept elsewhere and given back to it.

use crate::args::{Redefine, Save};
use crate::failure::Outcome;

/// Without libvirt there is nobody who could know or forget, and its sources say what is missing.
#[cfg(not(feature = "libvirt"))]
pub(crate) fn save(arguments: &Save) -> Outcome {
    let source: pullfs_fs::vm::source::Source = arguments.source.parse()?;
    let why = format!("source {source}: only libvirt forgets checkpoints; name a domain of it, libvirt:DOMAIN");
    Err(crate::failure::Failure::message(crate::failure::Code::Usage, why))
}

/// As [`save`].
#[cfg(not(feature = "libvirt"))]
pub(crate) fn run(arguments: &Redefine) -> Outcome {
    save(&arguments.of)
}

#[cfg(feature = "libvirt")]
pub(crate) use domain::{run, save};

#[cfg(feature = "libvirt")]
mod domain {
    use std::fs::File;
    use std::future::Future;
    use std::io::Read;
    use std::path::Path;

    use anyhow::Context;
    use pullfs_fs::error::chain;
    use pullfs_fs::vm::libvirt::load;
    use pullfs_fs::vm::libvirt::redefine::{self, Description, Outcome as Became};
    use pullfs_fs::vm::source::{Source, Target, any_libvirt_of};

    use super::{Outcome, Redefine, Save};
    use crate::config;
    use crate::failure::{Code, Failure};
    use crate::status::print;
    use crate::waiting::waiting;

    /// Longest file that is read, in bytes: a checkpoint takes some hundred.
    const MAX_FILE: u64 = 16 << 20;

    pub(crate) fn save(arguments: &Save) -> Outcome {
        let target = target(arguments)?;
        print(&ask(redefine::save(&target))?)
    }

    pub(crate) fn run(arguments: &Redefine) -> Outcome {
        let target = target(&arguments.of)?;
        let mut described = Vec::new();
        for file in &arguments.files {
            described.extend(read(file).with_context(|| format!("cannot take checkpoints from {}", file.display()))?);
        }
        let all = described.len();
        let mut known = 0;
        for (name, became) in ask(redefine::redefine(&target, described))? {
            match &became {
                Became::Done => println!("{name}: libvirt knows it again"),
                Became::Known => println!("{name}: libvirt knows it already"),
                Became::Failed(error) => println!("{name}: left out: {}", chain(error)),
            }
            known += usize::from(!matches!(became, Became::Failed(_)));
        }
        if known == all {
            return Ok(());
        }
        Err(Failure::message(
            Code::System,
            format!("libvirt knows {known} of the {all} checkpoints that are described"),
        ))
    }

    fn target(arguments: &Save) -> Outcome<Target> {
        let source: Source = arguments.source.parse()?;
        let options = config::resolve(Some(&source), &arguments.options)?.options;
        let Source::Libvirt(domain) = source else {
            let why = format!("source {source}: only libvirt forgets checkpoints; name a domain of it, libvirt:DOMAIN");
            return Err(Failure::message(Code::Usage, why));
        };
        load()?;
        Ok(Target::new(domain, any_libvirt_of(options.uri.as_deref())?))
    }

    fn read(file: &Path) -> anyhow::Result<Vec<Description>> {
        let mut text = String::new();
        // What is too long ends in the middle, which is no XML.
        File::open(file)?.take(MAX_FILE).read_to_string(&mut text)?;
        Ok(redefine::read(&text)?)
    }

    fn ask<T>(answer: impl Future<Output = pullfs_fs::error::Result<T>>) -> Outcome<T> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("cannot start the runtime")?;
        let answer = waiting("waiting for libvirt", || runtime.block_on(answer));
        // What hangs must not keep the process.
        runtime.shutdown_background();
        Ok(answer?)
    }
}
