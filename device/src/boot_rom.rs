//! The unbooted stick: it takes a firmware image and jumps.

use std::time::Duration;

use ncs2::clock::Instant;

use crate::profile::Boot;

/// `98 00 00 20 80 VV`: the patched-in write of the watchdog byte, then the jump that ends the image.
const WATCHDOG: [u8; 5] = [0x98, 0x00, 0x00, 0x20, 0x80];
const JUMP: u8 = 0xa4;
const JUMP_LEN: usize = 8;
const TAIL: usize = WATCHDOG.len() + 1 + JUMP_LEN;

/// What was booted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Booted {
    /// The image arms the firmware's watchdog.
    pub(crate) watchdog: bool,
}

/// Takes the image as a byte stream. Nothing of it is kept but its end.
#[derive(Debug)]
pub(crate) struct BootRom {
    rules: Boot,
    received: u64,
    tail: [u8; TAIL],
    /// With any firmware: when the silence after a jump has been long enough.
    quiet: Option<Instant>,
}

impl BootRom {
    pub(crate) fn new(rules: Boot) -> Self {
        BootRom { rules, received: 0, tail: [0; TAIL], quiet: None }
    }

    pub(crate) fn handle_out(&mut self, bytes: &[u8], now: Instant) -> Option<Booted> {
        self.received += bytes.len() as u64;
        let keep = bytes.len().min(TAIL);
        self.tail.rotate_left(keep);
        self.tail[TAIL - keep..].copy_from_slice(&bytes[bytes.len() - keep..]);
        self.quiet = None;
        let jumps = self.tail[TAIL - JUMP_LEN] == JUMP && self.tail[TAIL - 3..] == [0, 0, 0];
        if !jumps {
            return None;
        }
        if self.rules.any_firmware {
            self.quiet = Some(now + Duration::from_nanos((self.rules.image_quiet_ms * 1e6) as u64));
            None
        } else {
            self.rules.firmware_sizes.contains(&self.received).then(|| self.boot())
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.quiet
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Option<Booted> {
        self.quiet.filter(|&t| t <= now)?;
        self.quiet = None;
        Some(self.boot())
    }

    /// The host closed the stick: an image of another size than known ones is thrown away.
    pub(crate) fn handle_closed(&mut self) -> Option<Booted> {
        if self.quiet.take().is_some() {
            return Some(self.boot());
        }
        *self = BootRom::new(self.rules.clone());
        None
    }

    fn boot(&self) -> Booted {
        let patched = self.tail[..WATCHDOG.len()] == WATCHDOG;
        Booted { watchdog: patched && self.tail[WATCHDOG.len()] == 1 }
    }
}
