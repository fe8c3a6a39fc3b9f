//! Who asked a stick for the stage times of a copy, and what it said. Several callers may ask at the same time.

use super::failure::Cause;
use crate::pipeline::GraphId;
use crate::wire::TimingData;

/// The open questions of one connection. A stick answers those about one copy in their order, each once.
#[derive(Default)]
pub(super) struct StageQuestions(Vec<Copy>);

struct Copy {
    id: GraphId,
    asked: u64,
    /// Whose answers are waited for.
    waiting: u32,
    answered: u64,
    latest: Option<Result<TimingData, Cause>>,
}

impl StageQuestions {
    /// The number of a new question about this copy. Whoever asks must [`Self::take`] until it is answered, or
    /// [`Self::forget`].
    pub(super) fn ask(&mut self, id: GraphId) -> u64 {
        let at = self.0.iter().position(|copy| copy.id == id).unwrap_or_else(|| {
            self.0.push(Copy { id, asked: 0, waiting: 0, answered: 0, latest: None });
            self.0.len() - 1
        });
        let copy = &mut self.0[at];
        copy.asked += 1;
        copy.waiting += 1;
        copy.asked
    }

    /// The stick answered the oldest open question about this copy.
    pub(super) fn answered(&mut self, id: GraphId, times: Result<TimingData, Cause>) {
        if let Some(copy) = self.0.iter_mut().find(|copy| copy.id == id) {
            copy.answered += 1;
            copy.latest = Some(times);
        }
        self.tidy();
    }

    /// The answer to this question, or a later one; `None` while it is open.
    pub(super) fn take(&mut self, id: GraphId, question: u64) -> Option<Result<TimingData, Cause>> {
        let copy = self.0.iter().find(|copy| copy.id == id && copy.answered >= question)?;
        let answer = copy.latest.clone();
        self.forget(id);
        answer
    }

    /// True while the connection lasts on which the question was asked.
    pub(super) fn knows(&self, id: GraphId, question: u64) -> bool {
        self.0.iter().any(|copy| copy.id == id && copy.asked >= question)
    }

    /// One who asked about this copy waits no longer.
    pub(super) fn forget(&mut self, id: GraphId) {
        if let Some(copy) = self.0.iter_mut().find(|copy| copy.id == id) {
            copy.waiting = copy.waiting.saturating_sub(1);
        }
        self.tidy();
    }

    /// The connection is over.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// What nobody waits for and nothing is to come of.
    fn tidy(&mut self) {
        self.0.retain(|copy| copy.waiting > 0 || copy.answered < copy.asked);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn times(total_ms: f32) -> Result<TimingData, Cause> {
        Ok(TimingData { stages_ms: vec![total_ms], receive_ms: 0.0, total_ms })
    }

    fn total(answer: Option<Result<TimingData, Cause>>) -> Option<f32> {
        answer.map(|times| times.expect("times").total_ms)
    }

    #[test]
    fn callers_do_not_take_each_others_answers() {
        let (x, y) = (GraphId(1), GraphId(2));
        let mut questions = StageQuestions::default();
        let (a, b, c) = (questions.ask(x), questions.ask(y), questions.ask(x));
        questions.answered(x, times(1.0));
        assert_eq!(total(questions.take(y, b)), None);
        assert_eq!(total(questions.take(x, c)), None, "the second question about x is open");
        questions.answered(x, times(2.0));
        // Both come late and hear the newest.
        assert_eq!(total(questions.take(x, a)), Some(2.0));
        assert_eq!(total(questions.take(x, c)), Some(2.0));
        questions.answered(y, Err(Cause { kind: ErrorKind::Unsupported, detail: "no".into() }));
        assert!(questions.take(y, b).is_some_and(|answer| answer.is_err()));
        assert!(questions.0.is_empty(), "nothing stays");
    }

    #[test]
    fn a_question_of_a_lost_connection_is_not_known_any_more() {
        let x = GraphId(1);
        let mut questions = StageQuestions::default();
        let question = questions.ask(x);
        assert!(questions.knows(x, question));
        questions.clear();
        assert!(!questions.knows(x, question));
        questions.forget(x);
        // Nobody waits, but the answer is still to come and must not be taken for the next question's.
        questions.ask(x);
        questions.forget(x);
        let next = questions.ask(x);
        questions.answered(x, times(1.0));
        assert_eq!(total(questions.take(x, next)), None);
        questions.answered(x, times(2.0));
        assert_eq!(total(questions.take(x, next)), Some(2.0));
    }
}
