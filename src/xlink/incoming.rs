//! What the stick says: headers, their payloads' ends, and our answers to its requests.

use super::link::{Link, Receiving, Sink};
use super::stream::{Side as StreamSide, Stream};
use super::{Accept, LinkEvent, LinkFault, MAX_PACKET_BYTES};
use crate::clock::Instant;
use crate::wire::{EventKind, Flags, Header, Side};

impl<P, T: Copy> Link<P, T> {
    pub(super) fn handle_header(&mut self, header: Header, now: Instant) -> Option<LinkEvent<T>> {
        match header.side {
            Side::Response => self.handle_response(header, now),
            Side::Request => match header.kind {
                EventKind::Write => self.handle_write(header),
                EventKind::ReadRelease => self.handle_release(header),
                EventKind::CreateStream => {
                    self.handle_create(header);
                    None
                }
                EventKind::CloseStream => {
                    self.handle_close(header);
                    None
                }
                EventKind::Ping => {
                    self.respond(&header, Flags::ACK);
                    None
                }
                EventKind::Read | EventKind::ReadReleaseSpecific | EventKind::Reset => {
                    self.protocol(format!("{:?} request from the stick", header.kind));
                    None
                }
            },
        }
    }

    /// Responses are matched by id and kind alone: their other fields may be stale.
    fn handle_response(&mut self, header: Header, now: Instant) -> Option<LinkEvent<T>> {
        let found = self.awaiting.iter().position(|a| a.id == header.id && a.kind == header.kind);
        let Some(awaited) = found.and_then(|at| self.awaiting.remove(at)) else {
            self.protocol(format!("answer {:?} {} to nothing that was asked", header.kind, header.id));
            return None;
        };
        self.confirm(awaited.sent_bytes, now);
        let accepted = header.flags.contains(Flags::ACK) && !header.flags.contains(Flags::NACK);
        let at = self.streams.iter().position(|s| s.id == awaited.stream);
        match (awaited.kind, accepted) {
            (EventKind::CreateStream, true) => {
                if let Some(s) = at.and_then(|at| self.streams.get_mut(at)) {
                    s.side = StreamSide::Open;
                }
            }
            (EventKind::CreateStream, false) => {
                if let Some(at) = at {
                    self.streams.remove(at);
                }
                return awaited.tag.map(|tag| LinkEvent::Refused(tag, header.flags));
            }
            (EventKind::CloseStream, true) => {
                if let Some(at) = at {
                    self.close_our_side(at);
                }
            }
            // A stick that resets may say so in any way.
            (EventKind::Reset, _) => {}
            (_, true) => {}
            (kind, false) => {
                self.fail(LinkFault::Refused { kind, tag: awaited.tag, flags: header.flags });
                return None;
            }
        }
        awaited.tag.map(LinkEvent::Answered)
    }

    /// The number stays taken while the stick has its own side open.
    fn close_our_side(&mut self, at: usize) {
        let s = &mut self.streams[at];
        if s.device_open {
            s.side = StreamSide::Closed;
            s.accept = Accept::Discard;
        } else {
            self.streams.remove(at);
        }
    }

    fn handle_write(&mut self, header: Header) -> Option<LinkEvent<T>> {
        let at = self.streams.iter().position(|s| s.id == header.stream);
        let accept = at.map_or(Accept::Discard, |at| self.streams[at].accept);
        let sink = match accept {
            Accept::Nothing => {
                self.protocol(format!("the stick writes on stream {}, which is ours alone", header.stream));
                return None;
            }
            Accept::Element => Sink::Element,
            _ if header.size > MAX_PACKET_BYTES => {
                self.protocol(format!("packet of {} bytes on stream {}", header.size, header.stream));
                return None;
            }
            Accept::Packets => Sink::Packet,
            Accept::Discard => Sink::Discard,
        };
        if let Some(at) = at
            && !self.streams[at].received.push(header.size)
        {
            self.protocol(format!("a 65th unreleased packet on stream {}", header.stream));
            return None;
        }
        self.packet.clear();
        self.receiving = Receiving::Payload { request: header, got: 0, sink };
        match sink {
            Sink::Element => Some(LinkEvent::ElementBegun(header.stream, header.size)),
            Sink::Packet | Sink::Discard => self.finish_payload(),
        }
    }

    /// Acknowledges a write once its last byte is there.
    pub(super) fn finish_payload(&mut self) -> Option<LinkEvent<T>> {
        let Receiving::Payload { request, got, sink } = self.receiving else { return None };
        if got < request.size {
            return None;
        }
        self.receiving = Receiving::Header { got: 0 };
        if self.streams.iter().all(|s| s.id != request.stream) {
            self.respond(&request, Flags::NACK | Flags::NO_SUCH_STREAM);
            return None;
        }
        self.respond(&request, Flags::ACK);
        match sink {
            Sink::Packet => Some(LinkEvent::Packet(request.stream)),
            Sink::Element => Some(LinkEvent::ElementDone(request.stream)),
            Sink::Discard => {
                let released = self.release(request.stream, None);
                debug_assert!(released.is_ok() || self.dead, "the packet was just counted");
                None
            }
        }
    }

    fn handle_release(&mut self, header: Header) -> Option<LinkEvent<T>> {
        let Some(s) = self.streams.iter_mut().find(|s| s.id == header.stream) else {
            self.respond(&header, Flags::NACK | Flags::NO_SUCH_STREAM);
            return None;
        };
        match s.sent.front() {
            Some(size) if size == header.size => {
                s.sent.pop();
            }
            Some(size) => {
                let problem = format!(
                    "release of {} bytes on stream {}, the oldest packet has {size}",
                    header.size, header.stream
                );
                self.protocol(problem);
                return None;
            }
            None => {
                self.protocol(format!("release of a packet that was never sent on stream {}", header.stream));
                return None;
            }
        }
        self.respond(&header, Flags::ACK);
        self.unpark(header.stream);
        Some(LinkEvent::Released(header.stream))
    }

    /// The stick opens its own side: the answer carries the number that we already use for that name.
    fn handle_create(&mut self, header: Header) {
        let known = self.streams.iter_mut().find(|s| s.name == header.name);
        let stream = match known {
            Some(s) => {
                s.device_open = true;
                Ok(s.id)
            }
            None => self.fresh_stream_id().inspect(|&id| {
                let mut s = Stream::new(id, header.name, 0, Accept::Discard, StreamSide::Closed);
                s.device_open = true;
                self.streams.push(s);
            }),
        };
        match stream {
            Ok(id) => self.respond(&Header { stream: id, ..header }, Flags::ACK),
            Err(_) => self.respond(&header, Flags::NACK),
        }
    }

    fn handle_close(&mut self, header: Header) {
        let Some(at) = self.streams.iter().position(|s| s.id == header.stream) else {
            return self.respond(&header, Flags::NACK | Flags::NO_SUCH_STREAM);
        };
        let s = &mut self.streams[at];
        s.device_open = false;
        if s.side == StreamSide::Closed {
            self.streams.remove(at);
        }
        self.respond(&header, Flags::ACK);
    }
}
