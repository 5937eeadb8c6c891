//! The options of a mount as `status.json` and `pullfs config` tell them: all of them, whether they were given or not.
//!
//! Each has the name it is given by. In JSON sizes are bytes, times seconds, lists arrays; what is not limited is null. As
//! text, it is what would stand behind `-o`.

use std::path::Path;
use std::time::Duration;

use nbd_pool::Address;
use serde::Serialize;
use serde_json::Value;

use super::table::TABLE;
use super::{Fleece, Foreign, Formats, Options, POOL, Start};
use crate::metrics::Target;

/// The options that are in force.
#[derive(Debug, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a mount option")]
pub(crate) struct InForce<'a> {
    formats: Vec<&'static str>,
    backing: &'a str,
    cluster_size: u64,
    start: &'static str,
    scratch: String,
    scratch_limit: Option<u64>,
    fleece: &'static str,
    read_once: bool,
    idle_timeout: Option<f64>,
    hold_limit: Option<f64>,
    disks: Option<Vec<&'a str>>,
    foreign: &'static str,
    nbd: Option<String>,
    tls: Option<String>,
    insecure: bool,
    agent: Option<String>,
    uri: Option<&'a str>,
    expire: Option<f64>,
    connections: usize,
    cache: u64,
    readahead: u64,
    max_rate: Option<u64>,
    max_inflight: Option<usize>,
    polite: bool,
    uid: u32,
    gid: u32,
    /// In octal, as it is given.
    umask: String,
    allow_other: bool,
    sandbox: &'static str,
    core_dumps: bool,
    metrics: Option<String>,
}

impl<'a> InForce<'a> {
    /// The options of a mount by this user and group.
    pub(crate) fn new(options: &'a Options, (uid, gid): (u32, u32)) -> Self {
        Self {
            formats: formats(options.formats),
            backing: &options.backing,
            cluster_size: options.cluster_size.bytes(),
            start: match options.start {
                Start::Read => "read",
                Start::Manual => "manual",
            },
            scratch: options.pool.as_ref().map_or_else(|| path(&options.scratch), |pool| format!("{POOL}{pool}")),
            scratch_limit: options.scratch_limit,
            fleece: match options.fleece {
                Fleece::Auto => "auto",
                Fleece::Job => "job",
                Fleece::Backing => "backing",
                Fleece::Filter => "filter",
            },
            read_once: options.read_once,
            idle_timeout: options.idle_timeout.as_ref().map(Duration::as_secs_f64),
            hold_limit: options.hold_limit.as_ref().map(Duration::as_secs_f64),
            disks: options.disks.as_ref().map(|disks| disks.iter().map(String::as_str).collect()),
            foreign: match options.foreign {
                Foreign::Ro => "ro",
                Foreign::Rw => "rw",
            },
            nbd: options.nbd.as_ref().map(ToString::to_string),
            tls: options.tls.as_deref().map(path),
            insecure: options.insecure,
            agent: options.agent.as_deref().map(path),
            uri: options.uri.as_deref(),
            expire: options.expire.as_ref().map(Duration::as_secs_f64),
            connections: options.connections,
            cache: options.cache,
            readahead: options.readahead,
            max_rate: options.max_rate,
            max_inflight: options.max_inflight,
            polite: options.polite,
            uid: options.uid.unwrap_or(uid),
            gid: options.gid.unwrap_or(gid),
            umask: format!("{:03o}", options.umask),
            allow_other: options.allow_other,
            sandbox: if options.sandbox { "auto" } else { "off" },
            core_dumps: options.core_dumps,
            metrics: options.metrics.as_ref().map(metrics),
        }
    }
}

/// An option that is in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// Its name.
    pub name: &'static str,
    /// What it is, as JSON.
    pub value: Value,
    /// What it is, as it would stand behind `-o`.
    pub text: String,
}

/// All options of a mount by this user and group, in the order in which they are documented. `ro` and `rw`, which mean
/// nothing, are left out.
pub fn told(options: &Options, owner: (u32, u32)) -> Vec<Told> {
    let Ok(Value::Object(values)) = serde_json::to_value(InForce::new(options, owner)) else { return Vec::new() };
    let told = |option: &super::table::Described| {
        let (name, value) = (option.name(), values.get(option.name())?.clone());
        let time = match name {
            "idle_timeout" => options.idle_timeout,
            "hold_limit" => options.hold_limit,
            "expire" => options.expire,
            _ => None,
        };
        let text = match (time, option.value(), &value) {
            (Some(time), ..) => humantime::format_duration(time).to_string().replace(' ', ""),
            (None, Some("SIZE"), Value::Number(bytes)) => size(bytes.as_u64().unwrap_or_default()),
            (None, ..) => text(&value),
        };
        Some(Told { name, value, text: format!("{name}={}", text.replace(',', "\\,")) })
    };
    TABLE.iter().filter_map(told).collect()
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "default".to_owned(),
        Value::Bool(on) => if *on { "yes" } else { "no" }.to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().map(text).collect::<Vec<_>>().join("+"),
        value => value.to_string(),
    }
}

/// With the largest unit of which it is a whole number.
fn size(bytes: u64) -> String {
    let units = [(1_u64 << 40, "T"), (1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K")];
    let unit = units.into_iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit));
    unit.map_or(bytes.to_string(), |(unit, letter)| format!("{}{letter}", bytes / unit))
}

fn formats(formats: Formats) -> Vec<&'static str> {
    let all =
        [(formats.raw, "raw"), (formats.qcow2, "qcow2"), (formats.map, "map"), (formats.partitions, "partitions")];
    all.into_iter().filter(|(shown, _)| *shown).map(|(_, name)| name).collect()
}

fn metrics(target: &Target) -> String {
    match target {
        Target::Http { host, port } => Address::Tcp { host: host.clone(), port: *port }.to_string(),
        Target::File(file) => path(file),
    }
}

/// JSON has no bytes that are no text.
fn path(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::options::settings::{Resolved, Setting};
    use crate::options::table::Described;

    #[test]
    fn each_option_is_told_under_its_name() {
        let told = serde_json::to_value(InForce::new(&Options::default(), (7, 8))).unwrap();
        let told: BTreeSet<&str> = told.as_object().unwrap().keys().map(String::as_str).collect();
        // Neither means anything: mount(8) passes one of them.
        let described = TABLE.iter().map(Described::name).filter(|name| !["ro", "rw"].contains(name));
        assert_eq!(told, described.collect::<BTreeSet<&str>>());
    }

    #[test]
    fn what_was_given_is_told_as_it_is_meant() {
        let given = "gid=9,formats=raw+map,cluster_size=4K,start=manual,fleece=filter,idle_timeout=1500ms,disks=vdb+vda,\
                     foreign=rw,nbd=unix:/run/nbd,umask=27,sandbox=off,readahead=0,metrics=:9100";
        let told = serde_json::to_value(InForce::new(&Options::parse(given).unwrap(), (7, 8))).unwrap();
        let expected: [(&str, Value); 15] = [
            ("formats", ["raw", "map"].as_slice().into()),
            ("cluster_size", 4096.into()),
            ("start", "manual".into()),
            ("fleece", "filter".into()),
            ("idle_timeout", 1.5.into()),
            ("hold_limit", Value::Null),
            ("disks", ["vda", "vdb"].as_slice().into()),
            ("foreign", "rw".into()),
            ("nbd", "unix:/run/nbd".into()),
            ("umask", "027".into()),
            ("sandbox", "off".into()),
            ("readahead", 0.into()),
            ("uid", 7.into()),
            ("gid", 9.into()),
            ("metrics", "127.0.0.1:9100".into()),
        ];
        for (name, value) in expected {
            assert_eq!(told[name], value, "{name}");
        }
    }

    /// Options of each kind, set to anything.
    fn options() -> impl Strategy<Value = Options> {
        let time = || prop::option::of((1..=315_360_000_000_u64).prop_map(Duration::from_millis));
        let size = || prop::option::of(1_u64 << 16..1 << 50);
        let disks = prop::option::of(prop::collection::btree_set("[a-z][a-z0-9,]{0,5}", 1..4));
        let text = ("/[a-z,\\\\ =]{0,12}", "[a-z{}.,\\\\]{0,12}x");
        let formats = prop::sample::select(vec!["raw", "qcow2+map", "raw+qcow2+map+partitions"]);
        let flags = (any::<bool>(), any::<bool>());
        (time(), time(), size(), size(), disks, text, formats, flags, 0_u16..=0o777, prop::option::of(1_usize..=1024))
            .prop_map(
                |(
                    idle_timeout,
                    hold_limit,
                    scratch_limit,
                    max_rate,
                    disks,
                    text,
                    formats,
                    flags,
                    umask,
                    max_inflight,
                )| Options {
                    idle_timeout,
                    hold_limit,
                    scratch_limit,
                    max_rate,
                    disks,
                    scratch: text.0.into(),
                    backing: text.1,
                    polite: flags.0,
                    sandbox: flags.1,
                    umask,
                    max_inflight,
                    uid: Some(7),
                    gid: Some(8),
                    ..Options::parse(&format!("formats={formats}")).unwrap()
                },
            )
    }

    proptest! {
        #[test]
        fn what_is_told_is_what_would_have_to_be_given(options in options()) {
            let all: Vec<String> = told(&options, (7, 8)).into_iter().map(|told| told.text).collect();
            let given = all.iter().flat_map(|text| Setting::given(text));
            prop_assert_eq!(Resolved::of(given).unwrap().options, options, "{:?}", all);
        }
    }

    #[test]
    fn sizes_and_times_are_short() {
        let options = Options::parse("cache=64M,scratch_limit=1536K,max_rate=100001,hold_limit=90min").unwrap();
        let all: Vec<String> = told(&options, (0, 0)).into_iter().map(|told| told.text).collect();
        for text in
            ["cache=64M", "scratch_limit=1536K", "max_rate=100001", "hold_limit=1h30m", "readahead=4M", "tls=default"]
        {
            assert!(all.iter().any(|told| told == text), "{text} in {all:?}");
        }
    }
}
