//! From the arguments of a mount helper (mount(8), EXTERNAL HELPERS) to those of `pullfs mount`.

use std::ffi::{OsStr, OsString};

/// Options that mount(8), fstab(5) or systemd.mount(5) understand themselves, or that make no difference for a file system
/// that nobody writes to, runs programs of or makes devices on.
const NOT_OURS: [&str; 42] = [
    "defaults",
    "auto",
    "noauto",
    "nofail",
    "_netdev",
    "user",
    "nouser",
    "users",
    "owner",
    "noowner",
    "group",
    "nogroup",
    "comment",
    "helper",
    "uhelper",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    "sync",
    "async",
    "dirsync",
    "iversion",
    "noiversion",
    "mand",
    "nomand",
    "symfollow",
    "nosymfollow",
    "silent",
    "loud",
];

/// What mount(8) wants.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// `-f`: only pretend.
    Nothing,
    /// The arguments for `pullfs`.
    Mount(Vec<OsString>),
}

/// Translates `SOURCE DIR [-sfnv] [-o OPTIONS] [-t TYPE]`.
pub(crate) fn translate(arguments: impl IntoIterator<Item = OsString>) -> Result<Request, String> {
    let mut arguments = arguments.into_iter();
    let (mut places, mut options) = (Vec::new(), Vec::new());
    let (mut pretend, mut verbose) = (false, false);
    while let Some(argument) = arguments.next() {
        let Some(flags) = argument.to_str().and_then(|text| text.strip_prefix('-')).filter(|flags| !flags.is_empty())
        else {
            places.push(argument);
            continue;
        };
        for flag in flags.chars() {
            match flag {
                'f' => pretend = true,
                'v' => verbose = true,
                // Sloppiness and mtab are mount(8)'s.
                's' | 'n' => {}
                'o' => options.push(value(&mut arguments, "-o")?),
                't' => drop(value(&mut arguments, "-t")?),
                'N' => return Err("-N is not for pullfs: run mount within the namespace (nsenter --mount)".to_owned()),
                _ => return Err(format!("there is no option -{flag}")),
            }
        }
    }
    let [source, dir] = places.as_slice() else {
        return Err("usage: mount.pullfs SOURCE DIR [-sfnv] [-o OPTIONS]".to_owned());
    };
    // Together, as mount(8) joins several.
    let mut options = split(&options.join(","))?;
    if options.iter().any(|option| option == "remount") {
        return Err(
            "remount changes nothing: pullfs set and pullfs reload change some options while mounted; for others unmount \
             it, and mount it with other options"
                .to_owned(),
        );
    }
    if pretend {
        return Ok(Request::Nothing);
    }
    let mut call = vec![OsString::from("mount")];
    call.extend(verbose.then(|| "-v".into()));
    options.retain(|option| is_ours(option));
    if !options.is_empty() {
        call.extend(["-o".into(), OsString::from(options.join(","))]);
    }
    call.extend(["--".into(), source.clone(), dir.clone()]);
    Ok(Request::Mount(call))
}

fn value(arguments: &mut impl Iterator<Item = OsString>, flag: &str) -> Result<String, String> {
    let value = arguments.next().ok_or_else(|| format!("{flag} needs a value"))?;
    let shown = OsStr::to_string_lossy(&value).into_owned();
    value.into_string().map_err(|_| format!("{flag} {shown}: not UTF-8"))
}

/// Splits as libmount does: at commas, unless they are within double quotes or behind a backslash. What comes out is in the
/// form of `pullfs`, which has no quotes: a backslash stands before each comma of a value.
fn split(options: &str) -> Result<Vec<String>, String> {
    let (mut parts, mut part) = (Vec::new(), String::new());
    let (mut quoted, mut before) = (false, None);
    for character in options.chars() {
        match character {
            ',' if quoted && before != Some('\\') => part.push_str("\\,"),
            ',' if before != Some('\\') => parts.push(std::mem::take(&mut part)),
            '"' if before != Some('\\') => quoted = !quoted,
            '"' => {
                part.pop();
                part.push('"');
            }
            _ => part.push(character),
        }
        before = Some(character);
    }
    if quoted {
        return Err(format!("a quote in the mount options is not closed: {options}"));
    }
    parts.push(part);
    parts.retain(|part| !part.is_empty());
    Ok(parts)
}

fn is_ours(option: &str) -> bool {
    let name = option.split('=').next().unwrap_or(option);
    // `x-` options are for userspace, `X-` ones for mount(8) (mount(8), FILESYSTEM-INDEPENDENT MOUNT OPTIONS).
    !NOT_OURS.contains(&name) && !name.starts_with("x-") && !name.starts_with("X-")
}

#[cfg(test)]
mod tests;
