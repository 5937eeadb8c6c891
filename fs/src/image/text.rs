//! `dirty.map`, `dirty.json`, `allocated.map`: extents as text in the form of `nbdinfo --map`.
//!
//! The text of a million extents is some 40 MB, so none of it is kept: an index tells at which offset every
//! [`STRIDE`]th line begins, and a read writes just the lines that it covers.

use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Image, Seek, Segment, no_such_data};
use crate::block::extents::Extents;
use crate::error::Result;

/// Lines between two entries of the index.
const STRIDE: usize = 256;

/// How an extent is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A line as `nbdinfo --map` prints it.
    Map,
    /// An element of the array that `nbdinfo --map --json` prints.
    Json,
}

/// Type and description that `nbdinfo --map` gives the extents of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    /// The flags of the extent in its metadata context.
    pub flags: u32,
    /// What they mean.
    pub description: &'static str,
}

/// Changed since the checkpoint.
pub const DIRTY: Label = Label { flags: 1, description: "dirty" };

/// Holds data.
pub const DATA: Label = Label { flags: 0, description: "data" };

/// Extents as text.
pub struct Text {
    header: String,
    footer: &'static str,
    form: Form,
    label: Label,
    extents: Arc<Extents>,
    /// Offset in the file of lines 0, `STRIDE`, 2 × `STRIDE` …
    index: Vec<u64>,
    size: u64,
}

impl Text {
    /// `header` is what stands above the lines of a map (each line with its `#`); JSON has none.
    pub fn new(form: Form, header: String, label: Label, extents: Arc<Extents>) -> Self {
        let (header, footer) = match form {
            Form::Map => (header, ""),
            Form::Json if extents.is_empty() => ("[]\n".to_owned(), ""),
            Form::Json => ("[\n".to_owned(), "\n]\n"),
        };
        let mut text = Self { header, footer, form, label, extents, index: Vec::new(), size: 0 };
        text.measure();
        text
    }

    fn measure(&mut self) {
        let mut at = bytes_of(&self.header);
        let mut line = String::new();
        let mut index = Vec::with_capacity(self.extents.len() / STRIDE + 1);
        for (number, extent) in self.extents.iter().enumerate() {
            if number % STRIDE == 0 {
                index.push(at);
            }
            line.clear();
            self.write_line(&mut line, number, &extent);
            at += bytes_of(&line);
        }
        self.index = index;
        self.size = at + bytes_of(self.footer);
    }

    fn write_line(&self, out: &mut String, number: usize, extent: &Range<u64>) {
        let (offset, length) = (extent.start, extent.end - extent.start);
        let Label { flags, description } = self.label;
        let written = match self.form {
            Form::Map => writeln!(out, "{offset:>10}  {length:>10}  {flags:>3}  {description}"),
            Form::Json => {
                let comma = if number == 0 { "" } else { ",\n" };
                write!(
                    out,
                    "{comma}{{ \"offset\": {offset}, \"length\": {length}, \"type\": {flags}, \
                     \"description\": \"{description}\"}}"
                )
            }
        };
        debug_assert!(written.is_ok(), "writing to a string does not fail");
    }

    /// The text from the last indexed line at or before `range.start` until `range.end` is covered, and where it begins.
    fn lines_around(&self, range: &Range<u64>) -> (u64, String) {
        let entry = self.index.partition_point(|&at| at <= range.start);
        let (mut number, begin, mut out) = match entry.checked_sub(1) {
            Some(entry) => (entry * STRIDE, self.index[entry], String::new()),
            None => (0, 0, self.header.clone()),
        };
        while begin + bytes_of(&out) < range.end {
            let Some(extent) = self.extents.get(number) else {
                out.push_str(self.footer);
                break;
            };
            self.write_line(&mut out, number, &extent);
            number += 1;
        }
        (begin, out)
    }
}

fn bytes_of(text: &str) -> u64 {
    u64::try_from(text.len()).unwrap_or(u64::MAX)
}

/// The range of `text`, which begins at file offset `begin`, that the file range `range` covers.
fn cut(text: &str, begin: u64, range: &Range<u64>) -> Range<usize> {
    let place = |at: u64| usize::try_from(at.saturating_sub(begin)).unwrap_or(usize::MAX).min(text.len());
    place(range.start)..place(range.end)
}

#[async_trait]
impl Image for Text {
    fn size(&self) -> u64 {
        self.size
    }

    fn data_bytes(&self) -> u64 {
        self.size
    }

    fn map(&self, range: Range<u64>) -> Vec<Segment> {
        let (begin, text) = self.lines_around(&range);
        let cut = cut(&text, begin, &range);
        vec![Segment::Bytes(Bytes::from(text).slice(cut))]
    }

    async fn seek(&self, offset: u64, what: Seek) -> Result<u64> {
        match what {
            _ if offset >= self.size => Err(no_such_data(offset)),
            Seek::Data => Ok(offset),
            Seek::Hole => Ok(self.size),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(text: &Text) -> String {
        bytes(text, 0..text.size())
    }

    fn bytes(text: &Text, range: Range<u64>) -> String {
        match text.map(range).pop() {
            Some(Segment::Bytes(bytes)) => String::from_utf8(bytes.to_vec()).unwrap(),
            other => panic!("text is bytes, not {other:?}"),
        }
    }

    fn extents(lengths: &[(u32, u32)]) -> Arc<Extents> {
        let (mut list, mut at) = (Extents::default(), 0);
        for &(gap, length) in lengths {
            at += u64::from(gap) + 1;
            list.push(at..at + u64::from(length) + 1).unwrap();
            at += u64::from(length) + 1;
        }
        Arc::new(list)
    }

    #[test]
    fn looks_like_nbdinfo() {
        let list = extents(&[(1_048_575, 131_071), (10_000_000, 4095)]);
        let map = Text::new(Form::Map, "# head\n".into(), DIRTY, list.clone());
        let lines = "# head\n   1048576      131072    1  dirty\n  11179649        4096    1  dirty\n";
        assert_eq!(whole(&map), lines);
        let json = Text::new(Form::Json, "# head\n".into(), DIRTY, list);
        let array = "[\n{ \"offset\": 1048576, \"length\": 131072, \"type\": 1, \"description\": \"dirty\"},\n\
                     { \"offset\": 11179649, \"length\": 4096, \"type\": 1, \"description\": \"dirty\"}\n]\n";
        assert_eq!(whole(&json), array);
    }

    #[test]
    fn an_empty_array_is_still_json() {
        assert_eq!(whole(&Text::new(Form::Json, String::new(), DIRTY, Arc::default())), "[]\n");
        assert_eq!(whole(&Text::new(Form::Map, "# x\n".into(), DATA, Arc::default())), "# x\n");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_window_is_a_cut_of_the_whole(
            lengths in proptest::collection::vec((any::<u32>(), any::<u32>()), 0..700),
            json: bool, a: u32, b: u32,
        ) {
            let form = if json { Form::Json } else { Form::Map };
            let text = Text::new(form, "# one\n# two\n".into(), DIRTY, extents(&lengths));
            let all = whole(&text);
            prop_assert_eq!(bytes_of(&all), text.size());
            let (a, b) = (u64::from(a) % (text.size() + 1), u64::from(b) % (text.size() + 1));
            let (low, high) = (a.min(b), a.max(b));
            let expected = &all[usize::try_from(low).unwrap()..usize::try_from(high).unwrap()];
            prop_assert_eq!(bytes(&text, low..high), expected);
        }
    }
}
