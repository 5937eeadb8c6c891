//! As much of Rust as is needed to find string literals and tests in the sources.

use std::fs;
use std::path::{Path, PathBuf};

use pullfs_tests::tools::workspace;

/// A string literal.
#[derive(Debug, PartialEq)]
pub(crate) struct Literal {
    pub(crate) text: String,
    /// Its line, from 1.
    pub(crate) line: usize,
    /// What it is within, from the outside: the names before the brackets that are open, `#` for an attribute.
    pub(crate) within: Vec<String>,
}

/// The directories of the workspace's crates.
pub(crate) fn members() -> Vec<String> {
    let manifest = read("Cargo.toml");
    let list = manifest.lines().find_map(|line| line.strip_prefix("members = [")).expect("the members, on one line");
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Every `.rs` file below `dir`, a directory of the workspace; paths are relative to that, in order.
pub(crate) fn files(dir: &str) -> Vec<PathBuf> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        for path in entries.map(|entry| entry.expect("an entry").path()) {
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path.strip_prefix(workspace()).expect("a path in the workspace").to_owned());
            }
        }
    }
    let mut found = Vec::new();
    walk(&workspace().join(dir), &mut found);
    found.sort();
    found
}

/// The text of a file of the workspace.
pub(crate) fn read(path: impl AsRef<Path>) -> String {
    let path = workspace().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A file without the module of its tests, which is the last thing in it.
pub(crate) fn without_tests(source: &str) -> &str {
    let Some(at) = source.find("#[cfg(test)]\nmod tests {") else { return source };
    let end = source[at..].find("\n}\n").map(|end| at + end + "\n}\n".len());
    assert_eq!(end, Some(source.len()), "something follows the tests of {}", source.lines().next().unwrap_or_default());
    &source[..at]
}

/// All string literals of `source`.
pub(crate) fn literals(source: &str) -> Vec<Literal> {
    let (mut at, mut line, mut within, mut found) = (0, 1, Vec::new(), Vec::new());
    while let Some(c) = source[at..].chars().next() {
        let rest = &source[at..];
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some((text, length)) = raw_string(&source[..at], rest) {
            found.push(Literal { text: text.to_owned(), line, within: within.clone() });
            length
        } else if c == '"' {
            let (text, length) = string(rest);
            found.push(Literal { text, line, within: within.clone() });
            length
        } else if c == '\'' {
            character(rest)
        } else {
            match c {
                '(' | '[' | '{' => within.push(name_before(&source[..at])),
                ')' | ']' | '}' => drop(within.pop()),
                _ => {}
            }
            c.len_utf8()
        };
        line += source[at..at + length].matches('\n').count();
        at += length;
    }
    found
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The name of what is called, with the `!` of a macro.
fn name_before(source: &str) -> String {
    if source.ends_with('#') {
        return "#".to_owned();
    }
    let name = source.trim_end_matches('!').trim_end_matches(is_name).len();
    source[name..].to_owned()
}

/// The text of a raw string at the beginning of `rest`, and how long it is in the source.
fn raw_string<'a>(before: &str, rest: &'a str) -> Option<(&'a str, usize)> {
    let begun = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r')).filter(|_| !before.ends_with(is_name))?;
    let hashes = &begun[..begun.len() - begun.trim_start_matches('#').len()];
    let text = begun[hashes.len()..].strip_prefix('"')?;
    let end = format!("\"{hashes}");
    let length = text.find(&end).expect("the end of a raw string");
    Some((&text[..length], rest.len() - text.len() + length + end.len()))
}

/// The text of a string at the beginning of `rest`, and how long it is in the source.
fn string(rest: &str) -> (String, usize) {
    let mut text = String::new();
    let mut chars = rest.char_indices().skip(1).peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (text, at + 1),
            '\\' => match chars.next().expect("an escaped character").1 {
                'n' => text.push('\n'),
                't' => text.push('\t'),
                '\n' => while chars.next_if(|next| next.1.is_whitespace()).is_some() {},
                'u' | 'x' => {
                    // Which one it is tells nobody anything.
                    text.push('?');
                    while chars.next_if(|next| next.1 == '{' || next.1 == '}' || next.1.is_ascii_hexdigit()).is_some() {
                    }
                }
                other => text.push(other),
            },
            other => text.push(other),
        }
    }
    panic!("a string without an end: {}", rest.lines().next().unwrap_or_default());
}

/// How long the character, or the quote of a lifetime, at the beginning of `rest` is.
fn character(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some((escaped, c))) => {
            let after = escaped + c.len_utf8();
            after + rest[after..].find('\'').expect("the end of a character") + 1
        }
        (Some(_), Some((end, '\''))) => end + 1,
        _ => 1,
    }
}

/// The names of the tests that `source` has: `#[test] fn`, `#[tokio::test] async fn`, and `on!`. One that is ignored is none.
pub(crate) fn tests(source: &str) -> Vec<String> {
    let name = |text: &str| text[..text.find(|c| !is_name(c)).unwrap_or(text.len())].to_owned();
    let (mut found, mut marked) = (Vec::new(), false);
    for line in source.lines().map(str::trim_start) {
        if let Some(rest) = line.strip_prefix("on!(") {
            found.push(name(rest));
        } else if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            marked = true;
        } else if line.starts_with("#[ignore") {
            marked = false;
        } else if let Some(rest) = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ") {
            if marked {
                found.push(name(rest));
            }
            marked = false;
        }
    }
    // What a macro makes is found where that is used.
    found.retain(|name| !name.is_empty());
    found
}

#[test]
fn literals_are_found_and_nothing_else() {
    let source = r##"
        // "a comment" isn't one
        fn f<'a>(x: &'a str) -> char { bad("a \"b\"", format!("c {d}\
              e")); '"'; '\''; '\u{22}' }
        #[error("g")] /* "h" */ const I: &str = r#"j "k" "#; let l = ["m\u{1b}n"];"##;
    let found: Vec<_> = literals(source).into_iter().map(|one| (one.text, one.line, one.within.join(" "))).collect();
    let expected = [
        ("a \"b\"", 3, " bad"),
        ("c {d}e", 3, " bad format!"),
        ("g", 5, "# error"),
        ("j \"k\" ", 5, ""),
        ("m?n", 5, ""),
    ];
    assert_eq!(found, expected.map(|(text, line, within)| (text.to_owned(), line, within.to_owned())));
}

#[test]
fn tests_are_found_however_they_are_made() {
    let source = "#[test]\nfn a() {}\nfn b() {}\n  #[tokio::test(flavor = \"x\")]\n  #[cfg(y)]\n  async fn c() {}\n\
                  on!(d: new = New);\nfn d(flavor: Flavor) {}\n#[test]\n#[ignore]\nfn e() {}\n#[test]\nfn $f() {}\n";
    assert_eq!(tests(source), ["a", "c", "d"]);
}

#[test]
fn the_module_of_tests_is_left_out() {
    assert_eq!(without_tests("a\n#[cfg(test)]\nmod tests {\n    b\n}\n"), "a\n");
    assert_eq!(without_tests("a\n#[cfg(test)]\nmod tests;\nb\n"), "a\n#[cfg(test)]\nmod tests;\nb\n");
}

#[test]
#[should_panic(expected = "something follows the tests")]
fn what_follows_the_tests_is_not_overlooked() {
    without_tests("a\n#[cfg(test)]\nmod tests {\n    b\n}\nc\n");
}
