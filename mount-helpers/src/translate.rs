//! From the arguments of a mount helper (mount(8), EXTERNAL HELPERS) to those of `pullfs mount`.

use std::ffi::{OsStr, OsString};

/// Options that mount(8), fstab(5) or systemd.mount(5) understand themselves, or that every pullfs mount has anyway.
const NOT_OURS: [&str; 24] = [
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
    "nosuid",
    "nodev",
    "noexec",
    "noatime",
    "nodiratime",
    "relatime",
    "strictatime",
    "async",
    "silent",
    "loud",
    "norelatime",
    "nostrictatime",
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
                'o' => options.extend(split(&value(&mut arguments, "-o")?)),
                't' => drop(value(&mut arguments, "-t")?),
                _ => return Err(format!("there is no option -{flag}")),
            }
        }
    }
    let [source, dir] = places.as_slice() else {
        return Err("usage: mount.pullfs SOURCE DIR [-sfnv] [-o OPTIONS]".to_owned());
    };
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

/// Splits at commas that no backslash stands before, and leaves the backslashes for `pullfs`.
fn split(options: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for part in options.split(',') {
        match parts.last_mut() {
            Some(last) if last.ends_with('\\') => *last = format!("{last},{part}"),
            _ => parts.push(part.to_owned()),
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

fn is_ours(option: &str) -> bool {
    let name = option.split('=').next().unwrap_or(option);
    // `x-` options are for userspace, `X-` ones for mount(8) (mount(8), FILESYSTEM-INDEPENDENT MOUNT OPTIONS).
    !NOT_OURS.contains(&name) && !name.starts_with("x-") && !name.starts_with("X-") && name != "comment"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(line: &[&str]) -> Result<Request, String> {
        translate(line.iter().map(OsString::from))
    }

    fn mount(line: &[&str]) -> Vec<String> {
        match call(line).unwrap() {
            Request::Mount(arguments) => arguments.into_iter().map(|part| part.into_string().unwrap()).collect(),
            Request::Nothing => panic!("something was asked for"),
        }
    }

    #[test]
    fn what_fstab_says_for_others_is_left_out() {
        let options = "rw,noauto,_netdev,x-systemd.automount,x-systemd.idle-timeout=60,disks=a+b,scratch=/a\\,b,nofail";
        let call = mount(&["qmp:/run/vm.qmp", "/mnt", "-o", options]);
        assert_eq!(call, ["mount", "-o", "rw,disks=a+b,scratch=/a\\,b", "--", "qmp:/run/vm.qmp", "/mnt"]);
    }

    #[test]
    fn flags_may_stand_together() {
        assert_eq!(mount(&["-sv", "qmp:x", "/m", "-n", "-t", "pullfs"]), ["mount", "-v", "--", "qmp:x", "/m"]);
        assert_eq!(call(&["qmp:x", "/m", "-f"]).unwrap(), Request::Nothing);
    }

    #[test]
    fn wrong_usage_is_refused() {
        for line in [&["qmp:x"][..], &["qmp:x", "/m", "-o"], &["qmp:x", "/m", "-q"], &["a", "b", "c"]] {
            assert!(call(line).is_err(), "{line:?}");
        }
    }
}
