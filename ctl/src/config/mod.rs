//! Which mount options are in force: `/etc/pullfs/config.toml`, the environment, the command line. `pullfs config` shows it.
//!
//! Resolved once, by the process that a person or systemd has started: a daemon that it starts is given the result.

mod file;

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use pullfs_fs::error::{Error, Kind, Result};
use pullfs_fs::options::in_force::{Told, told};
use pullfs_fs::options::settings::{Origin, Resolved, Setting};
use pullfs_fs::options::table::TABLE;
use pullfs_fs::vm::qmp::monitor::Endpoint;
use rustix::process::{getgid, getuid};
use serde::Serialize;
use serde_json::Value;

use self::file::Wanted;
use crate::args::Config;
use crate::failure::Outcome;
use crate::status::print;

/// The configuration file, unless the environment names another.
const FILE: &str = "/etc/pullfs/config.toml";

/// What environment variables begin with; the name of an option follows.
const PREFIX: &str = "PULLFS_";

/// The environment variable that names the configuration file.
const FILE_VARIABLE: &str = "PULLFS_CONFIG";

/// The options in force for a source, or for machines that no section of the file is for.
///
/// # Errors
/// [`Kind::Invalid`] for a mistake anywhere, with where it is; [`Kind::Io`] if the file cannot be read.
pub(crate) fn resolve(source: Option<&Endpoint>, given: &[String]) -> Result<Resolved> {
    let source = source.map(ToString::to_string);
    let wanted = source.as_deref().map_or(Wanted::All, Wanted::Of);
    resolve_with(wanted, |name| env::var_os(name).filter(|value| !value.is_empty()), given)
}

/// What another `pullfs` has resolved.
///
/// # Errors
/// As [`resolve`]; there are none if that was so.
pub(crate) fn resolved(given: &[String]) -> Result<Resolved> {
    Resolved::of(given.iter().flat_map(|options| Setting::given(options)))
}

fn resolve_with(wanted: Wanted<'_>, variable: impl Fn(&str) -> Option<OsString>, given: &[String]) -> Result<Resolved> {
    let named = variable(FILE_VARIABLE).map(PathBuf::from);
    let path = named.as_deref().unwrap_or(Path::new(FILE));
    let of_file = match file::read(path, wanted)? {
        Some(settings) => settings,
        None if named.is_none() => Vec::new(),
        None => {
            let why = format!("{}, which {FILE_VARIABLE} names, does not exist", path.display());
            return Err(Error::new(Kind::Invalid, why));
        }
    };
    // Without a source, those of machines are looked at for mistakes only.
    Resolved::of(of_file.clone())?;
    let general = |setting: &Setting| match (&wanted, &setting.origin) {
        (Wanted::All, Origin::File { section, .. }) => section == file::GENERAL,
        _ => true,
    };
    let of_environment = environment(variable)?;
    let given = given.iter().flat_map(|options| Setting::given(options));
    Resolved::of(of_file.into_iter().filter(general).chain(of_environment).chain(given))
}

/// The settings in environment variables: `PULLFS_MAX_RATE` is `max_rate=`. One that is empty sets nothing.
fn environment(variable: impl Fn(&str) -> Option<OsString>) -> Result<Vec<Setting>> {
    let setting = |option: &pullfs_fs::options::table::Described| {
        let name = format!("{PREFIX}{}", option.name().to_uppercase());
        let value = variable(&name)?.into_string();
        Some(match value {
            Ok(value) => {
                Ok(Setting { name: option.name().to_owned(), value: Some(value), origin: Origin::Environment(name) })
            }
            Err(_) => Err(Error::new(Kind::Invalid, format!("environment variable {name} is not UTF-8"))),
        })
    };
    TABLE.iter().filter_map(setting).collect()
}

pub(crate) fn run(arguments: &Config) -> Outcome {
    let source = arguments.source.as_deref().map(str::parse::<Endpoint>).transpose()?;
    let resolved = resolve(source.as_ref(), &arguments.options)?;
    let told = told(&resolved.options, (getuid().as_raw(), getgid().as_raw()));
    let text = if arguments.json { json(&told, &resolved)? } else { table(&told, &resolved) };
    print(&text)
}

/// What people see, and may copy from: an option a line.
fn table(told: &[Told], resolved: &Resolved) -> String {
    let width = told.iter().map(|told| told.text.chars().count()).max().unwrap_or_default();
    let line = |told: &Told| {
        let origin =
            resolved.decided(told.name).map_or_else(|| "built-in".to_owned(), |setting| setting.origin.to_string());
        format!("{:<width$}  {origin}\n", told.text)
    };
    told.iter().map(line).collect()
}

#[derive(Serialize)]
struct Shown<'a> {
    name: &'a str,
    value: &'a Value,
    /// As it would stand behind `-o`.
    option: &'a str,
    /// `default`, `file`, `environment` or `given`.
    from: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    section: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    variable: Option<&'a str>,
}

fn json(told: &[Told], resolved: &Resolved) -> anyhow::Result<String> {
    let shown = |told| {
        let Told { name, value, text }: &Told = told;
        let shown =
            Shown { name, value, option: text, from: "default", file: None, section: None, line: None, variable: None };
        match resolved.decided(name).map(|setting| &setting.origin) {
            None => shown,
            Some(Origin::Given) => Shown { from: "given", ..shown },
            Some(Origin::Environment(variable)) => Shown { from: "environment", variable: Some(variable), ..shown },
            Some(Origin::File { path, section, line }) => {
                Shown { from: "file", file: Some(path), section: Some(section), line: Some(*line), ..shown }
            }
        }
    };
    let shown: Vec<Shown<'_>> = told.iter().map(shown).collect();
    Ok(serde_json::to_string_pretty(&shown)? + "\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use pullfs_fs::error::chain;

    use super::*;

    fn in_file(text: &str, variables: &[(&str, &str)], given: &[&str]) -> Result<Resolved> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        std::fs::write(&path, text).unwrap();
        let mut variables: BTreeMap<&str, OsString> =
            variables.iter().map(|(name, value)| (*name, OsString::from(value))).collect();
        variables.insert(FILE_VARIABLE, path.into_os_string());
        let given: Vec<String> = given.iter().map(|&text| text.to_owned()).collect();
        resolve_with(Wanted::Of("qmp:/run/vm1.qmp"), |name| variables.get(name).cloned(), &given)
    }

    #[test]
    fn each_layer_overrules_those_before() {
        let text = "[options]\nmax_rate=\"1M\"\nconnections=2\npolite=true\nscratch=\"/a\"\n\
                    [source.\"qmp:/run/vm1.qmp\"]\nconnections=3\nscratch=\"/b\"\npolite=true\n";
        let variables = [("PULLFS_SCRATCH", "/c"), ("PULLFS_POLITE", "yes"), ("PULLFS_CACHE", "1M")];
        let resolved = in_file(text, &variables, &["polite=no,allow_other", "uid=5"]).unwrap();
        let from = |name: &str| resolved.decided(name).map(|setting| setting.origin.clone());
        let line = |name: &str| match from(name) {
            Some(Origin::File { line, section, .. }) => (line, section),
            origin => panic!("{origin:?}"),
        };
        assert_eq!(line("max_rate"), (2, "options".to_owned()));
        assert_eq!(line("connections"), (7, "source.\"qmp:/run/vm1.qmp\"".to_owned()));
        assert_eq!(from("scratch"), Some(Origin::Environment("PULLFS_SCRATCH".to_owned())));
        assert_eq!((from("polite"), from("uid"), from("umask")), (Some(Origin::Given), Some(Origin::Given), None));
        let options = &resolved.options;
        assert_eq!((options.connections, options.polite, options.cache), (3, false, 1 << 20));
        let told = told(options, (0, 0));
        let text = table(&told, &resolved);
        assert!(text.contains("\nscratch=/c") && text.contains("environment variable PULLFS_SCRATCH\n"), "{text}");
        let json: Value = serde_json::from_str(&json(&told, &resolved).unwrap()).unwrap();
        let of = |name: &str| json.as_array().unwrap().iter().find(|option| option["name"] == name).unwrap();
        assert_eq!((&of("connections")["value"], &of("connections")["line"]), (&3.into(), &7.into()));
        assert_eq!((&of("scratch")["variable"], &of("umask")["from"]), (&"PULLFS_SCRATCH".into(), &"default".into()));
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        for (text, variables, words) in [
            (
                "[options]\nspeed = 1\n",
                [("PULLFS_X", "")],
                "config.toml, line 2 [options]: there is no mount option speed",
            ),
            ("", [("PULLFS_POLITE", "maybe")], "environment variable PULLFS_POLITE: mount option polite"),
            ("", [("PULLFS_NBD", "h:1")], "is over TCP"),
        ] {
            let error = in_file(text, &variables, &[]).unwrap_err();
            assert!(error.kind() == Kind::Invalid && chain(&error).contains(words), "{}", chain(&error));
        }
        let missing = |name: &str| (name == FILE_VARIABLE).then(|| OsString::from("/nonexistent/x"));
        let error = resolve_with(Wanted::All, missing, &[]).unwrap_err();
        assert!(error.to_string().contains("which PULLFS_CONFIG names, does not exist"), "{error}");
    }
}
