//! The device's side of the usb-redir protocol, for QEMU's `usb-redir` device: a real kernel in a virtual machine sees
//! the stick behind a real xHCI driver. Sans-IO: bytes in, bytes out.
//!
//! Facts of the protocol come from its public description and from QEMU's behaviour; the code is our own.

mod packet;
#[cfg(test)]
mod tests;

use ncs2::clock::Instant;
use zerocopy::FromZeros;
use zerocopy::little_endian::{U16, U32};

use packet::{DeviceConnect, Encoder, EpInfo, Incoming, InterfaceInfo, Parser, Status};

use super::outbox::Outbox;
use super::usb::{
    BusSpeed, Descriptors, Done, ENDPOINT_IN, ENDPOINT_OUT, Outcome, Request, RequestKind, UsbDevice,
};
use crate::{Identity, LinkSpeed, VirtualStick};

pub(crate) use packet::PacketError;

/// One connection of a usb-redir host.
#[derive(Debug)]
pub(crate) struct Session {
    parser: Parser,
    usb: UsbDevice,
    out: Outbox,
    /// The hellos are exchanged.
    ready: bool,
    /// The host was told of the device.
    connected: bool,
}

impl Session {
    /// A new connection; the hello waits to be sent.
    pub(crate) fn new(link: LinkSpeed) -> Self {
        let mut session = Session {
            parser: Parser::default(),
            usb: UsbDevice::new(link),
            out: Outbox::default(),
            ready: false,
            connected: false,
        };
        session.encoder().hello();
        session
    }

    // --- inputs ----------------------------------------------------------------------------------------------------

    /// What the host sent. After an error the connection is of no use any more.
    pub(crate) fn handle_bytes(
        &mut self,
        bytes: &[u8],
        stick: &mut VirtualStick,
        now: Instant,
    ) -> Result<(), PacketError> {
        self.parser.handle_bytes(bytes);
        while let Some((id, packet)) = self.parser.poll()? {
            self.handle_packet(id, packet, stick, now);
        }
        Ok(())
    }

    /// From the next appearance on it is a stick with this link.
    pub(crate) fn set_link(&mut self, link: LinkSpeed) {
        self.usb.set_link(link);
    }

    /// The stick appeared on the bus.
    pub(crate) fn appear(&mut self, identity: Identity) {
        self.usb.appear(identity);
        self.connect();
    }

    /// The stick left the bus. What it completed before is told first.
    pub(crate) fn leave(&mut self) {
        self.flush();
        self.usb.leave();
        if self.connected {
            self.connected = false;
            self.encoder().device_disconnect();
        }
    }

    /// Moves data between host and stick; true when some moved.
    pub(crate) fn serve(&mut self, stick: &mut VirtualStick, now: Instant) -> bool {
        let progress = self.usb.serve(stick, self.out.has_room(), now);
        self.flush();
        progress
    }

    // --- outputs ---------------------------------------------------------------------------------------------------

    /// What to send; say how much went with [`Self::consume`].
    pub(crate) fn outgoing(&self) -> &[u8] {
        self.out.outgoing()
    }

    pub(crate) fn consume(&mut self, n: usize) {
        self.out.consume(n);
    }

    pub(crate) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        self.usb.poll_timeout(now)
    }

    /// Bulk requests of this connection that ended.
    pub(crate) fn transfers(&self) -> u64 {
        self.usb.transfers()
    }

    // ---------------------------------------------------------------------------------------------------------------

    fn encoder(&mut self) -> Encoder<'_> {
        Encoder { common: self.parser.common(), out: self.out.end() }
    }

    fn handle_packet(&mut self, id: u64, packet: Incoming, stick: &mut VirtualStick, now: Instant) {
        match packet {
            Incoming::Hello { .. } => {
                if !self.ready {
                    self.ready = true;
                    if let Some(identity) = stick.identity() {
                        self.usb.appear(identity);
                        self.connect();
                    }
                }
            }
            Incoming::Reset => self.usb.reset(stick, now),
            Incoming::SetConfiguration(number) => {
                let ok = self.connected && self.usb.set_configuration(number, stick, now);
                let status = if ok { Status::Success } else { Status::Stall };
                let configuration = self.usb.configuration();
                self.encoder().configuration_status(id, status, configuration);
            }
            Incoming::GetConfiguration => {
                let configuration = self.usb.configuration();
                self.encoder().configuration_status(id, Status::Success, configuration);
            }
            Incoming::SetAltSetting { interface, alt } => {
                let ok = self.connected && interface == 0 && alt == 0;
                let status = if ok { Status::Success } else { Status::Stall };
                self.encoder().alt_setting_status(id, status, interface, 0);
            }
            Incoming::GetAltSetting { interface } => {
                let status = if interface == 0 { Status::Success } else { Status::Stall };
                self.encoder().alt_setting_status(id, status, interface, 0);
            }
            Incoming::Cancel => {
                self.usb.cancel(id);
            }
            Incoming::Control { setup, data, .. } => {
                self.submit(id, RequestKind::Control { setup, data }, stick, now);
            }
            Incoming::BulkOut { endpoint: ENDPOINT_OUT, stream: 0, data } => {
                self.submit(id, RequestKind::Out { data }, stick, now);
            }
            Incoming::BulkIn { endpoint: ENDPOINT_IN, stream: 0, length } => {
                self.submit(id, RequestKind::In { length }, stick, now);
            }
            Incoming::BulkOut { endpoint, .. } | Incoming::BulkIn { endpoint, .. } => {
                self.submit(id, RequestKind::Elsewhere { endpoint }, stick, now);
            }
            Incoming::Ignored => {}
        }
        self.flush();
    }

    fn submit(&mut self, id: u64, kind: RequestKind, stick: &mut VirtualStick, now: Instant) {
        self.usb.submit(Request { id, kind }, stick, now);
    }

    /// The host learns of endpoints and interfaces first, or it would refuse the device.
    fn connect(&mut self) {
        let Some(descriptors) = self.usb.descriptors() else { return };
        if !self.ready || self.connected {
            return;
        }
        self.connected = true;
        let mut encoder = self.encoder();
        encoder.ep_info(&ep_info(&descriptors));
        encoder.interface_info(&interface_info(&descriptors));
        encoder.device_connect(&device_connect(&descriptors));
    }

    fn flush(&mut self) {
        while let Some(done) = self.usb.poll_done() {
            if self.connected {
                self.tell(&done);
            }
        }
    }

    fn tell(&mut self, done: &Done) {
        let status = match done.outcome {
            Outcome::Complete => Status::Success,
            Outcome::Cancelled => Status::Cancelled,
            Outcome::Stalled => Status::Stall,
            Outcome::Overflow => Status::Babble,
            Outcome::Refused => Status::Invalid,
        };
        match done.setup {
            Some(setup) => self.encoder().control(done.id, status, setup, done.actual, &done.data),
            None => self.encoder().bulk(done.id, status, done.endpoint, done.actual, &done.data),
        }
    }
}

/// Endpoints 0x00..=0x0f stand first, 0x80..=0x8f behind.
fn ep_info(descriptors: &Descriptors) -> EpInfo {
    const CONTROL: u8 = 0;
    const BULK: u8 = 2;
    const INVALID: u8 = 255;
    let mut info = EpInfo::new_zeroed();
    info.kind = [INVALID; 32];
    for at in [0, 16] {
        info.kind[at] = CONTROL;
    }
    for endpoint in [ENDPOINT_OUT, ENDPOINT_IN] {
        let at = usize::from(endpoint & 0x0f) + if endpoint & 0x80 != 0 { 16 } else { 0 };
        info.kind[at] = BULK;
        info.max_packet_bytes[at] = U16::new(descriptors.max_packet_bytes());
    }
    info
}

fn interface_info(descriptors: &Descriptors) -> InterfaceInfo {
    let mut info = InterfaceInfo::new_zeroed();
    info.count = U32::new(1);
    let [class, subclass, protocol] = descriptors.interface_class();
    info.class[0] = class;
    info.subclass[0] = subclass;
    info.protocol[0] = protocol;
    info
}

fn device_connect(descriptors: &Descriptors) -> DeviceConnect {
    DeviceConnect {
        speed: match descriptors.speed() {
            BusSpeed::High => 2,
            BusSpeed::Super => 3,
        },
        class: [0; 3],
        vendor_id: U16::new(descriptors.vendor_id()),
        product_id: U16::new(descriptors.product_id()),
        version: U16::new(descriptors.device_version()),
    }
}
