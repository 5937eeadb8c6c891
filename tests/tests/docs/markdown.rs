//! Tables of a Markdown document.

/// A table: its header and its rows, each cell without the spaces around it.
#[derive(Debug, PartialEq)]
pub(crate) struct Table {
    pub(crate) header: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

/// All tables of `text`, in order.
///
/// # Panics
/// When a row has not as many cells as its header, or an empty one: a comparison would pass it over.
pub(crate) fn tables(text: &str) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    let mut within = false;
    for line in text.lines() {
        let Some(cells) = cells(line) else {
            within = false;
            continue;
        };
        if !within {
            tables.push(Table { header: cells, rows: Vec::new() });
            within = true;
            continue;
        }
        let table = tables.last_mut().expect("a header came before");
        if cells.iter().all(|cell| cell.chars().all(|c| c == '-')) {
            continue;
        }
        assert_eq!(cells.len(), table.header.len(), "a row that does not fit its header: {line}");
        assert!(cells.iter().all(|cell| !cell.is_empty()), "a row with an empty cell: {line}");
        table.rows.push(cells);
    }
    tables
}

/// The cells of a row; `\|` is no end of one.
fn cells(line: &str) -> Option<Vec<String>> {
    let line = line.trim().strip_prefix('|')?.strip_suffix('|')?.replace("\\|", "\0");
    Some(line.split('|').map(|cell| cell.trim().replace('\0', "|")).collect())
}

/// What stands between single backquotes.
pub(crate) fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn tables_are_read() {
    let text = "# Title\n\n| a | b |\n|---|---|\n| x \\| y | `z` |\n\ntext | text\n| c |\n|---|\n";
    let table = |header: &[&str], rows: &[&[&str]]| Table {
        header: header.iter().map(ToString::to_string).collect(),
        rows: rows.iter().map(|row| row.iter().map(ToString::to_string).collect()).collect(),
    };
    assert_eq!(tables(text), [table(&["a", "b"], &[&["x | y", "`z`"]]), table(&["c"], &[])]);
    assert_eq!(code_spans("one `two` three `four`, five").collect::<Vec<_>>(), ["two", "four"]);
}

#[test]
#[should_panic(expected = "does not fit its header")]
fn a_row_that_lost_a_cell_is_found() {
    tables("| a | b |\n|---|---|\n| x |\n");
}
