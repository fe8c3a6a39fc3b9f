//! Protocol buffers as bytes: enough to read a model, change a few fields and write everything else back unchanged.

use std::borrow::Cow;

/// What a field holds, by wire type.
#[derive(Clone, PartialEq, Debug)]
pub enum Value<'a> {
    /// Integers, enums.
    Varint(u64),
    /// Doubles.
    Fixed64([u8; 8]),
    /// Floats.
    Fixed32([u8; 4]),
    /// Strings, bytes, nested messages, packed numbers.
    Bytes(Cow<'a, [u8]>),
}

/// The fields of a message, in the order of the file.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Message<'a> {
    fields: Vec<(u32, Value<'a>)>,
}

/// The bytes are no message: where, from the message's beginning, and why.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("at byte {at}: {why}")]
pub struct Damaged {
    at: usize,
    why: &'static str,
}

impl<'a> Message<'a> {
    /// Splits `bytes` into fields; nested messages stay bytes. Every byte must belong to a field.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Damaged> {
        let mut at = 0;
        let mut fields = Vec::new();
        while at < bytes.len() {
            let begin = at;
            let damaged = |why| Damaged { at: begin, why };
            let key = varint(bytes, &mut at).ok_or(damaged("no field begins here"))?;
            let number =
                u32::try_from(key >> 3).ok().filter(|&n| n > 0).ok_or(damaged("no such field number"))?;
            let value = match key & 7 {
                0 => Value::Varint(varint(bytes, &mut at).ok_or(damaged("a number is cut off"))?),
                1 => Value::Fixed64(fixed(bytes, &mut at).ok_or(damaged("a number is cut off"))?),
                5 => Value::Fixed32(fixed(bytes, &mut at).ok_or(damaged("a number is cut off"))?),
                2 => {
                    let length = varint(bytes, &mut at).ok_or(damaged("a length is cut off"))?;
                    let end = usize::try_from(length).ok().and_then(|n| at.checked_add(n));
                    let inner =
                        end.and_then(|end| bytes.get(at..end)).ok_or(damaged("a field is cut off"))?;
                    at += inner.len();
                    Value::Bytes(Cow::Borrowed(inner))
                }
                _ => return Err(damaged("no such wire type")),
            };
            fields.push((number, value));
        }
        Ok(Message { fields })
    }

    /// The message's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (number, value) in &self.fields {
            let kind = match value {
                Value::Varint(_) => 0,
                Value::Fixed64(_) => 1,
                Value::Bytes(_) => 2,
                Value::Fixed32(_) => 5,
            };
            put_varint(&mut out, u64::from(*number) << 3 | kind);
            match value {
                Value::Varint(n) => put_varint(&mut out, *n),
                Value::Fixed64(b) => out.extend(b),
                Value::Fixed32(b) => out.extend(b),
                Value::Bytes(b) => {
                    put_varint(&mut out, b.len() as u64);
                    out.extend_from_slice(b);
                }
            }
        }
        out
    }

    /// Every value of a field.
    pub fn all(&self, number: u32) -> impl Iterator<Item = &Value<'a>> {
        self.fields.iter().filter(move |(n, _)| *n == number).map(|(_, v)| v)
    }

    /// Every value of a field that is bytes.
    pub fn bytes(&self, number: u32) -> impl Iterator<Item = &[u8]> {
        self.all(number).filter_map(|value| match value {
            Value::Bytes(bytes) => Some(&**bytes),
            _ => None,
        })
    }

    /// The nested messages of a field.
    pub fn messages(&self, number: u32) -> impl Iterator<Item = Result<Message<'_>, Damaged>> {
        self.bytes(number).map(Message::parse)
    }

    /// A string; the last one counts, as the format has it. Empty where there is none.
    pub fn string(&self, number: u32) -> String {
        self.bytes(number).last().map(|b| String::from_utf8_lossy(b).into_owned()).unwrap_or_default()
    }

    /// An integer; `None` where there is none.
    pub fn integer(&self, number: u32) -> Option<i64> {
        let last = self.all(number).filter_map(|value| match value {
            Value::Varint(n) => Some(n.cast_signed()),
            _ => None,
        });
        last.last()
    }

    /// A repeated integer, packed or not.
    pub fn integers(&self, number: u32) -> Vec<i64> {
        let mut out = Vec::new();
        for value in self.all(number) {
            match value {
                Value::Varint(n) => out.push(n.cast_signed()),
                Value::Bytes(packed) => {
                    let mut at = 0;
                    while let Some(n) = varint(packed, &mut at) {
                        out.push(n.cast_signed());
                    }
                }
                Value::Fixed64(_) | Value::Fixed32(_) => {}
            }
        }
        out
    }

    /// Adds a string or bytes.
    pub fn push_bytes(&mut self, number: u32, bytes: impl Into<Vec<u8>>) {
        self.fields.push((number, Value::Bytes(Cow::Owned(bytes.into()))));
    }

    /// Adds an integer.
    pub fn push_integer(&mut self, number: u32, value: i64) {
        self.fields.push((number, Value::Varint(value.cast_unsigned())));
    }

    /// Adds a float.
    pub fn push_float(&mut self, number: u32, value: f32) {
        self.fields.push((number, Value::Fixed32(value.to_le_bytes())));
    }

    /// Adds a nested message.
    pub fn push(&mut self, number: u32, message: &Message<'_>) {
        self.push_bytes(number, message.encode());
    }

    /// Adds a nested message before all fields of its number: nodes stand in the order of execution.
    pub fn push_first(&mut self, number: u32, message: &Message<'_>) {
        let at = self.fields.iter().position(|(n, _)| *n == number).unwrap_or(self.fields.len());
        self.fields.insert(at, (number, Value::Bytes(Cow::Owned(message.encode()))));
    }

    /// Takes all values of a field away.
    pub fn remove(&mut self, number: u32) {
        self.fields.retain(|(n, _)| *n != number);
    }

    /// Puts what `change` makes of each value of a field that is bytes in its place; `None` leaves it.
    pub fn replace<E>(
        &mut self,
        number: u32,
        mut change: impl FnMut(&[u8]) -> Result<Option<Vec<u8>>, E>,
    ) -> Result<(), E> {
        for (n, value) in &mut self.fields {
            if let Value::Bytes(bytes) = value
                && *n == number
                && let Some(changed) = change(bytes)?
            {
                *bytes = Cow::Owned(changed);
            }
        }
        Ok(())
    }
}

fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0u64;
    for n in 0..10 {
        let byte = *bytes.get(*at + n)?;
        value |= u64::from(byte & 0x7f) << (7 * n);
        if byte < 0x80 {
            *at += n + 1;
            return Some(value);
        }
    }
    None
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn fixed<const N: usize>(bytes: &[u8], at: &mut usize) -> Option<[u8; N]> {
    let value = bytes.get(*at..)?.first_chunk::<N>().copied()?;
    *at += N;
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_survives() {
        let mut inner = Message::default();
        inner.push_bytes(1, "ab");
        let mut message = Message::default();
        message.push_integer(1, -1);
        message.push(7, &inner);
        message.fields.push((3, Value::Fixed32(1.5f32.to_le_bytes())));
        message.fields.push((4, Value::Fixed64(1.5f64.to_le_bytes())));
        message.push_integer(500, 300);
        let bytes = message.encode();
        let read = Message::parse(&bytes).expect("just written");
        assert_eq!(read, message);
        assert_eq!(read.encode(), bytes);
        assert_eq!((read.integer(1), read.integer(500), read.integer(9)), (Some(-1), Some(300), None));
        assert_eq!(read.messages(7).next().expect("there").expect("a message").string(1), "ab");
    }

    #[test]
    fn cut_messages_are_refused_or_shorter() {
        let mut message = Message::default();
        message.push_bytes(1, vec![7; 300]);
        let bytes = message.encode();
        for cut in 1..bytes.len() {
            assert!(Message::parse(&bytes[..cut]).is_err(), "{cut}");
        }
        assert!(Message::parse(&[0x0f, 0]).is_err(), "wire type 7");
        assert!(Message::parse(&[0x00, 0]).is_err(), "field 0");
        assert!(Message::parse(&[0xff; 12]).is_err(), "a number without end");
        // A length near 2^64 must not overflow.
        assert!(Message::parse(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]).is_err());
    }

    #[test]
    fn packed_and_plain_numbers_are_one() {
        let mut message = Message::default();
        message.push_bytes(1, vec![1, 0x80, 0x02]);
        message.push_integer(1, 7);
        assert_eq!(message.integers(1), [1, 256, 7]);
    }
}
