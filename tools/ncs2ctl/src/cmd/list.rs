//! `ncs2ctl list`

use serde::Serialize;

use crate::cli::Global;
use crate::failure::{Outcome, Result};
use crate::open::{self, Listed};
use crate::output::{Output, Style};

#[derive(Serialize)]
struct Body {
    simulated: bool,
    devices: Vec<Device>,
}

#[derive(Serialize)]
struct Device {
    id: String,
    state: &'static str,
    usb_speed_mbps: Option<u32>,
    product: String,
    hub_path: Option<String>,
    simulated: bool,
}

/// Lists every stick; exit 1 when there is none.
pub fn list(global: &Global, output: &Output) -> Result<Outcome> {
    let found = open::list(global)?;
    let outcome = if found.is_empty() { Outcome::Negative } else { Outcome::Ok };
    if output.is_json() {
        let devices = found.iter().map(device).collect();
        output.document(&Body { simulated: global.sim.is_some(), devices })?;
        return Ok(outcome);
    }
    if found.is_empty() {
        let wanted = if global.device.is_empty() {
            String::new()
        } else {
            format!(" at {}", global.device.join(", "))
        };
        output.prose(&format!("No Neural Compute Stick 2 found{wanted}.\n"))?;
        output.remark("Check plug, cable and hub power, or use virtual sticks with --sim N.");
        return Ok(outcome);
    }
    let mut table =
        output.table(&["id", "state", "Mb/s", "hub", "product"], &["id", "state", "hub", "product"]);
    for stick in &found {
        let speed = stick.usb_speed_mbps.map_or("-".into(), |s| s.to_string());
        let hub = hub_path(stick).unwrap_or_else(|| "-".into());
        table.add_row([stick.id.to_string(), stick.state.into(), speed, hub, stick.product.clone()]);
    }
    let mut text = output.lines(&table);
    if global.sim.is_some() {
        text.push_str(&format!("  {}: no device is behind these\n", output.paint(Style::Warn, "simulated")));
    }
    output.prose(&text)?;
    Ok(outcome)
}

fn device(stick: &Listed) -> Device {
    Device {
        id: stick.id.to_string(),
        state: stick.state,
        usb_speed_mbps: stick.usb_speed_mbps,
        product: stick.product.clone(),
        hub_path: hub_path(stick),
        simulated: stick.simulated,
    }
}

/// Where the stick's hub is plugged in: the stick's own path less its last port.
fn hub_path(stick: &Listed) -> Option<String> {
    let id = stick.id.as_str();
    match &*stick.ports {
        [] => None,
        [_] => id.split_once('-').map(|(bus, _)| format!("usb{bus}")),
        _ => id.rsplit_once('.').map(|(hub, _)| hub.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ncs2::StickId;

    #[test]
    fn hub_is_the_path_above() {
        let at = |id: &str, ports: &[u8]| {
            hub_path(&Listed {
                id: StickId::new(id),
                state: "unbooted",
                usb_speed_mbps: None,
                product: String::new(),
                ports: ports.to_vec(),
                simulated: false,
            })
        };
        assert_eq!(at("1-2.3", &[2, 3]).as_deref(), Some("1-2"));
        assert_eq!(at("3-1", &[1]).as_deref(), Some("usb3"));
        assert_eq!(at("sim0", &[]), None);
    }
}
