//! What names in directories are sorted by.

/// Where nothing was chosen when the file system was made.
const SEED: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

/// How names are hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Legacy,
    HalfMd4,
    Tea,
}

/// The hash of a name: even, and not the largest number, which is the end of a directory.
pub(super) fn hash(method: Method, unsigned: bool, seed: [u32; 4], name: &[u8]) -> u32 {
    let widen = |byte: u8| if unsigned { u32::from(byte) } else { i32::from(byte.cast_signed()).cast_unsigned() };
    let mut state = if seed == [0; 4] { SEED } else { seed };
    let hash = match method {
        Method::Legacy => legacy(name.iter().map(|byte| widen(*byte))),
        Method::HalfMd4 => {
            pieces::<8>(name, widen, |words| half_md4(&mut state, words));
            state[1]
        }
        Method::Tea => {
            pieces::<4>(name, widen, |words| tea(&mut state, words));
            state[0]
        }
    };
    match hash & !1 {
        0xffff_fffe => 0xffff_fffc,
        hash => hash,
    }
}

fn legacy(name: impl Iterator<Item = u32>) -> u32 {
    let (mut last, mut before) = (0x12a3_fe2d_u32, 0x37ab_e8f9_u32);
    for byte in name {
        let next = before.wrapping_add(last ^ byte.wrapping_mul(7_152_373));
        before = last;
        last = if next >> 31 == 1 { next.wrapping_sub(0x7fff_ffff) } else { next };
    }
    last << 1
}

/// The name in pieces of `N` words. What is missing of the last one is made of how much it was.
fn pieces<const N: usize>(name: &[u8], widen: impl Fn(u8) -> u32, mut each: impl FnMut(&[u32; N])) {
    let mut rest = name;
    while !rest.is_empty() {
        let left = u32::try_from(rest.len()).unwrap_or(0);
        let pad = (left | left << 8) & 0xffff | (left | left << 8) << 16;
        let mut words = [pad; N];
        let (now, later) = rest.split_at(rest.len().min(N * 4));
        for (word, bytes) in words.iter_mut().zip(now.chunks(4)) {
            *word = bytes.iter().fold(pad, |word, byte| widen(*byte).wrapping_add(word << 8));
        }
        each(&words);
        rest = later;
    }
}

fn half_md4(state: &mut [u32; 4], words: &[u32; 8]) {
    type Mix = fn(u32, u32, u32) -> u32;
    let choose: Mix = |x, y, z| z ^ x & (y ^ z);
    let most: Mix = |x, y, z| (x & y).wrapping_add((x ^ y) & z);
    let odd: Mix = |x, y, z| x ^ y ^ z;
    let rounds: [(Mix, u32, [usize; 8], [u32; 4]); 3] = [
        (choose, 0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]),
        (most, 0x5a82_7999, [1, 3, 5, 7, 0, 2, 4, 6], [3, 5, 9, 13]),
        (odd, 0x6ed9_eba1, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]),
    ];
    let [mut a, mut b, mut c, mut d] = *state;
    for (mix, constant, order, turns) in rounds {
        for (word, turn) in order.into_iter().zip(turns.into_iter().cycle()) {
            let sum = a.wrapping_add(mix(b, c, d)).wrapping_add(words[word]).wrapping_add(constant);
            (a, b, c, d) = (d, sum.rotate_left(turn), b, c);
        }
    }
    for (old, new) in state.iter_mut().zip([a, b, c, d]) {
        *old = old.wrapping_add(new);
    }
}

fn tea(state: &mut [u32; 4], words: &[u32; 4]) {
    let [mut x, mut y, ..] = *state;
    let mut sum = 0_u32;
    let turn = |value: u32, sum: u32, left: u32, right: u32| {
        (value << 4).wrapping_add(left) ^ value.wrapping_add(sum) ^ (value >> 5).wrapping_add(right)
    };
    for _ in 0..16 {
        sum = sum.wrapping_add(0x9e37_79b9);
        x = x.wrapping_add(turn(y, sum, words[0], words[1]));
        y = y.wrapping_add(turn(x, sum, words[2], words[3]));
    }
    state[0] = state[0].wrapping_add(x);
    state[1] = state[1].wrapping_add(y);
}
