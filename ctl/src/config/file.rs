//! The configuration file: sections of TOML whose keys are mount options.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use pullfs_fs::error::{Error, Kind, Result};
use pullfs_fs::options::settings::{Origin, Setting};
use pullfs_fs::vm::source::Source;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The section for every machine.
pub(crate) const GENERAL: &str = "options";
/// What sections of one machine are below.
const OF_SOURCE: &str = "source";

/// Longest file that is read, in bytes.
const MAX_SIZE: u64 = 1 << 20;

/// Which sections of a file are asked for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted<'a> {
    /// What is for every machine, then what is for this one, in its canonical form.
    Of(&'a str),
    /// Each section there is, to find mistakes in.
    All,
}

/// The settings of a file in the order in which they count; none if it does not exist.
///
/// # Errors
/// [`Kind::Invalid`]: it is no TOML, has something that is neither a section nor an option, or others could write it.
/// [`Kind::Io`]: it cannot be read.
pub(super) fn read(path: &Path, wanted: Wanted<'_>) -> Result<Option<Vec<Setting>>> {
    let mut text = String::new();
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened,
    };
    let cannot = |error| Error::with_source(Kind::Io, format!("cannot read {}", path.display()), error);
    let file = file.map_err(cannot)?;
    let metadata = file.metadata().map_err(cannot)?;
    let ours = [0, rustix::process::geteuid().as_raw()].contains(&metadata.uid());
    if metadata.is_file() && (!ours || metadata.mode() & 0o022 != 0) {
        let why = format!("{}: others may write it: chown root and chmod go-w, or it is not believed", path.display());
        return Err(Error::new(Kind::Invalid, why));
    }
    file.take(MAX_SIZE + 1).read_to_string(&mut text).map_err(cannot)?;
    if text.len() as u64 > MAX_SIZE {
        return Err(Error::new(Kind::Invalid, format!("{}: it is longer than 1 MiB", path.display())));
    }
    Page { path, text: &text }.settings(wanted).map(Some)
}

struct Page<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Page<'_> {
    fn settings(&self, wanted: Wanted<'_>) -> Result<Vec<Setting>> {
        let parsed = DeTable::parse(self.text);
        let parsed = parsed.map_err(|error| self.wrong(error.span().unwrap_or_default(), error.message()))?;
        let (mut general, mut of_source) = (Vec::new(), Vec::new());
        for (name, section) in parsed.get_ref() {
            match (name.get_ref().as_ref(), section.get_ref()) {
                (GENERAL, DeValue::Table(table)) => general = self.section(GENERAL, table)?,
                (OF_SOURCE, DeValue::Table(sources)) => of_source = self.sources(sources, wanted)?,
                (name, _) => {
                    let takes = "it has sections [options] and [source.\"qmp:PATH\"]";
                    return Err(self.wrong(section.span(), &format!("what is {name}? {takes}")));
                }
            }
        }
        general.append(&mut of_source);
        Ok(general)
    }

    fn sources(&self, sources: &DeTable<'_>, wanted: Wanted<'_>) -> Result<Vec<Setting>> {
        let mut settings = Vec::new();
        for (source, section) in sources {
            let DeValue::Table(table) = section.get_ref() else {
                let takes = "a section takes the form [source.\"qmp:PATH\"]";
                return Err(self.wrong(section.span(), takes));
            };
            let parsed = source.get_ref().parse::<Source>();
            let asked = match (wanted, parsed) {
                (Wanted::Of(wanted), parsed) => parsed.is_ok_and(|parsed| parsed.to_string() == wanted),
                (Wanted::All, Ok(_)) => true,
                (Wanted::All, Err(error)) => return Err(self.wrong(source.span(), &error.to_string())),
            };
            if asked {
                let name = format!("{OF_SOURCE}.\"{}\"", source.get_ref());
                settings.append(&mut self.section(&name, table)?);
            }
        }
        Ok(settings)
    }

    fn section(&self, section: &str, table: &DeTable<'_>) -> Result<Vec<Setting>> {
        let setting = |(name, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
            let name: &std::borrow::Cow<'_, str> = name.get_ref();
            let written = text(value.get_ref()).ok_or_else(|| {
                let takes = "an option takes text, a whole number, true or false, or a list of them";
                self.wrong(value.span(), &format!("{name}: {takes}"))
            })?;
            let line = self.line(value.span().start);
            let origin = Origin::File { file: self.path.display().to_string(), section: section.to_owned(), line };
            Ok((line, Setting { name: name.to_string(), value: Some(written), origin }))
        };
        let mut settings = table.iter().map(setting).collect::<Result<Vec<_>>>()?;
        // As they are written; the first mistake is the first that is told.
        settings.sort_by_key(|(line, _)| *line);
        Ok(settings.into_iter().map(|(_, setting)| setting).collect())
    }

    fn line(&self, offset: usize) -> usize {
        self.text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
    }

    fn wrong(&self, at: Range<usize>, what: &str) -> Error {
        let place = format!("{}, line {}", self.path.display(), self.line(at.start));
        Error::new(Kind::Invalid, format!("{place}: {what}"))
    }
}

/// A value as it would stand behind `-o`; none for what no option takes.
fn text(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Boolean(on) => Some(if *on { "yes" } else { "no" }.to_owned()),
        // Octal digits stay: the option that takes them, umask, takes no others.
        DeValue::Integer(number) if [8, 10].contains(&number.radix()) => Some(number.as_str().to_owned()),
        DeValue::Array(list) => {
            let parts: Option<Vec<String>> = list.iter().map(|part| scalar(part.get_ref())).collect();
            parts.map(|parts| parts.join("+"))
        }
        DeValue::Integer(_) | DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Table(_) => None,
    }
}

/// A part of a list, which is joined by `+`.
fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::Array(_) => None,
        value => text(value).filter(|text| !text.contains('+')),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use pullfs_fs::error::chain;
    use pullfs_fs::options::Options;
    use pullfs_fs::options::settings::Resolved;

    use super::*;

    fn settings(text: &str, wanted: Wanted<'_>) -> Result<Vec<Setting>> {
        Page { path: Path::new("/c"), text }.settings(wanted)
    }

    fn options(text: &str, source: &str) -> Options {
        Resolved::of(settings(text, Wanted::Of(source)).unwrap()).unwrap().options
    }

    const EXAMPLE: &str = include_str!("../../../docs/config.toml");

    #[test]
    fn the_example_says_what_it_seems_to() {
        assert!(Resolved::of(settings(EXAMPLE, Wanted::All).unwrap()).is_ok());
        let general = options(EXAMPLE, "qmp:/run/other.qmp");
        assert_eq!(general, Options::parse("scratch=/srv/scratch,polite,umask=027").unwrap());
        let of_one = options(EXAMPLE, "qmp:/run/vm1.qmp");
        assert_eq!(of_one, Options::parse("scratch=/srv/scratch,umask=027,disks=vda+vdb,max_rate=50M").unwrap());
    }

    #[test]
    fn a_section_of_its_own_decides_wherever_it_stands() {
        let text = "[source.\"qmp:/run/a\"]\nmax_rate = \"1M\"\n[options]\nmax_rate = \"2M\"\nconnections = 2\n\
                    [source.\"qmp:/run/b\"]\nspeed = 1\n";
        let of_a = options(text, "qmp:/run/a");
        assert_eq!((of_a.max_rate, of_a.connections), (Some(1 << 20), 2));
        let second = &settings(text, Wanted::Of("qmp:/run/a")).unwrap()[1];
        assert_eq!(second.origin.to_string(), "/c, line 5 [options]");
        assert!(Resolved::of(settings(text, Wanted::All).unwrap()).is_err(), "a mistake in the section of another");
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        for (text, words) in [
            ("[options]\nscratch = /x\n", "/c, line 2: "),
            ("\nscratch = \"/x\"\n", "/c, line 2: what is scratch? it has sections"),
            ("[options]\n\npolite = 1.5\n", "/c, line 3: polite: an option takes"),
            ("[options]\ndisks = [\"a+b\"]\n", "/c, line 2: disks: an option takes"),
            ("[options]\numask = 0x17\n", "/c, line 2: umask: an option takes"),
            ("source = 5\n", "/c, line 1: what is source?"),
            ("[source]\nvm1 = 5\n", "/c, line 2: a section takes the form"),
            ("[source.vm1]\n", "/c, line 1: source vm1: it takes qmp:PATH"),
        ] {
            let error = settings(text, Wanted::All).unwrap_err();
            assert!(error.kind() == Kind::Invalid && chain(&error).starts_with(words), "{error}");
        }
    }

    #[test]
    fn a_file_that_others_write_is_not_believed() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        assert!(read(&path, Wanted::All).unwrap().is_none(), "there is none");
        std::fs::write(&path, "[options]\npolite = true\n").unwrap();
        for (mode, believed) in [(0o644, true), (0o600, true), (0o664, false), (0o646, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read(&path, Wanted::All).is_ok(), believed, "{mode:o}");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "#".repeat((1 << 20) + 1)).unwrap();
        assert!(read(&path, Wanted::All).unwrap_err().to_string().contains("longer than 1 MiB"));
        assert!(read(Path::new("/dev/null"), Wanted::All).unwrap().unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn any_text_is_settings_or_an_error(text in "([a-z\"=\\[\\]. 0-9\n]|\\[options\\]\n|polite = ){0,30}") {
            if let Err(error) = settings(&text, Wanted::All) {
                prop_assert!(error.to_string().starts_with("/c, line "));
            }
        }

        #[test]
        fn what_is_written_is_what_an_option_is_set_to(path in "/[a-z,\\\\\"+ ]{0,20}", rate in 65536..1_u64 << 40) {
            let quoted = toml_string(&path);
            let text = format!("[options]\nscratch = {quoted}\nmax_rate = {rate}\ndisks = [\"a\", \"b\"]\nallow_other = true\n");
            let expected = Options {
                scratch: path.into(),
                max_rate: Some(rate),
                disks: Some(["a", "b"].map(str::to_owned).into()),
                allow_other: true,
                ..Options::default()
            };
            prop_assert_eq!(options(&text, "qmp:/x"), expected);
        }
    }

    fn toml_string(text: &str) -> String {
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
    }
}
