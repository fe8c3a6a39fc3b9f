//! One direction as the device side keeps it, in memory or behind a socket.

use std::collections::VecDeque;

use super::{Buffer, Completion, Direction, Transfer, TransferError};

/// One direction: submitted ─► held by the device ─► done.
#[derive(Default)]
pub(super) struct Lane {
    pub(super) submitted: VecDeque<Transfer>,
    held: VecDeque<Held>,
    pub(super) done: VecDeque<Completion>,
    /// Bytes of the submitted transfers.
    pub(super) submitted_bytes: usize,
    pub(super) closed: bool,
}

/// What the lane remembers of a transfer that the device holds.
struct Held {
    token: u64,
    direction: Direction,
    cancelled: bool,
    /// Completed before an older one; waits here, since one direction completes in order.
    finished: Option<Completion>,
}

impl Lane {
    pub(super) fn take(&mut self) -> Option<Transfer> {
        let transfer = self.submitted.pop_front()?;
        self.submitted_bytes -= transfer.range.len();
        self.held.push_back(Held {
            token: transfer.token,
            direction: transfer.direction,
            cancelled: false,
            finished: None,
        });
        Some(transfer)
    }

    /// True when the host has something to poll now.
    pub(super) fn complete(&mut self, mut completion: Completion) -> bool {
        let closed = self.closed;
        let token = completion.transfer.token;
        let Some(at) = self.held.iter().position(|h| h.finished.is_none() && h.token == token) else {
            // Not from this lane, or completed twice: there is no host transfer that it could end.
            debug_assert!(closed, "completed a transfer (token {token}) that the device did not hold");
            return false;
        };
        if closed {
            completion.result = Err(TransferError::Gone);
        } else if self.held[at].cancelled {
            completion.result = Err(TransferError::Cancelled);
        }
        if at == 0 {
            self.held.pop_front();
            self.done.push_back(completion);
            while let Some(next) = self.held.front_mut().and_then(|h| h.finished.take()) {
                self.held.pop_front();
                self.done.push_back(next);
            }
            true
        } else {
            self.held[at].finished = Some(completion);
            false
        }
    }

    /// Ends what the device has not taken; what it holds is ended when it gives it back.
    pub(super) fn end_submitted(&mut self, reason: TransferError) {
        self.submitted_bytes = 0;
        if self.held.is_empty() {
            while let Some(transfer) = self.submitted.pop_front() {
                self.done.push_back(Completion { transfer, actual: 0, result: Err(reason) });
            }
            return;
        }
        // Older ones are still held: these wait behind them, to keep the order.
        while let Some(transfer) = self.submitted.pop_front() {
            self.held.push_back(Held {
                token: transfer.token,
                direction: transfer.direction,
                cancelled: true,
                finished: Some(Completion { transfer, actual: 0, result: Err(reason) }),
            });
        }
    }

    pub(super) fn cancel(&mut self) -> bool {
        let mut recall = false;
        for held in &mut self.held {
            recall |= held.finished.is_none();
            held.cancelled = true;
        }
        self.end_submitted(TransferError::Cancelled);
        recall
    }

    pub(super) fn close(&mut self) {
        self.closed = true;
        self.end_submitted(TransferError::Gone);
    }

    /// The device half was dropped: what it still held will never come back by itself. The memory is lost with the
    /// device, but the host must not wait for it for ever.
    pub(super) fn abandon(&mut self) {
        self.close();
        while let Some(held) = self.held.pop_front() {
            let completion = held.finished.unwrap_or_else(|| Completion {
                transfer: Transfer {
                    direction: held.direction,
                    buffer: Buffer::zeroed(0),
                    range: 0..0,
                    token: held.token,
                },
                actual: 0,
                result: Err(TransferError::Gone),
            });
            self.done.push_back(completion);
        }
    }
}
