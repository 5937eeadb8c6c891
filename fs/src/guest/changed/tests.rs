use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use inside::{Attributes, Extent, FileKind, Place, Summary, Xattr};

use super::super::Described;
use super::*;

/// A name in a directory, and the number of what has it.
type Name<'a> = (&'a [u8], u64);

/// File systems as somebody may have made them up: what is in each directory, and where each file is on the partition.
struct Made {
    summary: Summary,
    directories: BTreeMap<u64, Vec<(Vec<u8>, u64)>>,
    files: BTreeMap<u64, Vec<(u64, u64)>>,
    /// What its reader dies of, and how often it has.
    deadly: BTreeSet<u64>,
    deaths: AtomicU64,
    /// Answers until it is killed.
    left: AtomicU64,
}

const ROOT: u64 = 1;
/// A file whose directory does not tell what it is.
const UNKNOWN: u64 = 99_999;
/// A file whose data is not on the disk as it reads.
const COMPRESSED: u64 = 11;
const START: u64 = 1 << 20;
const SIZE: u64 = 1 << 20;

impl Made {
    fn new(directories: &[(u64, &[Name<'_>])], files: &[(u64, &[(u64, u64)])]) -> Self {
        let names = |names: &[Name<'_>]| names.iter().map(|(name, id)| (name.to_vec(), *id)).collect();
        let summary = Summary { kind: "made", block_size: 512, blocks: 1, free_blocks: 0, files: None, unclean: None };
        Self {
            summary,
            directories: directories.iter().map(|(id, of)| (*id, names(of))).collect(),
            files: files.iter().map(|(id, pieces)| (*id, pieces.to_vec())).collect(),
            deadly: BTreeSet::new(),
            deaths: AtomicU64::new(0),
            left: AtomicU64::new(u64::MAX),
        }
    }

    /// Answers about a file, unless the reader dies of it, or meanwhile.
    async fn answer(&self, id: u64) -> Result<()> {
        let before = self.deaths();
        // Later names are told first.
        tokio::time::sleep(Duration::from_millis(20_u64.saturating_sub(id))).await;
        if self.left.fetch_sub(1, Ordering::SeqCst) == 1 || self.deadly.contains(&id) {
            self.deaths.fetch_add(1, Ordering::SeqCst);
        }
        if self.deaths() > before { Err(Error::new(Kind::Io, "the reader died")) } else { Ok(()) }
    }

    async fn list(&self, limits: Limits, dirty: Range<u64>) -> Result<String> {
        let partition = Partition {
            number: 7,
            offset: START,
            size: SIZE,
            type_id: None,
            id: None,
            name: None,
            content: None,
            problem: None,
        };
        let mut changes = Changes::default();
        changes.zero.push(START + dirty.start..START + dirty.end)?;
        let mut list = List::new("# head\n", limits);
        list.volume(self, &partition, &changes, &|| Ok(())).await?;
        Ok(String::from_utf8_lossy(&list.finish()?).into_owned())
    }

    /// The lines below the header.
    async fn lines(&self, dirty: Range<u64>) -> Vec<String> {
        let text = self.list(Limits::default(), dirty).await.unwrap();
        let body = text.strip_prefix("# head\n").and_then(|text| text.strip_prefix(CAVEATS)).expect("a header");
        body.lines().map(str::to_owned).collect()
    }
}

#[async_trait]
impl Reader for Made {
    fn summary(&self) -> &Summary {
        &self.summary
    }

    fn root(&self) -> Id {
        Id(ROOT)
    }

    fn deaths(&self) -> u64 {
        self.deaths.load(Ordering::SeqCst)
    }

    async fn attributes(&self, _: Id) -> Result<Attributes> {
        Err(Error::new(Kind::Io, "it has no attributes"))
    }

    async fn lookup(&self, _: Id, _: &[u8]) -> Result<Option<(Id, Attributes)>> {
        unreachable!("nothing is looked up")
    }

    async fn list(&self, directory: Id, from: u64) -> Result<Names> {
        self.answer(directory.0).await?;
        let names = self.directories.get(&directory.0).ok_or_else(|| Error::new(Kind::Io, "it cannot be read"))?;
        let kind = |id: &u64| if self.files.contains_key(id) { FileKind::File } else { FileKind::Directory };
        let all = names.iter().zip(1..);
        let rest = all.filter(|(_, next)| *next > from).take(3);
        let all: Vec<Listed> = rest
            .map(|((name, id), next)| Listed {
                name: name.clone(),
                id: Id(*id),
                kind: (*id != UNKNOWN).then(|| kind(id)),
                next,
            })
            .collect();
        Ok(Names { is_last: all.len() < 3, all, parent: None })
    }

    async fn describe(&self, _: Id, _: u64, _: usize) -> Result<Vec<Described>> {
        unreachable!("nothing is looked up")
    }

    async fn parent(&self, _: Id) -> Result<Id> {
        unreachable!("nobody asks for parents")
    }

    async fn link_target(&self, _: Id) -> Result<Vec<u8>> {
        unreachable!("links are of no interest")
    }

    async fn xattrs(&self, _: Id) -> Result<Vec<Xattr>> {
        unreachable!("attributes are of no interest")
    }

    async fn extents(&self, file: Id, from: u64) -> Result<Vec<Extent>> {
        self.answer(file.0).await?;
        if file.0 == COMPRESSED {
            return Err(Error::new(Kind::Unsupported, "it is compressed"));
        }
        let mut offset = 0;
        let mut extents = Vec::new();
        for &(at, length) in &self.files[&file.0] {
            extents.push(Extent { offset, length, place: if at == 0 { Place::Hole } else { Place::Disk(at) } });
            offset += length;
        }
        Ok(extents.into_iter().filter(|extent| extent.offset >= from).take(1).collect())
    }
}

#[tokio::test(start_paused = true)]
async fn only_files_in_what_changed_are_listed_in_the_order_of_the_walk() {
    let made = Made::new(
        &[
            (ROOT, &[(b"a", 2), (b"one", 10), (b"two", 15), (b"three", 12), (b"b\n\\\xff", 3), (b"four", 13)]),
            (2, &[(b"deep", 4), (b"one again", 10)]),
            (3, &[(b"two", 15)]),
            (4, &[(b"five", 14)]),
        ],
        &[
            (10, &[(0, 100), (5000, 100), (0, 7)]),
            (15, &[(4096, 904), (6000, 10)]),
            (12, &[]),
            (13, &[(5099, 1)]),
            (14, &[(5100, 900), (4000, 96)]),
        ],
    );
    let lines = made.lines(5000..5100).await;
    assert_eq!(lines, ["7/files/one", "7/files/a/one again", "7/files/four", "# end: 3 files"], "to the byte");
    let lines = made.lines(0..SIZE).await;
    let all = [
        "7/files/one",
        "7/files/two",
        "7/files/a/one again",
        "7/files/a/deep/five",
        "7/files/four",
        "7/files/b\\012\\134\u{fffd}/two",
        "# end: 6 files",
    ];
    assert_eq!((lines.len(), lines.iter().filter(|line| all.contains(&line.as_str())).count()), (7, 7), "{lines:?}");
    assert_eq!(lines, made.lines(0..SIZE).await, "stable");
    assert_eq!(made.lines(0..0).await, ["# end: 0 files"]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_a_line_and_the_rest_is_listed() {
    let made = Made::new(
        &[
            (ROOT, &[(b"loop", 2), (b"gone\n", 50), (b"..", 10), (b"out", 16), (b"odd", UNKNOWN), (b"fine", 10)]),
            (2, &[(b"again", ROOT), (b"inside", 10)]),
        ],
        &[(10, &[(5000, 100)]), (16, &[(SIZE - 1, 2)])],
    );
    let mut lines = made.lines(5000..5100).await;
    lines.sort();
    let expected = [
        "# end: 2 files",
        "# incomplete: 5 of the above could not be read",
        "# not read: 7/files/..: a name in a directory cannot be right",
        "# not read: 7/files/gone\\012: it cannot be read",
        "# not read: 7/files/loop/again: it is a directory within itself",
        "# not read: 7/files/odd: it has no attributes",
        "# not read: 7/files/out: where the guest's file lies on the disk cannot be right",
        "7/files/fine",
        "7/files/loop/inside",
    ];
    assert_eq!(lines, expected);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_without_a_bound() {
    let chain: Vec<(u64, [Name<'_>; 1])> = (1..2000).map(|id| (id, [(&b"d"[..], id + 1)])).collect();
    let chain: Vec<(u64, &[Name<'_>])> = chain.iter().map(|(id, names)| (*id, &names[..])).collect();
    let lines = Made::new(&chain, &[]).lines(0..1).await;
    assert!(lines[0].ends_with("it is deeper than 512 directories"), "{lines:?}");

    let names: Vec<Name<'_>> = (0..500).map(|id| (&b"gone"[..], 1000 + id)).collect();
    let lines = Made::new(&[(ROOT, &names)], &[]).lines(0..1).await;
    assert!(lines.len() < 120, "{}", lines.len());
    assert!(lines.contains(&"# not read: the rest of partition 7: too much of it cannot be read".to_owned()));

    let names: Vec<Name<'_>> = (0..500).map(|_| (&b"file"[..], COMPRESSED)).collect();
    let lines = Made::new(&[(ROOT, &names)], &[(COMPRESSED, &[])]).lines(0..1).await;
    assert_eq!(lines.iter().filter(|line| *line == "# not read: 7/files/file: it is compressed").count(), 500);

    let names: Vec<Name<'_>> = (0..500).map(|_| (&b"file"[..], 10)).collect();
    let made = Made::new(&[(ROOT, &names)], &[(10, &[(5000, 100)])]);
    for limits in [Limits { entries: 400, ..Limits::default() }, Limits { text: 4096, ..Limits::default() }] {
        let error = made.list(limits, 5000..5100).await.unwrap_err();
        assert_eq!(error.kind(), Kind::TooLarge, "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_is_killed_costs_nothing_and_what_kills_it_again_is_a_fault() {
    let files: Vec<(u64, &[(u64, u64)])> = (12..19).map(|id| (id, &[(5000, 100)][..])).collect();
    let names: [Name<'_>; 7] = [(b"a", 12), (b"b", 13), (b"c", 14), (b"d", 15), (b"below", 2), (b"e", 16), (b"f", 17)];
    let made = || Made::new(&[(ROOT, &names), (2, &[(b"g", 12), (b"h", 18)])], &files);
    let whole = made().lines(5000..5100).await;
    assert_eq!((whole.len(), whole.last().map(String::as_str)), (9, Some("# end: 8 files")), "{whole:?}");
    for question in 1..=12 {
        let made = made();
        made.left.store(question, Ordering::SeqCst);
        assert_eq!(made.lines(5000..5100).await, whole, "killed at question {question}");
        assert_eq!(made.deaths(), 1);
    }

    for (deadly, expected) in [(15, "7/files/d"), (2, "7/files/below")] {
        let mut made = made();
        made.deadly.insert(deadly);
        let lines = made.lines(5000..5100).await;
        assert!(lines.contains(&format!("# not read: {expected}: the reader died")), "{lines:?}");
        let files = |lines: &[String]| -> Vec<String> {
            lines.iter().filter(|line| !line.starts_with('#') && !line.starts_with(expected)).cloned().collect()
        };
        assert_eq!(files(&lines), files(&whole), "the others are there");
        assert_eq!(made.deaths(), 2);
    }

    let mut made = made();
    made.deadly.extend(2..19);
    let lines = made.lines(5000..5100).await;
    assert_eq!(made.deaths(), 6, "{lines:?}");
    assert!(lines.contains(&"# not read: the rest of partition 7: its reader died too often".to_owned()), "{lines:?}");
}
