//! Numbers for people.

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    MibPerSecond,
    /// Operations a second.
    PerSecond,
    Seconds,
    Milliseconds,
    /// CPU seconds for a GiB of data.
    CpuPerGib,
    Mib,
    /// Of threads.
    Count,
}

impl Unit {
    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::MibPerSecond => "MiB/s",
            Self::PerSecond => "1/s",
            Self::Seconds => "s",
            Self::Milliseconds => "ms",
            Self::CpuPerGib => "CPU s/GiB",
            Self::Mib => "MiB",
            Self::Count => "",
        }
    }

    /// Whether more of it is better.
    pub(crate) fn more_is_better(self) -> bool {
        matches!(self, Self::MibPerSecond | Self::PerSecond)
    }
}

/// A figure with three digits that say something, as a number of any unit.
pub(crate) fn figure(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        large if large >= 100.0 => format!("{value:.0}"),
        medium if medium >= 10.0 => format!("{value:.1}"),
        small if small >= 1.0 => format!("{value:.2}"),
        small if small >= 0.1 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

/// A count as a float: exact up to 2^53, which no measurement reaches.
#[expect(clippy::cast_precision_loss, reason = "bytes and operations of one run are far below 2^53")]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}

/// A number of bytes; K, M and G are powers of 1024.
pub(crate) fn bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.strip_suffix(['K', 'M', 'G']) {
        Some(digits) if text.ends_with('K') => (digits, 10),
        Some(digits) if text.ends_with('M') => (digits, 20),
        Some(digits) => (digits, 30),
        None => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits() {
        let told = [0.0, 0.001_23, 0.123_4, 1.234, 12.34, 123.4, 12_345.6].map(figure);
        assert_eq!(told, ["0", "0.0012", "0.123", "1.23", "12.3", "123", "12346"]);
    }

    #[test]
    fn bytes_have_units() {
        assert_eq!(["3", "2K", "512M", "1G"].map(bytes), [Some(3), Some(2048), Some(512 << 20), Some(1 << 30)]);
        assert_eq!(["", "G", "-1", "99999999999999G"].map(bytes), [None; 4]);
    }
}
