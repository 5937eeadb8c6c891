//! Names: long ones, and those of eight and three characters.

use crate::numbers::slice;
use crate::utf16;

/// Most units of a long name, and how many are in one slot.
const MAX_UNITS: usize = 255;
const UNITS_IN_SLOT: usize = 13;

/// Bits of an entry's byte 12: the name or its extension is in lower case.
const LOWER_NAME: u8 = 0x08;
const LOWER_EXTENSION: u8 = 0x10;

/// Code page 437 from 0x80 on, which short names are in, as Linux takes them unless it is told otherwise.
const CODE_PAGE: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀\
                         αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}";

fn character(byte: u8, lower: bool) -> char {
    let high = usize::from(byte).checked_sub(0x80);
    let plain = high.map_or(char::from(byte), |high| CODE_PAGE.chars().nth(high).unwrap_or('\u{fffd}'));
    let mut lowered = plain.to_lowercase();
    match (lower, lowered.next(), lowered.next()) {
        (true, Some(one), None) if one.is_ascii() || CODE_PAGE.contains(one) => one,
        _ => plain,
    }
}

/// The name of an entry without a long one, as Linux shows it.
pub(super) fn short(entry: &[u8; 32]) -> Vec<u8> {
    let case = entry[12];
    let part = |bytes: &[u8], lower: bool| {
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        let text: String = bytes[..end].iter().map(|&byte| character(byte, lower)).collect();
        text.trim_end_matches(' ').to_owned()
    };
    let mut base = [0; 8];
    base.copy_from_slice(&entry[..8]);
    // 0xE5 there means that the entry is free, so a name that begins with it is written so.
    if base[0] == 0x05 {
        base[0] = 0xE5;
    }
    let (base, extension) = (part(&base, case & LOWER_NAME != 0), part(&entry[8..11], case & LOWER_EXTENSION != 0));
    if extension.is_empty() { base.into_bytes() } else { format!("{base}.{extension}").into_bytes() }
}

/// What the slots of a long name say which short name they belong to.
fn checksum(entry: &[u8; 32]) -> u8 {
    entry[..11].iter().fold(0_u8, |sum, &byte| sum.rotate_right(1).wrapping_add(byte))
}

/// Slots of a long name, which come in reverse order before their entry.
#[derive(Debug, Default)]
pub(super) struct Long {
    /// From the end of the name on; empty if there is none.
    slots: Vec<[u16; UNITS_IN_SLOT]>,
    /// The number of the slot that came last; the entry follows number 1.
    last: u8,
    checksum: u8,
}

impl Long {
    /// Takes a slot. What does not go on from the slot before it is forgotten.
    pub(super) fn push(&mut self, slot: &[u8; 32]) {
        let number = slot[0] & 0x3F;
        if slot[0] & 0x40 != 0 {
            *self = Self { slots: Vec::new(), last: number, checksum: slot[13] };
        } else if self.slots.is_empty() || number.checked_add(1) != Some(self.last) || slot[13] != self.checksum {
            *self = Self::default();
            return;
        }
        self.last = number;
        let mut units = [0; UNITS_IN_SLOT];
        let bytes = slot[1..11].chunks(2).chain(slot[14..26].chunks(2)).chain(slot[28..32].chunks(2));
        for (unit, pair) in units.iter_mut().zip(bytes) {
            *unit = u16::from_le_bytes([pair[0], pair[1]]);
        }
        if number == 0 || self.slots.len() * UNITS_IN_SLOT > MAX_UNITS {
            *self = Self::default();
            return;
        }
        self.slots.push(units);
    }

    /// The long name of this entry, if these are its slots; they are used up.
    pub(super) fn take(&mut self, entry: &[u8; 32]) -> Option<Vec<u8>> {
        let long = std::mem::take(self);
        if long.last != 1 || long.checksum != checksum(entry) {
            return None;
        }
        let units: Vec<u16> = long.slots.iter().rev().flatten().copied().take_while(|&unit| unit != 0).collect();
        (!units.is_empty() && units.len() <= MAX_UNITS).then(|| utf16::to_bytes(&units))
    }
}

/// A slot of 32 bytes of a directory.
pub(super) fn slot(directory: &[u8], index: usize) -> Option<&[u8; 32]> {
    slice(directory, index.checked_mul(32)?, 32).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &[u8; 11], case: u8) -> [u8; 32] {
        let mut entry = [0; 32];
        entry[..11].copy_from_slice(name);
        entry[12] = case;
        entry
    }

    #[test]
    fn short_names_are_as_linux_shows_them() {
        assert_eq!(short(&entry(b"README  TXT", 0)), b"README.TXT");
        assert_eq!(short(&entry(b"README  TXT", 0x18)), b"readme.txt");
        assert_eq!(short(&entry(b"README  TXT", 0x10)), b"README.txt");
        assert_eq!(short(&entry(b"A B        ", 0x08)), b"a b");
        assert_eq!(short(&entry(b"\x05\x8E\xE2     X  ", 0)), "σÄΓ.X".as_bytes());
        assert_eq!(short(&entry(b"\x8E\xE2      X  ", 0x08)), "äΓ.X".as_bytes(), "γ is not in the code page");
        assert_eq!(CODE_PAGE.chars().count(), 128);
    }

    #[test]
    fn slots_of_another_name_are_no_long_name() {
        let entry = entry(b"LONG    TXT", 0);
        let mut slot = [0xFF; 32];
        slot[0] = 0x41;
        slot[1..5].copy_from_slice(&[b'a', 0, 0, 0]);
        slot[13] = checksum(&entry);
        let mut long = Long::default();
        long.push(&slot);
        assert_eq!(long.take(&entry).as_deref(), Some(&b"a"[..]));
        assert_eq!(long.take(&entry), None, "used up");
        slot[13] ^= 1;
        long.push(&slot);
        assert_eq!(long.take(&entry), None, "another one's");
        slot[0] = 0x42;
        slot[13] ^= 1;
        long.push(&slot);
        assert_eq!(long.take(&entry), None, "its first slot is not there");
    }
}
