//! What options are set to, and by whom.
//!
//! ```text
//! configuration file, [options] ─▶ its section of the source ─▶ environment ─▶ -o          the last one decides
//! ```
//! A [`Setting`] is as it was written; whether it makes sense is asked of each, also of those that another one overrules:
//! a mistake is not to come out on the day when the other one is removed.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use super::Options;
use super::table::{Described, TABLE};
use super::value::{split, unknown};
use crate::error::{Error, Kind, Result};

/// What takes a setting back: the option is as it is built in.
const DEFAULT: &str = "default";

/// Who set an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A line of a configuration file.
    File {
        /// The file.
        path: PathBuf,
        /// The section, as it is written between the brackets.
        section: String,
        /// The line, from 1.
        line: usize,
    },
    /// An environment variable, by its name.
    Environment(String),
    /// The command line, or a line of fstab.
    Given,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, section, line } => write!(f, "{}, line {line} [{section}]", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Given => f.write_str("-o"),
        }
    }
}

/// One option as somebody set it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its name, which may be none that there is.
    pub name: String,
    /// What it is set to; none for a flag that is just named.
    pub value: Option<String>,
    /// Who set it.
    pub origin: Origin,
}

impl Setting {
    /// The settings in a text as it stands behind `-o`. A comma in a value is written `\,`.
    pub fn given(text: &str) -> Vec<Self> {
        let setting = |option: String| {
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (option, None),
            };
            Self { name, value, origin: Origin::Given }
        };
        split(text).into_iter().map(setting).collect()
    }

    /// As it would stand behind `-o`, alone.
    fn argument(&self) -> String {
        match &self.value {
            Some(value) => format!("{}={}", self.name, value.replace(',', "\\,")),
            None => self.name.clone(),
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
            Origin::Given => error,
            origin => error.context(origin.to_string()),
        })
    }
}

/// Options, and who decided what they are.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// What is in force.
    pub options: Options,
    /// What decided, by the name of the option. Those that are not in here are as they are built in.
    decided: BTreeMap<&'static str, Setting>,
}

impl Resolved {
    /// The options that result if of several settings of one option the last decides.
    ///
    /// # Errors
    /// [`Kind::Invalid`]: an option that does not exist or does not take what it is set to, with who set it so; options
    /// that do not go together.
    pub fn of(settings: impl IntoIterator<Item = Setting>) -> Result<Self> {
        let mut decided = BTreeMap::new();
        for setting in settings {
            let option = setting.check()?;
            if setting.takes_back() {
                decided.remove(option.name());
            } else {
                decided.insert(option.name(), setting);
            }
        }
        let mut options = Options::default();
        for option in &TABLE {
            if let Some(setting) = decided.get(option.name()) {
                options.apply(option, setting.value.as_deref())?;
            }
        }
        options.go_together()?;
        Ok(Self { options, decided })
    }

    /// What decided of an option; none if it is as it is built in.
    pub fn decided(&self, name: &str) -> Option<&Setting> {
        self.decided.get(name)
    }

    /// The same options for another process, each for a `-o` of its own.
    pub fn arguments(&self) -> impl Iterator<Item = String> {
        self.decided.values().map(Setting::argument)
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
            Just(Origin::Environment("PULLFS_X".to_owned())),
            (1..9_usize).prop_map(|line| Origin::File { path: "/c".into(), section: "options".to_owned(), line }),
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
        fn another_process_gets_the_same(settings in prop::collection::vec(setting(), 0..12)) {
            let resolved = Resolved::of(settings).unwrap();
            let passed = resolved.arguments().flat_map(|argument| Setting::given(&argument));
            prop_assert_eq!(Resolved::of(passed).unwrap().options, resolved.options);
        }
    }

    #[test]
    fn a_mistake_is_told_with_who_made_it_even_if_it_is_overruled() {
        let of = |origin| Setting { name: "start".to_owned(), value: Some("now".to_owned()), origin };
        let file = Origin::File { path: "/etc/c.toml".into(), section: "options".to_owned(), line: 7 };
        let given = Setting::given("start=manual").remove(0);
        for (origin, words) in [
            (file, "/etc/c.toml, line 7 [options]: mount option start=now: it takes read or manual"),
            (
                Origin::Environment("PULLFS_START".to_owned()),
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
