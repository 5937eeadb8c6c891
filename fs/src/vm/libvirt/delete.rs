//! Deleting a checkpoint, be it one of which a disk has no bitmap any more: a machine that lost its power has none of those that
//! were made since it started. libvirt deletes all of a checkpoint's bitmaps or none, and so would keep such a one for good.

use libvirt::{Code, Domain, Result};

use super::xml;

/// Deletes a checkpoint with the bitmaps that there are.
pub(super) fn delete(domain: &Domain, name: &str) -> Result<()> {
    let checkpoint = domain.checkpoint(name)?;
    let Err(refused) = checkpoint.delete() else { return Ok(()) };
    let described = checkpoint.xml(true)?;
    let Ok(known) = xml::checkpoint(&described) else { return Err(refused) };
    if refused.code() != Code::Other || known.disks.iter().all(|disk| disk.size.is_some()) {
        return Err(refused);
    }
    for disk in &known.disks {
        let Ok(alone) = xml::checkpoint_of_one(&described, &disk.target) else { return Err(refused) };
        match domain.redefine_checkpoint(&alone, false)?.delete() {
            // It has no bitmap.
            Err(error) if error.code() == Code::Other && disk.size.is_none() => {}
            outcome => outcome?,
        }
    }
    match domain.checkpoint(name) {
        Ok(left) => left.forget(),
        Err(error) if error.code() == Code::NoCheckpoint => Ok(()),
        Err(error) => Err(error),
    }
}
