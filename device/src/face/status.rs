//! What a served stick is doing, as a line of the control protocol says it.

use std::fmt;
use std::str::FromStr;

use crate::{Engine, Identity, Timing};

/// What a served stick is doing. As text it is one line, which can be read back.
#[derive(Clone, PartialEq, Debug)]
pub struct StickStatus {
    /// `usbredir`, `vhci` or `socket`.
    pub face: String,
    /// Name of its profile.
    pub profile: String,
    /// What its outputs are made of.
    pub engine: Engine,
    /// How long things take.
    pub timing: Timing,
    /// False when the server's CPU was slower than the model.
    pub paced: bool,
    /// A host is connected.
    pub connected: bool,
    /// What it is on the bus; `None` while it is away or unplugged.
    pub identity: Option<Identity>,
    /// In its port.
    pub plugged: bool,
    /// Inferences run.
    pub inferences: u64,
    /// Times it left the bus by itself or by RESET.
    pub resets: u64,
    /// Bytes that the host sent since the stick appeared as what it is.
    pub received_bytes: u64,
    /// Bulk transfers that ended since the host connected; 0 where there is no bus.
    pub transfers: u64,
    /// Temperature of the model.
    pub celsius: f64,
    /// Throttle level of the model, 0 to 2.
    pub level: u8,
}

impl StickStatus {
    /// `unplugged`, `away` (between two identities), `unbooted` or `booted`.
    pub fn state(&self) -> &'static str {
        match (self.plugged, self.identity) {
            (false, _) => "unplugged",
            (true, None) => "away",
            (true, Some(Identity::Unbooted)) => "unbooted",
            (true, Some(Identity::Booted)) => "booted",
        }
    }
}

impl fmt::Display for StickStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = if self.connected { "connected" } else { "alone" };
        let StickStatus { face, inferences, resets, celsius, level, profile, paced, .. } = self;
        let (engine, timing) = (self.engine.as_str(), self.timing.as_str());
        write!(f, "{face} {host} {} inferences={inferences} resets={resets} ", self.state())?;
        let StickStatus { received_bytes, transfers, .. } = self;
        write!(f, "received={received_bytes} transfers={transfers} ")?;
        write!(f, "engine={engine} timing={timing} paced={paced} ")?;
        // The profile may be a path: it goes to the end.
        write!(f, "celsius={celsius:.2} level={level} simulated profile={profile}")
    }
}

impl FromStr for StickStatus {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let bad = || format!("expected the state of a stick, found {line:?}");
        let (words, profile) = line.split_once(" profile=").ok_or_else(bad)?;
        let word = |n: usize| words.split(' ').nth(n).ok_or_else(bad);
        let value = |key: &str| words.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        let number = |key: &str| {
            value(key).and_then(|n| n.parse::<f64>().ok()).filter(|n| n.is_finite()).ok_or_else(bad)
        };
        let identity = match word(2)? {
            "unplugged" | "away" => None,
            "unbooted" => Some(Identity::Unbooted),
            "booted" => Some(Identity::Booted),
            _ => return Err(bad()),
        };
        Ok(StickStatus {
            face: word(0)?.to_owned(),
            profile: profile.to_owned(),
            engine: [Engine::Execute, Engine::Hash]
                .into_iter()
                .find(|e| value("engine") == Some(e.as_str()))
                .ok_or_else(bad)?,
            timing: [Timing::Model, Timing::Zero]
                .into_iter()
                .find(|t| value("timing") == Some(t.as_str()))
                .ok_or_else(bad)?,
            paced: value("paced").and_then(|w| w.parse().ok()).ok_or_else(bad)?,
            connected: word(1)? == "connected",
            identity,
            plugged: word(2)? != "unplugged",
            inferences: number("inferences")? as u64,
            resets: number("resets")? as u64,
            received_bytes: number("received")? as u64,
            transfers: number("transfers")? as u64,
            celsius: number("celsius")?,
            level: number("level")? as u8,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_all_and_can_be_read_back() {
        for (plugged, identity) in
            [(false, None), (true, None), (true, Some(Identity::Unbooted)), (true, Some(Identity::Booted))]
        {
            let status = StickStatus {
                face: "socket".into(),
                profile: "/a folder/my profile.toml".into(),
                engine: Engine::Hash,
                timing: Timing::Model,
                paced: plugged,
                connected: plugged,
                identity,
                plugged,
                inferences: 12_345_678,
                resets: 3,
                received_bytes: 2_298_644,
                transfers: 17,
                celsius: 41.25,
                level: 2,
            };
            let line = status.to_string();
            assert!(line.contains(status.state()) && line.contains("simulated"), "{line}");
            assert_eq!(line.parse(), Ok(status), "{line}");
        }
        for line in
            ["", "socket alone", "socket alone well inferences=1 resets=0 celsius=1 level=0 profile=x"]
        {
            assert!(line.parse::<StickStatus>().is_err_and(|why| why.contains("found")), "{line}");
        }
    }
}
