//! What a virtual stick is made of: every constant of the model, from a TOML file.

use std::path::Path;

use ncs2::error::{Error, ErrorKind, Result};
use serde::Deserialize;

use crate::behaviour::Behaviour;

const NCS2: &str = include_str!("../profiles/ncs2.toml");
const NCS2_FAN: &str = include_str!("../profiles/ncs2-fan.toml");
const NCS2_CLOSED_CASE: &str = include_str!("../profiles/ncs2-closed-case.toml");
const USB2: &str = include_str!("../profiles/usb2.toml");

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
    /// What sticks behind one hub share.
    pub hub: HubShare,
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

/// What sticks behind one hub share.
#[derive(Clone, Copy, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubShare {
    /// Payload rate of one direction, all sticks together; 0 where each has its own.
    pub bytes_per_s: f64,
    /// Share of a neighbour's excess over the air that warms a stick's air; assumed.
    pub coupling: f64,
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
    /// Neural compute engines that executors share.
    pub nces: u32,
    /// Multiply-accumulates of one NCE.
    pub nce_macs_per_s: f64,
    /// DRAM peak, shared.
    pub dram_bytes_per_s: f64,
    /// Share of the peak that is reached, 0 to 1.
    pub dram_efficiency: f64,
    /// Fixed cost of a software stage.
    pub stage_us: f64,
    /// Fixed cost of an NCE stage.
    pub nce_stage_us: f64,
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
    /// From here a fan blows.
    pub fan_on_c: f64,
    /// Thermal resistance with the fan; 0 where there is none.
    pub fan_kelvin_per_w: f64,
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
    pub const BUILT_IN: [&'static str; 4] = ["ncs2", "ncs2-fan", "ncs2-closed-case", "usb2"];

    /// A built-in profile by name, otherwise a file by path. `NotFound` and `InvalidInput` say which file and line, what
    /// was expected and what was found.
    pub fn load(name: &str) -> Result<Profile> {
        if let Some(text) = built_in(name) {
            return Self::parse(name, text);
        }
        let text = std::fs::read_to_string(Path::new(name)).map_err(|e| {
            Error::new(ErrorKind::NotFound, "load profile")
                .detail(format!(
                    "{name}: no built-in profile ({}) and no readable file",
                    Self::BUILT_IN.join(", ")
                ))
                .caused_by(e)
        })?;
        Self::parse(name, &text)
    }

    /// A profile from its text; `name` is for messages. With `base = "NAME"` of a built-in profile, what the text does
    /// not set is as there; without it the text must set everything.
    pub fn parse(name: &str, text: &str) -> Result<Profile> {
        let bad = |why: String| {
            Error::new(ErrorKind::InvalidInput, "load profile").detail(format!("{name}: {why}"))
        };
        let one_line = |e: &dyn std::fmt::Display| {
            e.to_string().lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ")
        };
        let mut own: toml::Table = toml::from_str(text).map_err(|e| bad(one_line(&e)))?;
        let mut profile: Profile = match own.remove("base") {
            None => toml::from_str(text).map_err(|e| bad(one_line(&e)))?,
            Some(base) => {
                let known = base.as_str().and_then(built_in).ok_or_else(|| {
                    let names = Self::BUILT_IN.join(", ");
                    bad(format!("line {}: base = {base}: expected one of {names}", line_of(text, "", "base")))
                })?;
                let mut whole: toml::Table = toml::from_str(NCS2).map_err(|e| bad(one_line(&e)))?;
                // Bases of bases are one level deep: every built-in profile stands on ncs2 or on itself.
                let mut layers = vec![(toml::from_str(known).map_err(|e| bad(one_line(&e)))?, known)];
                layers.push((own, text));
                for (layer, text) in layers {
                    overlay(&mut whole, layer, text)
                        .map_err(|(line, why)| bad(format!("line {line}: {why}")))?;
                }
                whole.try_into().map_err(|e: toml::de::Error| bad(one_line(&e)))?
            }
        };
        profile.name = name.to_owned();
        profile.check().map_err(|(key, why)| {
            let (section, key) = key.split_once('.').unwrap_or(("", key));
            match line_of(text, section, key) {
                0 => bad(why),
                line => bad(format!("line {line}: {why}")),
            }
        })?;
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

    fn check(&self) -> std::result::Result<(), (&'static str, String)> {
        let (l, b, t, h, f) = (&self.link, &self.boot, &self.timing, &self.heat, &self.firmware);
        let number = |name: &'static str, value: f64, low: f64, high: f64| {
            if value.is_finite() && (low..=high).contains(&value) {
                Ok(())
            } else {
                Err((name, format!("{name} = {value}: expected {low} to {high}")))
            }
        };
        const TINY: f64 = 1e-9;
        const HUGE: f64 = 1e18;
        if self.memory.firmware_bytes >= self.memory.dram_bytes {
            let why = "memory.firmware_bytes leaves nothing of memory.dram_bytes";
            return Err(("memory.firmware_bytes", why.into()));
        }
        if ![64, 512, 1024].contains(&l.max_packet_bytes) {
            let why = format!("link.max_packet_bytes = {}: expected 64, 512 or 1024", l.max_packet_bytes);
            return Err(("link.max_packet_bytes", why));
        }
        for (name, value, low, high) in [
            ("link.bytes_per_s", l.bytes_per_s, 1.0, HUGE),
            ("link.transfer_us", l.transfer_us, 0.0, 1e9),
            ("hub.bytes_per_s", self.hub.bytes_per_s, 0.0, HUGE),
            ("hub.coupling", self.hub.coupling, 0.0, 1.0),
            ("boot.image_quiet_ms", b.image_quiet_ms, 0.0, 1e6),
            ("boot.leave_ms", b.leave_ms, 0.0, 1e6),
            ("boot.start_ms", b.start_ms, 0.0, 1e6),
            ("boot.reset_linger_ms", b.reset_linger_ms, 0.0, 1e6),
            ("timing.shaves", f64::from(t.shaves), 1.0, 1e6),
            ("timing.cmx_slices", f64::from(t.cmx_slices), 1.0, 1e6),
            ("timing.nces", f64::from(t.nces), 1.0, 64.0),
            ("timing.max_executors", f64::from(t.max_executors), 1.0, 64.0),
            ("timing.nce_macs_per_s", t.nce_macs_per_s, 1.0, HUGE),
            ("timing.dram_bytes_per_s", t.dram_bytes_per_s, 1.0, HUGE),
            ("timing.dram_efficiency", t.dram_efficiency, TINY, 1.0),
            ("timing.stage_us", t.stage_us, 0.0, 1e9),
            ("timing.nce_stage_us", t.nce_stage_us, 0.0, 1e9),
            ("timing.shave_elements_per_s", t.shave_elements_per_s, 1.0, HUGE),
            ("timing.trigger_us", t.trigger_us, 0.0, 1e9),
            ("heat.ambient_c", h.ambient_c, -55.0, 150.0),
            ("heat.idle_w", h.idle_w, 0.0, 1e3),
            ("heat.full_w", h.full_w, h.idle_w.max(0.0), 1e3),
            ("heat.kelvin_per_w", h.kelvin_per_w, 0.0, 1e4),
            ("heat.tau_s", h.tau_s, 1e-3, 1e9),
            ("heat.fan_on_c", h.fan_on_c, -55.0, 1e3),
            ("heat.fan_kelvin_per_w", h.fan_kelvin_per_w, 0.0, 1e4),
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

fn built_in(name: &str) -> Option<&'static str> {
    Some(match name {
        "ncs2" => NCS2,
        "ncs2-fan" => NCS2_FAN,
        "ncs2-closed-case" => NCS2_CLOSED_CASE,
        "usb2" => USB2,
        _ => return None,
    })
}

/// Sets in `whole` what `layer` says. `text` is where it comes from; errors name its line.
fn overlay(
    whole: &mut toml::Table,
    layer: toml::Table,
    text: &str,
) -> std::result::Result<(), (usize, String)> {
    for (section, values) in layer {
        if section == "base" {
            continue;
        }
        let toml::Value::Table(values) = values else {
            return Err((
                line_of(text, "", &section),
                format!("unknown key `{section}` outside of a section"),
            ));
        };
        if !whole.get(&section).is_some_and(toml::Value::is_table) {
            let sections = whole.keys().cloned().collect::<Vec<_>>().join(", ");
            let why = format!("unknown section [{section}]: expected one of {sections}");
            return Err((section_line(text, &section), why));
        }
        for (key, mut value) in values {
            let line = line_of(text, &section, &key);
            let mut next = whole.clone();
            let Some(known) = next.get_mut(&section).and_then(|t| t.get_mut(&key)) else {
                let keys = whole.get(&section).and_then(|t| t.as_table());
                let keys = keys.into_iter().flat_map(|t| t.keys().cloned()).collect::<Vec<_>>().join(", ");
                return Err((line, format!("unknown key `{key}` in [{section}]: expected one of {keys}")));
            };
            if let (toml::Value::Float(_), toml::Value::Integer(n)) = (&*known, &value) {
                value = toml::Value::Float(*n as f64);
            }
            *known = value;
            // One key at a time, so that the one that is wrong is known.
            if let Err(e) = next.clone().try_into::<Profile>() {
                let e = e.to_string();
                return Err((line, format!("{section}.{key}: {}", e.lines().next().unwrap_or_default())));
            }
            *whole = next;
        }
    }
    Ok(())
}

fn section_line(text: &str, section: &str) -> usize {
    let head = |line: &str| {
        line.trim()
            .strip_prefix('[')
            .and_then(|l| l.split_once(']'))
            .is_some_and(|(s, _)| s.trim() == section)
    };
    text.lines().position(head).map_or(0, |i| i + 1)
}

/// Line of a key, from 1; 0 where the text does not set it.
fn line_of(text: &str, section: &str, key: &str) -> usize {
    let from = if section.is_empty() { 0 } else { section_line(text, section) };
    if from == 0 && !section.is_empty() {
        return 0;
    }
    let rest = text.lines().enumerate().skip(from);
    let mut inside = rest.take_while(|(_, line)| !line.trim_start().starts_with('['));
    inside
        .find(|(_, line)| line.split_once('=').is_some_and(|(k, _)| k.trim() == key))
        .map_or(0, |(i, _)| i + 1)
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
    fn what_a_profile_does_not_say_is_as_in_its_base() {
        let mine = Profile::parse("mine.toml", "base = \"usb2\"\n[heat]\nambient_c = 40\n").expect("good");
        let usb2 = Profile::load("usb2").expect("built in");
        assert_eq!((mine.heat.ambient_c, mine.link, usb2.link.speed_mbps), (40.0, usb2.link, 480));
        assert_eq!(mine.timing, Profile::load("ncs2").expect("built in").timing);
        assert_eq!(Profile::parse("all.toml", NCS2).expect("whole").timing, mine.timing);
    }

    #[test]
    fn a_bad_profile_names_file_and_field() {
        for (from, to, word) in [
            ("\nstage_us = 144.0", "\nstage_us = -1.0", "timing.stage_us"),
            ("[heat]", "[heath]", "heath"),
            ("input_release = \"end\"", "input_release = \"never\"", "never"),
            ("watchdog_s = 12.0", "watchdog_s = nan", "firmware.watchdog_s"),
        ] {
            assert!(NCS2.contains(from), "{from}");
            let error = Profile::parse("mine.toml", &NCS2.replace(from, to)).expect_err(to).to_string();
            assert!(error.contains("mine.toml") && error.contains(word), "{error}");
        }
        for (text, words) in [
            ("base = \"ncs2\"\n\n[timing]\nstage_us = -3\n", ["line 4", "timing.stage_us = -3"]),
            ("base = \"ncs2\"\n[heat]\nlaw = \"cliff\"\nambiant_c = 30.0\n", ["line 4", "`ambiant_c`"]),
            ("base = \"ncs2\"\n[heat]\nlaw = \"ramp\"\n", ["line 3", "heat.law"]),
            ("base = \"ncs2\"\n# no such\n[heath]\n", ["line 3", "[heath]"]),
            ("base = \"ncs3\"\n", ["line 1", "usb2"]),
            ("base = \"usb2\"\nspeed = 3\n", ["line 2", "`speed`"]),
        ] {
            let error = Profile::parse("mine.toml", text).expect_err(text).to_string();
            assert!(words.iter().all(|w| error.contains(w)) && error.contains("mine.toml"), "{error}");
        }
        assert_eq!(Profile::load("nowhere").expect_err("no file").kind(), ErrorKind::NotFound);
    }
}
