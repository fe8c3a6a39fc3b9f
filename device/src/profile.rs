//! What a virtual stick is made of: every constant of the model, from a TOML file.

use std::path::Path;

use ncs2::error::{Error, ErrorKind, Result};
use serde::Deserialize;

use crate::behaviour::Behaviour;

const NCS2: &str = include_str!("../profiles/ncs2.toml");

/// A stick's constants. The built-in `ncs2` names the source of each.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Name of the built-in profile, or the file's path.
    #[serde(skip)]
    pub name: String,
    /// DRAM.
    pub memory: Memory,
    /// The USB link.
    pub link: LinkSpeed,
    /// Boot and re-enumeration.
    pub boot: Boot,
    /// Speed of the chip.
    pub timing: Speed,
    /// Heat and throttling; assumed.
    pub heat: HeatLaw,
    /// What is unknown about the firmware.
    pub firmware: Behaviour,
}

/// DRAM of the stick.
#[derive(Clone, Copy, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// All of it.
    pub dram_bytes: u32,
    /// What the firmware keeps for itself.
    pub firmware_bytes: u32,
}

/// The USB link after boot.
#[derive(Clone, Copy, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkSpeed {
    /// 1024 SuperSpeed, 512 high speed.
    pub max_packet_bytes: usize,
    /// As the bus reports it.
    pub speed_mbps: u32,
    /// Payload rate of one direction.
    pub bytes_per_s: f64,
    /// Cost of one transfer beside its bytes.
    pub transfer_us: f64,
}

/// Boot and re-enumeration.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Boot {
    /// Image sizes that the boot ROM starts, patches included.
    pub firmware_sizes: Vec<u64>,
    /// Any image that ends with a jump command will do.
    pub any_firmware: bool,
    /// Silence that ends an image of unknown size.
    pub image_quiet_ms: f64,
    /// Time off the bus between two identities.
    pub leave_ms: f64,
    /// In-process: time from power to the booted identity.
    pub start_ms: f64,
    /// Time that RESET_RESP may be read.
    pub reset_linger_ms: f64,
}

/// Speed of the chip.
#[derive(Clone, Copy, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Speed {
    /// SHAVEs that executors share.
    pub shaves: u32,
    /// CMX slices that executors share.
    pub cmx_slices: u32,
    /// Executors of one graph.
    pub max_executors: u32,
    /// NCE multiply-accumulates of one executor.
    pub nce_macs_per_s: f64,
    /// DRAM peak, shared.
    pub dram_bytes_per_s: f64,
    /// Share of the peak that is reached, 0 to 1.
    pub dram_efficiency: f64,
    /// Fixed cost of a stage.
    pub stage_us: f64,
    /// Elements of a software stage on one SHAVE.
    pub shave_elements_per_s: f64,
    /// Fixed cost of an inference.
    pub trigger_us: f64,
}

/// How a stick slows down when it is hot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ThrottleLaw {
    /// Two steps, at the guards.
    Cliff,
    /// Speed falls evenly from the lower guard to the upper.
    Linear,
    /// As cliff, but a level stays until the stick is reset.
    Latched,
}

/// Heat: one RC node, and the guards. Assumed.
#[derive(Clone, Copy, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeatLaw {
    /// Air around the stick.
    pub ambient_c: f64,
    /// Power at rest.
    pub idle_w: f64,
    /// Power with every SHAVE busy.
    pub full_w: f64,
    /// Thermal resistance to the air.
    pub kelvin_per_w: f64,
    /// Time constant.
    pub tau_s: f64,
    /// Level 1 from here.
    pub lower_guard_c: f64,
    /// Level 2 from here.
    pub upper_guard_c: f64,
    /// A level ends this far below its guard.
    pub hysteresis_k: f64,
    /// Share of full speed at level 1.
    pub lower_speed: f64,
    /// Share of full speed at level 2.
    pub upper_speed: f64,
    /// How it slows down.
    pub law: ThrottleLaw,
}

impl Profile {
    /// Names of the built-in profiles.
    pub const BUILT_IN: [&'static str; 1] = ["ncs2"];

    /// A built-in profile by name, otherwise a file by path. `NotFound` and `InvalidInput` say which file, what was
    /// expected and what was found.
    pub fn load(name: &str) -> Result<Profile> {
        let text = match name {
            "ncs2" => NCS2.to_owned(),
            path => std::fs::read_to_string(Path::new(path)).map_err(|e| {
                Error::new(ErrorKind::NotFound, "load profile")
                    .detail(format!(
                        "{path}: no built-in profile ({}) and no readable file",
                        Self::BUILT_IN.join(", ")
                    ))
                    .caused_by(e)
            })?,
        };
        Self::parse(name, &text)
    }

    /// A profile from its text; `name` is for messages.
    pub fn parse(name: &str, text: &str) -> Result<Profile> {
        let bad = |why: String| {
            Error::new(ErrorKind::InvalidInput, "load profile").detail(format!("{name}: {why}"))
        };
        let mut profile: Profile = toml::from_str(text)
            .map_err(|e| bad(e.to_string().lines().map(str::trim).collect::<Vec<_>>().join(" ")))?;
        profile.name = name.to_owned();
        profile.check().map_err(bad)?;
        Ok(profile)
    }

    /// DRAM that graphs and FIFOs may take.
    pub fn usable_bytes(&self) -> u64 {
        u64::from(self.memory.dram_bytes - self.memory.firmware_bytes)
    }

    /// Time of one transfer on the wire, nanoseconds.
    pub(crate) fn wire_ns(&self, bytes: usize) -> f64 {
        self.link.transfer_us * 1e3 + bytes as f64 / self.link.bytes_per_s * 1e9
    }

    fn check(&self) -> std::result::Result<(), String> {
        let (l, b, t, h, f) = (&self.link, &self.boot, &self.timing, &self.heat, &self.firmware);
        let number = |name: &str, value: f64, low: f64, high: f64| {
            if value.is_finite() && (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(format!("{name} = {value}: expected {low} to {high}"))
            }
        };
        const TINY: f64 = 1e-9;
        const HUGE: f64 = 1e18;
        if self.memory.firmware_bytes >= self.memory.dram_bytes {
            return Err("memory.firmware_bytes leaves nothing of memory.dram_bytes".into());
        }
        if ![64, 512, 1024].contains(&l.max_packet_bytes) {
            return Err(format!("link.max_packet_bytes = {}: expected 64, 512 or 1024", l.max_packet_bytes));
        }
        for (name, value, low, high) in [
            ("link.bytes_per_s", l.bytes_per_s, 1.0, HUGE),
            ("link.transfer_us", l.transfer_us, 0.0, 1e9),
            ("boot.image_quiet_ms", b.image_quiet_ms, 0.0, 1e6),
            ("boot.leave_ms", b.leave_ms, 0.0, 1e6),
            ("boot.start_ms", b.start_ms, 0.0, 1e6),
            ("boot.reset_linger_ms", b.reset_linger_ms, 0.0, 1e6),
            ("timing.shaves", f64::from(t.shaves), 1.0, 1e6),
            ("timing.cmx_slices", f64::from(t.cmx_slices), 1.0, 1e6),
            ("timing.max_executors", f64::from(t.max_executors), 1.0, 64.0),
            ("timing.nce_macs_per_s", t.nce_macs_per_s, 1.0, HUGE),
            ("timing.dram_bytes_per_s", t.dram_bytes_per_s, 1.0, HUGE),
            ("timing.dram_efficiency", t.dram_efficiency, TINY, 1.0),
            ("timing.stage_us", t.stage_us, 0.0, 1e9),
            ("timing.shave_elements_per_s", t.shave_elements_per_s, 1.0, HUGE),
            ("timing.trigger_us", t.trigger_us, 0.0, 1e9),
            ("heat.ambient_c", h.ambient_c, -55.0, 150.0),
            ("heat.idle_w", h.idle_w, 0.0, 1e3),
            ("heat.full_w", h.full_w, h.idle_w.max(0.0), 1e3),
            ("heat.kelvin_per_w", h.kelvin_per_w, 0.0, 1e4),
            ("heat.tau_s", h.tau_s, 1e-3, 1e9),
            ("heat.lower_guard_c", h.lower_guard_c, -55.0, 1e3),
            ("heat.upper_guard_c", h.upper_guard_c, h.lower_guard_c, 1e3),
            ("heat.hysteresis_k", h.hysteresis_k, 0.0, 100.0),
            ("heat.lower_speed", h.lower_speed, 0.01, 1.0),
            ("heat.upper_speed", h.upper_speed, 0.01, h.lower_speed),
            ("firmware.max_executors", f64::from(f.max_executors), 1.0, 64.0),
            ("firmware.ack_delay_us", f.ack_delay_us, 0.0, 1e9),
            ("firmware.watchdog_s", f.watchdog_s, 0.001, 1e6),
        ] {
            number(name, value, low, high)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_profiles_load() {
        for name in Profile::BUILT_IN {
            let profile = Profile::load(name).expect("built in");
            assert_eq!(profile.usable_bytes(), 522_059_056);
        }
    }

    #[test]
    fn a_bad_profile_names_file_and_field() {
        for (from, to, word) in [
            ("stage_us = 100.0", "stage_us = -1.0", "timing.stage_us"),
            ("[heat]", "[heath]", "heath"),
            ("input_release = \"end\"", "input_release = \"never\"", "never"),
            ("watchdog_s = 12.0", "watchdog_s = nan", "firmware.watchdog_s"),
        ] {
            assert!(NCS2.contains(from), "{from}");
            let error = Profile::parse("mine.toml", &NCS2.replace(from, to)).expect_err(to).to_string();
            assert!(error.contains("mine.toml") && error.contains(word), "{error}");
        }
        assert_eq!(Profile::load("nowhere").expect_err("no file").kind(), ErrorKind::NotFound);
    }
}
