//! Inputs through the sticks, as many at once as they hold, answers in the order of the inputs.

use std::collections::VecDeque;

use indicatif::ProgressBar;
use ncs2::runtime::{Fleet, Graph, LoadOptions, SubmitOptions, Ticket};

use crate::failure::Result;
use crate::interrupt::Interrupt;
use crate::tensor::input::Element;

/// Submits the inputs and gives every ticket to `take`, with the number of its input, while those behind it are on their
/// way already. When the user interrupts, what was submitted is still taken. Gives how many were.
pub fn in_turn(
    fleet: &Fleet,
    graph: &Graph,
    inputs: &[Element],
    interrupt: &Interrupt,
    spinner: &ProgressBar,
    mut take: impl FnMut(usize, Ticket) -> Result,
) -> Result<usize> {
    let in_flight = fleet.stats().sticks.len() * LoadOptions::default().depth as usize;
    let mut flying: VecDeque<(usize, Ticket)> = VecDeque::new();
    let mut waiting = inputs.iter().enumerate();
    let mut done = 0;
    loop {
        while flying.len() < in_flight && !interrupt.is_pressed() {
            let Some((n, element)) = waiting.next() else { break };
            let mut lease = graph.input()?;
            lease.as_mut_slice().copy_from_slice(&element.bytes);
            flying.push_back((n, graph.submit(lease, SubmitOptions::default())?));
        }
        let Some((n, ticket)) = flying.pop_front() else { return Ok(done) };
        spinner.set_message(format!("inference {} of {}", n + 1, inputs.len()));
        take(n, ticket)?;
        done += 1;
    }
}
