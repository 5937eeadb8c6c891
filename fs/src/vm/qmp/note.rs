//! What pullfs notes of a checkpoint when it makes it, kept where the checkpoint itself is kept.
//!
//! Beside the dirty bitmap `monday` there is a second one, disabled and as coarse as can be, that records nothing: its
//! *name* is the note. So it goes wherever the image goes, ends when the bitmap does, and needs no file of ours. It also
//! says that the checkpoint is pullfs's own.
//!
//! `pullfs-checkpoint:1:MILLISECONDS:SIZE:NAME`: the version of the form, the time since 1970, the disk's virtual size
//! in bytes, the checkpoint. QEMU allows names of 1023 bytes; a checkpoint's has at most 255.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::vm::Made;

const PREFIX: &str = "pullfs-checkpoint:";
const VERSION: &str = "1";

/// Granularity of the bitmap whose name is a note: the coarsest that qcow2 stores (docs/interop/qcow2.txt).
pub(super) const GRANULARITY: u32 = 1 << 31;

/// Times from here on cannot be written down: the year 10000, in milliseconds since 1970.
const END_OF_TIME: u64 = 253_402_300_800_000;

/// The name of the note on a checkpoint.
pub(super) fn write(checkpoint: &str, made: Made) -> String {
    let millis = made.time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis();
    format!("{PREFIX}{VERSION}:{millis}:{}:{checkpoint}", made.size)
}

/// Now, as a note tells it: in whole milliseconds.
pub(in crate::vm) fn now() -> SystemTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    UNIX_EPOCH + Duration::from_millis(u64::try_from(since.as_millis()).unwrap_or(0))
}

/// Whether a bitmap's name is a note, of this version or another.
pub(super) fn is_note(bitmap: &str) -> bool {
    bitmap.starts_with(PREFIX)
}

/// What a note says: the checkpoint and its making.
pub(super) fn read(bitmap: &str) -> Option<(&str, Made)> {
    let mut fields = bitmap.strip_prefix(PREFIX)?.splitn(4, ':');
    let (version, millis, size, checkpoint) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let millis = millis.parse().ok().filter(|millis| *millis < END_OF_TIME)?;
    let time = UNIX_EPOCH.checked_add(Duration::from_millis(millis))?;
    (version == VERSION).then_some((checkpoint, Made { time, size: size.parse().ok()? }))
}

/// Whether a checkpoint may be called so.
///
/// # Errors
/// Why not, in words for the user.
pub(super) fn check_name(name: &str) -> Result<(), &'static str> {
    crate::tree::name::check(name)?;
    if name.starts_with('.') {
        return Err("a checkpoint's name does not begin with a dot");
    }
    if name.chars().any(char::is_control) {
        return Err("a checkpoint's name has no control characters");
    }
    if name.starts_with("pullfs-") {
        return Err("names that begin with pullfs- are for pullfs itself");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_noted_is_read_again(name in "\\PC{1,255}", millis in 0..END_OF_TIME, size: u64) {
            let made = Made { time: UNIX_EPOCH + Duration::from_millis(millis), size };
            let note = write(&name, made);
            prop_assert!(is_note(&note));
            prop_assert_eq!(read(&note), Some((name.as_str(), made)));
        }

        #[test]
        fn anything_may_be_a_bitmap_s_name(name in "(pullfs-checkpoint:)?[0-9:a-z]{0,40}") {
            if let Some((checkpoint, made)) = read(&name) {
                prop_assert!(name.ends_with(checkpoint) && made.time >= UNIX_EPOCH);
            }
        }
    }

    #[test]
    fn names_are_checked() {
        for bad in ["", ".", ".hidden", "a/b", "a\nb", "pullfs-x"] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        assert!(check_name("monday 1: before the update é").is_ok());
    }
}
