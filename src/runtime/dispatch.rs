//! Which stick takes the next job: round-robin over those that are ready and have room. Pure, so that a scheduler can
//! take its place.

/// What is to be known of one stick for one graph.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Candidate {
    /// Ready, and the graph is on it.
    pub(super) ready: bool,
    /// Jobs that were given to it and are not back.
    pub(super) assigned: u32,
    /// Inferences that it runs at the same time.
    pub(super) depth: u32,
    /// Jobs that may wait at the stick, so that it need not wait for us between two.
    pub(super) ahead: u32,
}

/// The stick for the next job, searched from `next` on. Sticks with a free place come before those where the job
/// would wait.
pub(super) fn pick(next: usize, count: usize, candidate: impl Fn(usize) -> Candidate) -> Option<usize> {
    let mut waiting = None;
    for step in 0..count {
        let at = (next + step) % count;
        let c = candidate(at);
        if c.ready && c.assigned < c.depth {
            return Some(at);
        }
        if c.ready && c.assigned < c.depth + c.ahead {
            waiting = waiting.or(Some(at));
        }
    }
    waiting
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stick(assigned: u32) -> Candidate {
        Candidate { ready: true, assigned, depth: 2, ahead: 1 }
    }

    #[test]
    fn sticks_take_turns_and_lost_ones_are_passed_over() {
        let mut sticks = [stick(0), Candidate { ready: false, ..stick(0) }, stick(0)];
        let mut next = 0;
        let mut turns = Vec::new();
        while let Some(at) = pick(next, 3, |i| sticks[i]) {
            sticks[at].assigned += 1;
            next = at + 1;
            turns.push(at);
        }
        assert_eq!(turns, [0, 2, 0, 2, 0, 2], "two each at work, then one each in waiting");
    }

    #[test]
    fn a_free_place_comes_before_waiting() {
        let sticks = [stick(2), stick(1)];
        assert_eq!(pick(0, 2, |i| sticks[i]), Some(1));
        assert_eq!(pick(0, 2, |_| stick(3)), None);
        assert_eq!(pick(0, 0, |_| stick(0)), None);
    }
}
