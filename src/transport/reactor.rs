//! Waiting for many transports at once: io_uring, or epoll where that is forbidden.
//!
//! **Edge-like, both kinds.** A token is reported when its descriptor *becomes* ready (and once after registering, if
//! it is ready already), not as long as it is. So, for each reported token: poll the transport until it yields
//! `None`, `arm` it, and only if `arm` says that nothing is ready, [`turn`](Reactor::turn). After a hang-up or an error of
//! the descriptor the token is reported once and then no more.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, PollFlags, Timespec, epoll, eventfd};

use super::ring::Ring;
use crate::clock::{Clock as _, Monotonic};

/// Which mechanism waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum ReactorKind {
    /// Multishot polls of io_uring.
    IoUring,
    /// Edge-triggered epoll.
    Epoll,
}

/// What [`ReactorKind::detect`] found.
#[derive(Debug)]
pub struct Detected {
    /// The better one that works here.
    pub kind: ReactorKind,
    /// Why it is not io_uring: EPERM where a container or sysctl forbids it, ENOSYS where the kernel lacks it.
    pub why_not: Option<io::Error>,
}

impl ReactorKind {
    /// Tries io_uring by using it.
    pub fn detect() -> Detected {
        match Ring::new() {
            Ok(_) => Detected { kind: ReactorKind::IoUring, why_not: None },
            Err(error) => Detected { kind: ReactorKind::Epoll, why_not: Some(error) },
        }
    }

    /// `io_uring` or `epoll`, as reports and JSON print it.
    pub fn as_str(self) -> &'static str {
        match self {
            ReactorKind::IoUring => "io_uring",
            ReactorKind::Epoll => "epoll",
        }
    }
}

/// What to wait for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Interest {
    /// Until it is readable.
    pub readable: bool,
    /// Until it is writable.
    pub writable: bool,
}

impl Interest {
    /// Readable only.
    pub const READ: Interest = Interest { readable: true, writable: false };
    /// Writable only.
    pub const WRITE: Interest = Interest { readable: false, writable: true };

    fn poll_flags(self) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, self.readable);
        flags.set(PollFlags::OUT, self.writable);
        flags
    }

    fn epoll_flags(self) -> epoll::EventFlags {
        let mut flags = epoll::EventFlags::ET;
        flags.set(epoll::EventFlags::IN, self.readable);
        flags.set(epoll::EventFlags::OUT, self.writable);
        flags
    }
}

/// Name of a registration. Never reused by its reactor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub struct Token(u64);

impl Token {
    // Low half: slot, high half: generation. A late event of an ended registration carries an old generation.
    fn slot(self) -> usize {
        (self.0 & u64::from(u32::MAX)) as usize
    }
}

const WAKER: u64 = u64::MAX - 1;

struct Registration {
    /// Of the caller's token; changes with the registration.
    token: Token,
    /// What the kernel was given; changes with each interest too. In the same slot, so that it finds the way back.
    key: u64,
    interest: Interest,
    // Own descriptor: re-arming must reach the same file even if the caller has closed his.
    fd: OwnedFd,
    /// Already in this turn's list.
    reported: bool,
    /// The poll has ended and was not armed again.
    ended: bool,
}

enum Backend {
    Ring(Box<Ring>),
    Epoll { epoll: OwnedFd, events: Vec<epoll::Event> },
}

/// Waits for readiness of registered descriptors, a deadline or a wake-up. It stays on the thread that made it, which does
/// the waiting: the kernel runs a ring's work there.
pub struct Reactor {
    backend: Backend,
    slots: Vec<Option<Registration>>,
    generation: u32,
    waker: Arc<WakerState>,
    events: Vec<(u64, bool, bool)>,
    /// Tells of wakers alone, for [`Reactor::linger`]; made when it is first needed.
    bell: Option<OwnedFd>,
    /// Not [`Send`].
    home: PhantomData<*const ()>,
}

impl Reactor {
    /// Fails as the kernel does; [`ReactorKind::detect`] finds out beforehand.
    pub fn new(kind: ReactorKind) -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let waker = Arc::new(WakerState { fd, state: AtomicU8::new(AWAKE) });
        let backend = match kind {
            ReactorKind::IoUring => {
                let mut ring = Ring::new()?;
                ring.poll_add(waker.fd.as_fd(), PollFlags::IN, WAKER)?;
                Backend::Ring(Box::new(ring))
            }
            ReactorKind::Epoll => {
                let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
                let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
                epoll::add(&epoll, &waker.fd, epoll::EventData::new_u64(WAKER), flags)?;
                Backend::Epoll { epoll, events: Vec::with_capacity(64) }
            }
        };
        Ok(Reactor {
            backend,
            slots: Vec::new(),
            generation: 0,
            waker,
            events: Vec::new(),
            bell: None,
            home: PhantomData,
        })
    }

    /// Which mechanism it uses.
    pub fn kind(&self) -> ReactorKind {
        match self.backend {
            Backend::Ring(_) => ReactorKind::IoUring,
            Backend::Epoll { .. } => ReactorKind::Epoll,
        }
    }

    /// Watches `fd`. The reactor keeps a duplicate: a closed stick is released only when it is deregistered too.
    pub fn register(&mut self, fd: BorrowedFd<'_>, interest: Interest) -> io::Result<Token> {
        let fd = fd.try_clone_to_owned()?;
        let slot = self.slots.iter().position(Option::is_none).unwrap_or(self.slots.len());
        let key = self.next_key(slot);
        match &mut self.backend {
            Backend::Ring(ring) => ring.poll_add(fd.as_fd(), interest.poll_flags(), key)?,
            Backend::Epoll { epoll, .. } => {
                epoll::add(epoll, &fd, epoll::EventData::new_u64(key), interest.epoll_flags())?;
            }
        }
        let token = Token(key);
        let registration = Registration { token, key, interest, fd, reported: false, ended: false };
        if slot == self.slots.len() {
            self.slots.push(Some(registration));
        } else {
            self.slots[slot] = Some(registration);
        }
        Ok(token)
    }

    /// Changes what to wait for; costs nothing when it is the same. A descriptor that is ready already for the new
    /// interest is reported at the next turn.
    pub fn set_interest(&mut self, token: Token, interest: Interest) -> io::Result<()> {
        let Some(slot) = self.slot_of(token) else { return Ok(()) };
        if self.slots[slot].as_ref().is_none_or(|r| r.interest == interest) {
            return Ok(());
        }
        let key = self.next_key(slot);
        let Some(registration) = &mut self.slots[slot] else { return Ok(()) };
        match &mut self.backend {
            Backend::Ring(ring) => {
                if !registration.ended {
                    ring.poll_remove(registration.key)?;
                }
                ring.poll_add(registration.fd.as_fd(), interest.poll_flags(), key)?;
            }
            Backend::Epoll { epoll, .. } => {
                let data = epoll::EventData::new_u64(key);
                epoll::modify(epoll, &registration.fd, data, interest.epoll_flags())?;
            }
        }
        registration.interest = interest;
        registration.key = key;
        registration.ended = false;
        Ok(())
    }

    /// Watches no more; an unknown or old token changes nothing. Events on the way are dropped.
    pub fn deregister(&mut self, token: Token) {
        let Some(slot) = self.slot_of(token) else { return };
        let Some(registration) = self.slots[slot].take() else { return };
        // A failure means that the kernel has forgotten it already.
        match &mut self.backend {
            Backend::Ring(ring) => {
                if !registration.ended {
                    let _ = ring.poll_remove(registration.key);
                }
            }
            Backend::Epoll { epoll, .. } => {
                let _ = epoll::delete(epoll, &registration.fd);
            }
        }
    }

    /// A handle that ends a blocked turn from any thread.
    pub fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.waker))
    }

    /// True when a waker rang since the last turn; then the next turn may sleep again. Saves the look of a turn.
    pub fn take_wake(&self) -> bool {
        let state = &self.waker.state;
        state.load(Ordering::Relaxed) == RUNG && state.swap(AWAKE, Ordering::AcqRel) == RUNG
    }

    /// Waits until a descriptor becomes ready, a waker rings or `deadline_in` has passed (`None`: no deadline;
    /// zero: looks only). Replaces the contents of `ready`, each token at most once. True when a waker rang since the
    /// last turn. May return early with nothing.
    pub fn turn(&mut self, deadline_in: Option<Duration>, ready: &mut Vec<Token>) -> io::Result<bool> {
        ready.clear();
        let sleeps = deadline_in != Some(Duration::ZERO);
        // Announced before the last look at the caller's queues is over: a wake from here on writes the eventfd.
        let rang = sleeps
            && self
                .waker
                .state
                .compare_exchange(AWAKE, SLEEPING, Ordering::AcqRel, Ordering::Acquire)
                .is_err();
        let timeout = if rang { Some(Duration::ZERO) } else { deadline_in };
        let waited = self.wait(timeout);
        let woken = self.waker.state.swap(AWAKE, Ordering::AcqRel) == RUNG;
        waited?;
        let mut events = std::mem::take(&mut self.events);
        for &(key, ended, dead) in &events {
            self.handle(key, ended, dead, ready)?;
        }
        events.clear();
        self.events = events;
        for token in ready.iter() {
            if let Some(Some(registration)) = self.slots.get_mut(token.slot()) {
                registration.reported = false;
            }
        }
        Ok(woken)
    }

    /// Sleeps for `time` or until a waker rings, whatever the descriptors do meanwhile: they are looked at afterwards. For
    /// several completions that will come one by one, and of which none is urgent: one wake-up instead of several. Where
    /// the kernel refuses, it returns at once.
    pub fn linger(&mut self, time: Duration) {
        let state = &self.waker.state;
        if state.compare_exchange(AWAKE, SLEEPING, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return;
        }
        if self.bell.is_none() {
            self.bell = alone(&self.waker.fd).ok();
        }
        if let Some(bell) = &self.bell {
            let clock = Monotonic::new();
            let until = clock.now() + time;
            // What it tells first may be the ring of an earlier sleep.
            while state.load(Ordering::Acquire) == SLEEPING {
                let left = until.saturating_since(clock.now());
                let Ok(limit) = Timespec::try_from(left) else { break };
                let mut event =
                    [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }];
                let waited = epoll::wait(bell, &mut event[..], Some(&limit));
                if left.is_zero() || waited.is_err_and(|e| e != rustix::io::Errno::INTR) {
                    break;
                }
            }
        }
        // A ring stays for `take_wake` or the next turn.
        let _ = state.compare_exchange(SLEEPING, AWAKE, Ordering::AcqRel, Ordering::Acquire);
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.events.clear();
        let into = &mut self.events;
        match &mut self.backend {
            Backend::Ring(ring) => ring.wait(timeout, |e| into.push((e.key, e.ended, e.dead))).map(drop),
            Backend::Epoll { epoll, events } => {
                let clock = Monotonic::new();
                let start = clock.now();
                let mut left = timeout;
                loop {
                    // Longer than the kernel can count is no deadline.
                    let limit = left.and_then(|t| Timespec::try_from(t).ok());
                    events.clear();
                    match epoll::wait(&*epoll, spare_capacity(events), limit.as_ref()) {
                        Ok(_) => break,
                        // Signals end no wait, as in the ring. Seen without a signal too, after a ring of this thread was dropped.
                        Err(rustix::io::Errno::INTR) => {
                            left = timeout.map(|t| t.saturating_sub(clock.now() - start));
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
                into.extend(events.iter().map(|e| ({ e.data }.u64(), false, false)));
                Ok(())
            }
        }
    }

    fn handle(&mut self, key: u64, ended: bool, dead: bool, ready: &mut Vec<Token>) -> io::Result<()> {
        if key == WAKER {
            // Edge-like: each write is an event of its own, so the counter need not be read. It counts sleeps, so it
            // cannot overflow.
            if let (Backend::Ring(ring), true) = (&mut self.backend, ended) {
                ring.poll_add(self.waker.fd.as_fd(), PollFlags::IN, WAKER)?;
            }
            return Ok(());
        }
        let slot = Token(key).slot();
        let Some(registration) = self.slots.get_mut(slot).and_then(Option::as_mut).filter(|r| r.key == key)
        else {
            return Ok(()); // Of a registration or an interest that ended.
        };
        if !registration.reported {
            registration.reported = true;
            ready.push(registration.token);
        }
        if ended {
            registration.ended = true;
            if let (Backend::Ring(ring), false) = (&mut self.backend, dead) {
                ring.poll_add(registration.fd.as_fd(), registration.interest.poll_flags(), key)?;
                registration.ended = false;
            }
        }
        Ok(())
    }

    fn slot_of(&self, token: Token) -> Option<usize> {
        let slot = token.slot();
        self.slots.get(slot)?.as_ref().filter(|r| r.token == token).map(|_| slot)
    }

    fn next_key(&mut self, slot: usize) -> u64 {
        // The last generation is kept out: its keys are the reserved ones.
        self.generation = if self.generation == u32::MAX - 1 { 0 } else { self.generation + 1 };
        u64::from(self.generation) << 32 | slot as u64
    }
}

/// An edge-triggered look at one descriptor.
fn alone(fd: &OwnedFd) -> io::Result<OwnedFd> {
    let bell = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
    epoll::add(&bell, fd, epoll::EventData::new_u64(WAKER), flags)?;
    Ok(bell)
}

const AWAKE: u8 = 0;
const SLEEPING: u8 = 1;
const RUNG: u8 = 2;

#[derive(Debug)]
struct WakerState {
    fd: OwnedFd,
    state: AtomicU8,
}

/// Ends a blocked [`Reactor::turn`], or makes the next one look only. Put the message where the reactor's thread finds it
/// first, then wake.
#[derive(Clone, Debug)]
pub struct Waker(Arc<WakerState>);

impl Waker {
    /// Makes a system call only when the reactor sleeps and nobody else has woken it.
    pub fn wake(&self) {
        if self.0.state.swap(RUNG, Ordering::AcqRel) == SLEEPING {
            // The counter cannot overflow: one write per sleep.
            let _ = rustix::io::write(&self.0.fd, &1u64.to_ne_bytes());
        }
    }
}
