//! Changes of an input that a seed determines: what a fuzzer does without looking at what is covered.

/// `SplitMix64`: small, and good enough to choose.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Always the same numbers for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end).unwrap_or(u64::MAX)).unwrap_or(0)
    }
}

/// Numbers that programs trip over, as text and as they are on a wire.
const WORDS: [&[u8]; 16] = [
    b"0",
    b"-1",
    b"4294967295",
    b"9223372036854775807",
    b"18446744073709551615",
    b"18446744073709551616",
    b"1e999",
    b"null",
    b"{}",
    b"[[]]",
    b"\"\"",
    b"\n",
    b"\\u0000",
    &[0xff; 4],
    &[0xff; 8],
    &[0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
];

/// `input` with some changes; `other` is another good input to take parts from. At most `longest` bytes.
pub fn mutate(random: &mut Random, input: &[u8], other: &[u8], longest: usize) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        let span = at..(at + 1 + random.below(32)).min(bytes.len()).max(at);
        match random.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.next().to_le_bytes()[0],
            2 => drop(bytes.drain(span)),
            3 => {
                let copy = bytes[span].to_vec();
                let to = random.below(bytes.len() + 1);
                bytes.splice(to..to, copy);
            }
            4 => {
                let word = WORDS[random.below(WORDS.len())];
                let end = (at + if random.below(2) == 0 { word.len() } else { 0 }).min(bytes.len());
                bytes.splice(at..end, word.iter().copied());
            }
            5 => bytes.truncate(at),
            6 if !other.is_empty() => {
                let from = random.below(other.len());
                let part = &other[from..(from + 1 + random.below(256)).min(other.len())];
                bytes.splice(span, part.iter().copied());
            }
            // A digit more or less is another number.
            _ => match bytes.iter().skip(at).position(u8::is_ascii_digit) {
                Some(digit) => bytes[at + digit] = b"0123456789"[random.below(10)],
                None => bytes.insert(at, random.next().to_le_bytes()[0]),
            },
        }
    }
    bytes.truncate(longest);
    bytes
}
