//! What stands behind the name of an option: reading it, and saying what it takes.

use std::path::PathBuf;
use std::time::Duration;

use nbd_pool::Address;

use super::Formats;
use crate::error::{Error, Kind, Result};

/// Longest time that an option takes: ten years. Whoever wants more wants for ever.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Splits at commas that no backslash stands before; empty options are dropped.
pub(super) fn split(text: &str) -> Vec<String> {
    let mut options = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match (character, options.last_mut()) {
            ('\\', Some(last)) if characters.peek() == Some(&',') => {
                characters.next();
                last.push(',');
            }
            (',', _) => options.push(String::new()),
            (_, Some(last)) => last.push(character),
            (_, None) => {}
        }
    }
    options.retain(|option| !option.is_empty());
    options
}

pub(super) fn nbd(value: &str) -> Option<Address> {
    match value.strip_prefix("unix:") {
        Some(path) => path.starts_with('/').then(|| Address::Unix(PathBuf::from(path))),
        None => Address::tcp(value.strip_prefix("tcp:").unwrap_or(value)),
    }
}

pub(super) fn formats(value: &str) -> Result<Formats> {
    let mut formats = Formats { raw: false, qcow2: false, map: false, partitions: false };
    for format in value.split('+') {
        match format {
            "raw" => formats.raw = true,
            "qcow2" => formats.qcow2 = true,
            "map" => formats.map = true,
            "partitions" => formats.partitions = true,
            _ => return Err(bad("formats", value, "raw, qcow2, map and partitions, joined by +")),
        }
    }
    Ok(formats)
}

pub(super) fn number<T: std::str::FromStr + PartialOrd + std::fmt::Display>(
    name: &str,
    value: &str,
    low: T,
    high: T,
) -> Result<T> {
    let takes = format!("a number from {low} to {high}");
    value.parse().ok().filter(|number| (low..=high).contains(number)).ok_or_else(|| bad(name, value, &takes))
}

/// A number of bytes; K, M, G and T are powers of 1024.
pub(super) fn size(name: &str, value: &str) -> Result<u64> {
    let (digits, unit) = match value.strip_suffix(['K', 'M', 'G', 'T']) {
        Some(digits) => (digits, value.as_bytes()[digits.len()]),
        None => (value, b'B'),
    };
    let shift = match unit {
        b'K' => 10,
        b'M' => 20,
        b'G' => 30,
        b'T' => 40,
        _ => 0,
    };
    let bytes = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    bytes.filter(|bytes| *bytes > 0).ok_or_else(|| bad(name, value, "a number of bytes, such as 10G"))
}

pub(super) fn duration(name: &str, value: &str) -> Result<Duration> {
    // A number alone counts seconds, as everywhere in fstab.
    let seconds = value.parse().map(Duration::from_secs).ok();
    let duration = seconds.or_else(|| humantime::parse_duration(value).ok());
    let sensible = |duration: &Duration| (Duration::from_millis(1)..=LONGEST).contains(duration);
    duration.filter(sensible).ok_or_else(|| bad(name, value, "a time, such as 90s, 20min or 2h"))
}

pub(super) fn bad(name: &str, value: &str, takes: &str) -> Error {
    Error::new(Kind::Invalid, format!("mount option {name}={value}: it takes {takes}"))
}

pub(super) fn unknown(name: &str) -> Error {
    Error::new(Kind::Invalid, format!("there is no mount option {name}; see pullfs mount --help"))
}
