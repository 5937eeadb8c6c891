//! Which mount options are in force: `/etc/pullfs/config.toml`, the environment, the command line. `pullfs config` shows it.
//!
//! A daemon in the background resolves them anew from what the command that starts it was given, so that it can tell who
//! said what; `pullfs reload` does once more what that comes to now.

mod file;

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use pullfs_fs::error::{Error, Kind, Result};
use pullfs_fs::options::in_force::{Told, told};
use pullfs_fs::options::settings::{Origin, Resolved, Setting};
use pullfs_fs::options::table::TABLE;
use pullfs_fs::vm::source::Source;
use rustix::process::{getgid, getuid};
use serde::Serialize;
use serde_json::Value;

#[cfg(feature = "libvirt")]
pub(crate) use self::file::GENERAL;
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
pub(crate) fn resolve(source: Option<&Source>, given: &[String]) -> Result<Resolved> {
    let source = source.map(ToString::to_string);
    let wanted = source.as_deref().map_or(Wanted::All, Wanted::Of);
    resolve_with(wanted, variable, given)
}

/// The configuration file that [`resolve`] reads, whether it is there or not.
///
/// # Errors
/// When the current directory, which a path may be relative to, is gone.
pub(crate) fn path() -> std::io::Result<PathBuf> {
    std::path::absolute(named(variable).unwrap_or_else(|| PathBuf::from(FILE)))
}

/// The options of a mount that would be made now of `source` with this configuration file; `over_files` is what environment
/// and `-o` said when it was made.
///
/// # Errors
/// As [`resolve`].
pub(crate) fn anew(source: &str, path: &Path, over_files: Vec<Setting>) -> Result<Resolved> {
    let of_file = match file::read(path, Wanted::Of(source))? {
        None if path != Path::new(FILE) => return Err(missing(path)),
        settings => settings.unwrap_or_default(),
    };
    Resolved::of(of_file.into_iter().chain(over_files))
}

/// Whoever names a file means it; only the usual one need not exist.
fn missing(path: &Path) -> Error {
    Error::new(Kind::Invalid, format!("{}, which {FILE_VARIABLE} names, does not exist", path.display()))
}

fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

fn named(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    variable(FILE_VARIABLE).map(PathBuf::from)
}

fn resolve_with(wanted: Wanted<'_>, variable: impl Fn(&str) -> Option<OsString>, given: &[String]) -> Result<Resolved> {
    let named = named(&variable);
    let path = named.as_deref().unwrap_or(Path::new(FILE));
    let of_file = match file::read(path, wanted)? {
        Some(settings) => settings,
        None if named.is_none() => Vec::new(),
        None => return Err(missing(path)),
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
                let origin = Origin::Environment { variable: name };
                Ok(Setting { name: option.name().to_owned(), value: Some(value), origin })
            }
            Err(_) => Err(Error::new(Kind::Invalid, format!("environment variable {name} is not UTF-8"))),
        })
    };
    TABLE.iter().filter_map(setting).collect()
}

pub(crate) fn run(arguments: &Config) -> Outcome {
    let source = arguments.source.as_deref().map(str::parse::<Source>).transpose()?;
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
    /// Who set it, beginning with the word for that in `from`.
    #[serde(flatten)]
    origin: Option<&'a Origin>,
    /// `default`, if nobody did.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<&'static str>,
}

fn json(told: &[Told], resolved: &Resolved) -> anyhow::Result<String> {
    let shown = |told| {
        let Told { name, value, text }: &Told = told;
        let origin = resolved.decided(name).map(|setting| &setting.origin);
        Shown { name, value, option: text, origin, from: origin.is_none().then_some("default") }
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
        assert_eq!(from("scratch"), Some(Origin::Environment { variable: "PULLFS_SCRATCH".to_owned() }));
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
