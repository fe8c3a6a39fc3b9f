//! Requests that begin with a caller's numbers and end with numbers: stages 1 and 5 run on the fleet's workers.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::config::SubmitOptions;
use super::core::Shared;
use super::graph::{Graph, InputLease};
use super::ticket::{Output, Worked};
use super::worker::record_times;
use crate::clock::{Clock, Instant};
use crate::convert::layout;
use crate::convert::recipe::{Finished, Numbers, Recipe, Scratch};
use crate::error::{Error, ErrorKind, Result};

/// An answer and what became of it.
#[derive(Debug)]
pub struct Processed {
    /// As the stick gave it. Its times hold what the workers did.
    pub output: Output,
    /// Each output of the network as singles, with the largest that the recipe asks for.
    pub outputs: Vec<Finished>,
}

/// The caller's hold on a request that is being prepared, run and finished. Dropping it discards the answer.
#[derive(Debug)]
pub struct Processing(Receiver<Result<Processed>>);

impl Processing {
    /// The answer.
    ///
    /// # Errors
    /// As [`super::Ticket::wait`], and what the recipe refused.
    pub fn wait(self) -> Result<Processed> {
        self.0.recv().unwrap_or_else(|_| Err(gone()))
    }

    /// `Ok(None)` when nothing came within `timeout`; the request stays good.
    ///
    /// # Errors
    /// As [`Processing::wait`].
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Option<Processed>> {
        match self.0.recv_timeout(timeout) {
            Ok(outcome) => outcome.map(Some),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(gone()),
        }
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Cancelled, "infer").detail("the fleet was closed, or the answer was taken before")
}

struct Request {
    graph: Graph,
    recipe: Arc<Recipe>,
    options: SubmitOptions,
    submitted: Instant,
    to: Sender<Result<Processed>>,
}

impl Graph {
    /// Queues an inference of numbers that are to be converted first, one [`Numbers`] for each input of the network; the answer
    /// comes converted, too. Both happen on the fleet's workers, while the sticks compute other requests. Waits for host
    /// memory and for the workers' queue.
    ///
    /// # Errors
    /// What [`Recipe::check`] says; as [`Graph::input`]; `QueueFull` when the workers had no room within
    /// [`super::FleetConfig::wait_timeout`]. What the numbers themselves lack comes with the answer.
    pub fn process(
        &self,
        numbers: &[Numbers],
        recipe: &Arc<Recipe>,
        options: SubmitOptions,
    ) -> Result<Processing> {
        recipe.check(self.blob().graph())?;
        let shared = self.shared();
        let lease = self.input()?;
        let (to, from) = bounded(1);
        let (graph, recipe) = (self.clone(), recipe.clone());
        let request = Request { graph, recipe, options, submitted: shared.clock.now(), to };
        let numbers = numbers.to_vec();
        let task = move |scratch: &mut Scratch| request.prepare(&numbers, lease, scratch);
        shared.workers.prepare(Box::new(task), shared.config.wait_timeout)?;
        Ok(Processing(from))
    }
}

impl Request {
    fn prepare(self, numbers: &[Numbers], mut lease: InputLease, scratch: &mut Scratch) {
        let shared = self.graph.shared().clone();
        let begun = shared.clock.now();
        if self.options.deadline.is_some_and(|d| begun >= self.submitted + d) {
            return self.end(Err(super::ticket::late()));
        }
        let graph = self.graph.blob().graph();
        // Where no byte is left out, there is nothing to clear.
        let batch = graph.batch.max(1) as usize;
        let written: usize = graph.inputs.iter().map(|t| layout::elements(t) * t.dtype.bytes() * batch).sum();
        let element = if written == graph.input_bytes { lease.overwrite() } else { lease.as_mut_slice() };
        // A resize hook is the caller's code; its panic is the request's end, not the thread's.
        let prepared =
            catch_unwind(AssertUnwindSafe(|| self.recipe.prepare(graph, numbers, element, scratch)));
        let prepared = prepared.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::InvalidInput, "prepare input").detail("the resize function panicked"))
        });
        if let Err(error) = prepared {
            return self.end(Err(error));
        }
        let prepare_ns = (shared.clock.now() - begun).as_nanos() as u64;
        let worked = Worked { prepare_ns, finish_later: true };
        match self.graph.submit_prepared(lease, &self.options, self.submitted, worked) {
            Ok(ticket) => ticket.post(move |outcome| {
                let came = shared.clock.now();
                let workers = shared.clone();
                workers.workers.finish(Box::new(move |_| self.finish(&shared, outcome, came)));
            }),
            Err(error) => self.end(Err(error)),
        }
    }

    fn finish(self, shared: &Shared, outcome: Result<Output>, came: Instant) {
        let processed = outcome.map(|mut output| {
            let graph = self.graph.blob().graph();
            let tensors: Vec<&[u8]> = (0..graph.outputs.len()).map(|at| output.tensor(at)).collect();
            let outputs = self.recipe.finish(graph, &tensors);
            output.times.finish_ns += (shared.clock.now() - came).as_nanos() as u64;
            // The stick's thread left it to us, so that stage 5 is whole. A fallback's answer is no stick's.
            if let Some(stick) = shared.sticks.iter().find(|s| !output.fallback && s.id == output.stick) {
                record_times(&mut stick.record.lock(), &output.times);
            }
            Processed { output, outputs }
        });
        self.end(processed);
    }

    fn end(self, outcome: Result<Processed>) {
        // A caller who has gone wants no answer.
        let _ = self.to.send(outcome);
    }
}
