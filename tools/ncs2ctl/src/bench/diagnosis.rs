//! What keeps the run from being faster: one word, one sentence, one suggestion. A pure function of a few figures.

/// The figures that it looks at.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Signs {
    /// Highest throttle level that a stick reported.
    pub throttle_level: u8,
    /// Share of the time with at least one inference on a stick, mean over the sticks.
    pub busy: f64,
    /// Inferences in flight on a stick, mean over time and sticks.
    pub depth_mean: f64,
    /// As many as were to be in flight on a stick.
    pub depth: f64,
    /// Share of a request's time on a stick in which it neither came nor went.
    pub execute_share: f64,
    /// CPU time of this process, virtual sticks too, over all cores.
    pub cpu_share: f64,
    /// Speed over what the link could carry; `None` where that is not known.
    pub link_share: Option<f64>,
    /// The fleet found the depth: fewer in flight than there is room for is its choice.
    pub adaptive: bool,
    /// The user set the rate.
    pub rated: bool,
    /// Virtual sticks that take no time, or could not keep their model's pace.
    pub unpaced: bool,
}

/// The verdict.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Diagnosis {
    /// A stick slows itself down because it is hot.
    Throttled,
    /// The bus is full.
    LinkBound,
    /// This computer is the limit.
    HostBound,
    /// The sticks wait for work.
    QueueStarved,
    /// The sticks work as fast as they can.
    DeviceBound,
}

impl Diagnosis {
    /// Weighs the signs: first what explains all the others.
    pub fn of(signs: &Signs) -> Self {
        if signs.throttle_level > 0 {
            return Diagnosis::Throttled;
        }
        if signs.unpaced {
            return Diagnosis::HostBound;
        }
        if signs.link_share.is_some_and(|share| share >= 0.85) {
            return Diagnosis::LinkBound;
        }
        if signs.rated && signs.busy < 0.9 {
            return Diagnosis::QueueStarved;
        }
        if signs.cpu_share >= 0.9 {
            return Diagnosis::HostBound;
        }
        // One at a time: while it travels, the stick has nothing to compute.
        let one_at_a_time = signs.depth < 1.5 && signs.execute_share < 0.9;
        let starved = !signs.adaptive && signs.depth_mean < 0.6 * signs.depth;
        if one_at_a_time || signs.busy < 0.9 || starved {
            return Diagnosis::QueueStarved;
        }
        if signs.execute_share < 0.5 {
            return Diagnosis::LinkBound;
        }
        Diagnosis::DeviceBound
    }

    /// As JSON has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Diagnosis::Throttled => "throttled",
            Diagnosis::LinkBound => "link-bound",
            Diagnosis::HostBound => "host-bound",
            Diagnosis::QueueStarved => "queue-starved",
            Diagnosis::DeviceBound => "device-bound",
        }
    }

    /// What it means and what to try.
    pub fn sentence(self, signs: &Signs) -> String {
        match self {
            Diagnosis::Throttled => {
                format!("a stick reported throttle level {}; give it air or a rest.", signs.throttle_level)
            }
            Diagnosis::LinkBound => match signs.link_share {
                Some(share) if share >= 0.85 => format!(
                    "the link carries {:.0} % of what it can; use u8 inputs, or more USB controllers.",
                    100.0 * share
                ),
                _ => {
                    "requests spend more time on the link than on the stick; try --ordering pipelined.".into()
                }
            },
            Diagnosis::HostBound if signs.unpaced => {
                "this computer sets the pace, not the sticks: figures are its own, not a stick's.".into()
            }
            Diagnosis::HostBound => format!(
                "the computer's cores are {:.0} % busy; use a faster one, or fewer sticks on it.",
                100.0 * signs.cpu_share
            ),
            Diagnosis::QueueStarved if signs.rated => {
                format!(
                    "at this rate the sticks are busy {:.0} % of the time; they could do more.",
                    100.0 * signs.busy
                )
            }
            Diagnosis::QueueStarved => format!(
                "on average {:.1} inferences were on a stick; raise --depth so that one waits while one computes.",
                signs.depth_mean
            ),
            Diagnosis::DeviceBound => {
                "the sticks are busy all the time; more sticks or a smaller network would help.".into()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY: Signs = Signs {
        throttle_level: 0,
        busy: 0.99,
        depth_mean: 3.9,
        depth: 4.0,
        execute_share: 0.8,
        cpu_share: 0.2,
        link_share: Some(0.1),
        adaptive: false,
        rated: false,
        unpaced: false,
    };

    #[test]
    fn each_cause_has_its_word() {
        let cases = [
            (BUSY, "device-bound"),
            (Signs { throttle_level: 1, ..BUSY }, "throttled"),
            (Signs { throttle_level: 2, cpu_share: 1.0, ..BUSY }, "throttled"),
            (Signs { link_share: Some(0.9), ..BUSY }, "link-bound"),
            (Signs { link_share: None, execute_share: 0.3, ..BUSY }, "link-bound"),
            (Signs { cpu_share: 0.95, ..BUSY }, "host-bound"),
            (Signs { unpaced: true, ..BUSY }, "host-bound"),
            (Signs { depth: 1.0, depth_mean: 1.0, execute_share: 0.7, ..BUSY }, "queue-starved"),
            (Signs { depth: 1.0, depth_mean: 1.0, execute_share: 0.97, ..BUSY }, "device-bound"),
            (Signs { busy: 0.5, depth_mean: 0.5, ..BUSY }, "queue-starved"),
            (Signs { depth_mean: 2.0, ..BUSY }, "queue-starved"),
            (Signs { depth_mean: 2.0, adaptive: true, ..BUSY }, "device-bound"),
            (Signs { rated: true, busy: 0.3, ..BUSY }, "queue-starved"),
            (Signs { rated: true, ..BUSY }, "device-bound"),
        ];
        for (signs, word) in cases {
            let diagnosis = Diagnosis::of(&signs);
            assert_eq!(diagnosis.as_str(), word, "{signs:?}");
            assert!(diagnosis.sentence(&signs).len() < 110, "{}", diagnosis.sentence(&signs));
        }
    }
}
