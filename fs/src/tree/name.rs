//! Which names of disks and checkpoints can be file names.

/// Longest file name that Linux takes, in bytes (limits.h `NAME_MAX`).
const NAME_MAX: usize = 255;

/// Whether a name can stand in a directory.
///
/// # Errors
/// Why not, in words for the user.
pub fn check(name: &str) -> Result<(), &'static str> {
    match name {
        "" => Err("its name is empty"),
        "." | ".." => Err("its name means a directory"),
        _ if name.len() > NAME_MAX => Err("its name is longer than 255 bytes, the longest a file name can be"),
        _ if name.contains(['/', '\0']) => Err("its name has a character that a file name cannot have"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_linux_would_refuse_is_refused() {
        for bad in ["", ".", "..", "a/b", "a\0", &"x".repeat(256)] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
        for good in ["vda", "monday 1", "...", "é", &"x".repeat(255)] {
            assert!(check(good).is_ok(), "{good:?}");
        }
    }
}
