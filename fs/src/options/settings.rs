//! What options are set to, and by whom.
//!
//! ```text
//! configuration file, [options] ─▶ its section of the source ─▶ environment ─▶ -o          the last one decides
//! ```
//! While mounted, `set` and `reload` of the file `control` decide about those options of which [`TABLE`] says that they can.
//!
//! A [`Setting`] is as it was written; whether it makes sense is asked of each, also of those that another one overrules:
//! a mistake is not to come out on the day when the other one is removed.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::Options;
use super::table::{Described, TABLE, live_names};
use super::value::{split, unknown};
use crate::error::{Error, Kind, Result};

/// What takes a setting back: the option is as it is built in.
const DEFAULT: &str = "default";

/// Who set an option.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "lowercase")]
pub enum Origin {
    /// A line of a configuration file.
    File {
        /// The file.
        file: String,
        /// The section, as it is written between the brackets.
        section: String,
        /// The line, from 1.
        line: usize,
    },
    /// An environment variable.
    Environment {
        /// Its name.
        variable: String,
    },
    /// The command line, or a line of fstab.
    Given,
    /// `set`, while it was mounted.
    Control,
    /// `reload`, while it was mounted.
    Reload,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, section, line } => write!(f, "{file}, line {line} [{section}]"),
            Self::Environment { variable } => write!(f, "environment variable {variable}"),
            Self::Given => f.write_str("-o"),
            Self::Control => f.write_str("set"),
            Self::Reload => f.write_str("reload"),
        }
    }
}

/// One option as somebody set it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Its name, which may be none that there is.
    pub name: String,
    /// What it is set to; none for a flag that is just named.
    pub value: Option<String>,
    /// Who set it.
    #[serde(flatten)]
    pub origin: Origin,
}

impl Setting {
    /// The settings in a text as it stands behind `-o`. A comma in a value is written `\,`.
    pub fn given(text: &str) -> Vec<Self> {
        split(text).into_iter().map(|option| Self::one(option, Origin::Given)).collect()
    }

    /// One option, `NAME=VALUE` or `NAME`, in which a comma is a comma.
    pub fn one(option: String, origin: Origin) -> Self {
        match option.split_once('=') {
            Some((name, value)) => Self { name: name.to_owned(), value: Some(value.to_owned()), origin },
            None => Self { name: option, value: None, origin },
        }
    }

    fn takes_back(&self) -> bool {
        self.value.as_deref() == Some(DEFAULT)
    }

    /// The option that it sets, if what it is set to makes sense.
    fn check(&self) -> Result<&'static Described> {
        let checked = || {
            let option = TABLE.iter().find(|option| option.name() == self.name).ok_or_else(|| unknown(&self.name))?;
            if !self.takes_back() {
                Options::default().apply(option, self.value.as_deref())?;
            }
            Ok(option)
        };
        checked().map_err(|error: Error| match &self.origin {
            Origin::Given | Origin::Control | Origin::Reload => error,
            origin => error.context(origin.to_string()),
        })
    }
}

/// Options, and who decided what they are.
#[derive(Debug, Clone, Default)]
pub struct Resolved {
    /// What is in force.
    pub options: Options,
    /// What decided, by the name of the option. Those that are not in here are as they are built in.
    decided: BTreeMap<&'static str, Setting>,
    /// The last of environment and `-o`, by the name of the option, also what takes one back: what stands whatever a file says.
    over_files: BTreeMap<&'static str, Setting>,
}

impl Resolved {
    /// The options that result if of several settings of one option the last decides.
    ///
    /// # Errors
    /// [`Kind::Invalid`]: an option that does not exist or does not take what it is set to, with who set it so; options
    /// that do not go together.
    pub fn of(settings: impl IntoIterator<Item = Setting>) -> Result<Self> {
        let mut resolved = Self::default();
        for setting in settings {
            let name = setting.check()?.name();
            if matches!(setting.origin, Origin::Environment { .. } | Origin::Given) {
                resolved.over_files.insert(name, setting.clone());
            }
            resolved.decide(name, setting);
        }
        resolved.apply()?;
        Ok(resolved)
    }

    fn decide(&mut self, name: &'static str, setting: Setting) {
        // Of what somebody takes back while it is mounted it is told who did.
        let while_mounted = matches!(setting.origin, Origin::Control | Origin::Reload);
        if setting.takes_back() && !while_mounted {
            self.decided.remove(name);
        } else {
            self.decided.insert(name, setting);
        }
    }

    fn apply(&mut self) -> Result<()> {
        let mut options = Options::default();
        for option in &TABLE {
            if let Some(setting) = self.decided.get(option.name())
                && !setting.takes_back()
            {
                options.apply(option, setting.value.as_deref())?;
            }
        }
        options.go_together()?;
        self.options = options;
        Ok(())
    }

    /// What these would be with one more setting, of an option that can be changed while mounted; and the option's name.
    ///
    /// # Errors
    /// [`Kind::Invalid`] as [`Resolved::of`]; [`Kind::Unsupported`] for an option that takes a new mount.
    pub fn changed(&self, setting: Setting) -> Result<Self> {
        let option = setting.check()?;
        if !option.live {
            let name = option.name();
            let live: Vec<&str> = live_names().collect();
            return Err(Error::new(
                Kind::Unsupported,
                format!(
                    "mount option {name} takes a new mount: unmount, and mount with it; {} can be changed while mounted",
                    live.join(", ")
                ),
            ));
        }
        let mut changed = self.clone();
        changed.decide(option.name(), setting);
        changed.apply()?;
        Ok(changed)
    }

    /// What decided of an option; none if it is as it is built in.
    pub fn decided(&self, name: &str) -> Option<&Setting> {
        self.decided.get(name)
    }

    /// Who decided, by the name of the option.
    pub fn origins(&self) -> BTreeMap<&'static str, &Origin> {
        self.decided.iter().map(|(name, setting)| (*name, &setting.origin)).collect()
    }

    /// What environment and `-o` said when it was mounted: with the settings of a file before them, they are those of a
    /// mount that would be made now.
    pub fn over_files(&self) -> impl Iterator<Item = &Setting> {
        self.over_files.values()
    }
}

impl From<Options> for Resolved {
    /// Of whom nobody knows who decided.
    fn from(options: Options) -> Self {
        Self { options, ..Self::default() }
    }
}

impl Options {
    /// Parses what stands behind `-o`. A comma in a value is written `\,`.
    ///
    /// # Errors
    /// [`Kind::Invalid`], naming the option and what it takes.
    pub fn parse(text: &str) -> Result<Self> {
        Ok(Resolved::of(Setting::given(text))?.options)
    }

    fn apply(&mut self, option: &Described, value: Option<&str>) -> Result<()> {
        let name = option.name();
        match (option.value(), value) {
            (Some(_), Some(value)) => self.set(name, value),
            (None, None | Some("yes")) => self.flag(name, true),
            (None, Some("no")) => self.flag(name, false),
            (None, Some(_)) => {
                Err(Error::new(Kind::Invalid, format!("mount option {name} is set, or takes yes or no")))
            }
            (Some(_), None) => {
                Err(Error::new(Kind::Invalid, format!("mount option {name} takes a value: {}", option.usage)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Settings that there may be.
    fn setting() -> impl Strategy<Value = Setting> {
        let value = |name: &'static str, values: &'static [&'static str]| {
            prop::sample::select(values).prop_map(move |value| (name.to_owned(), Some(value.to_owned())))
        };
        let option = prop_oneof![
            value("scratch", &["/a", "/a,b", "/a\\,", "/\\", "default"]),
            value("disks", &["vda", "vda+vd,b", "default"]),
            value("max_rate", &["20M", "64K", "default"]),
            value("umask", &["027", "7"]),
            value("polite", &["yes", "no", "default"]),
            Just(("polite".to_owned(), None)),
            Just(("allow_other".to_owned(), None)),
        ];
        let origin = prop_oneof![
            Just(Origin::Given),
            Just(Origin::Environment { variable: "PULLFS_X".to_owned() }),
            (1..9_usize).prop_map(|line| Origin::File { file: "/c".into(), section: "options".to_owned(), line }),
        ];
        (option, origin).prop_map(|((name, value), origin)| Setting { name, value, origin })
    }

    proptest! {
        #[test]
        fn the_last_who_sets_an_option_decides_and_of_no_other(settings in prop::collection::vec(setting(), 0..12)) {
            let resolved = Resolved::of(settings.clone()).unwrap();
            for option in TABLE {
                let last = settings.iter().rfind(|setting| setting.name == option.name());
                prop_assert_eq!(resolved.decided(option.name()), last.filter(|setting| !setting.takes_back()));
            }
            let winners = TABLE.iter().filter_map(|option| resolved.decided(option.name()).cloned());
            prop_assert_eq!(&Resolved::of(winners).unwrap().options, &resolved.options);
        }

        #[test]
        fn a_file_that_changes_is_overruled_as_before(
            before in prop::collection::vec(setting(), 0..12), after in prop::collection::vec(setting(), 0..12),
        ) {
            let is_file = |setting: &Setting| matches!(setting.origin, Origin::File { .. });
            let (mut of_file, over): (Vec<_>, Vec<_>) = before.into_iter().partition(is_file);
            of_file.extend(over.clone());
            let mounted = Resolved::of(of_file).unwrap();
            let passed: Vec<Setting> =
                mounted.over_files().map(|setting| serde_json::to_string(setting).unwrap())
                .map(|text| serde_json::from_str(&text).unwrap()).collect();
            let file_now: Vec<Setting> = after.into_iter().filter(is_file).collect();
            let reloaded = Resolved::of(file_now.iter().cloned().chain(passed)).unwrap();
            prop_assert_eq!(reloaded.options, Resolved::of(file_now.into_iter().chain(over)).unwrap().options);
        }
    }

    #[test]
    fn what_can_be_changed_while_mounted_is_and_nothing_else() {
        let set = |text: &str| Setting::one(text.to_owned(), Origin::Control);
        let mounted = Resolved::of(Setting::given("max_rate=1M,cache=8M,polite")).unwrap();
        for option in TABLE {
            let value = option.value().map_or("yes", |_| "default");
            let changed = mounted.changed(set(&format!("{}={value}", option.name())));
            assert_eq!(changed.is_ok(), option.live, "{}", option.usage);
            if let Err(error) = changed {
                assert_eq!(error.kind(), Kind::Unsupported);
                assert!(error.to_string().contains("unmount, and mount with it; start, scratch_limit,"), "{error}");
            }
        }
        let changed = mounted.changed(set("max_rate=2M")).unwrap().changed(set("polite=default")).unwrap();
        assert_eq!(changed.options, Options::parse("max_rate=2M,cache=8M").unwrap());
        let origins = changed.origins();
        assert_eq!(
            (origins["max_rate"], origins["cache"], origins["polite"]),
            (&Origin::Control, &Origin::Given, &Origin::Control)
        );
        assert_eq!(changed.over_files().count(), 3, "as mounted");
        for (text, words) in
            [("max_rate=fast", "bytes a second"), ("speed=1", "no mount option"), ("max_rate", "takes a value")]
        {
            let error = changed.changed(set(text)).unwrap_err();
            assert!(error.kind() == Kind::Invalid && error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn a_mistake_is_told_with_who_made_it_even_if_it_is_overruled() {
        let of = |origin| Setting { name: "start".to_owned(), value: Some("now".to_owned()), origin };
        let file = Origin::File { file: "/etc/c.toml".into(), section: "options".to_owned(), line: 7 };
        let given = Setting::given("start=manual").remove(0);
        for (origin, words) in [
            (file, "/etc/c.toml, line 7 [options]: mount option start=now: it takes read or manual"),
            (
                Origin::Environment { variable: "PULLFS_START".to_owned() },
                "environment variable PULLFS_START: mount option start=now",
            ),
            (Origin::Given, "mount option start=now"),
        ] {
            let error = Resolved::of([of(origin), given.clone()]).unwrap_err();
            assert!(crate::error::chain(&error).starts_with(words), "{error}");
        }
    }

    #[test]
    fn a_setting_can_be_taken_back() {
        let options = Options::parse("polite,allow_other,max_rate=1M,polite=no,max_rate=default,uid=5").unwrap();
        assert_eq!(options, Options { allow_other: true, uid: Some(5), ..Options::default() });
        for (text, words) in [
            ("polite=maybe", "yes or no"),
            ("scratch", "takes a value: scratch=DIR"),
            ("speed=default", "no mount option"),
        ] {
            assert!(Options::parse(text).unwrap_err().to_string().contains(words), "{text}");
        }
    }
}
