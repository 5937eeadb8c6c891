use proptest::prelude::*;

use super::*;

fn read(text: &[u8]) -> Result<(Header, Vec<Extent>), Error> {
    let mut map = Map::new(text)?;
    let extents = map.by_ref().collect::<Result<_, _>>()?;
    Ok((map.header().clone(), extents))
}

fn changed(range: Range<u64>, zero: bool) -> Extent {
    Extent { range, counts: true, zero, dirty: true }
}

/// The error of a text that is no map.
fn error(text: &[u8]) -> String {
    read(text).unwrap_err().to_string()
}

const HEADER: &str = "# machine: vm1\n# disk: vda\n# virtual size: 1000\n";

#[test]
fn a_map_of_pullfs() {
    let text = format!("{HEADER}         0         100    1  dirty\n       200         100    1  dirty,zero\n");
    let (header, extents) = read(text.as_bytes()).unwrap();
    assert_eq!((header.get("disk"), header.size), (Some("vda"), Some(1000)));
    assert_eq!(extents, [changed(0..100, false), changed(200..300, true)]);
}

#[test]
fn a_map_of_nbdinfo() {
    let text =
        "         0       65536    0  data\r\n\r\n     65536      131072    3  hole,zero\r\n    196608 1 0 clean";
    let (header, extents) = read(text.as_bytes()).unwrap();
    assert_eq!(header, Header::default());
    let counts: Vec<bool> = extents.iter().map(|extent| extent.counts).collect();
    assert_eq!(counts, [true, false, false]);
    assert_eq!(extents[2].range, 196_608..196_609);
}

#[test]
fn json_in_any_layout() {
    let text = "\n[\n{ \"offset\": 0, \"length\": 10, \"type\": 1, \"description\": \"dirty\"},\n\
                {\"description\":\"dirty,zero\",\n\"length\":5,\"offset\":10, \"more\": \"}\\\"\"}\n]\n";
    let (_, extents) = read(text.as_bytes()).unwrap();
    assert_eq!(extents, [changed(0..10, false), changed(10..15, true)]);
    assert!(read(b"[]").unwrap().1.is_empty());
    assert!(read(b"").unwrap().1.is_empty());
}

#[test]
fn errors_name_the_line() {
    let of = |line: &str| error(format!("{HEADER}{line}").as_bytes());
    for (line, word) in [
        ("1048576  13107", "no extent"),
        ("0 10 1 local", "another kind"),
        ("0 -1 1 dirty", "no extent"),
        ("0 2000 1 dirty", "past the virtual size"),
        ("18446744073709551615 1 1 dirty", "ends"),
    ] {
        let error = of(line);
        assert!(error.starts_with("line 4: ") && error.contains(word), "{error}");
    }
    let error = of("10 10 1 dirty\n# late: comment\n15 10 1 dirty\n");
    assert!(error.starts_with("line 6: ") && error.contains("sorted"), "{error}");
    assert!(self::error(b"# virtual size: big\n").starts_with("line 1: "));
    assert!(self::error(&[0xff; 10]).contains("not text"));
    assert!(self::error(&vec![b'0'; 1 << 20]).contains("longer"));
}

#[test]
fn errors_in_json_name_the_line() {
    let item = "{\"offset\": 0, \"length\": 10, \"description\": \"dirty\"}";
    for (text, start) in [
        (format!("[\n{item}"), "line 2: the array is cut off"),
        (format!("[\n{item},\n{{\"offset\": 1"), "line 3: the array is cut off"),
        (format!("[\n{item},\n{item}]"), "line 2: "),
        ("[\n{\"offset\": 1}\n]".to_owned(), "line 2: not an extent in JSON: missing field"),
        (format!("[{item}] x"), "line 1: something follows"),
        ("[1]".to_owned(), "line 1: `1` is no extent"),
    ] {
        let error = error(text.as_bytes());
        assert!(error.starts_with(start) || error.contains("sorted"), "{text}: {error}");
    }
}

#[test]
fn an_error_ends_the_map() {
    let mut map = Map::new(&b"0 10 1 dirty\n5 10 1 dirty\n20 10 1 dirty\n"[..]).unwrap();
    assert!(map.next().unwrap().is_ok() && map.next().unwrap().is_err() && map.next().is_none());
}

proptest! {
    #[test]
    fn no_text_panics(text in proptest::collection::vec(any::<u8>(), 0..400)) {
        read(&text).ok();
    }

    #[test]
    fn nearly_a_map_never_panics(text in "(\\[|#|\n| )?([0-9 \n\\[\\]{},:\"#]|dirty|zero|\"offset\"){0,60}") {
        read(text.as_bytes()).ok();
    }

    #[test]
    fn what_is_written_is_read(
        lengths in proptest::collection::vec((1..1_u64 << 40, 1..1_u64 << 40, any::<bool>()), 0..40), json: bool,
    ) {
        let mut extents = Vec::new();
        let mut at = 0;
        for (gap, length, zero) in lengths {
            extents.push(changed(at + gap..at + gap + length, zero));
            at += gap + length;
        }
        let lines = extents.iter().map(|Extent { range, zero, .. }| {
            let (offset, length) = (range.start, range.end - range.start);
            let description = if *zero { "dirty,zero" } else { "dirty" };
            if json {
                format!("{{ \"offset\": {offset}, \"length\": {length}, \"type\": 1, \"description\": \"{description}\"}}")
            } else {
                format!("{offset:>10}  {length:>10}  {:>3}  {description}\n", 1)
            }
        });
        let text = if json { format!("[\n{}\n]\n", lines.collect::<Vec<_>>().join(",\n")) } else { lines.collect() };
        prop_assert_eq!(read(text.as_bytes()).unwrap().1, extents);
    }
}
