//! The threads of stages 1 and 5: callers' numbers into input elements, output elements into numbers. Started when the first is
//! needed, pinned where the fleet is, ended with the fleet.

use std::time::Duration;

use crossbeam_channel::{Receiver, SendTimeoutError, Sender, TryRecvError, bounded, select, unbounded};
use parking_lot::Mutex;

use crate::convert::recipe::Scratch;
use crate::error::{Error, ErrorKind, Result};
use crate::topology;

/// A piece of work; it is handed the memory that its thread keeps.
pub(super) type Task = Box<dyn FnOnce(&mut Scratch) + Send>;

/// More threads than this never paid: a stick takes a few hundred inputs a second, a thread lays out some thousand.
const MOST_THREADS: usize = 4;
/// Inputs that may wait for each thread.
const WAITING_EACH: usize = 4;

/// The threads and what waits for them.
pub(super) struct Workers {
    threads: usize,
    cpus: Vec<usize>,
    queues: Mutex<Option<Queues>>,
}

#[derive(Clone)]
struct Queues {
    /// Bounded: a caller who is faster than the threads waits.
    prepare: Sender<Task>,
    /// Not bounded, since a stick's thread must not wait; there are no more of them than inferences in flight.
    finish: Sender<Task>,
}

impl Workers {
    /// `threads` of them, 0: half of the CPUs that this process may use, at most [`MOST_THREADS`]. On `cpus`, if any.
    pub(super) fn new(threads: usize, cpus: Vec<usize>) -> Self {
        let chosen = || (topology::allowed_cpus().len() / 2).clamp(1, MOST_THREADS);
        Workers { threads: if threads == 0 { chosen() } else { threads }, cpus, queues: Mutex::new(None) }
    }

    /// Stage 1. Waits for a place in the queue.
    pub(super) fn prepare(&self, task: Task, timeout: Duration) -> Result<()> {
        let queue = self.queues()?.prepare;
        queue.send_timeout(task, timeout).map_err(|error| {
            let detail = match error {
                SendTimeoutError::Timeout(_) => {
                    format!("the threads that prepare inputs were busy for {timeout:?}; send less, or use more of them")
                }
                SendTimeoutError::Disconnected(_) => "the threads that prepare inputs have ended".into(),
            };
            Error::new(ErrorKind::QueueFull, "prepare input").detail(detail)
        })
    }

    /// Stage 5. Never waits.
    pub(super) fn finish(&self, task: Task) {
        match self.queues() {
            // The threads live as long as these senders.
            Ok(queues) => drop(queues.finish.send(task)),
            Err(error) => tracing::error!("{error}; an answer is dropped"),
        }
    }

    fn queues(&self) -> Result<Queues> {
        let mut queues = self.queues.lock();
        if let Some(queues) = &*queues {
            return Ok(queues.clone());
        }
        let (prepare, to_prepare) = bounded(self.threads * WAITING_EACH);
        let (finish, to_finish) = unbounded();
        let mut started = 0;
        let mut trouble = None;
        for n in 0..self.threads {
            let (prepare, finish, cpus) = (to_prepare.clone(), to_finish.clone(), self.cpus.clone());
            let thread = std::thread::Builder::new().name(format!("ncs2-work{n}")).spawn(move || {
                if let Err(error) = topology::pin_current_thread(&cpus) {
                    tracing::warn!("{error}");
                }
                work(&prepare, &finish);
            });
            match thread {
                Ok(_) => started += 1,
                Err(error) => trouble = Some(error),
            }
        }
        match trouble {
            Some(error) if started == 0 => {
                let detail = format!("{error}; raise the limit of threads");
                Err(Error::new(ErrorKind::OutOfMemory, "prepare input").detail(detail).caused_by(error))
            }
            _ => Ok(queues.insert(Queues { prepare, finish }).clone()),
        }
    }
}

/// Until the fleet is gone.
fn work(prepare: &Receiver<Task>, finish: &Receiver<Task>) {
    let mut scratch = Scratch::default();
    loop {
        // Answers first: they hold memory that inputs wait for.
        let task = match finish.try_recv() {
            Ok(task) => Ok(task),
            Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) => select! {
                recv(finish) -> task => task,
                recv(prepare) -> task => task,
            },
        };
        match task {
            Ok(task) => task(&mut scratch),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Long enough for a loaded machine; a test that waits so long has failed.
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn answers_go_before_inputs_and_a_full_queue_says_so() {
        let workers = Workers::new(1, Vec::new());
        let (hold, held) = bounded::<()>(0);
        let (said, saying) = unbounded();
        let started = said.clone();
        let first = move |_: &mut Scratch| {
            started.send("first").expect("the test listens");
            held.recv().expect("the test lets go");
        };
        workers.prepare(Box::new(first), LONG).expect("room");
        assert_eq!(saying.recv_timeout(LONG), Ok("first"));
        for _ in 0..WAITING_EACH {
            let said = said.clone();
            workers.prepare(Box::new(move |_| said.send("input").expect("listens")), LONG).expect("room");
        }
        let full = workers.prepare(Box::new(|_| {}), Duration::ZERO).expect_err("no room");
        assert_eq!(full.kind(), ErrorKind::QueueFull);
        workers.finish(Box::new(move |_| said.send("answer").expect("listens")));
        hold.send(()).expect("the thread waits");
        let order: Vec<_> = (0..=WAITING_EACH).map(|_| saying.recv_timeout(LONG).expect("in time")).collect();
        assert_eq!(order[0], "answer");
        assert_eq!(order[1..], ["input"; WAITING_EACH]);
    }
}
