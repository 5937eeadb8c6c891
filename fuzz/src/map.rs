//! Maps as `pullfs map` and `pullfs sync` read them. The parser belongs to the program, which is no library.

#[path = "../../ctl/src/map/parse.rs"]
#[cfg_attr(not(test), expect(dead_code, reason = "it is the program's, which uses all of it"))]
mod parse;

use self::parse::Map;

/// A map, text or JSON.
pub(crate) fn run(input: &[u8]) {
    let Ok(mut map) = Map::new(input) else { return };
    let (mut end, mut count) = (0, 0);
    while let Some(next) = map.next() {
        let Ok(extent) = next else {
            assert!(map.next().is_none(), "nothing follows an error");
            return;
        };
        assert!(extent.range.start >= end && extent.range.start <= extent.range.end, "sorted and apart");
        end = extent.range.end;
        count += 1;
        assert_eq!(map.end(), end);
    }
    assert!(map.header().size.is_none_or(|size| end <= size), "within the disk");
    assert!(count <= input.len() / 6, "an extent from nothing");
    let plain = |text: &str| !text.contains(char::is_control);
    assert!(map.header().facts.iter().all(|(name, value)| plain(name) && plain(value)), "a header can be printed");
}
