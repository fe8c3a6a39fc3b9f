//! Bytes for a host that reads when it likes.

/// More than this waiting, and the stick is held back.
const ENOUGH_BYTES: usize = 4 << 20;

/// What was written and not yet sent.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outbox {
    /// False when so much waits that the stick should not say more.
    pub(crate) fn has_room(&self) -> bool {
        self.bytes.len() - self.sent < ENOUGH_BYTES
    }

    /// What to send; say how much went with [`Self::consume`].
    pub(crate) fn outgoing(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    pub(crate) fn consume(&mut self, n: usize) {
        self.sent += n;
        if self.sent >= self.bytes.len() {
            self.bytes.clear();
            self.sent = 0;
        }
    }

    /// To write behind what waits. A host that is always a little behind must not make it grow for ever.
    pub(crate) fn end(&mut self) -> &mut Vec<u8> {
        if self.sent > ENOUGH_BYTES {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        &mut self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_is_gone_and_the_rest_stays_in_order() {
        let mut outbox = Outbox::default();
        outbox.end().extend(vec![1; ENOUGH_BYTES]);
        assert!(!outbox.has_room());
        outbox.end().extend([2; 10]);
        outbox.consume(ENOUGH_BYTES + 3);
        assert!(outbox.has_room());
        outbox.end().push(3);
        assert_eq!(outbox.outgoing(), [2, 2, 2, 2, 2, 2, 2, 3]);
        outbox.consume(8);
        assert!(outbox.outgoing().is_empty());
    }
}
