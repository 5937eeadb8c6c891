//! Checkpoints that libvirt has forgotten, made known to it again.
//!
//! What libvirt knows of checkpoints goes when a transient domain ends, and stays behind when disks move to another host. The
//! bitmaps are in the images, and go where these go. So what libvirt knows is kept elsewhere ([`save`], [`read`]), and given
//! back to it ([`redefine`]).
//!
//! libvirt sees to it that the bitmaps are there, are whole and record. That a checkpoint came after another one, no bitmap
//! says; it is believed elsewhere ([`Found::descends`](super::inventory::Found::descends)), and a map told since the wrong one
//! would miss changes. But all that changed since the newer of two changed since the older one, on each disk. So of two whose
//! bitmaps record, the one with more in it has all that the other one has, now and later; and that is looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use roxmltree::Node;
use tokio::time::sleep;

use super::link::{LIMIT, Link, Target};
use super::xml::{self, child, children, escape, text};
use crate::error::{Error, Kind, Result, chain};

/// Most checkpoints that are looked at, as in an inventory.
const MOST: usize = 4096;

/// How often it is looked at how much changed since two checkpoints, until the guest does not write in between, and the time
/// from one look to the next.
const MOST_LOOKS: u32 = 40;
const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// What is to be known of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    name: String,
    /// The one that it came after.
    parent: Option<String>,
    /// When it was made, in seconds since 1970.
    made: u64,
    /// What whoever made it has noted.
    note: Option<String>,
    /// Targets of the disks that it has bitmaps of.
    disks: Vec<String>,
}

/// What became of a checkpoint that libvirt was to know again.
#[derive(Debug)]
pub enum Outcome {
    /// It does.
    Done,
    /// It did already, and was not touched.
    Known,
    /// It does not.
    Failed(Error),
}

/// What libvirt knows of a domain's checkpoints, as [`read`] takes it.
///
/// # Errors
/// When libvirt or the domain is not there, or does not answer.
pub async fn save(target: &Target) -> Result<String> {
    let known = known(&Link::start(target.clone(), Box::new(|_| {}))).await?;
    let mut saved = "<domaincheckpoints>\n".to_owned();
    for description in order(known)? {
        saved.push_str(&description.write(description.parent.as_deref()));
        saved.push('\n');
    }
    saved.push_str("</domaincheckpoints>\n");
    Ok(saved)
}

/// Reads descriptions: what [`save`] gave, or a single one of libvirt's.
///
/// # Errors
/// [`Kind::Invalid`] for anything else.
pub fn read(described: &str) -> Result<Vec<Description>> {
    let document = xml::document("checkpoints", described)?;
    let root = document.root_element();
    let descriptions: Vec<Node<'_, '_>> = match root.tag_name().name() {
        "domaincheckpoint" => vec![root],
        "domaincheckpoints" => root.children().filter(|node| node.has_tag_name("domaincheckpoint")).collect(),
        _ => return Err(Error::new(Kind::Invalid, "it describes no checkpoints")),
    };
    if descriptions.len() > MOST {
        return Err(Error::new(Kind::TooLarge, format!("it describes more than {MOST} checkpoints")));
    }
    descriptions.into_iter().map(Description::read).collect()
}

/// Makes libvirt know these checkpoints of a domain that runs, as far as their bitmaps are what they are said to be. Those
/// that it knows are left alone, and nothing is made in QEMU.
///
/// # Errors
/// When libvirt or the domain is not there; [`Kind::Invalid`] when the descriptions contradict each other.
pub async fn redefine(target: &Target, given: Vec<Description>) -> Result<Vec<(String, Outcome)>> {
    let given = order(given)?;
    let link = Link::start(target.clone(), Box::new(|_| {}));
    let domain = xml::domain(&link.call("describe the domain", LIMIT, libvirt::Domain::xml).await?)?;
    let targets: BTreeSet<String> = domain.disks.into_iter().map(|disk| disk.target).collect();
    let mut lineage = Lineage { known: BTreeMap::new(), given: BTreeMap::new() };
    lineage.known.extend(known(&link).await?.into_iter().map(|known| (known.name.clone(), known)));
    lineage.given.extend(given.iter().map(|given| (given.name.clone(), given.parent.clone())));
    let mut outcomes = Vec::with_capacity(given.len());
    for description in given {
        let name = description.name.clone();
        let outcome = if lineage.known.contains_key(&name) {
            Outcome::Known
        } else {
            let description = Description { parent: lineage.parent(&description).map(str::to_owned), ..description };
            match define(&link, &targets, &description, &lineage).await {
                Ok(()) => {
                    lineage.known.insert(name.clone(), description);
                    Outcome::Done
                }
                Err(error) => Outcome::Failed(error),
            }
        };
        outcomes.push((name, outcome));
    }
    Ok(outcomes)
}

/// Why a checkpoint could not be made, where the disks have its bitmap and libvirt does not know it.
pub(super) fn forgotten(error: Error, checkpoint: Option<&str>) -> Error {
    match checkpoint {
        Some(name) if chain(&error).contains("Bitmap already exists") => {
            let message = format!(
                "cannot make checkpoint {name:?}: a disk has the bitmap of one that libvirt has forgotten; make that known again \
                 (`pullfs checkpoint redefine`), or choose another name"
            );
            Error::with_source(Kind::Exists, message, error)
        }
        _ => error,
    }
}

async fn known(link: &Link) -> Result<Vec<Description>> {
    let described = link.call("describe the checkpoints", LIMIT, |domain| {
        let checkpoints = domain.checkpoints()?;
        // One that was deleted meanwhile is none.
        Ok(checkpoints.iter().take(MOST).filter_map(|checkpoint| checkpoint.xml(false).ok()).collect::<Vec<_>>())
    });
    let mut known = Vec::new();
    for described in described.await? {
        known.extend(read(&described)?);
    }
    Ok(known)
}

/// Parents before children, older ones first.
fn order(given: Vec<Description>) -> Result<Vec<Description>> {
    let mut left = BTreeMap::new();
    for description in given {
        if let Some(twice) = left.insert(description.name.clone(), description) {
            return Err(Error::new(Kind::Invalid, format!("checkpoint {} is described twice", twice.name)));
        }
    }
    let mut ordered = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let free = left.values().filter(|one| one.parent.as_ref().is_none_or(|parent| !left.contains_key(parent)));
        let Some(next) = free.min_by_key(|one| one.made).map(|one| one.name.clone()) else {
            return Err(Error::new(
                Kind::Invalid,
                "the checkpoints that are described come after each other in a circle",
            ));
        };
        ordered.extend(left.remove(&next));
    }
    Ok(ordered)
}

/// Which checkpoint came after which.
struct Lineage {
    /// Those that libvirt knows.
    known: BTreeMap<String, Description>,
    /// Of those that are given, what they came after. No circles.
    given: BTreeMap<String, Option<String>>,
}

impl Lineage {
    /// The nearest one that a checkpoint came after and that libvirt knows: those in between were deleted.
    fn parent<'a>(&'a self, description: &'a Description) -> Option<&'a str> {
        let mut at = description.parent.as_deref();
        while let Some(name) = at.filter(|name| !self.known.contains_key(*name)) {
            at = self.given.get(name).and_then(Option::as_deref);
        }
        at
    }

    /// For each disk of a checkpoint, the nearest one that it came after and that is of that disk; the disks by these.
    fn before<'a>(&'a self, description: &'a Description) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
        let mut disks: BTreeSet<&str> = description.disks.iter().map(String::as_str).collect();
        let mut before = BTreeMap::new();
        let mut at = description.parent.as_deref();
        // libvirt lets in no circle; if it has one, each is met once.
        for _ in 0..self.known.len() {
            let Some(known) = at.and_then(|name| self.known.get(name)) else { break };
            let of: BTreeSet<&str> = known.disks.iter().filter_map(|disk| disks.take(disk.as_str())).collect();
            if !of.is_empty() {
                before.insert(known.name.as_str(), of);
            }
            at = known.parent.as_deref();
        }
        before
    }
}

/// Makes one known, and forgets it again if it did not come after those that it is said to.
async fn define(link: &Link, targets: &BTreeSet<String>, description: &Description, lineage: &Lineage) -> Result<()> {
    if !description.disks.iter().any(|disk| targets.contains(disk)) {
        let disks = description.disks.join(", ");
        return Err(Error::new(Kind::NotFound, format!("the domain has none of its disks ({disks})")));
    }
    let parent = description.parent.as_deref();
    if let Some(parent) = parent.and_then(|parent| lineage.known.get(parent))
        && parent.made > description.made
    {
        let message = format!("it is said to have come after {}, which was made later", parent.name);
        return Err(Error::new(Kind::Invalid, message));
    }
    let xml = description.write(parent);
    let made =
        link.call("make the checkpoint known", LIMIT, move |domain| domain.redefine_checkpoint(&xml, true).map(drop));
    made.await?;
    for (before, disks) in lineage.before(description) {
        let disks = disks.into_iter().filter(|disk| targets.contains(*disk)).collect();
        let Err(wrong) = came_after(link, &description.name, before, &disks).await else { continue };
        let name = description.name.clone();
        let forgotten = link.call("forget the checkpoint", LIMIT, move |domain| domain.checkpoint(&name)?.forget());
        if let Err(error) = forgotten.await {
            let stays =
                format!("libvirt knows it now, and must not: virsh checkpoint-delete --metadata; {}", chain(&error));
            return Err(wrong.context(stays));
        }
        return Err(wrong);
    }
    Ok(())
}

/// Whether on these disks all that changed since a checkpoint changed since the one before.
async fn came_after(link: &Link, name: &str, before: &str, disks: &BTreeSet<&str>) -> Result<()> {
    for _ in 0..MOST_LOOKS {
        let (own, other) = (name.to_owned(), before.to_owned());
        let told = link.call("tell how much changed since checkpoints", LIMIT, move |domain| {
            let (own, other) = (domain.checkpoint(&own)?, domain.checkpoint(&other)?);
            Ok([other.xml(true)?, own.xml(true)?, other.xml(true)?])
        });
        let [least, own, most] = told.await?.map(|described| sizes(&described));
        let (least, own, most) = (least?, own?, most?);
        let each = disks.iter().map(|&disk| (disk, order_of(least.get(disk), own.get(disk), most.get(disk))));
        let each: Vec<_> = each.collect();
        if let Some((disk, _)) = each.iter().find(|(_, order)| *order == Some(false)) {
            let message = format!(
                "it did not come after {before}: more of disk {disk} changed since it than since that one; check what the \
                 descriptions say of parents"
            );
            return Err(Error::new(Kind::Invalid, message));
        }
        if each.iter().all(|(_, order)| *order == Some(true)) {
            return Ok(());
        }
        sleep(LOOK_PAUSE).await;
    }
    let message = format!(
        "nobody can tell whether it came after {before}: a bitmap of that one is broken, or the guest writes all the time; try \
         again when it writes less"
    );
    Err(Error::new(Kind::Busy, message))
}

/// Whether a bitmap is inside another one: of that the size at a moment before (no more than it has now), then its own,
/// then of that at a moment after (no less). None while that leaves it open.
fn order_of(least: Option<&u64>, own: Option<&u64>, most: Option<&u64>) -> Option<bool> {
    let (least, own, most) = (least?, own?, most?);
    if own <= least {
        return Some(true);
    }
    (own > most).then_some(false)
}

/// The bytes that changed since a checkpoint, by disks.
fn sizes(described: &str) -> Result<BTreeMap<String, u64>> {
    let disks = xml::checkpoint(described)?.disks;
    Ok(disks.into_iter().filter_map(|disk| Some((disk.target, disk.size?))).collect())
}

/// Whether libvirt takes it for the name of a checkpoint.
fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    !name.is_empty() && !name.starts_with('.') && name.bytes().all(allowed)
}

impl Description {
    fn read(node: Node<'_, '_>) -> Result<Self> {
        let wrong = |why: String| Error::new(Kind::Invalid, why);
        let name = text(node, "name").unwrap_or_default();
        let parent = child(node, "parent").map(|parent| text(parent, "name").unwrap_or_default());
        if let Some(name) = [Some(&name), parent.as_ref()].into_iter().flatten().find(|name| !is_name(name)) {
            return Err(wrong(format!("{name:?} is no name of a checkpoint for libvirt")));
        }
        let made = text(node, "creationTime").and_then(|time| time.parse().ok());
        let made = made.ok_or_else(|| wrong(format!("checkpoint {name} is described without its creationTime")))?;
        let disks = children(node, "disks", "disk").into_iter();
        let disks = disks.filter(|disk| disk.attribute("checkpoint").is_none_or(|kind| kind == "bitmap"));
        let mut targets = Vec::new();
        for disk in disks {
            if disk.attribute("bitmap").is_some_and(|bitmap| bitmap != name) {
                return Err(wrong(format!("checkpoint {name} is described with a bitmap of another name")));
            }
            targets.extend(disk.attribute("name").map(str::to_owned));
        }
        if targets.is_empty() {
            return Err(wrong(format!("checkpoint {name} is described without disks")));
        }
        Ok(Self { name, parent, made, note: text(node, "description"), disks: targets })
    }

    fn write(&self, parent: Option<&str>) -> String {
        let mut xml = format!("<domaincheckpoint><name>{}</name>", escape(&self.name));
        if let Some(note) = &self.note {
            let _ = write!(xml, "<description>{}</description>", escape(note));
        }
        if let Some(parent) = parent {
            let _ = write!(xml, "<parent><name>{}</name></parent>", escape(parent));
        }
        let _ = write!(xml, "<creationTime>{}</creationTime><disks>", self.made);
        for disk in &self.disks {
            let (disk, bitmap) = (escape(disk), escape(&self.name));
            let _ = write!(xml, "<disk name='{disk}' checkpoint='bitmap' bitmap='{bitmap}'/>");
        }
        xml.push_str("</disks></domaincheckpoint>");
        xml
    }
}

#[cfg(test)]
#[path = "redefine_tests.rs"]
mod tests;
