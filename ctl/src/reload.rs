//! `pullfs reload`: what a new mount would have, as far as one that is there can have it too.
//!
//! ```text
//! configuration file, now ─┐
//! status.json: environment ├─▶ resolve ─▶ compare with status.json: options ─┬─▶ `reload NAME=VALUE` to control
//!              and -o, then ┘                                                └─▶ a new mount is needed
//! ```
//! The daemon could not read the file: after its start it sees no more than it needs. So it tells what the mount was made
//! with, and this process, which has the rights of whoever asks, reads.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use pullfs_fs::options::in_force::{Told, told};
use pullfs_fs::options::settings::{Resolved, Setting};
use pullfs_fs::options::table::live_names;
use serde::Deserialize;
use serde_json::Value;

use crate::config;
use crate::control;
use crate::failure::{Failure, Outcome};
use crate::mounted::Mounted;
use crate::status::print;
use crate::waiting::waiting;

/// What `status.json` says of the mount.
#[derive(Debug, Deserialize)]
struct Status {
    machine: Machine,
    mount: Mount,
}

#[derive(Debug, Deserialize)]
struct Machine {
    source: String,
}

#[derive(Debug, Deserialize)]
struct Mount {
    options: BTreeMap<String, Value>,
    origins: BTreeMap<String, Value>,
    config: PathBuf,
    settings: Vec<Setting>,
}

/// An option that differs.
#[derive(Debug, PartialEq)]
struct Difference {
    name: &'static str,
    /// What it would be, as it would stand behind `-o`.
    text: String,
    /// Who says so.
    origin: String,
    /// Whether it can be changed while mounted.
    live: bool,
}

pub(crate) fn run(mount_point: &Path) -> Outcome {
    let mounted = Mounted::find(mount_point)?;
    let text = waiting("waiting for the machine", || mounted.status_text())?;
    let status: Status = serde_json::from_str(&text)
        .context("the mount was made by another version of pullfs; unmount and mount it again")?;
    let Status { machine, mount } = status;
    let wanted = config::anew(&machine.source, &mount.config, mount.settings.clone())?;
    let mut left: Option<Failure> = None;
    for Difference { name, text, origin, live } in differences(&mount, &wanted) {
        if !live {
            eprintln!("pullfs: {text} ({origin}) takes a new mount: pullfs umount, then mount");
            continue;
        }
        match control::written(&mounted, name, &format!("reload {text}")) {
            Ok(()) => print(&format!("{text}  {origin}\n"))?,
            // The others do not depend on it.
            Err(failure) => {
                if let Some(earlier) = left.replace(failure) {
                    eprintln!("pullfs: {earlier}");
                }
            }
        }
    }
    left.map_or(Ok(()), Err)
}

/// What a new mount would have otherwise.
fn differences(mount: &Mount, wanted: &Resolved) -> Vec<Difference> {
    let number = |name: &str| mount.options.get(name).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
    // The mounting user is not known here: where nobody sets the owner it is as it was, unless somebody had set it.
    let owner = (number("uid").unwrap_or_default(), number("gid").unwrap_or_default());
    let difference = |told: Told| {
        let Told { name, value, text } = told;
        let decided = wanted.decided(name);
        let is_mounting_users = decided.is_none() && ["uid", "gid"].contains(&name);
        let differs = if is_mounting_users {
            mount.origins.contains_key(name)
        } else {
            mount.options.get(name) != Some(&as_read(&value))
        };
        differs.then(|| Difference {
            name,
            text: if is_mounting_users { format!("{name}=default") } else { text },
            origin: decided.map_or_else(|| "built-in".to_owned(), |setting| setting.origin.to_string()),
            live: live_names().any(|live| live == name),
        })
    };
    told(&wanted.options, owner).into_iter().filter_map(difference).collect()
}

/// A value as it is read back from `status.json`, where seconds lose what is beyond their digits.
fn as_read(value: &Value) -> Value {
    serde_json::from_str(&value.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A mount whose options are these, by whom is said.
    fn mount(options: &str, config: &str) -> Mount {
        let resolved = Resolved::of(Setting::given(options)).unwrap();
        let told = told(&resolved.options, (7, 8));
        let options: serde_json::Map<_, _> = told.into_iter().map(|told| (told.name.to_owned(), told.value)).collect();
        let settings: Vec<&Setting> = resolved.over_files().collect();
        let mount = json!({"options": options, "origins": resolved.origins(), "config": config, "settings": settings});
        serde_json::from_str(&mount.to_string()).unwrap()
    }

    fn differing(mount: &Mount, wanted: &str) -> Vec<String> {
        let wanted = Resolved::of(Setting::given(wanted)).unwrap();
        differences(mount, &wanted).into_iter().map(|found| format!("{} {}", found.text, found.live)).collect()
    }

    #[test]
    fn what_differs_is_found_and_nothing_else() {
        let mount = mount("max_rate=1M,idle_timeout=1234567ms,uid=7,cache=8M,umask=27,hold_limit=333ms", "/c");
        let same = "max_rate=1024K,hold_limit=333ms,umask=027,cache=8M,uid=7,idle_timeout=1234567ms";
        assert_eq!(differing(&mount, same), [""; 0]);
        let found = differing(&mount, "max_rate=2M,hold_limit=333ms,umask=027,gid=9");
        let expected =
            ["idle_timeout=default true", "cache=32M false", "max_rate=2M true", "uid=default false", "gid=9 false"];
        assert_eq!(found, expected);
    }
}
