//! A volume group, by its text.

use std::collections::BTreeMap;

use super::config::{Section, Value};
use super::{Group, MAX_PHYSICAL, MAX_SEGMENTS, MAX_STRIPES, Segment, Stripe, Volume};

const SECTOR: u64 = 512;

/// What the text says of a physical volume.
struct Physical {
    id: String,
    disk: Option<usize>,
    /// Where its extents begin, in bytes, how many it has, and how many of them are on the disk.
    start: u64,
    count: u64,
}

/// Parses a text. `places` has which disk has a physical volume, `sizes` the disks' sizes.
pub(super) fn parse(
    text: &[u8],
    places: &BTreeMap<String, Option<usize>>,
    sizes: &[u64],
) -> Result<Group, &'static str> {
    let root = Section::parse(text).ok_or("it is no text of LVM2")?;
    let mut groups = root.sections().filter(|(_, section)| section.number("extent_size").is_some());
    let (name, section) = groups.next().ok_or("it has no volume group")?;
    let name = name_of(name).ok_or("its volume group has an impossible name")?;
    let id = section.text("id").and_then(id_of).ok_or("its volume group has no UUID")?;
    let sequence = section.number("seqno").ok_or("its volume group has no sequence number")?;
    let extent = section.number("extent_size").and_then(|size| size.checked_mul(SECTOR)).filter(|&size| size > 0);
    let extent = extent.ok_or("its volume group has impossible extents")?;
    let physical = physical(section, places);
    let mut group = Group { name, id, sequence, physical: Vec::new(), volumes: Vec::new() };
    let parser = Parser { physical: &physical, extent, sizes, snapshots: snapshots(section) };
    for (name, volume) in section.section("logical_volumes").into_iter().flat_map(Section::sections) {
        // The store of a snapshot is not marked as visible, but LVM2 shows it: by its name it is the snapshot.
        if volume.has("status", "VISIBLE") || parser.snapshots.contains_key(name) {
            group.volumes.push(parser.volume(name, volume).ok_or("a logical volume has no name, UUID or size")?);
        }
    }
    group.volumes.sort_by(|a, b| a.name.cmp(&b.name));
    if group.volumes.windows(2).any(|pair| pair[0].name == pair[1].name) {
        return Err("two logical volumes have the same name");
    }
    if physical.len() > MAX_PHYSICAL {
        return Err("its volume group has more physical volumes than are read here");
    }
    group.physical = physical.into_values().map(|one| (one.id, one.disk)).collect();
    Ok(group)
}

fn name_of(name: &[u8]) -> Option<String> {
    super::is_name(name).then(|| String::from_utf8_lossy(name).into_owned())
}

fn id_of(id: &[u8]) -> Option<String> {
    let fine = id.len() == 38 && id.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-');
    fine.then(|| String::from_utf8_lossy(id).into_owned())
}

fn physical<'a>(group: &Section<'a>, places: &BTreeMap<String, Option<usize>>) -> BTreeMap<&'a [u8], Physical> {
    let one = |section: &Section<'a>| {
        let id = section.text("id").and_then(id_of)?;
        let missing = section.has("flags", "MISSING") || section.has("status", "MISSING");
        let disk = places.get(&id).copied().flatten().filter(|_| !missing);
        let start = section.number("pe_start")?.checked_mul(SECTOR)?;
        Some(Physical { id, disk, start, count: section.number("pe_count")? })
    };
    let sections = group.section("physical_volumes").into_iter().flat_map(Section::sections);
    sections.filter_map(|(name, section)| Some((name, one(section)?))).collect()
}

/// Why a volume with a part in a snapshot is not what its own extents say, by its name. An origin is: the snapshot has the old blocks.
fn snapshots<'a>(group: &Section<'a>) -> BTreeMap<&'a [u8], &'static str> {
    let mut refused = BTreeMap::new();
    let volumes = group.section("logical_volumes").into_iter().flat_map(Section::sections);
    for (_, segment) in volumes.flat_map(|(_, volume)| volume.sections()) {
        if segment.text("type") != Some(b"snapshot") {
            continue;
        }
        if let Some(store) = segment.text("cow_store") {
            refused.insert(store, "it is a snapshot of another logical volume");
        }
        if let Some(store) = segment.text("merging_store") {
            refused.insert(store, "it is a snapshot that is being merged");
            if let Some(origin) = segment.text("origin") {
                refused.insert(origin, "a snapshot is being merged into it");
            }
        }
    }
    refused
}

struct Parser<'a> {
    physical: &'a BTreeMap<&'a [u8], Physical>,
    /// The size of an extent, in bytes.
    extent: u64,
    sizes: &'a [u64],
    snapshots: BTreeMap<&'a [u8], &'static str>,
}

impl Parser<'_> {
    fn volume(&self, name: &[u8], section: &Section<'_>) -> Option<Volume> {
        let id = section.text("id").and_then(id_of)?;
        let mut parts = Vec::new();
        for (_, segment) in section.sections().filter(|(name, _)| name.starts_with(b"segment")) {
            parts.push((segment.number("start_extent")?, segment.number("extent_count")?, segment));
        }
        parts.sort_by_key(|(start, ..)| *start);
        let last = parts.last().and_then(|(start, count, _)| start.checked_add(*count))?;
        let size = last.checked_mul(self.extent).filter(|&size| size <= i64::MAX.cast_unsigned())?;
        let mut next = 0;
        let whole = section.number("segment_count") == u64::try_from(parts.len()).ok()
            && parts.iter().all(|(start, count, _)| {
                let follows = *start == next && *count > 0;
                next = start.saturating_add(*count);
                follows
            });
        let refused = self.snapshots.get(name).map(|&why| why.to_owned());
        let segments = match refused {
            Some(why) => Err(why),
            None if section.has("status", "LOCKED") => Err("it is being moved (pvmove)".to_owned()),
            None if parts.len() > MAX_SEGMENTS => Err("it has more segments than are read here".to_owned()),
            None if !whole => Err("its segments do not follow each other".to_owned()),
            None => parts.iter().map(|(start, count, segment)| self.segment(*start, *count, segment)).collect(),
        };
        Some(Volume { name: name_of(name)?, id, size, segments, content: None })
    }

    fn segment(&self, start: u64, count: u64, section: &Section<'_>) -> Result<Segment, String> {
        let kind = section.text("type").unwrap_or(b"nothing");
        if kind != b"striped" && kind != b"linear" {
            return Err(refusal(kind));
        }
        let damaged = || "its metadata does not say where it is".to_owned();
        let list = section.list("stripes").ok_or_else(damaged)?;
        let stripes: Vec<(&[u8], u64)> = list.chunks(2).filter_map(pair).collect();
        let number = u64::try_from(stripes.len()).ok().filter(|&number| number > 0 && stripes.len() <= MAX_STRIPES);
        if section.number("stripe_count") != number || list.len() != 2 * stripes.len() {
            return Err(damaged());
        }
        let number = number.ok_or_else(damaged)?;
        // Both are within the volume's size, which is a file's.
        let (offset, length) = (start * self.extent, count * self.extent);
        let stripe_size = match section.number("stripe_size") {
            _ if number == 1 => length,
            size => size.and_then(|size| size.checked_mul(SECTOR)).filter(|&size| size > 0).ok_or_else(damaged)?,
        };
        if !count.is_multiple_of(number) || !(length / number).is_multiple_of(stripe_size) {
            return Err("its stripes are not all of one length".to_owned());
        }
        let stripes = stripes.into_iter().map(|(name, extent)| self.stripe(name, extent, count / number));
        Ok(Segment { offset, length, stripe_size, stripes: stripes.collect::<Result<_, _>>()? })
    }

    /// `count` extents from `first` on, on a physical volume.
    fn stripe(&self, name: &[u8], first: u64, count: u64) -> Result<Stripe, String> {
        let Some(physical) = self.physical.get(name) else {
            return Err(format!("it is a part of {}, which is no physical volume", String::from_utf8_lossy(name)));
        };
        let Some(disk) = physical.disk else {
            return Err(format!("physical volume {} is missing", physical.id));
        };
        let end = first.checked_add(count).filter(|&end| end <= physical.count);
        let byte = |extent: u64| extent.checked_mul(self.extent)?.checked_add(physical.start);
        let range = byte(first).zip(end.and_then(byte));
        let size = self.sizes.get(disk).copied().unwrap_or(0);
        match range.filter(|(_, end)| *end <= size) {
            Some((offset, _)) => Ok(Stripe { disk, offset }),
            None => Err(format!("it reaches past the end of physical volume {}", physical.id)),
        }
    }
}

fn pair<'a>(pair: &[Value<'a>]) -> Option<(&'a [u8], u64)> {
    match pair {
        [Value::Text(name), Value::Number(extent)] => Some((name, *extent)),
        _ => None,
    }
}

fn refusal(kind: &[u8]) -> String {
    let kind = String::from_utf8_lossy(kind.get(..32).unwrap_or(kind)).into_owned();
    let plain = kind.split('+').next().unwrap_or_default();
    let what = match plain {
        "thin" => "a thin volume",
        "thin-pool" => "a pool of thin volumes",
        "cache" | "cache-pool" => "a cached volume, whose newest blocks may be in the cache",
        "writecache" => "a volume with a write cache, which may have its newest blocks",
        "mirror" => "a mirror of LVM2",
        "vdo" | "vdo-pool" => "a VDO volume, which is compressed and deduplicated",
        "integrity" => "a volume with checksums",
        "zero" | "error" => "a volume without blocks",
        plain if plain.starts_with("raid") => "a RAID volume of LVM2",
        _ => "a volume of an unknown kind",
    };
    format!("it is {what} (type {}): only linear and striped volumes are read", kind.escape_default())
}
