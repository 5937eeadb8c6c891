//! The commands that `control` takes.

use crate::options::settings::{Origin, Setting};
use crate::vm::Wanted;

/// One command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// `begin [quiesce] [checkpoint=NAME]` or `begin [quiesce] since=NAME`; the name is the rest of the line.
    Begin(Wanted),
    /// `release`.
    Release,
    /// `delete NAME`; the name is the rest of the line.
    Delete(String),
    /// `set NAME=VALUE`, or `reload NAME=VALUE` for what follows from a configuration that was read anew.
    Set(Setting),
}

impl Command {
    /// None for anything that is not exactly a command.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let line = text.trim();
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let rest = rest.trim();
        match word {
            "release" if rest.is_empty() => Some(Self::Release),
            "delete" if !rest.is_empty() => Some(Self::Delete(rest.to_owned())),
            "set" if !rest.is_empty() => Some(Self::Set(Setting::one(rest.to_owned(), Origin::Control))),
            "reload" if !rest.is_empty() => Some(Self::Set(Setting::one(rest.to_owned(), Origin::Reload))),
            "begin" => {
                let (quiesce, rest) = match rest.strip_prefix("quiesce") {
                    Some(rest) if rest.is_empty() || rest.starts_with(' ') => (true, rest.trim_start()),
                    _ => (false, rest),
                };
                let (checkpoint, since) = match (rest.strip_prefix("checkpoint="), rest.strip_prefix("since=")) {
                    (Some(name), _) => (Some(name.into()), None),
                    (None, Some(name)) if !name.is_empty() => (None, Some(name.into())),
                    _ if rest.is_empty() => (None, None),
                    _ => return None,
                };
                Some(Self::Begin(Wanted { checkpoint, quiesce, since }))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_commands_and_nothing_else() {
        let begin = |quiesce, name: Option<&str>| {
            Some(Command::Begin(Wanted { checkpoint: name.map(Into::into), quiesce, since: None }))
        };
        let since =
            |quiesce, name: &str| Some(Command::Begin(Wanted { checkpoint: None, quiesce, since: Some(name.into()) }));
        assert_eq!(Command::parse("begin since=a b"), since(false, "a b"));
        assert_eq!(Command::parse("begin quiesce since=checkpoint=a"), since(true, "checkpoint=a"));
        assert_eq!(Command::parse("begin\n"), begin(false, None));
        assert_eq!(Command::parse("begin quiesce"), begin(true, None));
        assert_eq!(Command::parse("begin checkpoint=a b"), begin(false, Some("a b")));
        assert_eq!(Command::parse("begin quiesce checkpoint=quiesce\n"), begin(true, Some("quiesce")));
        assert_eq!(Command::parse("release"), Some(Command::Release));
        assert_eq!(Command::parse("delete a b"), Some(Command::Delete("a b".into())));
        for (word, origin) in [("set", Origin::Control), ("reload", Origin::Reload)] {
            let set = |value: Option<&str>| {
                let (name, value) = ("a b".to_owned(), value.map(str::to_owned));
                Some(Command::Set(Setting { name, value, origin: origin.clone() }))
            };
            assert_eq!(Command::parse(&format!("{word} a b=c,=d\n")), set(Some("c,=d")));
            assert_eq!(Command::parse(&format!("{word} a b")), set(None));
        }
        for wrong in [
            "begin since=",
            "set",
            "reload ",
            "setpolite",
            "",
            "begin now",
            "begin quiesced",
            "release now",
            "delete",
            "relase",
            "\0",
        ] {
            assert_eq!(Command::parse(wrong), None, "{wrong:?}");
        }
    }
}
