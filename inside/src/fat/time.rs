//! Times.

use crate::Time;

/// A date and a time of day, taken for UTC, as Linux does: what is no date at all is 1980 and on, never an error.
pub(super) fn unix(date: u16, time: u16) -> Time {
    let part = |value: u16, shift: u32, bits: u32| i64::from((value >> shift) & ((1 << bits) - 1));
    let year = 1980 + part(date, 9, 7);
    let month = part(date, 5, 4).clamp(1, 12);
    let day = part(date, 0, 5).max(1);
    // Days from 1970 on, by years that begin with March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1 - 719_468;
    let of_day = part(time, 11, 5) * 3600 + part(time, 5, 6) * 60 + part(time, 0, 5) * 2;
    Time { seconds: days * 86400 + of_day, nanoseconds: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let date = |year: u16, month: u16, day: u16| unix((year - 1980) << 9 | month << 5 | day, 0).seconds;
        assert_eq!(date(1980, 1, 1), 315_532_800);
        assert_eq!(date(2000, 2, 29), 951_782_400);
        assert_eq!(date(2000, 3, 1), 951_868_800);
        assert_eq!(date(2107, 12, 31), 4_354_732_800);
        assert_eq!(unix(0, 0).seconds, 315_532_800, "none");
        assert_eq!(unix(0x21, 0xBF7D).seconds, 315_532_800 + 86398);
    }
}
