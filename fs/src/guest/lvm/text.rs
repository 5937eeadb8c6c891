//! `lvm/table.json`.

use serde::Serialize;

use super::{Group, Logical, Lvm};
use crate::guest::text::{ContentText, Opened, content_of, json};
use crate::guest::together::Place;
use crate::tree::partitions::Medium;

#[derive(Serialize)]
struct Document<'a> {
    /// Of this document's form: fields are added within one, none changes or goes.
    version: u32,
    problems: &'a [String],
    groups: Vec<GroupText<'a>>,
}

/// The version of the form.
const VERSION: u32 = 1;

#[derive(Serialize)]
struct GroupText<'a> {
    name: &'a str,
    id: &'a str,
    sequence: u64,
    physical_volumes: Vec<PhysicalText<'a>>,
    volumes: Vec<VolumeText<'a>>,
}

#[derive(Serialize)]
struct PhysicalText<'a> {
    id: &'a str,
    disk: Option<&'a str>,
    partition: Option<u32>,
}

#[derive(Serialize)]
struct VolumeText<'a> {
    name: &'a str,
    id: &'a str,
    size: u64,
    #[serde(rename = "type")]
    kind: Option<&'static str>,
    problem: Option<&'a str>,
    content: Option<ContentText<'a>>,
}

/// The text; `opened` tells of each file system that can be read.
pub fn table(lvm: &Lvm, opened: impl Fn(&Medium) -> Option<Opened>) -> String {
    let groups = lvm.groups.iter().map(|group| of_group(group, &opened)).collect();
    json(&Document { version: VERSION, problems: &lvm.problems, groups })
}

fn of_group<'a>(group: &'a Group, opened: &impl Fn(&Medium) -> Option<Opened>) -> GroupText<'a> {
    let physical = |(id, place): &'a (String, Option<Place>)| PhysicalText {
        id,
        disk: place.as_ref().map(|(disk, _)| &**disk),
        partition: place.as_ref().map(|(_, partition)| *partition),
    };
    let medium = |volume: &Logical| Medium::Logical { group: group.name.clone(), name: volume.name.clone() };
    GroupText {
        name: &group.name,
        id: &group.id,
        sequence: group.sequence,
        physical_volumes: group.physical.iter().map(physical).collect(),
        volumes: group.volumes.iter().map(|volume| of_volume(volume, opened(&medium(volume)))).collect(),
    }
}

fn of_volume(volume: &Logical, opened: Option<Opened>) -> VolumeText<'_> {
    VolumeText {
        name: &volume.name,
        id: &volume.id,
        size: volume.partition.size,
        kind: volume.spread.as_ref().map(|_| if volume.striped { "striped" } else { "linear" }),
        problem: volume.partition.problem.as_deref(),
        content: volume.partition.content.as_ref().map(|content| content_of(content, opened)),
    }
}
