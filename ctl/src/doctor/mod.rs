//! `pullfs doctor`: checks all that a mount of a machine needs, changes nothing, and says what to do about what is wrong.
//!
//! [`host`] looks at this computer, [`scratch`] at the scratch directory, [`qmp`] and `libvirt` at the machine, with the code
//! that a mount would run. Each gives [`Finding`]s; what follows from them is decided here. Whatever is asked has a time
//! limit: somebody who does not answer is a finding, too.

#[cfg(feature = "libvirt")]
mod access;
mod finding;
mod host;
#[cfg(feature = "libvirt")]
mod libvirt;
mod machine;
mod qmp;
mod scratch;
#[cfg(feature = "libvirt")]
mod whole;

use std::time::Duration;

use anyhow::Context;
use pullfs_fs::error::{Error, Kind, Result, chain};
use pullfs_fs::options::Options;
use pullfs_fs::recovery;
#[cfg(feature = "libvirt")]
use pullfs_fs::vm::source;
use pullfs_fs::vm::source::{Reach, Source};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use self::finding::{Finding, Report, State};
use crate::args::Doctor;
use crate::config;
use crate::failure::{Code, Failure, Outcome};
use crate::waiting::waiting;

/// How long one check may take: connecting to libvirt has 20 s, a monitor that is in use is known after 5 s.
const LIMIT: Duration = Duration::from_secs(25);

pub(crate) fn run(arguments: &Doctor) -> Outcome {
    let source: Source = arguments.source.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    let findings = waiting("examining", || runtime.block_on(examine(&source, &arguments.options)));
    // What hangs must not keep the process.
    runtime.shutdown_background();
    let report = Report::new(source.to_string(), findings);
    report.show(arguments.json, arguments.color)?;
    match report.count(State::Wrong) {
        0 => Ok(()),
        1 => Err(Failure::message(Code::System, format!("{source} cannot be mounted as it is: 1 thing is wrong"))),
        many => {
            Err(Failure::message(Code::System, format!("{source} cannot be mounted as it is: {many} things are wrong")))
        }
    }
}

async fn examine(source: &Source, given: &[String]) -> Vec<Finding> {
    #[cfg(feature = "libvirt")]
    if *source == Source::Host {
        return examine_host(given).await;
    }
    let (mut findings, reach) = configured(source, given, |options| Reach::of(source, options));
    let allow_other = reach.as_ref().is_some_and(|(options, _)| options.allow_other);
    findings.extend(local("host", move || host::check(allow_other)).await);
    let Some((options, reach)) = reach else { return findings };
    let (of, uri) = (source.to_string(), reach.uri().map(str::to_owned));
    let look = move || recovery::headers(&recovery::state_dir(), &of, uri.as_deref());
    let living = match local_result("mounts", look).await {
        Ok((ended, living)) => {
            findings.extend(host::mounts(&source.to_string(), &ended));
            living
        }
        Err(error) => {
            findings.push(Finding::failed("mounts", &error, "see who may read it, or run this as the user who mounts"));
            Vec::new()
        }
    };
    match &reach {
        Reach::Qmp(monitor) => findings.extend(qmp::check(monitor, &options, &living).await),
        #[cfg(feature = "libvirt")]
        Reach::Libvirt(target) => findings.extend(libvirt::check(target, &options).await),
    }
    findings
}

/// What a whole host needs, beside what each of its domains does.
#[cfg(feature = "libvirt")]
async fn examine_host(given: &[String]) -> Vec<Finding> {
    let fits = |options: &Options| source::fit(&Source::Host, options);
    let (mut findings, options) = configured(&Source::Host, given, fits);
    let allow_other = options.as_ref().is_some_and(|(options, ())| options.allow_other);
    findings.extend(local("host", move || host::check(allow_other)).await);
    if let Some((options, ())) = options {
        findings.extend(whole::check(&options).await);
    }
    findings
}

/// What the options come to, and whether they make sense to the source, with what follows from that.
fn configured<T>(
    source: &Source,
    given: &[String],
    fit: impl FnOnce(&Options) -> Result<T>,
) -> (Vec<Finding>, Option<(Options, T)>) {
    let resolved = config::resolve(Some(source), given).map(|resolved| resolved.options);
    match resolved.and_then(|options| fit(&options).map(|fits| (options, fits))) {
        Ok(found) => {
            (vec![Finding::ok("options", "configuration file, environment and -o are understood")], Some(found))
        }
        Err(error) => {
            let cure = "mend it; the machine is not looked at before (pullfs config shows who sets what)";
            (vec![Finding::failed("options", &error, cure)], None)
        }
    }
}

/// Does something that may take its time on this computer, such as looking at a directory of a server that is away.
async fn local(check: &'static str, work: impl FnOnce() -> Vec<Finding> + Send + 'static) -> Vec<Finding> {
    let found = local_result(check, move || Ok(work())).await;
    found.unwrap_or_else(|error| {
        vec![Finding::failed(check, &error, "look for a disk or a server that does not answer")]
    })
}

async fn local_result<T: Send + 'static>(
    check: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let worked = limited(check, async { Ok(spawn_blocking(work).await) }).await?;
    worked.map_err(|error| Error::with_source(Kind::Io, format!("the check of {check} broke"), error))?
}

/// Asks somebody, within the limit.
async fn limited<T>(check: &str, asked: impl Future<Output = Result<T>>) -> Result<T> {
    let limit = LIMIT.as_secs();
    let slow = |_| Error::new(Kind::Timeout, format!("the check of {check} took longer than {limit} s"));
    timeout(LIMIT, asked).await.map_err(slow)?
}
