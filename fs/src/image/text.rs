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
use crate::block::changes::Changes;
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

/// Changed since the checkpoint, and reads as zeroes.
pub const DIRTY_ZERO: Label = Label { flags: 3, description: "dirty,zero" };

/// Holds data.
pub const DATA: Label = Label { flags: 0, description: "data" };

/// A place in several sorted lists that have nothing in common: the index of the next extent in each.
type Cursor = [usize; LISTS];

/// As many kinds of extents as one file has at most.
const LISTS: usize = 2;

/// Extents as text.
pub struct Text {
    header: String,
    footer: &'static str,
    form: Form,
    lists: Lists,
    /// Offset in the file of lines 0, `STRIDE`, 2 × `STRIDE` …, and the place of their extents.
    index: Vec<(u64, Cursor)>,
    size: u64,
}

/// What is listed.
#[derive(Clone)]
enum Lists {
    Allocation(Arc<Extents>),
    Changes(Arc<Changes>),
}

impl Lists {
    fn get(&self, index: usize) -> Option<(Label, &Extents)> {
        match (self, index) {
            (Self::Allocation(data), 0) => Some((DATA, data)),
            (Self::Changes(changes), 0) => Some((DIRTY, &changes.data)),
            (Self::Changes(changes), 1) => Some((DIRTY_ZERO, &changes.zero)),
            _ => None,
        }
    }

    fn len(&self) -> usize {
        (0..LISTS).filter_map(|index| self.get(index)).map(|(_, extents)| extents.len()).sum()
    }

    /// The next extent in the order of the disk; the cursor moves past it.
    fn next(&self, cursor: &mut Cursor) -> Option<(Label, Range<u64>)> {
        let candidates = (0..LISTS).filter_map(|index| {
            let (label, extents) = self.get(index)?;
            Some((index, label, extents.get(cursor[index])?))
        });
        let (index, label, extent) = candidates.min_by_key(|(_, _, extent)| extent.start)?;
        cursor[index] += 1;
        Some((label, extent))
    }
}

impl Text {
    /// The extents that hold data. `header` is what stands above the lines of a map (each line with its `#`); JSON has
    /// none.
    pub fn allocation(form: Form, header: String, data: Arc<Extents>) -> Self {
        Self::new(form, header, Lists::Allocation(data))
    }

    /// What changed; `header` as above.
    pub fn changes(form: Form, header: String, changes: Arc<Changes>) -> Self {
        Self::new(form, header, Lists::Changes(changes))
    }

    fn new(form: Form, header: String, lists: Lists) -> Self {
        let (header, footer) = match form {
            Form::Map => (header, ""),
            Form::Json if lists.len() == 0 => ("[]\n".to_owned(), ""),
            Form::Json => ("[\n".to_owned(), "\n]\n"),
        };
        let mut text = Self { header, footer, form, lists, index: Vec::new(), size: 0 };
        text.measure();
        text
    }

    fn measure(&mut self) {
        let mut at = bytes_of(&self.header);
        let mut line = String::new();
        let mut index = Vec::with_capacity(self.lists.len() / STRIDE + 1);
        let mut cursor = Cursor::default();
        loop {
            let (place, number) = (cursor, cursor.iter().sum::<usize>());
            let Some((label, extent)) = self.lists.next(&mut cursor) else { break };
            if number % STRIDE == 0 {
                index.push((at, place));
            }
            line.clear();
            self.write_line(&mut line, number, label, &extent);
            at += bytes_of(&line);
        }
        self.index = index;
        self.size = at + bytes_of(self.footer);
    }

    fn write_line(&self, out: &mut String, number: usize, label: Label, extent: &Range<u64>) {
        let (offset, length) = (extent.start, extent.end - extent.start);
        let Label { flags, description } = label;
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
        let entry = self.index.partition_point(|&(at, _)| at <= range.start);
        let (begin, mut cursor, mut out) = match entry.checked_sub(1) {
            Some(entry) => (self.index[entry].0, self.index[entry].1, String::new()),
            None => (0, Cursor::default(), self.header.clone()),
        };
        while begin + bytes_of(&out) < range.end {
            let number = cursor.iter().sum();
            let Some((label, extent)) = self.lists.next(&mut cursor) else {
                out.push_str(self.footer);
                break;
            };
            self.write_line(&mut out, number, label, &extent);
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

    /// Extents of the lengths, each after a gap; every third one is zeroes.
    fn changes(lengths: &[(u32, u32)]) -> Arc<Changes> {
        let (mut changes, mut at) = (Changes::default(), 0);
        for (index, &(gap, length)) in lengths.iter().enumerate() {
            at += u64::from(gap) + 1;
            let list = if index % 3 == 2 { &mut changes.zero } else { &mut changes.data };
            list.push(at..at + u64::from(length) + 1).unwrap();
            at += u64::from(length) + 1;
        }
        Arc::new(changes)
    }

    #[test]
    fn looks_like_nbdinfo() {
        let list = changes(&[(1_048_575, 131_071), (10_000_000, 4095), (0, 511)]);
        let map = Text::changes(Form::Map, "# head\n".into(), list.clone());
        let lines = "# head\n   1048576      131072    1  dirty\n  11179649        4096    1  dirty\n\
                     \x20 11183746         512    3  dirty,zero\n";
        assert_eq!(whole(&map), lines);
        let json = Text::changes(Form::Json, "# head\n".into(), list);
        let array = "[\n{ \"offset\": 1048576, \"length\": 131072, \"type\": 1, \"description\": \"dirty\"},\n\
                     { \"offset\": 11179649, \"length\": 4096, \"type\": 1, \"description\": \"dirty\"},\n\
                     { \"offset\": 11183746, \"length\": 512, \"type\": 3, \"description\": \"dirty,zero\"}\n]\n";
        assert_eq!(whole(&json), array);
    }

    #[test]
    fn an_empty_array_is_still_json() {
        assert_eq!(whole(&Text::changes(Form::Json, String::new(), Arc::default())), "[]\n");
        assert_eq!(whole(&Text::allocation(Form::Map, "# x\n".into(), Arc::default())), "# x\n");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_window_is_a_cut_of_the_whole(
            lengths in proptest::collection::vec((any::<u32>(), any::<u32>()), 0..700),
            json: bool, a: u32, b: u32,
        ) {
            let form = if json { Form::Json } else { Form::Map };
            let text = Text::changes(form, "# one\n# two\n".into(), changes(&lengths));
            let all = whole(&text);
            prop_assert_eq!(bytes_of(&all), text.size());
            let (a, b) = (u64::from(a) % (text.size() + 1), u64::from(b) % (text.size() + 1));
            let (low, high) = (a.min(b), a.max(b));
            let expected = &all[usize::try_from(low).unwrap()..usize::try_from(high).unwrap()];
            prop_assert_eq!(bytes(&text, low..high), expected);
        }
    }
}
