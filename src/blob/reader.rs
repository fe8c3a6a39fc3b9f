//! A bounded cursor over the file: every read is checked, every failure names its byte.
use super::BlobError;

pub(super) type Parsed<T> = Result<T, BlobError>;

impl BlobError {
    pub(super) fn new(offset: usize, field: impl Into<String>, problem: impl Into<String>) -> Self {
        BlobError { offset, field: field.into(), problem: problem.into(), remedy: None }
    }

    #[must_use]
    pub(super) fn with_remedy(self, remedy: &'static str) -> Self {
        BlobError { remedy: Some(remedy), ..self }
    }

    /// Puts the outer field before the inner one: `stage 3` + `buffer 1` → `stage 3 / buffer 1`. Called on the error
    /// path only, so that a good file formats nothing.
    #[must_use]
    pub(super) fn within(mut self, outer: impl std::fmt::Display) -> Self {
        self.field = format!("{outer} / {}", self.field);
        self
    }
}

/// Reads little-endian words from `pos` to `end`.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    pos: usize,
    end: usize,
}

impl<'a> Reader<'a> {
    /// A cursor over `start..end`; both are cut to the file's size.
    pub fn new(bytes: &'a [u8], start: usize, end: usize) -> Self {
        let end = end.min(bytes.len());
        Reader { bytes, pos: start.min(end), end }
    }

    pub fn pos(&self) -> usize {
        self.pos
    }

    pub fn rest(&self) -> usize {
        self.end - self.pos
    }

    pub fn is_at_end(&self) -> bool {
        self.pos == self.end
    }

    /// A cursor over the next `len` bytes, which this one skips.
    pub fn sub(&mut self, len: usize, field: &'static str) -> Parsed<Reader<'a>> {
        if len > self.rest() {
            let problem = format!("{len} bytes announced, {} left", self.rest());
            return Err(BlobError::new(self.pos, field, problem));
        }
        let inner = Reader { bytes: self.bytes, pos: self.pos, end: self.pos + len };
        self.pos += len;
        Ok(inner)
    }

    pub fn take(&mut self, len: usize, field: &'static str) -> Parsed<&'a [u8]> {
        let inner = self.sub(len, field)?;
        Ok(&self.bytes[inner.pos..inner.end])
    }

    pub fn u32(&mut self, field: &'static str) -> Parsed<u32> {
        match self.bytes[self.pos..self.end].first_chunk::<4>() {
            Some(word) => {
                self.pos += 4;
                Ok(u32::from_le_bytes(*word))
            }
            None => Err(BlobError::new(
                self.pos,
                field,
                format!("4 bytes expected, the part ends after {}", self.rest()),
            )),
        }
    }

    pub fn i32(&mut self, field: &'static str) -> Parsed<i32> {
        Ok(self.u32(field)? as i32)
    }

    pub fn usize(&mut self, field: &'static str) -> Parsed<usize> {
        Ok(self.u32(field)? as usize)
    }

    /// A word that must be 0 or 1.
    pub fn flag(&mut self, field: &'static str) -> Parsed<bool> {
        let at = self.pos;
        match self.u32(field)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(BlobError::new(at, field, format!("0 or 1 expected, {other} found"))),
        }
    }

    /// A word that must be at most `max`.
    pub fn at_most(&mut self, max: u32, field: &'static str) -> Parsed<u32> {
        self.between(0, max, field)
    }

    /// A word that must lie in `min..=max`.
    pub fn between(&mut self, min: u32, max: u32, field: &'static str) -> Parsed<u32> {
        let at = self.pos;
        let value = self.u32(field)?;
        if value < min || value > max {
            return Err(BlobError::new(at, field, format!("{min} to {max} expected, {value} found")));
        }
        Ok(value)
    }
}
