//! A toy of a file system, asked over a real socket.

use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use super::*;
use crate::lvm::{Group, Segment, Stripe, Volume};
use crate::table::{Content, Partition, Scheme};
use crate::wire::{Listed, Names};
use crate::{Attributes, Entry, Extent, FileKind, Kind, Place, Summary, Time, Xattr};

const SIZE: u64 = 1 << 20;

/// A file of a size that nobody would believe.
const DAMAGED: Id = Id(900);

/// File `n` is `n` bytes long; directory 1 has files named by the bytes of block 0.
struct Toy(Box<dyn Disk>);

fn attributes_of(file: Id) -> Attributes {
    let time = Time { seconds: -1, nanoseconds: 999_999_999 };
    Attributes {
        kind: if file.0 == 1 { FileKind::Directory } else { FileKind::File },
        mode: 0o4755,
        uid: 1,
        gid: u32::MAX,
        links: 2,
        size: if file == DAMAGED { u64::MAX } else { file.0 },
        allocated: 512,
        accessed: time,
        modified: Time::default(),
        changed: time,
        device: (8, 1),
    }
}

impl FileSystem for Toy {
    fn summary(&self) -> Summary {
        let unclean = Some("it was in use".to_owned());
        Summary { kind: "ext4", block_size: 4096, blocks: 256, free_blocks: 999, files: Some((9, 10)), unclean }
    }

    fn root(&self) -> Id {
        Id(1)
    }

    fn attributes(&self, file: Id) -> Result<Attributes> {
        if file.0 < 1000 { Ok(attributes_of(file)) } else { Err(crate::Error::new(Kind::NotFound, "no such file")) }
    }

    fn lookup(&self, _directory: Id, name: &[u8]) -> Result<Option<Id>> {
        Ok((name != b"none").then_some(Id(name.len() as u64)))
    }

    fn list(&self, _directory: Id, from: u64, each: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>) -> Result<()> {
        let mut name = [0; 8];
        for at in from..100_000 {
            self.0.read_at(at % 1000 * 8, &mut name)?;
            let entry = Entry { name: &name, id: Id(at), kind: Some(FileKind::Fifo), next: at + 1 };
            if each(entry).is_break() {
                return Ok(());
            }
        }
        Err(crate::Error::corrupt("it ends in nothing"))
    }

    fn parent(&self, directory: Id) -> Result<Id> {
        self.0.read_at(SIZE - 1, &mut [0; 2])?;
        Ok(directory)
    }

    fn link_target(&self, _file: Id) -> Result<Vec<u8>> {
        Ok(b"../target".to_vec())
    }

    fn xattrs(&self, _file: Id) -> Result<Vec<Xattr>> {
        Ok(vec![Xattr { name: b"user.a".to_vec(), value: vec![7; 60_000] }; 40])
    }

    fn extents(&self, _file: Id, from: u64, limit: usize) -> Result<Vec<Extent>> {
        let places = [Place::Disk(4096), Place::Hole, Place::Inline(vec![1; 4096])];
        let all = places.into_iter().zip(0..).map(|(place, at)| Extent { offset: at * 4096, length: 4096, place });
        Ok(all.filter(|extent| extent.offset + extent.length > from).take(limit).collect())
    }
}

fn table(disk: &dyn Disk) -> Result<Table> {
    let mut first = [0; 512];
    disk.read_at(0, &mut first)?;
    Ok(told())
}

fn told() -> Table {
    let content = Content {
        kind: "crypto_LUKS",
        label: Some(vec![0xff, 0xfe]),
        uuid: Some("1-2".to_owned()),
        refused: Some("it is encrypted".to_owned()),
    };
    let partition = Partition {
        number: 5,
        offset: 512,
        size: SIZE - 512,
        type_id: Some("0x83".to_owned()),
        id: None,
        name: Some("näme\n".to_owned()),
        content: Some(content),
        problem: None,
    };
    Table {
        scheme: Scheme::Mbr,
        sector_size: 4096,
        id: None,
        problems: vec!["p q".to_owned()],
        partitions: vec![partition],
    }
}

/// Reads the last byte of each disk.
fn volumes(disks: &[Part<&dyn Disk>]) -> Result<Found> {
    for disk in disks {
        disk.read_at(disk.size() - 1, &mut [0])?;
    }
    Ok(grouped())
}

/// All but the first.
fn mirrors(disks: &[Part<&dyn Disk>]) -> Result<Vec<usize>> {
    for disk in disks {
        disk.read_at(0, &mut [0])?;
    }
    Ok((1..disks.len()).collect())
}

/// On two disks, of one and of three quarters of a mebibyte.
fn grouped() -> Found {
    let refused = Volume { segments: Err("it is thin".to_owned()), ..striped("thin") };
    let content = told().partitions.remove(0).content;
    let volumes = vec![Volume { content, ..striped("root") }, refused];
    let physical = vec![("a-1".to_owned(), Some(1)), ("a-2".to_owned(), None)];
    let group = Group { name: "vg".to_owned(), id: "g-1".to_owned(), sequence: 7, physical, volumes };
    Found { groups: vec![group], problems: vec!["one is missing".to_owned()] }
}

fn striped(name: &str) -> Volume {
    let linear = Segment { offset: 0, length: 512, stripe_size: 512, stripes: vec![Stripe { disk: 0, offset: 9 }] };
    let stripes = vec![Stripe { disk: 1, offset: 0 }, Stripe { disk: 0, offset: SIZE / 4 - 1024 }];
    let shared = Segment { offset: 512, length: 2048, stripe_size: 512, stripes };
    let segments = Ok(vec![linear, shared]);
    Volume { name: name.to_owned(), id: "v-1".to_owned(), size: 2560, segments, content: None }
}

/// The daemon's side, which has a disk whose every byte is an `x`.
struct Daemon {
    line: Line<UnixStream>,
    child: JoinHandle<io::Result<()>>,
    broken: bool,
    asked: Vec<(u64, u64)>,
}

impl Daemon {
    fn new() -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let parsers = Parsers { table, volumes, mirrors, open: |disk| Ok(Box::new(Toy(disk))) };
        let child = thread::spawn(move || serve(theirs, parsers));
        Self { line: Line { stream: ours }, child, broken: false, asked: Vec::new() }
    }

    fn ask(&mut self, request: &Request) -> Result<Answer> {
        self.line.send(&request.encode()).unwrap();
        loop {
            let frame = self.line.receive().unwrap().expect("an answer");
            match Said::decode(&frame, request, SIZE).unwrap() {
                Said::Answered(answer) => return Ok(answer),
                Said::Failed(error) => return Err(error),
                Said::Blocks(_, _) if self.broken => self.line.send(&Given::failed(5)).unwrap(),
                Said::Blocks(offset, length) => {
                    self.asked.push((offset, length));
                    let blocks = vec![b'x'; usize::try_from(length).unwrap()];
                    self.line.stream.write_all(&Given::header(&blocks)).unwrap();
                    self.line.stream.write_all(&blocks).unwrap();
                }
            }
        }
    }

    fn opened() -> Self {
        let mut daemon = Self::new();
        daemon.ask(&Request::Open { size: SIZE }).unwrap();
        daemon
    }

    fn end(self) -> io::Result<()> {
        drop(self.line);
        self.child.join().unwrap()
    }
}

#[test]
fn every_question_has_its_answer() {
    let mut daemon = Daemon::new();
    assert_eq!(daemon.ask(&Request::Table { size: SIZE }).unwrap(), Answer::Table(told()));
    let disks = Request::Volumes(vec![SIZE / 4, SIZE / 4 * 3]);
    assert_eq!(daemon.ask(&disks).unwrap(), Answer::Volumes(grouped()));
    let mirrors = Request::Mirrors(vec![SIZE / 4; 4]);
    assert_eq!(daemon.ask(&mirrors).unwrap(), Answer::Mirrors(vec![1, 2, 3]));
    for wrong in [vec![4], vec![1, 1]] {
        assert!(Said::decode(&Said::Answered(Answer::Mirrors(wrong)).encode(), &mirrors, SIZE).is_err());
    }
    let Answer::Open(summary, Id(1)) = daemon.ask(&Request::Open { size: SIZE }).unwrap() else { panic!() };
    assert_eq!((summary.free_blocks, summary.files, summary.kind), (256, Some((9, 9)), "ext4"), "no more than all");
    let expected = Answer::Attributes(attributes_of(Id(7)));
    assert_eq!(daemon.ask(&Request::Attributes(Id(7))).unwrap(), expected);
    let found = daemon.ask(&Request::Lookup(Id(1), b"four".to_vec())).unwrap();
    assert_eq!(found, Answer::Lookup(Some((Id(4), attributes_of(Id(4))))));
    assert_eq!(daemon.ask(&Request::Lookup(Id(1), b"none".to_vec())).unwrap(), Answer::Lookup(None));
    assert_eq!(daemon.ask(&Request::LinkTarget(Id(3))).unwrap(), Answer::LinkTarget(b"../target".to_vec()));
    let error = daemon.ask(&Request::Attributes(Id(1000))).unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (Kind::NotFound, "no such file"));
    let error = daemon.ask(&Request::Xattrs(Id(1))).unwrap_err();
    assert_eq!(error.kind(), Kind::TooLarge, "more than a message holds");
    let error = daemon.ask(&Request::Parent(Id(1))).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "past the end, which nobody had to be asked about");
    assert_eq!(daemon.asked.iter().map(|(_, length)| length).sum::<u64>(), 576 << 10, "{:?}", daemon.asked);
    daemon.end().unwrap();
}

#[test]
fn a_file_that_cannot_be_is_an_error_of_that_file() {
    let mut daemon = Daemon::opened();
    for request in [Request::Attributes(DAMAGED), Request::Describe(Id(1), DAMAGED.0, 3)] {
        let error = daemon.ask(&request).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    }
    let next = Id(DAMAGED.0 + 1);
    assert_eq!(daemon.ask(&Request::Attributes(next)).unwrap(), Answer::Attributes(attributes_of(next)));
    daemon.end().unwrap();
}

#[test]
fn volumes_that_cannot_be_are_not_believed() {
    let disks = Request::Volumes(vec![SIZE / 4, SIZE / 4 * 3]);
    let refused = |change: &dyn Fn(&mut Found)| {
        let mut found = grouped();
        change(&mut found);
        Said::decode(&Said::Answered(Answer::Volumes(found)).encode(), &disks, SIZE).is_err()
    };
    assert!(!refused(&|_| {}));
    let segment = |change: fn(&mut Segment)| {
        refused(&|found| change(&mut found.groups[0].volumes[0].segments.as_mut().unwrap()[1]))
    };
    for change in [
        |segment: &mut Segment| segment.stripes[1].offset += 1,
        |segment: &mut Segment| segment.stripes[1].offset = u64::MAX,
        |segment: &mut Segment| segment.stripes[0].disk = 2,
        |segment: &mut Segment| segment.stripes.clear(),
        |segment: &mut Segment| segment.stripe_size = 0,
        |segment: &mut Segment| segment.stripe_size = u64::MAX,
        |segment: &mut Segment| segment.stripe_size = 768,
        |segment: &mut Segment| segment.offset = 511,
        |segment: &mut Segment| segment.length = 1024,
        |segment: &mut Segment| segment.length = 0,
    ] {
        assert!(segment(change));
    }
    for name in ["", "..", "a/b", "a\0", "\u{e9}"] {
        assert!(refused(&|found| found.groups[0].name = name.to_owned()), "{name}");
        assert!(refused(&|found| found.groups[0].volumes[0].name = name.to_owned()), "{name}");
    }
    assert!(refused(&|found| found.groups[0].physical[0].1 = Some(2)));
    assert!(refused(&|found| found.groups[0].volumes[0].size += 1));
    assert!(refused(&|found| found.groups[0].volumes.swap(0, 1)), "in order");
    assert!(refused(&|found| found.groups.push(found.groups[0].clone())), "one path is for one thing");
}

#[test]
fn a_directory_of_any_size_is_listed_in_pieces() {
    let mut daemon = Daemon::opened();
    let (mut from, mut seen) = (0, 0);
    let error = loop {
        match daemon.ask(&Request::List(Id(1), from, 1000)) {
            Ok(Answer::List(Names { all: names, is_last: false, parent })) => {
                assert_eq!(parent, None, "past the end of the disk");
                assert!(names.iter().all(|Listed { name, .. }| name == b"xxxxxxxx"));
                assert_eq!((names.len(), names[0].id), (1000, Id(seen)));
                seen += 1000;
                from = names[999].next;
            }
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert_eq!((seen, error.kind()), (100_000, Kind::Corrupt), "what is there is told before the error");
    daemon.end().unwrap();
}

#[test]
fn files_are_described_as_they_are_told_one_by_one() {
    let mut daemon = Daemon::opened();
    let mut describe = |from, most| match daemon.ask(&Request::Describe(Id(1), from, most)) {
        Ok(Answer::Describe(files)) => files,
        other => panic!("{other:?}"),
    };
    let files = describe(5, 3);
    assert_eq!(
        files.iter().map(|file| (file.listed.id, file.listed.next)).collect::<Vec<_>>(),
        [(Id(5), 6), (Id(6), 7), (Id(7), 8)]
    );
    for file in files {
        assert_eq!(file.attributes, Some(attributes_of(file.listed.id)));
        assert_eq!(file.xattrs, None, "two megabytes are not told along");
    }
    let files = describe(998, 1000);
    let told: Vec<bool> = files.iter().map(|file| file.attributes.is_some()).collect();
    assert_eq!(told, [true, true, false], "the first that is not there is the last");
    let error = daemon.ask(&Request::Describe(Id(1), 100_000, 10)).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    daemon.end().unwrap();
}

#[test]
fn what_is_told_of_many_files_is_bounded() {
    let xattrs = |count, length| vec![Xattr { name: b"a".to_vec(), value: vec![7; length] }; count];
    assert!(is_short(&[]) && is_short(&xattrs(8, 63)) && !is_short(&xattrs(9, 0)) && !is_short(&xattrs(1, 512)));
    let listed = Listed { name: vec![b'n'; 512], id: Id(1), kind: None, next: 1 };
    let pieces = |lengths: &[usize]| {
        let piece = |at: &mut usize, length: &usize| {
            let offset = *at as u64;
            *at += length;
            Some(Extent { offset, length: *length as u64, place: Place::Inline(vec![7; *length]) })
        };
        lengths.iter().scan(0, piece).collect::<Vec<_>>()
    };
    let of_size = |size| Attributes { kind: FileKind::File, size, ..attributes_of(Id(1)) };
    let with = |next, xattrs, extents, attributes| Described {
        listed: Listed { next, ..listed.clone() },
        attributes,
        xattrs: Some(xattrs),
        extents: Some(extents),
    };
    let described = |next, xattrs| with(next, xattrs, pieces(&[64; 4]), Some(of_size(256)));
    let request = Request::Describe(Id(1), 0, 1024);
    let most: Vec<Described> = (1..=1024).map(|next| described(next, xattrs(8, 63))).collect();
    let frame = Said::Answered(Answer::Describe(most.clone())).encode();
    assert!(matches!(Said::decode(&frame, &request, SIZE), Ok(Said::Answered(Answer::Describe(told))) if told == most));
    for wrong in [described(1, xattrs(9, 0)), described(1, xattrs(1, 512)), described(0, Vec::new())] {
        let frame = Said::Answered(Answer::Describe(vec![wrong])).encode();
        assert!(Said::decode(&frame, &request, SIZE).is_err());
    }
    let directory = Attributes { kind: FileKind::Directory, ..of_size(8) };
    let past_the_end = Extent { offset: 0, length: 8, place: Place::Disk(SIZE - 4) };
    for (extents, attributes) in [
        (pieces(&[1; 5]), Some(of_size(5))),
        (pieces(&[257]), Some(of_size(257))),
        (pieces(&[4, 3]), Some(of_size(8))),
        (Vec::new(), Some(of_size(8))),
        (pieces(&[8]), Some(directory)),
        (pieces(&[8]), None),
        (vec![past_the_end], Some(of_size(8))),
    ] {
        let wrong = with(1, Vec::new(), extents, attributes);
        let frame = Said::Answered(Answer::Describe(vec![wrong.clone()])).encode();
        assert!(Said::decode(&frame, &request, SIZE).is_err(), "{wrong:?}");
    }
    let frame = Said::Answered(Answer::Describe(most)).encode();
    assert!(Said::decode(&frame, &Request::Describe(Id(1), 0, 1023), SIZE).is_err(), "more than were asked for");
}

#[test]
fn the_end_of_a_directory_and_its_parent_come_with_its_names() {
    let names = Names {
        all: vec![Listed { name: b"name".to_vec(), id: Id(7), kind: None, next: 9 }],
        is_last: true,
        parent: Some(Id(2)),
    };
    let request = Request::List(Id(1), 0, 10);
    let mut listing = Listing::new(1);
    let entry = Entry { name: b"name", id: Id(7), kind: None, next: 9 };
    assert!(listing.push(entry) && !listing.push(entry));
    let frame = listing.finish(true, Some(Id(2)));
    assert_eq!(frame, Said::Answered(Answer::List(names.clone())).encode());
    assert!(matches!(Said::decode(&frame, &request, SIZE), Ok(Said::Answered(Answer::List(told))) if told == names));
}

#[test]
fn pieces_of_a_file_begin_where_they_were_asked_for() {
    let mut daemon = Daemon::opened();
    let mut ask = |from, most| match daemon.ask(&Request::Extents(Id(9), from, most)).unwrap() {
        Answer::Extents(extents) => extents,
        other => panic!("{other:?}"),
    };
    assert_eq!(ask(100, 1), [Extent { offset: 100, length: 3996, place: Place::Disk(4196) }]);
    let last = [Extent { offset: 12_000, length: 288, place: Place::Inline(vec![1; 288]) }];
    assert_eq!(ask(12_000, 9), last);
    assert_eq!(ask(4096, 9).len(), 2);
    assert_eq!(ask(12_288, 9), []);
}

#[test]
fn a_disk_that_fails_is_no_end() {
    let mut daemon = Daemon::opened();
    daemon.broken = true;
    let error = daemon.ask(&Request::List(Id(1), 0, 10)).unwrap_err();
    assert_eq!(error.kind(), Kind::Disk);
    daemon.broken = false;
    daemon.ask(&Request::List(Id(1), 0, 10)).unwrap();
    daemon.end().unwrap();
}

#[test]
fn who_breaks_the_protocol_is_not_answered() {
    let frames: [&[u8]; 8] = [
        &Request::Volumes(vec![u64::MAX, 1]).encode(),
        &[&[10, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1][..], &8_u64.to_be_bytes()].concat(),
        &Request::Parent(Id(1)).encode(),
        &[99, 0, 0, 0, 0, 0, 0, 0, 1],
        &[1, 0xff, 0, 0, 0, 0, 0, 0, 1],
        &[1, 0, 0],
        &Given::failed(5),
        &[&Request::Open { size: 1 }.encode()[..], b"more"].concat(),
    ];
    for frame in frames {
        let mut daemon = Daemon::new();
        daemon.line.send(frame).unwrap();
        assert_eq!(daemon.line.receive().unwrap(), None, "{frame:?}");
        assert_eq!(daemon.end().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
    for header in [[0xff; 4], [0; 4]] {
        let mut daemon = Daemon::new();
        daemon.line.stream.write_all(&header).unwrap();
        assert_eq!(daemon.end().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
    // Blocks of another length than was asked for, and the end in the middle of a frame.
    let mut daemon = Daemon::opened();
    daemon.line.send(&Request::List(Id(1), 0, 10).encode()).unwrap();
    daemon.line.receive().unwrap().unwrap();
    daemon.line.send(&[16, 1, 2, 3]).unwrap();
    let answer = daemon.line.receive().unwrap().unwrap();
    let said = Said::decode(&answer, &Request::List(Id(1), 0, 10), SIZE).unwrap();
    assert!(matches!(said, Said::Failed(error) if error.kind() == Kind::Disk));
    daemon.line.stream.write_all(&[0, 0, 0, 9, 1]).unwrap();
    assert_eq!(daemon.end().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}
