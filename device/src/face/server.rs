//! The thread that drives served sticks, and the handle on it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use ncs2::StickId;
use ncs2::clock::{Clock as _, Instant, Monotonic};
use ncs2::error::{Error, ErrorKind, Result};
use ncs2::transport::{Reactor, ReactorKind, Token, TraceSink, Waker};

use super::control::{self, Ask, Lines};
use super::station::Station;
use super::stream::{Door, Moved, Stream};
use super::vhci::attach::Vhci;
use super::{Command, Face, ServeOptions, StickStatus};
use crate::fault_plan::{FaultKind, Way};
use crate::{Config, Engine, PreparedCache, Profile, Tape, VirtualStick, Work};

const OP: &str = "serve virtual sticks";
/// Threads that prepare and execute graphs: a long load and a run go side by side.
const WORKERS: usize = 2;
/// Most sticks of one server.
const MAX_STICKS: usize = 128;
/// Most control connections at a time.
const MAX_CONTROLS: usize = 16;
/// Answers that one may leave unread before he is not listened to any more.
const MAX_ANSWERS: usize = 1 << 20;
/// Read from a host at a time.
const SCRATCH_BYTES: usize = 256 * 1024;

enum Message {
    Command(usize, Command),
    Status(Sender<Vec<StickStatus>>),
    Done(usize, Work),
}

/// Virtual sticks behind faces. They stop when it is dropped.
pub struct Server {
    sticks: usize,
    messages: Sender<Message>,
    waker: Waker,
    stopped: Arc<AtomicBool>,
    driver: Option<JoinHandle<()>>,
    workers: Vec<JoinHandle<()>>,
}

/// Puts sticks behind faces and drives them. Fails on an unknown profile, no face, an address that cannot be
/// listened on, and for [`Face::Vhci`] without the kernel's module or root.
pub fn serve(options: ServeOptions) -> Result<Server> {
    let count = options.faces.len().saturating_mul(options.sticks);
    if count == 0 || count > MAX_STICKS {
        return Err(Error::new(ErrorKind::InvalidInput, OP)
            .detail(format!("{count} sticks behind faces: expected 1 to {MAX_STICKS}")));
    }
    let (messages, inbox) = unbounded();
    let (jobs, queue) = unbounded();
    let stopped = Arc::new(AtomicBool::new(false));
    let (started, start) = bounded(1);
    // A reactor stays on the thread that made it, so the thread says how the start went.
    let driver = {
        let stopped = Arc::clone(&stopped);
        std::thread::Builder::new()
            .name("sim-faces".into())
            .spawn(move || match Driver::new(&options, inbox, jobs, stopped) {
                Ok(driver) => {
                    let _ = started.send(Ok(driver.reactor.waker()));
                    driver.run();
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            })
            .map_err(system("no server thread"))?
    };
    let waker = start.recv().map_err(|_| Error::new(ErrorKind::Closed, OP).detail("the server ended"))??;
    let mut server = Server {
        sticks: count,
        messages: messages.clone(),
        waker: waker.clone(),
        stopped,
        driver: Some(driver),
        workers: Vec::new(),
    };
    let cache = PreparedCache::default();
    for n in 0..WORKERS {
        let (queue, cache, messages, waker) = (queue.clone(), cache.clone(), messages.clone(), waker.clone());
        let worker = std::thread::Builder::new()
            .name(format!("sim-work{n}"))
            .spawn(move || work(&queue, &cache, &messages, &waker))
            .map_err(system("no worker thread"))?;
        server.workers.push(worker);
    }
    Ok(server)
}

fn system(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |e| Error::new(ErrorKind::Unsupported, OP).detail(what).caused_by(e)
}

impl Server {
    /// How many sticks: those of the first face, then those of the next.
    pub fn sticks(&self) -> usize {
        self.sticks
    }

    /// Does something to stick `n`; `NotFound` where there is none.
    pub fn command(&self, n: usize, command: Command) -> Result<()> {
        if n >= self.sticks {
            return Err(Error::new(ErrorKind::NotFound, OP).detail(format!("stick {n} of {}", self.sticks)));
        }
        self.send(Message::Command(n, command))
    }

    /// What every stick is doing.
    pub fn status(&self) -> Result<Vec<StickStatus>> {
        let (answer, inbox) = bounded(1);
        self.send(Message::Status(answer))?;
        inbox.recv().map_err(|_| Error::new(ErrorKind::Closed, OP).detail("the server ended"))
    }

    /// True until it was dropped or its thread died.
    pub fn is_running(&self) -> bool {
        self.driver.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    fn send(&self, message: Message) -> Result<()> {
        self.messages
            .send(message)
            .map_err(|_| Error::new(ErrorKind::Closed, OP).detail("the server ended"))?;
        self.waker.wake();
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
        self.waker.wake();
        // The driver goes first: its end closes the workers' queue. A thread that panicked has said so.
        for thread in self.driver.take().into_iter().chain(self.workers.drain(..)) {
            let _ = thread.join();
        }
    }
}

fn work(queue: &Receiver<(usize, Work)>, cache: &PreparedCache, messages: &Sender<Message>, waker: &Waker) {
    while let Ok((n, mut work)) = queue.recv() {
        work.perform(cache);
        if messages.send(Message::Done(n, work)).is_err() {
            return;
        }
        waker.wake();
    }
}

struct Driver {
    /// Of which the sticks are that are put into ports later, but for their profile.
    config: Config,
    reactor: Reactor,
    clock: Monotonic,
    stations: Vec<Station>,
    inbox: Receiver<Message>,
    jobs: Sender<(usize, Work)>,
    stopped: Arc<AtomicBool>,
    controls: Vec<Control>,
    scratch: Vec<u8>,
}

impl Driver {
    fn new(
        options: &ServeOptions,
        inbox: Receiver<Message>,
        jobs: Sender<(usize, Work)>,
        stopped: Arc<AtomicBool>,
    ) -> Result<Self> {
        let faults = options.faults.clone().unwrap_or_default();
        faults.check("fault plan", Some(options.faces.len() * options.sticks))?;
        if (0..options.faces.len() * options.sticks).any(|n| !faults.transfer_rules(n).is_empty()) {
            return Err(Error::new(ErrorKind::InvalidInput, OP)
                .detail("faults of single transfers are made in the host's own process: not behind a face"));
        }
        let trace = options.trace.as_deref().map(trace_to).transpose()?;
        let mut profile = Profile::load(&options.profile)?;
        profile.boot.any_firmware |= options.any_firmware;
        let mut reactor = Reactor::new(ReactorKind::detect().kind).map_err(system("no reactor"))?;
        let clock = Monotonic::new();
        let link = profile.link;
        let mut stations: Vec<Station> = Vec::new();
        let mut places = Vec::new();
        let mut controls = Vec::new();
        for face in &options.faces {
            if let Face::Socket(address) = face {
                let door = Door::open(address, &mut reactor)?;
                let sticks = stations.len()..stations.len() + options.sticks;
                controls.push(Control { door, guests: Vec::new(), sticks, connects: true });
            }
            for n in 0..options.sticks {
                let config = Arc::new(Config {
                    profile: profile.clone(),
                    engine: options.engine,
                    timing: options.timing,
                    // Each stick draws its own chance.
                    seed: options.seed.wrapping_add(stations.len() as u64),
                });
                let mut stick = VirtualStick::new(config, clock.now());
                let at = stations.len();
                if options.faults.is_some() {
                    stick.follow(faults.script(at, options.seed, clock.now()));
                }
                if let Some(sink) = &trace {
                    stick.record(Tape::new(sink.clone(), StickId::sim(at)));
                }
                stick.plug();
                stations.push(match face {
                    Face::Usbredir(address) => {
                        let door = Door::open(&address.numbered(n, options.sticks), &mut reactor)?;
                        Station::usbredir(stick, link, door)
                    }
                    Face::Socket(_) => Station::socket(stick, link),
                    Face::Vhci => {
                        let vhci = Vhci::open()?;
                        let place = vhci.free_place(&places)?;
                        places.push(place);
                        Station::vhci(stick, link, vhci, place)
                    }
                });
            }
        }
        if let Some(address) = &options.control {
            let door = Door::open(address, &mut reactor)?;
            controls.push(Control { door, guests: Vec::new(), sticks: 0..stations.len(), connects: false });
        }
        Ok(Driver {
            config: Config { profile, engine: options.engine, timing: options.timing, seed: options.seed },
            reactor,
            clock,
            stations,
            inbox,
            jobs,
            stopped,
            controls,
            scratch: vec![0; SCRATCH_BYTES],
        })
    }

    fn run(mut self) {
        // The default slack of 50 µs would be half of what pacing may be late.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1_000));
        let mut ready: Vec<Token> = Vec::new();
        while !self.stopped.load(Ordering::Acquire) {
            self.read_inbox();
            let deadline = self.serve();
            let now = self.clock.now();
            let wait = (deadline != Instant::FAR_FUTURE).then(|| deadline.saturating_since(now));
            if let Err(error) = self.reactor.turn(wait, &mut ready) {
                tracing::error!(%error, "the server cannot wait for its sticks any more");
                return;
            }
            if !ready.is_empty() {
                for control in &mut self.controls {
                    control.notice(&ready);
                }
                for station in &mut self.stations {
                    station.notice(&ready);
                }
            }
        }
    }

    fn read_inbox(&mut self) {
        while let Ok(message) = self.inbox.try_recv() {
            let now = self.clock.now();
            match message {
                Message::Command(n, command) => self.command(n, command, now),
                Message::Status(answer) => {
                    // Nobody waits any more: nothing to tell.
                    let _ = answer.send(status(&self.stations));
                }
                Message::Done(n, work) => {
                    if let Some(station) = self.stations.get_mut(n) {
                        station.stick.handle_work_done(work, now);
                    }
                }
            }
        }
    }

    fn command(&mut self, n: usize, command: Command, now: Instant) {
        if let Some(station) = self.stations.get_mut(n) {
            station.command(command, &mut self.reactor, now);
        }
    }

    /// Serves all sticks once; until when to sleep.
    fn serve(&mut self) -> Instant {
        let mut deadline = Instant::FAR_FUTURE;
        for at in 0..self.controls.len() {
            let control = &mut self.controls[at];
            let first = control.sticks.start;
            let stations = &self.stations[control.sticks.clone()];
            for order in control.serve(stations, &mut self.reactor) {
                let now = self.clock.now();
                match order {
                    Order::Command(n, command) => self.command(first + n, command, now),
                    Order::After { n, kind, way, bytes } => {
                        if let Some(station) = self.stations.get_mut(first + n) {
                            station.stick.break_after(way, bytes, kind);
                        }
                    }
                    Order::Plug(n, profile, engine) => {
                        // Each stick draws its own chance.
                        let seed = self.config.seed.wrapping_add((first + n) as u64);
                        let engine = engine.unwrap_or(self.config.engine);
                        let config = Config { profile: *profile, engine, seed, ..self.config.clone() };
                        if let Some(station) = self.stations.get_mut(first + n) {
                            station.replace(Arc::new(config), now);
                        }
                    }
                    Order::Connect(n, guest) => {
                        if let Some(station) = self.stations.get_mut(first + n) {
                            station.connect(guest, &mut self.reactor, now);
                        }
                    }
                }
            }
        }
        for (n, station) in self.stations.iter_mut().enumerate() {
            // One `now` for both: what falls due in between would be neither served nor waited for.
            let now = self.clock.now();
            if station.serve(&mut self.scratch, &mut self.reactor, now) {
                deadline = Instant::ZERO;
            }
            while let Some(work) = station.stick.poll_work() {
                // The workers end after the driver.
                let _ = self.jobs.send((n, work));
            }
            let due = station.poll_timeout(now).unwrap_or(Instant::FAR_FUTURE);
            deadline = deadline.min(due);
        }
        deadline
    }
}

/// Text that is whole as soon as the server is gone.
fn trace_to(path: &Path) -> Result<TraceSink> {
    let file = File::create(path).map_err(|e| {
        Error::new(ErrorKind::InvalidInput, OP).detail(format!("trace to {}", path.display())).caused_by(e)
    })?;
    Ok(TraceSink::new(Arc::new(Monotonic::new())).text(file))
}

fn status(stations: &[Station]) -> Vec<StickStatus> {
    stations
        .iter()
        .map(|station| {
            let (celsius, level) = station.stick.heat();
            StickStatus {
                face: station.face_name().to_owned(),
                profile: station.stick.config().profile.name.clone(),
                engine: station.stick.config().engine,
                timing: station.stick.config().timing,
                paced: station.stick.stats().paced,
                connected: station.is_connected(),
                identity: station.stick.identity(),
                plugged: station.stick.is_plugged(),
                inferences: station.stick.stats().inferences,
                resets: station.stick.resets(),
                received_bytes: station.stick.received_bytes(),
                transfers: station.transfers(),
                celsius,
                level: level as u8,
            }
        })
        .collect()
}

/// A control socket, or the socket of a face, and those who talk to it.
struct Control {
    door: Door,
    guests: Vec<Guest>,
    /// The stations that it speaks for.
    sticks: Range<usize>,
    /// Sticks can be connected to.
    connects: bool,
}

struct Guest {
    stream: Stream,
    lines: Lines,
    answers: Vec<u8>,
}

/// What a guest wants done, by the number of the stick among those of his control.
enum Order {
    Command(usize, Command),
    After { n: usize, kind: FaultKind, way: Way, bytes: u64 },
    Plug(usize, Box<Profile>, Option<Engine>),
    Connect(usize, OwnedFd),
}

/// How it goes on with a guest.
enum Talk {
    Goes,
    Over,
    /// He becomes the host of this stick.
    Connects(usize),
}

impl Control {
    fn notice(&mut self, tokens: &[Token]) {
        self.door.notice(tokens);
        for guest in &mut self.guests {
            guest.stream.notice(tokens);
        }
    }

    /// Answers, and says what is to be done to which stick.
    fn serve(&mut self, stations: &[Station], reactor: &mut Reactor) -> Vec<Order> {
        let mut orders = Vec::new();
        while self.guests.len() < MAX_CONTROLS
            && let Some(fd) = self.door.accept()
        {
            match Stream::new(fd, reactor) {
                Ok(stream) => {
                    self.guests.push(Guest { stream, lines: Lines::default(), answers: Vec::new() });
                }
                Err(error) => tracing::warn!(%error, "a control connection could not be taken"),
            }
        }
        let mut at = 0;
        while at < self.guests.len() {
            match self.guests[at].talk(stations, self.connects, reactor, &mut orders) {
                Talk::Goes => at += 1,
                Talk::Over => self.guests.swap_remove(at).stream.close(reactor),
                Talk::Connects(n) => {
                    let fd = self.guests.swap_remove(at).stream.into_fd(reactor);
                    orders.push(Order::Connect(n, fd));
                }
            }
        }
        orders
    }
}

impl Guest {
    fn talk(
        &mut self,
        stations: &[Station],
        connects: bool,
        reactor: &mut Reactor,
        orders: &mut Vec<Order>,
    ) -> Talk {
        let mut bytes = [0u8; 256];
        loop {
            match self.stream.read(&mut bytes) {
                Moved::Bytes(n) => {
                    if !self.lines.push(&bytes[..n]) {
                        return Talk::Over;
                    }
                }
                Moved::Nothing => break,
                Moved::Closed => return Talk::Over,
            }
            while let Some(line) = self.lines.next() {
                match control::parse(&line, stations.len()) {
                    Ok(Ask::List) => self.answers.extend(control::list(&status(stations)).into_bytes()),
                    Ok(Ask::Stick(command, n)) => {
                        orders.push(Order::Command(n, command));
                        self.answers.extend(b"ok\n");
                    }
                    Ok(Ask::After { n, kind, way, bytes }) => {
                        orders.push(Order::After { n, kind, way, bytes });
                        self.answers.extend(b"ok\n");
                    }
                    Ok(Ask::Plug(n, ..)) if stations[n].stick.is_plugged() => {
                        self.answers.extend(b"error plug: there is a stick in the port: unplug it first\n");
                    }
                    Ok(Ask::Plug(n, name, engine)) => match Profile::load(&name) {
                        Ok(profile) => {
                            orders.push(Order::Plug(n, Box::new(profile), engine));
                            self.answers.extend(b"ok\n");
                        }
                        Err(error) => self.answers.extend(format!("error plug: {error}\n").into_bytes()),
                    },
                    // Frames before our `ok` would be lost with the lines' buffer: whoever sends them breaks the protocol.
                    Ok(Ask::Connect(n)) if connects && self.lines.is_empty() && self.answers.is_empty() => {
                        return Talk::Connects(n);
                    }
                    Ok(Ask::Connect(_)) => {
                        self.answers.extend(b"error connect: not here, or not while answers wait\n");
                    }
                    Err(why) => self.answers.extend(format!("error {why}\n").into_bytes()),
                }
            }
            if self.answers.len() > MAX_ANSWERS {
                return Talk::Over;
            }
        }
        match self.stream.write(&self.answers, reactor) {
            Moved::Bytes(n) => {
                self.answers.drain(..n);
                Talk::Goes
            }
            Moved::Nothing => Talk::Goes,
            Moved::Closed => Talk::Over,
        }
    }
}
