//! Transports from outside: the pipe, the socket, the reactor, and the wrappers around them.

#[path = "transport/fault.rs"]
mod fault;
#[path = "transport/pipe.rs"]
mod pipe;
#[path = "transport/reactor.rs"]
mod reactor;
#[path = "transport/socket.rs"]
mod socket;
#[path = "transport/tracer.rs"]
mod tracer;

use ncs2::transport::{Buffer, Completion, Direction, MemoryKind, Transfer, Transport, TransportInfo};

/// What the pipes of these tests say of themselves.
fn info() -> TransportInfo {
    TransportInfo { max_packet_bytes: 1024, speed_mbps: 5000, memory: MemoryKind::InProcess, simulated: true }
}

fn out(bytes: &[u8], token: u64) -> Transfer {
    let mut buffer = Buffer::zeroed(bytes.len());
    buffer.as_mut_slice().expect("owned").copy_from_slice(bytes);
    Transfer::whole(Direction::Out, buffer, token)
}

fn read(len: usize, token: u64) -> Transfer {
    Transfer::whole(Direction::In, Buffer::zeroed(len), token)
}

fn drain(host: &mut dyn Transport) -> Vec<Completion> {
    std::iter::from_fn(|| host.poll()).collect()
}

/// Small and seeded; the seed is in each assertion's message.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}
