//! Logical volumes.

use super::super::Invalid;
use super::super::bytes::{Input, Output};
use super::MAX_TEXT;
use super::table::{MAX_PROBLEMS, MAX_WORD, content, put_content, word};
use crate::lvm::{
    Found, Group, MAX_DISKS, MAX_PHYSICAL, MAX_SEGMENTS, MAX_STRIPES, MAX_VOLUMES, Segment, Stripe, Volume, is_name,
};

/// Longest name, in bytes.
const MAX_NAME: usize = 127;

pub(super) fn encode(found: &Found, mut out: Output) -> Vec<u8> {
    let told = found.problems.len().min(MAX_PROBLEMS);
    out.list(&found.problems[..told], |out, problem| out.text(problem, MAX_TEXT));
    out.list(&found.groups, |out, group| {
        out.text(&group.name, MAX_NAME);
        out.text(&group.id, MAX_WORD);
        out.u64(group.sequence);
        out.list(&group.physical, |out, (id, disk)| {
            out.text(id, MAX_WORD);
            out.option(*disk, Output::count);
        });
        out.list(&group.volumes, put_volume);
    });
    out.0
}

/// `disks` are the sizes of those that were looked at, in bytes.
pub(super) fn decode(input: &mut Input<'_>, disks: &[u64]) -> Result<Found, Invalid> {
    let problems = input.list(MAX_PROBLEMS, |input| input.text(MAX_TEXT))?;
    let mut room = MAX_VOLUMES;
    let groups = input.list(MAX_DISKS, |input| {
        let (name, id, sequence) = (name(input)?, word(input)?, input.u64()?);
        let physical =
            input.list(MAX_PHYSICAL, |input| Ok((word(input)?, input.option(|input| disk(input, disks))?)))?;
        let volumes = input.list(room, |input| volume(input, disks))?;
        room = room.saturating_sub(volumes.len());
        if !volumes.is_sorted_by(|one, other| one.name < other.name) {
            return Err(Invalid("name"));
        }
        Ok(Group { name, id, sequence, physical, volumes })
    })?;
    // What has the name of another is not to be read.
    let readable = |group: &Group| group.volumes.iter().any(|volume| volume.segments.is_ok());
    let clash = |pair: &[Group]| pair[0].name == pair[1].name && pair.iter().any(readable);
    if !groups.is_sorted_by(|one, other| one.name <= other.name) || groups.windows(2).any(clash) {
        return Err(Invalid("name"));
    }
    Ok(Found { groups, problems })
}

fn name(input: &mut Input<'_>) -> Result<String, Invalid> {
    let name = input.text(MAX_NAME)?;
    if is_name(name.as_bytes()) { Ok(name) } else { Err(Invalid("name")) }
}

pub(super) fn disk(input: &mut Input<'_>, disks: &[u64]) -> Result<usize, Invalid> {
    let disk = usize::try_from(input.u32()?).unwrap_or(usize::MAX);
    if disk < disks.len() { Ok(disk) } else { Err(Invalid("place")) }
}

fn put_volume(out: &mut Output, volume: &Volume) {
    out.text(&volume.name, MAX_NAME);
    out.text(&volume.id, MAX_WORD);
    out.u64(volume.size);
    out.option(volume.content.as_ref(), put_content);
    out.option(volume.segments.as_ref().err(), |out, why| out.text(why, MAX_TEXT));
    out.list(volume.segments.as_deref().unwrap_or_default(), |out, segment| {
        out.u64(segment.offset);
        out.u64(segment.length);
        out.u64(segment.stripe_size);
        out.list(&segment.stripes, |out, stripe| {
            out.count(stripe.disk);
            out.u64(stripe.offset);
        });
    });
}

fn volume(input: &mut Input<'_>, disks: &[u64]) -> Result<Volume, Invalid> {
    let (name, id, size) = (name(input)?, word(input)?, input.size("size")?);
    let content = input.option(content)?;
    let refused = input.option(|input| input.text(MAX_TEXT))?;
    let segments = input.list(MAX_SEGMENTS, |input| {
        let (offset, length, stripe_size) = (input.u64()?, input.u64()?, input.u64()?);
        let stripes =
            input.list(MAX_STRIPES, |input| Ok(Stripe { disk: disk(input, disks)?, offset: input.u64()? }))?;
        Ok(Segment { offset, length, stripe_size, stripes })
    })?;
    let segments = refused.map_or(Ok(segments), Err);
    let volume = Volume { name, id, size, segments, content };
    if volume.is_sound(disks) { Ok(volume) } else { Err(Invalid("place")) }
}
