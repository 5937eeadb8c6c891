//! Reads maps: the text that `nbdinfo --map` prints, with or without pullfs' header, and its JSON.
//!
//! One extent at a time, so that a map of a million extents costs no more than one of ten. What comes out is checked:
//! extents are in order, do not overlap, and lie within the virtual size where the map tells it.

use std::io::{self, BufRead};
use std::ops::Range;

use serde::Deserialize;

/// Longest line of a text, longest object of JSON, in bytes. Real ones have some 80.
const MAX_LINE: usize = 4096;

/// Lines of header that are kept; pullfs writes six.
const MAX_FACTS: usize = 64;

/// The header line that the picture and the checks need.
const SIZE: &str = "virtual size";

/// A map that cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("line {line}: {problem}")]
    Line { line: u64, problem: Problem },
    #[error("it cannot be read")]
    Io(#[source] io::Error),
}

/// What is wrong with a line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Problem {
    #[error("longer than {MAX_LINE} bytes: this is no map")]
    TooLong,
    #[error("not text: this is no map")]
    NotText,
    #[error("`{0}` is no extent; expected offset, length, type and description")]
    NotAnExtent(String),
    #[error("not an extent in JSON: {0}")]
    NotJson(serde_json::Error),
    #[error("`{0}` is neither data nor a change: this is another kind of map")]
    UnknownKind(String),
    #[error("the virtual size `{0}` is no number")]
    BadSize(String),
    #[error("an extent at {start} after one that ends at {end}: a map is sorted and does not overlap")]
    Disorder { start: u64, end: u64 },
    #[error("an extent ends at {end}, past the virtual size of {size}")]
    PastTheEnd { end: u64, size: u64 },
    #[error("the array is cut off")]
    CutOff,
    #[error("something follows the end of the array")]
    Trailing,
}

/// An extent of a disk and what the map says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) range: Range<u64>,
    /// It changed, or holds data; a map of everything also lists what does not.
    pub(crate) counts: bool,
    /// It reads as zeroes.
    pub(crate) zero: bool,
    /// It is said to have changed, rather than to hold data.
    pub(crate) dirty: bool,
}

/// What a map says about itself, in its order.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) facts: Vec<(String, String)>,
    pub(crate) size: Option<u64>,
}

impl Header {
    /// The first fact of that name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.facts.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }

    fn note(&mut self, comment: &str) -> Result<(), Problem> {
        let Some((name, value)) = comment.split_once(':') else { return Ok(()) };
        let clean = |text: &str| text.trim().replace(char::is_control, "?");
        let (name, value) = (clean(name), clean(value));
        if name == SIZE && self.size.is_none() {
            self.size = Some(value.parse().map_err(|_| Problem::BadSize(value.clone()))?);
        }
        if self.facts.len() < MAX_FACTS {
            self.facts.push((name, value));
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    Json,
    Ended,
}

/// A map: its header, and an iterator over its extents, which ends at the first error.
pub(crate) struct Map<R> {
    input: R,
    /// Lines read so far.
    line: u64,
    form: Form,
    header: Header,
    first: Option<Extent>,
    end: u64,
}

impl<R: BufRead> Map<R> {
    /// Reads as far as the first extent.
    pub(crate) fn new(input: R) -> Result<Self, Error> {
        let mut map = Self { input, line: 1, form: Form::Text, header: Header::default(), first: None, end: 0 };
        if map.peek()? == Some(b'[') {
            map.input.consume(1);
            map.form = Form::Json;
        }
        map.first = map.advance()?;
        Ok(map)
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    /// The end of the last extent so far.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    fn advance(&mut self) -> Result<Option<Extent>, Error> {
        let line = |problem, line| Error::Line { line, problem };
        let found = match self.form {
            Form::Text => self.next_line()?,
            Form::Json => self.next_object()?,
            Form::Ended => None,
        };
        let Some((extent, number)) = found else {
            self.form = Form::Ended;
            return Ok(None);
        };
        let Range { start, end } = extent.range;
        if start < self.end {
            return Err(line(Problem::Disorder { start, end: self.end }, number));
        }
        if let Some(size) = self.header.size.filter(|size| end > *size) {
            return Err(line(Problem::PastTheEnd { end, size }, number));
        }
        self.end = end;
        Ok(Some(extent))
    }

    /// The next extent of a text, and its line.
    fn next_line(&mut self) -> Result<Option<(Extent, u64)>, Error> {
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX) + 1;
            io::Read::take(&mut self.input, limit).read_until(b'\n', &mut bytes).map_err(Error::Io)?;
            if bytes.is_empty() {
                return Ok(None);
            }
            let number = self.line;
            self.line += 1;
            let parsed = self.line_of(&bytes).map_err(|problem| Error::Line { line: number, problem })?;
            if let Some(extent) = parsed {
                return Ok(Some((extent, number)));
            }
        }
    }

    fn line_of(&mut self, bytes: &[u8]) -> Result<Option<Extent>, Problem> {
        if bytes.len() > MAX_LINE {
            return Err(Problem::TooLong);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| Problem::NotText)?.trim();
        if let Some(comment) = text.strip_prefix('#') {
            self.header.note(comment)?;
            return Ok(None);
        }
        if text.is_empty() {
            return Ok(None);
        }
        let strange = || Problem::NotAnExtent(shown(text));
        let fields: Vec<&str> = text.split_whitespace().collect();
        let &[offset, length, kind, description] = fields.as_slice() else { return Err(strange()) };
        let number = |field: &str| field.parse::<u64>().map_err(|_| strange());
        number(kind)?;
        extent(number(offset)?, number(length)?, description).map(Some)
    }

    /// The next object of the array, and the line it begins in.
    fn next_object(&mut self) -> Result<Option<(Extent, u64)>, Error> {
        loop {
            let next = self.peek()?;
            let number = self.line;
            let fail = |problem| Error::Line { line: number, problem };
            match next {
                None => return Err(fail(Problem::CutOff)),
                Some(b'{') => {
                    let object = self.object()?;
                    let item: Item = serde_json::from_slice(&object).map_err(|error| fail(Problem::NotJson(error)))?;
                    let extent = extent(item.offset, item.length, &item.description).map_err(fail)?;
                    return Ok(Some((extent, number)));
                }
                Some(b',') => self.input.consume(1),
                Some(b']') => {
                    self.input.consume(1);
                    return match self.peek()? {
                        None => Ok(None),
                        Some(_) => Err(fail(Problem::Trailing)),
                    };
                }
                Some(byte) => return Err(fail(Problem::NotAnExtent(shown(&char::from(byte).to_string())))),
            }
        }
    }

    /// The text of an object up to its brace. Braces within strings do not count.
    fn object(&mut self) -> Result<Vec<u8>, Error> {
        let number = self.line;
        let fail = |problem| Error::Line { line: number, problem };
        let (mut object, mut in_string, mut escaped) = (Vec::new(), false, false);
        loop {
            let byte = self.byte()?.ok_or_else(|| fail(Problem::CutOff))?;
            self.input.consume(1);
            self.line += u64::from(byte == b'\n');
            object.push(byte);
            match byte {
                _ if object.len() > MAX_LINE => return Err(fail(Problem::TooLong)),
                _ if escaped => escaped = false,
                b'\\' if in_string => escaped = true,
                b'"' => in_string = !in_string,
                b'}' if !in_string => return Ok(object),
                _ => {}
            }
        }
    }

    /// The next byte that is not white space, which stays where it is.
    fn peek(&mut self) -> Result<Option<u8>, Error> {
        loop {
            match self.byte()? {
                Some(byte) if byte.is_ascii_whitespace() => {
                    self.input.consume(1);
                    self.line += u64::from(byte == b'\n');
                }
                other => return Ok(other),
            }
        }
    }

    fn byte(&mut self) -> Result<Option<u8>, Error> {
        loop {
            match self.input.fill_buf() {
                Ok(buffer) => return Ok(buffer.first().copied()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Io(error)),
            }
        }
    }
}

impl<R: BufRead> Iterator for Map<R> {
    type Item = Result<Extent, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(first) = self.first.take() {
            return Some(Ok(first));
        }
        let next = self.advance();
        if next.is_err() {
            self.form = Form::Ended;
        }
        next.transpose()
    }
}

#[derive(Deserialize)]
struct Item {
    offset: u64,
    length: u64,
    description: String,
}

fn extent(offset: u64, length: u64, description: &str) -> Result<Extent, Problem> {
    let end = offset.checked_add(length).ok_or(Problem::PastTheEnd { end: u64::MAX, size: u64::MAX })?;
    let mut extent = Extent { range: offset..end, counts: false, zero: false, dirty: false };
    for word in description.split(',') {
        match word {
            "dirty" => (extent.counts, extent.dirty) = (true, true),
            "data" => extent.counts = true,
            "zero" => extent.zero = true,
            "clean" | "hole" => {}
            _ => return Err(Problem::UnknownKind(shown(description))),
        }
    }
    Ok(extent)
}

/// A piece of somebody else's text that may be printed.
fn shown(text: &str) -> String {
    const LIMIT: usize = 60;
    let mut shown: String = text.chars().take(LIMIT).map(|c| if c.is_control() { '?' } else { c }).collect();
    if text.chars().nth(LIMIT).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
