//! The plain pieces that messages consist of.

use super::Invalid;

/// What is left of a frame that is being read.
pub(super) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn new(frame: &'a [u8]) -> Self {
        Self(frame)
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], Invalid> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Invalid("end"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Invalid> {
        self.take(N)?.try_into().map_err(|_| Invalid("end"))
    }

    pub(super) fn u8(&mut self) -> Result<u8, Invalid> {
        self.array().map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Invalid> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Invalid> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Invalid> {
        self.array().map(u64::from_be_bytes)
    }

    pub(super) fn i64(&mut self) -> Result<i64, Invalid> {
        self.array().map(i64::from_be_bytes)
    }

    /// A size or an offset: what the kernel has a signed number for.
    pub(super) fn size(&mut self, what: &'static str) -> Result<u64, Invalid> {
        self.u64().and_then(|size| if i64::try_from(size).is_ok() { Ok(size) } else { Err(Invalid(what)) })
    }

    /// How many of something follow, each of which takes at least one byte: so no more than bytes are left, and than `most`.
    pub(super) fn count(&mut self, most: usize) -> Result<usize, Invalid> {
        let count = usize::try_from(self.u32()?).unwrap_or(usize::MAX);
        if count <= most && count <= self.0.len() { Ok(count) } else { Err(Invalid("count")) }
    }

    pub(super) fn bytes(&mut self, most: usize) -> Result<&'a [u8], Invalid> {
        let length = self.count(most)?;
        self.take(length)
    }

    pub(super) fn text(&mut self, most: usize) -> Result<String, Invalid> {
        std::str::from_utf8(self.bytes(most)?).map(str::to_owned).map_err(|_| Invalid("text"))
    }

    pub(super) fn option<T>(
        &mut self,
        some: impl FnOnce(&mut Self) -> Result<T, Invalid>,
    ) -> Result<Option<T>, Invalid> {
        match self.u8()? {
            0 => Ok(None),
            1 => some(self).map(Some),
            _ => Err(Invalid("option")),
        }
    }

    pub(super) fn list<T>(
        &mut self,
        most: usize,
        mut each: impl FnMut(&mut Self) -> Result<T, Invalid>,
    ) -> Result<Vec<T>, Invalid> {
        let count = self.count(most)?;
        (0..count).map(|_| each(self)).collect()
    }

    pub(super) fn rest(self) -> &'a [u8] {
        self.0
    }

    pub(super) fn end(self) -> Result<(), Invalid> {
        if self.0.is_empty() { Ok(()) } else { Err(Invalid("end")) }
    }
}

/// A frame that is being written, without its length.
pub(super) struct Output(pub(super) Vec<u8>);

impl Output {
    pub(super) fn new(tag: u8) -> Self {
        Self(vec![tag])
    }

    pub(super) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.0.extend(value.to_be_bytes());
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.0.extend(value.to_be_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.0.extend(value.to_be_bytes());
    }

    pub(super) fn i64(&mut self, value: i64) {
        self.0.extend(value.to_be_bytes());
    }

    /// One that is too large is refused by who reads it, as is the frame around it.
    pub(super) fn count(&mut self, count: usize) {
        self.u32(u32::try_from(count).unwrap_or(u32::MAX));
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.0.extend(bytes);
    }

    /// As much of a text as fits into `most` bytes.
    pub(super) fn text(&mut self, text: &str, most: usize) {
        let fits = text.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= most).last();
        self.bytes(&text.as_bytes()[..fits.unwrap_or(0)]);
    }

    pub(super) fn option<T>(&mut self, option: Option<T>, some: impl FnOnce(&mut Self, T)) {
        self.u8(u8::from(option.is_some()));
        if let Some(value) = option {
            some(self, value);
        }
    }

    pub(super) fn list<T>(&mut self, list: &[T], each: impl Fn(&mut Self, &T)) {
        self.count(list.len());
        for item in list {
            each(self, item);
        }
    }
}
