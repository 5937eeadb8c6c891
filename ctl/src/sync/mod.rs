//! `pullfs sync`: brings a full raw copy of a disk up to date in place.
//!
//! The order of the steps is what makes it safe to interrupt at any of them:
//!
//! 1. lock the copy; refuse what changed since a checkpoint that does not fit it ([`identity`]), before anything is
//!    opened on the mount and before anything is written;
//! 2. open the disk, which takes the point in time or shares the one that is held, and keeps it from being replaced;
//! 3. read the dirty map once in full, so that a bad one is found before the first write;
//! 4. a full copy: remove the identity, since what half of it leaves behind is a copy of nothing;
//! 5. write, flush, see that the point in time is still the same;
//! 6. write the identity, last.

mod dest;
mod identity;
mod noted;
mod progress;
mod source;

use std::path::Path;

use self::dest::{Dest, Place};
use self::identity::{Checkpoint, Disk, Identity, after, fits};
use self::noted::Noted;
use self::progress::Progress;
use self::source::{Held, Piece, Source};
use crate::args;
use crate::failure::{Code, Failure, Outcome};
use crate::status::size;

/// Bytes that are read and written at once.
const CHUNK: usize = 4 << 20;

pub(crate) fn run(arguments: &args::Sync) -> Outcome {
    let source = Source::find(&arguments.source)?;
    let place = Place::find(&arguments.dest)?;
    let noted = noted(&place, arguments.identity.as_deref())?;
    let status = source.mounted.status()?;
    let (disk, since) = (source.disk(&status), source.since(&status));
    // What is missing is created only when there is something to write into it.
    let dest = if matches!(place, Place::Missing(_)) { None } else { Some(Dest::open(&place)?) };
    let copy = noted.read()?;
    let known = match &since {
        Some(checkpoint) => {
            let copy = if dest.is_some() { copy.as_ref() } else { None };
            let copy = check(copy, &disk, checkpoint, &source, place.path())?;
            Some(copy.size)
        }
        None => None,
    };

    let (held, status) = source.hold()?;
    if (source.disk(&status), source.since(&status)) != (disk.clone(), since.clone()) {
        let message = format!("{} was changed meanwhile; run it again", arguments.source.display());
        return Err(Failure::message(Code::Busy, message));
    }
    let total = total(&held, known)?;
    if let (Some(dest), Some(known)) = (&dest, known) {
        check_size(dest, place.path(), known, held.size)?;
    }
    let mut dest = dest.map_or_else(|| Dest::open(&place), Ok)?;
    dest.can_hold(held.size)?;
    let progress = Progress::begin(&describe(&disk, since.as_ref(), total, &place), total, arguments.quiet)?;
    if since.is_none() {
        noted.remove()?;
    }
    dest.resize(held.size)?;
    let progress = copy_pieces(&held, known, &mut dest, progress)?;
    dest.flush()?;
    let identity = after(&disk, since.as_ref(), &held.end()?);
    noted.write(&identity)?;
    progress.end(&summary(&dest, &identity))
}

/// Where the identity is kept: nothing on a device is beside it.
fn noted(place: &Place, chosen: Option<&Path>) -> Outcome<Noted> {
    match (chosen, place) {
        (Some(path), _) => Ok(Noted::at(path)),
        (None, Place::Device(device)) => {
            let message = format!(
                "{} is a block device: say with --identity FILE where to note what it is a copy of",
                device.display()
            );
            Err(Failure::message(Code::Usage, message))
        }
        (None, Place::Missing(path) | Place::Regular(path)) => Ok(Noted::beside(path)),
    }
}

fn check<'a>(
    copy: Option<&'a Identity>,
    disk: &Disk,
    since: &Checkpoint,
    source: &Source,
    dest: &Path,
) -> Outcome<&'a Identity> {
    fits(copy, disk, since).map_err(|misfit| {
        let (dest, current) = (dest.display(), source.current());
        let message = format!(
            "what changed on {} since {} does not fit {dest}: {misfit}; copy it in full: pullfs sync {} {dest}",
            disk.name,
            since.name,
            current.display()
        );
        Failure::message(Code::System, message)
    })
}

/// A copy that was cut or stretched by somebody else is not what is noted. An interrupted run may have made it grow.
fn check_size(dest: &Dest, path: &Path, known: u64, size: u64) -> Outcome {
    let has = dest.size()?;
    if dest.is_device() || (known.min(size)..=known.max(size)).contains(&has) {
        return Ok(());
    }
    let message = format!(
        "{} has {has} bytes, which is not what was copied to it ({known}) nor the disk's size ({size}); nothing was written",
        path.display()
    );
    Err(Failure::message(Code::System, message))
}

/// Bytes to do; of what changed exactly, of a whole disk as far as it is known.
fn total(held: &Held<'_>, known: Option<u64>) -> Outcome<u64> {
    let Some(known) = known else { return Ok(held.estimate()) };
    let mut total = 0;
    held.pieces(known, &mut |piece| {
        total += length(&piece);
        Ok(())
    })?;
    Ok(total)
}

fn length(piece: &Piece) -> u64 {
    piece.range().end - piece.range().start
}

fn copy_pieces(held: &Held<'_>, known: Option<u64>, dest: &mut Dest, mut progress: Progress) -> Outcome<Progress> {
    let mut buffer = vec![0; CHUNK];
    held.pieces(known.unwrap_or(held.size), &mut |piece| match piece {
        Piece::Zero(range) => {
            dest.zero(range.clone())?;
            // The holes of a whole disk are nothing that is waited for.
            progress.add(if known.is_some() { range.end - range.start } else { 0 })
        }
        Piece::Data(ref range) | Piece::Changed(ref range) => {
            let mut at = range.start;
            while at < range.end {
                let count = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(buffer.len());
                held.read(&piece, at, &mut buffer[..count])?;
                dest.write(at, &buffer[..count])?;
                let count = u64::try_from(count).unwrap_or(u64::MAX);
                at += count;
                progress.add(count)?;
            }
            Ok(())
        }
    })?;
    Ok(progress)
}

fn describe(disk: &Disk, since: Option<&Checkpoint>, total: u64, place: &Place) -> String {
    let dest = place.path().display();
    match since {
        Some(checkpoint) => format!("{}: {} changed since {}, to {dest}", disk.name, size(total), checkpoint.name),
        None => format!("{}: all of it, about {} of data, to {dest}", disk.name, size(total)),
    }
}

fn summary(dest: &Dest, identity: &Identity) -> String {
    let time = identity.time.as_deref().unwrap_or("the point in time");
    let fits = match &identity.checkpoint {
        Some(checkpoint) => format!("it fits checkpoint {checkpoint}"),
        None => "no increment fits it, as it was not made together with a checkpoint".to_owned(),
    };
    format!(
        "{} written, {} made zeroes; the copy is {} as of {time}; {fits}",
        size(dest.written),
        size(dest.zeroed),
        identity.disk
    )
}
