//! This driver, driven by the same list of steps as the vendor's client (`client.py`), with the same answers.
//!
//! `config` comes first where it is needed: `{"ordering": "vendor"|"pipelined", "sticks": N, "watchdog": bool,
//! "reset_foreign": bool, "open_timeout_s": S, "job_timeout_s": S, "retries": N}`. The sticks are
//! booted and opened by the first `load`, all of the fleet's at the same time.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use ncs2::blob::Blob;
use ncs2::runtime::{FleetConfig, LoadOptions, SubmitOptions, Ticket};
use ncs2::stick::Ordering;
use ncs2::transport::usb::boot::{self, BootOptions};
use ncs2::transport::usb::discover;
use ncs2::wire::{DdrType, FirmwarePatches};
use ncs2::{Fleet, Graph};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Map, Value, json};

use crate::client::firmware;
use crate::{chain, work};

/// Longest wait for sticks that boot one after the other or all at once.
const OPEN: Duration = Duration::from_secs(60);

type Answer = Result<Value, String>;

/// Performs the steps of a file and prints an answer for each.
pub(crate) fn run(steps: &Path) -> Result<(), String> {
    let text = fs::read_to_string(steps).map_err(|e| format!("{}: {e}", steps.display()))?;
    let steps: Vec<Value> = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    let mut client = Client { config: json!({}), fleet: None, graphs: BTreeMap::new() };
    for (n, step) in steps.iter().enumerate() {
        let word = step["do"].as_str().unwrap_or_default();
        say(&json!({ "step": n, "do": word, "at": "begin" }));
        let mut answer = client.perform(step);
        answer["step"] = json!(n);
        answer["do"] = json!(word);
        answer["at"] = json!("end");
        say(&answer);
    }
    drop(client);
    say(&json!({ "done": true }));
    Ok(())
}

fn say(answer: &Value) {
    println!("{answer}");
    // A line that nobody reads is for nobody.
    let _ = std::io::stdout().flush();
}

struct Client {
    config: Value,
    fleet: Option<Fleet>,
    graphs: BTreeMap<String, Graph>,
}

impl Client {
    fn perform(&mut self, step: &Value) -> Value {
        let began = Instant::now();
        let answer = match step["do"].as_str().unwrap_or_default() {
            "devices" => devices(),
            "config" => {
                self.config = step.clone();
                Ok(json!({}))
            }
            "load" => self.load(step),
            "infer" => self.infer(step),
            "bench" => self.graph(step).and_then(|graph| bench(graph, step)),
            "thermal" => self.thermal(),
            "unload" => {
                self.graphs.remove(step["graph"].as_str().unwrap_or_default());
                // A graph that nobody holds stays on the stick until its room is needed; the vendor's goes at once.
                if let Some(fleet) = &self.fleet {
                    fleet.evict_unused();
                }
                Ok(json!({ "seconds": began.elapsed().as_secs_f64() }))
            }
            "close" => self.close(),
            "wait" => {
                std::thread::sleep(Duration::from_secs_f64(step["seconds"].as_f64().unwrap_or(0.0)));
                Ok(json!({}))
            }
            "together" => self.together(step),
            "spin" => {
                let (seconds, before) = (step["seconds"].as_f64().unwrap_or(1.0), cpu_seconds());
                std::thread::sleep(Duration::from_secs_f64(seconds));
                Ok(json!({ "cpu_share": (cpu_seconds() - before) / seconds }))
            }
            other => Err(format!("no step {other}")),
        };
        answer.unwrap_or_else(|why| json!({ "error": why, "error_after_s": began.elapsed().as_secs_f64() }))
    }

    fn graph(&self, step: &Value) -> Result<&Graph, String> {
        let name = step["graph"].as_str().unwrap_or_default();
        self.graphs.get(name).ok_or_else(|| format!("no graph {name}"))
    }

    fn fleet(&mut self) -> Result<&Fleet, String> {
        if self.fleet.is_none() {
            let wanted = self.config["sticks"].as_u64().unwrap_or(1) as usize;
            let found = discover::list().map_err(|e| chain(&e))?;
            let watchdog = self.config["watchdog"].as_bool().unwrap_or(true);
            let options = BootOptions {
                firmware: Some(firmware()?),
                patches: FirmwarePatches { watchdog, ddr: DdrType::Auto },
                reset_foreign: self.config["reset_foreign"].as_bool().unwrap_or(false),
                ..BootOptions::default()
            };
            let ordering = match self.config["ordering"].as_str() {
                Some("pipelined") => Ordering::Pipelined,
                _ => Ordering::Vendor,
            };
            let open_timeout = self.config["open_timeout_s"].as_f64().map_or(OPEN, Duration::from_secs_f64);
            let mut config = FleetConfig { ordering, open_timeout, ..FleetConfig::default() };
            if let Some(seconds) = self.config["job_timeout_s"].as_f64() {
                config.job_timeout = Duration::from_secs_f64(seconds);
            }
            if let Some(retries) = self.config["retries"].as_u64() {
                config.retries = u32::try_from(retries).map_err(|e| format!("retries: {e}"))?;
            }
            let ports = found.iter().take(wanted).map(|f| boot::port(f.id.clone(), options.clone()));
            let builder = ports.fold(Fleet::builder(), |builder, port| builder.port(port));
            self.fleet = Some(builder.config(config).open().map_err(|e| chain(&e))?);
        }
        self.fleet.as_ref().ok_or_else(|| "no fleet".into())
    }

    fn load(&mut self, step: &Value) -> Answer {
        let began = Instant::now();
        let path = step["blob"].as_str().ok_or("load: ours needs a blob")?;
        let blob = Blob::open(path).map_err(|e| chain(&e))?;
        let mut options = LoadOptions { timeout: OPEN, ..LoadOptions::default() };
        if let Some(executors) = step["executors"].as_u64() {
            options.executors = executors as u32;
        }
        if let Some(depth) = step["depth"].as_u64() {
            options.depth = depth as u32;
        }
        let graph = self.fleet()?.load(&blob, options).map_err(|e| chain(&e))?;
        self.graphs.insert(step["graph"].as_str().unwrap_or_default().to_owned(), graph);
        Ok(json!({ "seconds": began.elapsed().as_secs_f64() }))
    }

    fn infer(&self, step: &Value) -> Answer {
        let graph = self.graph(step)?;
        let count = step["count"].as_u64().unwrap_or(1);
        let in_flight = step["in_flight"].as_u64().unwrap_or(0).max(1) as usize;
        let blob = graph.blob().clone();
        let stick = match step["stick"].as_u64() {
            None => None,
            Some(n) => Some(
                self.fleet.as_ref().and_then(|f| f.sticks().nth(n as usize)).ok_or("no such stick")?.clone(),
            ),
        };
        let names: Vec<&str> = blob.graph().outputs.iter().map(|o| o.name.as_str()).collect();
        let mut outputs: Vec<Vec<u8>> = vec![Vec::new(); names.len()];
        let mut waiting = VecDeque::new();
        let mut keep = |ticket: Ticket| {
            let output = ticket.wait().map_err(|e| chain(&e))?;
            for (at, kept) in outputs.iter_mut().enumerate() {
                kept.extend_from_slice(output.tensor(at));
            }
            Ok::<(), String>(())
        };
        let began = Instant::now();
        for n in 0..count {
            if waiting.len() == in_flight
                && let Some(ticket) = waiting.pop_front()
            {
                keep(ticket)?;
            }
            let mut lease = graph.input().map_err(|e| chain(&e))?;
            lease.copy_from(&work::input(&blob, n)).map_err(|e| chain(&e))?;
            let options = SubmitOptions { stick: stick.clone(), ..SubmitOptions::default() };
            waiting.push_back(graph.submit(lease, options).map_err(|e| chain(&e))?);
        }
        for ticket in waiting {
            keep(ticket)?;
        }
        let seconds = began.elapsed().as_secs_f64();
        let to = step["to"].as_str().unwrap_or("/tmp/ours");
        let mut files = Map::new();
        for (at, (name, bytes)) in names.iter().zip(&outputs).enumerate() {
            let path = format!("{to}.{at}");
            fs::write(&path, bytes).map_err(|e| format!("{path}: {e}"))?;
            files.insert((*name).to_owned(), json!(path));
        }
        Ok(json!({ "outputs": files, "count": count, "seconds": seconds }))
    }

    fn thermal(&mut self) -> Answer {
        let began = Instant::now();
        let fleet = self.fleet()?;
        fleet.refresh_telemetry(Duration::from_secs(5)).map_err(|e| chain(&e))?;
        let celsius = fleet.stats().sticks.first().and_then(|s| s.temperature_c);
        Ok(json!({ "celsius": celsius, "seconds": began.elapsed().as_secs_f64() }))
    }

    fn close(&mut self) -> Answer {
        let began = Instant::now();
        self.graphs.clear();
        if let Some(fleet) = self.fleet.take() {
            fleet.close(Duration::from_secs(20)).map_err(|e| chain(&e))?;
        }
        Ok(json!({ "seconds": began.elapsed().as_secs_f64() }))
    }

    /// Benches on threads; a `load` among them on this one.
    fn together(&mut self, step: &Value) -> Answer {
        let steps = step["steps"].as_array().cloned().unwrap_or_default();
        let running: Vec<_> = steps
            .iter()
            .map(|step| {
                let graph = match step["do"].as_str() {
                    Some("bench") => Some(self.graph(step)?.clone()),
                    _ => None,
                };
                let step = step.clone();
                Ok(graph.map(|graph| std::thread::spawn(move || bench(&graph, &step))))
            })
            .collect::<Result<Vec<_>, String>>()?;
        let mut answers = Vec::new();
        for (step, thread) in steps.iter().zip(running) {
            answers.push(match thread {
                None => {
                    if let Some(seconds) = step["after_s"].as_f64() {
                        std::thread::sleep(Duration::from_secs_f64(seconds));
                    }
                    self.perform(step)
                }
                Some(thread) => match thread.join() {
                    Ok(answer) => answer.unwrap_or_else(|why| json!({ "error": why })),
                    Err(_) => json!({ "error": "a thread died" }),
                },
            });
        }
        Ok(json!({ "answers": answers }))
    }
}

/// The names of all sticks.
fn devices() -> Answer {
    let found = discover::list().map_err(|e| chain(&e))?;
    Ok(json!({ "devices": found.iter().map(|f| f.id.to_string()).collect::<Vec<_>>() }))
}

/// As the vendor's `bench`: the inputs lie in place already, and nothing is done with the outputs.
fn bench(graph: &Graph, step: &Value) -> Answer {
    let in_flight = step["in_flight"].as_u64().unwrap_or(0).max(1) as usize;
    let submit = || {
        let mut lease = graph.input().map_err(|e| chain(&e))?;
        lease.overwrite();
        let ticket = graph.submit(lease, SubmitOptions::default()).map_err(|e| chain(&e))?;
        Ok::<_, String>((Instant::now(), ticket))
    };
    let (mut latencies, mut gap, mut failed): (Vec<f64>, Duration, Option<String>) = Default::default();
    let (cpu, switches, began) = (cpu_seconds(), context_switches(), Instant::now());
    let end = began + Duration::from_secs_f64(step["seconds"].as_f64().unwrap_or(1.0));
    let mut last = began;
    let mut waiting = VecDeque::new();
    let outcome = (|| {
        for _ in 0..in_flight {
            waiting.push_back(submit()?);
        }
        while let Some((start, ticket)) = waiting.pop_front() {
            ticket.wait().map_err(|e| chain(&e))?;
            let now = Instant::now();
            latencies.push((now - start).as_secs_f64());
            gap = gap.max(now - last);
            last = now;
            if now < end {
                waiting.push_back(submit()?);
            }
        }
        Ok::<(), String>(())
    })();
    if let Err(why) = outcome {
        failed = Some(why);
    }
    let mut answer = json!({
        "inferences": latencies.len(),
        "seconds": began.elapsed().as_secs_f64(),
        "cpu_s": cpu_seconds() - cpu,
        "switches": context_switches() - switches,
        "threads": threads().len(),
        "gap_s": gap.as_secs_f64(),
    });
    latencies.sort_by(f64::total_cmp);
    if let Some(p50) = latencies.get(latencies.len() / 2) {
        answer["p50_s"] = json!(p50);
        answer["p99_s"] = json!(latencies[(latencies.len() * 99 / 100).min(latencies.len() - 1)]);
    }
    if let Some(why) = failed {
        answer["failed"] = json!(why);
        answer["failed_after_s"] = json!(last.elapsed().as_secs_f64());
    }
    Ok(answer)
}

/// CPU of this process so far.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn threads() -> Vec<std::path::PathBuf> {
    fs::read_dir("/proc/self/task").into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Of the threads that live.
fn context_switches() -> i64 {
    let count = |path: &Path| -> i64 {
        let text = fs::read_to_string(path.join("status")).unwrap_or_default();
        let lines = text.lines().filter(|line| line.contains("ctxt_switches"));
        lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<i64>().ok()).sum()
    };
    threads().iter().map(|path| count(path)).sum()
}
