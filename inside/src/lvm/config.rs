//! The text that LVM2 keeps its metadata in.
//!
//! ```text
//! section { name = 1  other = "text"  list = ["a", 0]  inner { … } }   # a comment
//! ```

/// Deepest nesting: a volume group's text has four levels.
const MAX_DEPTH: usize = 16;

/// Most names and values together. A logical volume has some thirty.
const MAX_NODES: usize = 500_000;

/// The value of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Number(u64),
    /// As it is written, with its escapes.
    Text(&'a [u8]),
    List(Vec<Value<'a>>),
    Section(Section<'a>),
}

/// Names and their values.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Section<'a>(Vec<(&'a [u8], Value<'a>)>);

impl<'a> Section<'a> {
    /// Parses a text; none if it is none.
    pub(super) fn parse(text: &'a [u8]) -> Option<Self> {
        // What comes after a NUL is not part of the text.
        let text = text.split(|&byte| byte == 0).next()?;
        let mut parser = Parser { rest: text, nodes: 0 };
        let section = parser.section(0)?;
        parser.rest.is_empty().then_some(section)
    }

    pub(super) fn get(&self, name: &str) -> Option<&Value<'a>> {
        self.0.iter().find(|(one, _)| *one == name.as_bytes()).map(|(_, value)| value)
    }

    pub(super) fn number(&self, name: &str) -> Option<u64> {
        if let Value::Number(number) = self.get(name)? { Some(*number) } else { None }
    }

    pub(super) fn text(&self, name: &str) -> Option<&'a [u8]> {
        if let Value::Text(text) = self.get(name)? { Some(text) } else { None }
    }

    pub(super) fn list(&self, name: &str) -> Option<&[Value<'a>]> {
        if let Value::List(list) = self.get(name)? { Some(list) } else { None }
    }

    pub(super) fn section(&self, name: &str) -> Option<&Section<'a>> {
        if let Value::Section(section) = self.get(name)? { Some(section) } else { None }
    }

    /// The sections in it, by name.
    pub(super) fn sections(&self) -> impl Iterator<Item = (&'a [u8], &Section<'a>)> {
        self.0.iter().filter_map(|(name, value)| match value {
            Value::Section(section) => Some((*name, section)),
            _ => None,
        })
    }

    /// Whether a list has that text.
    pub(super) fn has(&self, name: &str, text: &str) -> bool {
        self.list(name).is_some_and(|list| list.contains(&Value::Text(text.as_bytes())))
    }
}

struct Parser<'a> {
    rest: &'a [u8],
    nodes: usize,
}

impl<'a> Parser<'a> {
    /// Skips white space and comments; the next byte.
    fn peek(&mut self) -> Option<u8> {
        loop {
            match *self.rest.first()? {
                b'#' => self.take(|byte| byte != b'\n'),
                byte if byte.is_ascii_whitespace() => self.take(|byte| byte.is_ascii_whitespace()),
                byte => return Some(byte),
            };
        }
    }

    fn take(&mut self, wanted: impl Fn(u8) -> bool) -> &'a [u8] {
        let end = self.rest.iter().position(|&byte| !wanted(byte)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    fn eat(&mut self, wanted: u8) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.rest = &self.rest[1..];
        }
        found
    }

    fn count(&mut self) -> Option<()> {
        self.nodes += 1;
        (self.nodes <= MAX_NODES).then_some(())
    }

    fn section(&mut self, depth: usize) -> Option<Section<'a>> {
        let mut section = Section::default();
        while self.peek().is_some_and(|byte| byte != b'}') {
            self.count()?;
            let name = self.take(|byte| byte.is_ascii_alphanumeric() || b"_-.+/@:".contains(&byte));
            if name.is_empty() {
                return None;
            }
            let value = if self.eat(b'=') {
                self.value()?
            } else if depth < MAX_DEPTH && self.eat(b'{') {
                let inner = self.section(depth + 1)?;
                self.eat(b'}').then_some(Value::Section(inner))?
            } else {
                return None;
            };
            section.0.push((name, value));
        }
        Some(section)
    }

    fn value(&mut self) -> Option<Value<'a>> {
        if !self.eat(b'[') {
            return self.single();
        }
        let mut list = Vec::new();
        while !self.eat(b']') {
            list.push(self.single()?);
            if !self.eat(b',') && self.peek() != Some(b']') {
                return None;
            }
        }
        Some(Value::List(list))
    }

    fn single(&mut self) -> Option<Value<'a>> {
        self.count()?;
        let first = self.peek()?;
        if first != b'"' {
            let digits = self.take(|byte| byte.is_ascii_digit());
            return std::str::from_utf8(digits).ok()?.parse().ok().map(Value::Number);
        }
        let text = self.rest.get(1..)?;
        let mut escaped = false;
        let end = text.iter().position(|&byte| {
            let ends = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            ends
        })?;
        let (text, rest) = text.split_at(end);
        self.rest = rest.get(1..)?;
        Some(Value::Text(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_understood() {
        let text = b"# head\nvg-0 { # name\n n = 12 s=\"a \\\"b\" e = [] l = [\"x\", 3,\n\"y\"]\n in { deep { } } }\n v = 1\n\0";
        let root = Section::parse(text).unwrap();
        let group = root.section("vg-0").unwrap();
        assert_eq!(group.number("n"), Some(12));
        assert_eq!(group.text("s"), Some(&b"a \\\"b"[..]));
        assert_eq!(group.list("e").unwrap(), []);
        assert!(group.has("l", "y") && !group.has("l", "z"));
        assert!(group.section("in").unwrap().section("deep").is_some());
        assert_eq!(root.number("v"), Some(1));
        assert_eq!(root.sections().count(), 1);
    }

    #[test]
    fn what_is_no_text_is_refused() {
        for text in [
            "a",
            "a = ",
            "a = \"b",
            "a {",
            "a { } }",
            "= 1",
            "a = [1",
            "a = [1 2]",
            "a = 99999999999999999999",
            "a = -1",
        ] {
            assert_eq!(Section::parse(text.as_bytes()), None, "{text}");
        }
        let deep = "a {".repeat(100_000);
        assert_eq!(Section::parse(deep.as_bytes()), None, "nesting is bounded");
        let many = "a = 1\n".repeat(MAX_NODES + 1);
        assert_eq!(Section::parse(many.as_bytes()), None, "names are bounded");
    }
}
