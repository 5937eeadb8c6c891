//! What a QEMU can do, and what it cannot do safely.
//!
//! Features are asked from QEMU itself; version numbers decide only where a defect cannot be seen from outside.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use super::transport::{Qmp, refused};
use crate::error::{Error, Kind, Result, printable};
use crate::options;
use crate::vm::Fleece;

/// Oldest version whose dirty bitmaps, exports and fleecing pullfs was proved with.
const OLDEST: Version = Version(7, 2, 0);

/// From here on `snapshot-access` and the NBD server are safe together: before 8.0 snapshot-access gives wrong data
/// after a discard, and the fixes that make exports safe beside I/O threads came in 9.0.
const FLEECE_BY_JOB: Version = Version(9, 0, 0);

/// From here on `snapshot-access` gives right data on a filter that was put under the guest's device.
const FLEECE_BY_FILTER: Version = Version(8, 0, 0);

/// Before this version QEMU aborts when an NBD client leaves an export of a disk that an I/O thread serves.
const IOTHREADS: Version = Version(8, 2, 3);

/// Longest QOM path that is walked up, in bytes.
const MAX_PATH: usize = 1024;

/// A version of QEMU: major, minor, micro.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(u32, u32, u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

#[derive(Deserialize)]
struct Reply {
    qemu: Triple,
}

#[derive(Deserialize)]
struct Triple {
    major: u32,
    minor: u32,
    micro: u32,
}

#[derive(Deserialize)]
struct Command {
    name: String,
}

/// What was found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Abilities {
    pub(super) version: Version,
    pub(super) fleece: Fleece,
    /// `add-fd`, `getfd`.
    pub(super) descriptors: bool,
    /// Whether disks may be served by an I/O thread.
    pub(super) iothreads: bool,
    /// Whether a backup job can break the point in time rather than the guest's write.
    pub(super) breaks: bool,
    pub(super) name: Option<String>,
}

/// Asks QEMU, and decides how points in time are kept.
///
/// # Errors
/// [`Kind::Unsupported`] with the reason, when this QEMU cannot do what was asked for safely.
pub(super) async fn detect(qmp: &Qmp, wanted: options::Fleece) -> Result<Abilities> {
    let version = version(qmp).await?;
    if version < OLDEST {
        return Err(Error::new(
            Kind::Unsupported,
            format!("QEMU {version} is too old: pullfs needs {OLDEST} or later; update QEMU on this host"),
        ));
    }
    let commands = commands(qmp).await?;
    let has = |name: &str| commands.contains(name);
    for needed in ["transaction", "blockdev-backup", "block-export-add", "x-debug-query-block-graph"] {
        if !has(needed) {
            return Err(Error::new(Kind::Unsupported, format!("this QEMU ({version}) has no command {needed}")));
        }
    }
    let schema = qmp.execute("query-qmp-schema", json!({})).await?;
    let name = if has("query-name") {
        let reply = qmp.execute("query-name", json!({})).await?;
        reply.get("name").and_then(Value::as_str).map(printable)
    } else {
        None
    };
    Ok(Abilities {
        version,
        fleece: choose(version, knows_driver(&schema, "snapshot-access"), wanted)?,
        breaks: takes(&schema, "blockdev-backup", "on-cbw-error"),
        descriptors: takes_descriptors(qmp, &commands),
        iothreads: version >= IOTHREADS,
        name,
    })
}

async fn commands(qmp: &Qmp) -> Result<BTreeSet<String>> {
    let commands: Vec<Command> = super::understand("query-commands", qmp.execute("query-commands", json!({})).await?)?;
    Ok(commands.into_iter().map(|command| command.name).collect())
}

fn takes_descriptors(qmp: &Qmp, commands: &BTreeSet<String>) -> bool {
    qmp.passes_descriptors() && ["add-fd", "getfd", "query-fdsets"].iter().all(|name| commands.contains(*name))
}

/// Whether the monitor takes descriptors.
///
/// # Errors
/// When QEMU does not answer.
pub(super) async fn has_descriptors(qmp: &Qmp) -> Result<bool> {
    Ok(takes_descriptors(qmp, &commands(qmp).await?))
}

/// QEMU's version.
///
/// # Errors
/// When QEMU does not answer.
pub(super) async fn version(qmp: &Qmp) -> Result<Version> {
    let reply: Reply = super::understand("query-version", qmp.execute("query-version", json!({})).await?)?;
    Ok(Version(reply.qemu.major, reply.qemu.minor, reply.qemu.micro))
}

fn choose(version: Version, snapshot_access: bool, wanted: options::Fleece) -> Result<Fleece> {
    let by_job = snapshot_access && version >= FLEECE_BY_JOB;
    match wanted {
        options::Fleece::Backing => Ok(Fleece::Backing),
        options::Fleece::Auto if !by_job => Ok(Fleece::Backing),
        options::Fleece::Auto => Ok(Fleece::Job),
        options::Fleece::Job if by_job => Ok(Fleece::Job),
        options::Fleece::Filter if snapshot_access && version >= FLEECE_BY_FILTER => Ok(Fleece::Filter),
        options::Fleece::Filter => Err(Error::new(
            Kind::Unsupported,
            format!("fleece=filter needs QEMU {FLEECE_BY_FILTER} or later, this is {version}"),
        )),
        options::Fleece::Job => Err(Error::new(
            Kind::Unsupported,
            format!(
                "fleece=job needs QEMU {FLEECE_BY_JOB} or later, this is {version}: older ones can give wrong data"
            ),
        )),
    }
}

/// Whether the schema's list of block drivers has a name. The schema hides type names, so any enumeration that has
/// both it and `qcow2` is taken for the list.
fn knows_driver(schema: &Value, driver: &str) -> bool {
    let Some(types) = schema.as_array() else { return false };
    types.iter().any(|entry| {
        let values = entry.get("values").and_then(Value::as_array);
        let has = |name: &str| values.is_some_and(|values| values.iter().any(|value| value == name));
        has(driver) && has("qcow2")
    })
}

/// Whether a command of the schema (`SchemaInfo` of qapi/introspect.json) takes an argument.
fn takes(schema: &Value, command: &str, argument: &str) -> bool {
    let Some(types) = schema.as_array() else { return false };
    let named =
        |kind: &str, name: &Value| types.iter().find(|entry| entry["meta-type"] == kind && entry["name"] == *name);
    let arguments = named("command", &json!(command)).and_then(|command| named("object", &command["arg-type"]));
    let members = arguments.and_then(|arguments| arguments["members"].as_array());
    members.is_some_and(|members| members.iter().any(|member| member["name"] == argument))
}

/// Refuses disks that an I/O thread serves, on a QEMU where that can abort the guest.
///
/// # Errors
/// [`Kind::Unsupported`], naming the disk.
pub(super) async fn refuse_iothreads(qmp: &Qmp, able: &Abilities, qdevs: &BTreeMap<Arc<str>, String>) -> Result<()> {
    if able.iothreads || qdevs.is_empty() {
        return Ok(());
    }
    let threads = qmp.execute("query-iothreads", json!({})).await?;
    if threads.as_array().is_some_and(Vec::is_empty) {
        return Ok(());
    }
    for (disk, qdev) in qdevs {
        if served_by_iothread(qmp, qdev).await? {
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "disk {disk} has an iothread, and QEMU {} can abort the guest when a backup of such a disk ends; \
                     update QEMU to {IOTHREADS} or later, or leave the disk out with -o disks=",
                    able.version
                ),
            ));
        }
    }
    Ok(())
}

/// Whether the device, what it is part of, or the controller whose bus it sits on has an `iothread`.
async fn served_by_iothread(qmp: &Qmp, qdev: &str) -> Result<bool> {
    let mut places = vec![if qdev.starts_with('/') { qdev.to_owned() } else { format!("/machine/peripheral/{qdev}") }];
    if let Some(bus) = property(qmp, &places[0], "parent_bus").await? {
        places.push(bus);
    }
    // Walking up takes a question for each part of a path.
    if places.iter().any(|place| place.len() > MAX_PATH) {
        return Err(Error::new(Kind::Invalid, "QEMU tells of a device at a path longer than any is"));
    }
    for place in places {
        let mut path = place.as_str();
        while path.len() > "/machine".len() {
            if property(qmp, path, "iothread").await?.is_some_and(|thread| !thread.is_empty()) {
                return Ok(true);
            }
            path = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        }
    }
    Ok(false)
}

/// A property of an object of QEMU's; none if the object has no such property.
async fn property(qmp: &Qmp, path: &str, name: &str) -> Result<Option<String>> {
    match qmp.execute("qom-get", json!({"path": path, "property": name})).await {
        Ok(value) => Ok(value.as_str().map(str::to_owned)),
        Err(error) if refused(&error).is_some() => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_safe_way_is_chosen_or_it_is_refused() {
        let old = Version(7, 2, 22);
        let new = Version(10, 0, 2);
        assert_eq!(choose(new, true, options::Fleece::Auto).unwrap(), Fleece::Job);
        assert_eq!(choose(new, false, options::Fleece::Auto).unwrap(), Fleece::Backing);
        assert_eq!(choose(old, true, options::Fleece::Auto).unwrap(), Fleece::Backing);
        assert_eq!(choose(new, true, options::Fleece::Backing).unwrap(), Fleece::Backing);
        assert_eq!(choose(old, true, options::Fleece::Job).unwrap_err().kind(), Kind::Unsupported);
        assert_eq!(choose(new, true, options::Fleece::Filter).unwrap(), Fleece::Filter);
        assert_eq!(choose(old, true, options::Fleece::Filter).unwrap_err().kind(), Kind::Unsupported);
    }

    #[test]
    fn an_argument_is_looked_for_in_the_schema() {
        let schema = |members: Value| {
            json!([
                {"name": "blockdev-backup", "meta-type": "command", "arg-type": "17", "ret-type": "0"},
                {"name": "17", "meta-type": "object", "members": members},
                {"name": "18", "meta-type": "object", "members": [{"name": "on-cbw-error", "type": "3"}]},
            ])
        };
        let has = |members| takes(&schema(members), "blockdev-backup", "on-cbw-error");
        assert!(has(
            json!([{"name": "device", "type": "str"}, {"name": "on-cbw-error", "default": null, "type": "3"}])
        ));
        assert!(!has(json!([{"name": "device", "type": "str"}])), "as before 10.1");
        assert!(!takes(&json!({}), "blockdev-backup", "on-cbw-error"));
    }
}
