//! A document of `docs/` as a manual page.
//!
//! Its title is left out, what follows is DESCRIPTION, headings are sections. A row of a table is an item: the first cell
//! its name, the others its text, those between in brackets.

use std::mem::take;

use clap_mangen::roff::{Inline, Roff, bold, italic, roman};
use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

use crate::{NO_DATE, SOURCE};

/// All pages that are no command's. The name may be a command's too.
const OTHERS: [(&str, &str); 5] =
    [("pullfs", "1"), ("pullfs-config", "5"), ("pullfs-status", "5"), ("pullfs-tree", "5"), ("mount.pullfs", "8")];

/// What a page is called.
pub(crate) struct Page {
    pub(crate) name: &'static str,
    pub(crate) section: &'static str,
    pub(crate) summary: &'static str,
}

impl Page {
    /// The page with the text of a document.
    pub(crate) fn render(&self, markdown: &str) -> String {
        let mut writer = Writer { fresh: true, ..Writer::default() };
        writer.roff.control("TH", [self.name, self.section, NO_DATE, SOURCE, "pullfs"]);
        writer.roff.control("SH", ["NAME"]).text([roman(format!("{} - {}", self.name, self.summary))]);
        writer.roff.control("SH", ["DESCRIPTION"]);
        Parser::new_ext(markdown, Options::ENABLE_TABLES).for_each(|event| writer.event(event));
        see_also(&mut writer.roff, self.name, self.section);
        writer.roff.render()
    }
}

/// The last section, on the page `name` of `section`.
pub(crate) fn see_also(roff: &mut Roff, name: &str, section: &str) {
    let mut line = Vec::new();
    for (other, section) in OTHERS.into_iter().filter(|other| *other != (name, section)) {
        if !line.is_empty() {
            line.push(roman(", "));
        }
        line.extend([bold(other), roman(format!("({section})"))]);
    }
    roff.control("SH", ["SEE ALSO"]).text(line);
}

/// The page so far, and the text that waits for the end of its paragraph or cell.
#[derive(Default)]
struct Writer {
    roff: Roff,
    text: Vec<Inline>,
    /// The cells of the row so far.
    cells: Vec<Vec<Inline>>,
    /// What the text is set in, innermost last; roman when there is none.
    fonts: Vec<fn(String) -> Inline>,
    /// Whether lines are to stay as they are.
    verbatim: bool,
    /// Whether a paragraph is an item's, which has begun already.
    item: bool,
    /// Whether nothing stands below the heading yet.
    fresh: bool,
}

impl Writer {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Text(text) if self.verbatim => self.code(&text),
            Event::Text(text) => {
                let font = self.fonts.last().copied().unwrap_or(roman);
                self.text.push(font(text.into_string()));
            }
            Event::Code(code) => self.text.push(bold(&*code)),
            Event::SoftBreak | Event::HardBreak => self.text.push(roman(" ")),
            Event::Start(tag) => self.start(&tag),
            Event::End(tag) => self.end(tag),
            // Comments are for who reads the source; nothing else is used in our documents.
            _ => {}
        }
    }

    fn start(&mut self, tag: &Tag<'_>) {
        match tag {
            Tag::Emphasis => self.fonts.push(italic),
            Tag::Strong => self.fonts.push(bold),
            Tag::Paragraph if !self.item => self.begin(),
            Tag::Item => {
                // A list within an item.
                self.paragraph();
                (self.item, self.fresh) = (true, false);
                self.roff.control("IP", ["\\(bu", "2"]);
            }
            Tag::CodeBlock(_) => {
                self.verbatim = true;
                self.begin();
                self.roff.control("RS", ["4"]).control("nf", []);
            }
            _ => {}
        }
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Emphasis | TagEnd::Strong => drop(self.fonts.pop()),
            TagEnd::Heading(level) => self.heading(level),
            TagEnd::Paragraph => self.paragraph(),
            TagEnd::Item => {
                self.paragraph();
                self.item = false;
            }
            TagEnd::CodeBlock => {
                self.verbatim = false;
                self.roff.control("fi", []).control("RE", []);
            }
            TagEnd::TableCell => self.cells.push(take(&mut self.text)),
            // What the columns are called is clear from what is in them.
            TagEnd::TableHead => self.cells.clear(),
            TagEnd::TableRow => self.row(),
            _ => {}
        }
    }

    /// A paragraph begins, which the first one below a heading does by itself.
    fn begin(&mut self) {
        if !take(&mut self.fresh) {
            self.roff.control("PP", []);
        }
    }

    /// What was read of a paragraph is all there is of it.
    fn paragraph(&mut self) {
        if !self.text.is_empty() {
            self.roff.text(take(&mut self.text));
        }
    }

    fn heading(&mut self, level: HeadingLevel) {
        let words = take(&mut self.text).into_iter().map(|inline| match inline {
            Inline::Roman(text) | Inline::Italic(text) | Inline::Bold(text) => text,
            Inline::LineBreak => " ".to_owned(),
        });
        let heading: String = words.collect();
        let (macro_name, heading) = match level {
            HeadingLevel::H1 => return,
            HeadingLevel::H2 => ("SH", heading.to_uppercase()),
            _ => ("SS", heading),
        };
        self.roff.control(macro_name, [heading.as_str()]);
        self.fresh = true;
    }

    fn row(&mut self) {
        self.fresh = false;
        let mut cells = take(&mut self.cells).into_iter();
        self.roff.control("TP", []).text(cells.next().unwrap_or_default());
        let mut text = Vec::new();
        for cell in cells {
            if !text.is_empty() {
                text.insert(0, roman("("));
                text.push(roman(") "));
            }
            text.extend(cell);
        }
        self.roff.text(text);
    }

    fn code(&mut self, text: &str) {
        for line in text.lines() {
            self.roff.text([roman(line)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(markdown: &str) -> String {
        let page = Page { name: "p", section: "7", summary: "a page" };
        let text = page.render(markdown);
        let (_, body) = text.split_once(".SH DESCRIPTION\n").expect("a description");
        let (body, _) = body.split_once(".SH \"SEE ALSO\"\n").expect("its end");
        body.to_owned()
    }

    #[test]
    fn headings_are_sections_and_the_title_is_none() {
        let text = page("# Title\n\nFirst\nlines.\n\nThen.\n\n## The `end`\n\nLast.\n\n### Of all\n");
        assert_eq!(text, "First lines.\n.PP\nThen.\n.SH \"THE END\"\nLast.\n.SS \"Of all\"\n");
    }

    #[test]
    fn a_row_is_an_item() {
        let text =
            page("| file | mode | what |\n|---|---|---|\n| `a` | 0400 | one *of* two |\n| `b=x\\|y` | 0200 | . |\n");
        assert_eq!(text, ".TP\n\\fBa\\fR\n(0400) one \\fIof\\fR two\n.TP\n\\fBb=x|y\\fR\n(0200) .\n");
    }

    #[test]
    fn what_is_verbatim_stays_so() {
        let text = page("Like\n\n    a  \\b\n      .c\n\n- **one** [two](three.md)\n- four\n");
        let list = ".IP \\(bu 2\n\\fBone\\fR two\n.IP \\(bu 2\nfour\n";
        assert_eq!(text, format!("Like\n.PP\n.RS 4\n.nf\na  \\\\b\n  .c\n.fi\n.RE\n{list}"));
    }
}
