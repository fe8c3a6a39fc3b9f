//! Graphs of the fleet: what they are made of, and which stick has them.

use std::sync::Arc;

use super::config::LoadOptions;
use super::core::{Core, Shared, number};
use super::failure::Cause;
use super::stats_document::GraphSummary;
use crate::blob::Blob;
use crate::cache::{CacheKey, GraphNeeds, LoadKey};
use crate::clock::Instant;
use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::{GraphId, GraphSpec};
use crate::sched::{self, Event, GraphNo, Placement, VariantSpec};
use crate::stick::{GraphKey, LoadRequest, StickError};
use crate::wire::VERIFY_HEADER_LEN;

/// SHAVE cores and CMX slices that a stick's executors share.
const STICK_SHAVES: u32 = 16;
const STICK_CMX_SLICES: u32 = 19;
/// What a stick reaches at best on real networks, operations a second (NCS2_FACTS section 2: 0.13 to 0.35 TOPS): the first
/// guess of an inference's time, taken optimistic so that a stick is tried.
const GUESSED_OPS: f64 = 0.35e12;

/// One batch size of a graph.
pub(super) struct Variant {
    pub(super) blob: Blob,
    /// Requests that one inference answers.
    pub(super) batch: u32,
    spec: GraphSpec,
}

/// Where a graph stands on one stick.
#[derive(Clone, Debug)]
pub(super) enum Presence {
    Absent,
    Loading,
    Loaded,
    Refused(Cause),
}

pub(super) struct OnStick {
    pub(super) presence: Presence,
    /// The stick's names of the variants; a new load has new ones, so that an answer of an old one fits nothing.
    copies: Vec<GraphId>,
    /// Variants that are not there yet.
    missing: usize,
    began: Instant,
}

impl OnStick {
    fn new() -> Self {
        OnStick { presence: Presence::Absent, copies: Vec::new(), missing: 0, began: Instant::ZERO }
    }

    /// The stick's name of a variant, once all are loaded.
    pub(super) fn copy_of(&self, variant: u32) -> Option<GraphId> {
        let loaded = matches!(self.presence, Presence::Loaded);
        self.copies.get(variant as usize).copied().filter(|_| loaded)
    }

    /// It is no longer there. Returns what is to be unloaded.
    pub(super) fn leave(&mut self) -> Vec<GraphId> {
        self.presence = Presence::Absent;
        std::mem::take(&mut self.copies)
    }

    pub(super) fn is_there(&self) -> bool {
        matches!(self.presence, Presence::Loading | Presence::Loaded)
    }
}

pub(super) struct GraphEntry {
    pub(super) key: CacheKey,
    pub(super) variants: Vec<Variant>,
    options: LoadOptions,
    executors: u32,
    /// Callers' [`super::Graph`]s.
    pub(super) handles: usize,
    /// Requests that have not ended.
    pub(super) active: usize,
    pub(super) on: Vec<OnStick>,
}

/// Executors when the caller leaves it to us: as many as share the stick's SHAVEs and CMX slices.
fn executors_for(blob: &Blob, asked: u32) -> u32 {
    if asked > 0 {
        return asked;
    }
    let graph = blob.graph();
    let by_shaves = STICK_SHAVES / graph.shaves.clamp(1, STICK_SHAVES);
    let by_cmx = STICK_CMX_SLICES / graph.cmx_slices.clamp(1, STICK_CMX_SLICES);
    by_shaves.min(by_cmx).clamp(1, LoadOptions::MAX_EXECUTORS)
}

/// The blob's host copy, lent to transfers.
struct Bytes(Blob);

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

fn spec_of(blob: &Blob, options: &LoadOptions, executors: u32) -> Result<GraphSpec> {
    let op = "load graph";
    let graph = blob.graph();
    let size = |what: &str, bytes: usize| {
        u32::try_from(bytes).map_err(|_| {
            let detail =
                format!("{}: {what} of {bytes} bytes, at most {} fit the protocol", blob.name(), u32::MAX);
            Error::new(ErrorKind::InvalidBlob, op).detail(detail)
        })
    };
    let header = blob.bytes().first_chunk::<VERIFY_HEADER_LEN>().ok_or_else(|| {
        let detail = format!(
            "{}: {} bytes, a blob has more than {VERIFY_HEADER_LEN}",
            blob.name(),
            blob.bytes().len()
        );
        Error::new(ErrorKind::InvalidBlob, op).detail(detail)
    })?;
    Ok(GraphSpec {
        id: GraphId(0),
        request: LoadRequest {
            key: GraphKey(0),
            header: *header,
            blob_bytes: size("file", blob.bytes().len())?,
            input_bytes: size("input", graph.input_bytes)?,
            output_bytes: size("output", graph.output_bytes)?,
            stages: size("stage list", graph.stages.len())?,
            executors,
            fifo_elements: options.depth,
        },
        blob: Arc::new(Bytes(blob.clone())),
        instances: options.instances,
    })
}

/// Checks that the blobs are one network in several batch sizes, and orders them.
fn variants_of(blobs: &[Blob], options: &LoadOptions, executors: u32) -> Result<Vec<Variant>> {
    let op = "load graph";
    let bad = |detail: String| Err(Error::new(ErrorKind::InvalidInput, op).detail(detail));
    let mut blobs: Vec<&Blob> = blobs.iter().collect();
    blobs.sort_by_key(|b| b.graph().batch);
    let Some(base) = blobs.first().copied() else {
        return bad("no blob was given".into());
    };
    let unit = base.graph().batch.max(1);
    let mut variants = Vec::new();
    for blob in blobs {
        let (graph, first) = (blob.graph(), base.graph());
        let tensors = |g: &crate::blob::Graph| -> Vec<(String, usize)> {
            g.inputs.iter().chain(&g.outputs).map(|t| (t.name.clone(), t.bytes())).collect()
        };
        if tensors(graph) != tensors(first) {
            let detail = "is another network than";
            return bad(format!(
                "{} {detail} {}: its tensors differ; batch sizes of one network go together",
                blob.name(),
                base.name()
            ));
        }
        let batch = graph.batch.max(1);
        if batch % unit != 0 || variants.iter().any(|v: &Variant| v.batch == batch / unit) {
            return bad(format!(
                "{}: batch {batch} beside {unit}; give each size once, multiples of the least",
                blob.name()
            ));
        }
        variants.push(Variant {
            blob: blob.clone(),
            batch: batch / unit,
            spec: spec_of(blob, options, executors)?,
        });
    }
    Ok(variants)
}

impl GraphEntry {
    /// `most_executors` is what the sticks report.
    pub(super) fn new(
        blobs: &[Blob],
        options: &LoadOptions,
        most_executors: u32,
        sticks: usize,
    ) -> Result<Self> {
        let executors = blobs.iter().map(|b| executors_for(b, options.executors)).min().unwrap_or(1);
        let executors = executors.min(most_executors.max(1));
        let variants = variants_of(blobs, options, executors)?;
        Ok(GraphEntry {
            key: key_of(blobs, options),
            variants,
            options: options.clone(),
            executors,
            handles: 0,
            active: 0,
            on: (0..sticks).map(|_| OnStick::new()).collect(),
        })
    }

    /// The smallest batch size.
    pub(super) fn blob(&self) -> &Blob {
        &self.variants[0].blob
    }

    /// For statistics.
    pub(super) fn summary(&self) -> GraphSummary {
        GraphSummary {
            name: self.blob().name().to_owned(),
            macs: self.blob().macs().model,
            depth: self.options.depth,
            instances: self.options.instances,
        }
    }

    /// For the scheduler; `kept` on all sticks, or where demand brings it.
    pub(super) fn sched_spec(&self, placement: Placement) -> sched::GraphSpec {
        let key = LoadKey { executors: self.executors, ..self.key.options };
        let mut needs = GraphNeeds::of(self.blob().graph(), key);
        for variant in &self.variants[1..] {
            let more = GraphNeeds::of(variant.blob.graph(), key);
            needs.file_bytes += more.file_bytes;
            needs.bss_bytes += more.bss_bytes;
            needs.input_bytes += more.input_bytes;
            needs.output_bytes += more.output_bytes;
        }
        let guess = |v: &Variant| 2.0 * v.blob.macs().model as f64 / GUESSED_OPS * 1e6;
        sched::GraphSpec {
            variants: (self.variants.iter())
                .map(|v| VariantSpec { size: v.batch, hint_us: Some(guess(v)).filter(|us| *us > 0.0) })
                .collect(),
            weight: self.options.weight,
            rate_limit: self.options.rate_limit,
            placement,
            max_batch_delay: self.options.max_batch_delay,
            fixed_depth: (!self.options.adaptive_depth).then_some(needs.elements),
            ..sched::GraphSpec::new(self.key, needs)
        }
    }

    /// New copies of all variants for one stick.
    pub(super) fn begin_load(&mut self, at: usize, next_copy: &mut u64, now: Instant) -> Vec<GraphSpec> {
        let copies: Vec<GraphId> = self.variants.iter().zip(*next_copy..).map(|(_, n)| GraphId(n)).collect();
        *next_copy += copies.len() as u64;
        let specs = self.variants.iter().zip(&copies).map(|(v, id)| GraphSpec { id: *id, ..v.spec.clone() });
        let specs = specs.collect();
        self.on[at] = OnStick { presence: Presence::Loading, missing: copies.len(), copies, began: now };
        specs
    }

    /// The blob of a stick's copy.
    pub(super) fn blob_of(&self, at: usize, copy: GraphId) -> Option<&Blob> {
        let variant = self.on[at].copies.iter().position(|c| *c == copy)?;
        self.variants.get(variant).map(|v| &v.blob)
    }
}

/// Content and options. Several batch sizes together are another content than each alone.
pub(super) fn key_of(blobs: &[Blob], options: &LoadOptions) -> CacheKey {
    let mut hashes: Vec<_> = blobs.iter().map(Blob::hash).collect();
    hashes.sort_unstable();
    let hash = match hashes.as_slice() {
        [one] => *one,
        many => {
            use sha2::Digest as _;
            let mut sum = sha2::Sha256::new();
            many.iter().for_each(|h| sum.update(h.0));
            crate::blob::BlobHash(sum.finalize().into())
        }
    };
    let options =
        LoadKey { executors: options.executors, elements: options.depth, instances: options.instances };
    CacheKey { hash, options }
}

impl Core {
    /// A free number for a new graph.
    pub(super) fn enter(&mut self, entry: GraphEntry) -> GraphNo {
        let at = self.graphs.iter().position(Option::is_none).unwrap_or_else(|| {
            self.graphs.push(None);
            self.graphs.len() - 1
        });
        self.graphs[at] = Some(entry);
        GraphNo(at as u32)
    }

    /// The graph that a stick's copy belongs to.
    fn owner_of(&mut self, at: usize, copy: GraphId) -> Option<(GraphNo, &mut GraphEntry)> {
        let graphs = self.graphs.iter_mut().enumerate();
        let mut entries = graphs.filter_map(|(no, g)| Some((GraphNo(no as u32), g.as_mut()?)));
        entries.find(|(_, g)| g.on[at].copies.contains(&copy))
    }

    /// The content of a stick's copy.
    pub(super) fn blob_of(&mut self, at: usize, copy: GraphId) -> Option<Blob> {
        let (_, entry) = self.owner_of(at, copy)?;
        entry.blob_of(at, copy).cloned()
    }
}

impl Shared {
    /// A stick has loaded a copy.
    pub(super) fn copy_loaded(&self, at: usize, copy: GraphId) {
        let now = self.now();
        let mut core = self.core.lock();
        if let Some((graph, entry)) = core.owner_of(at, copy) {
            let on = &mut entry.on[at];
            on.missing = on.missing.saturating_sub(1);
            if on.missing == 0 {
                on.presence = Presence::Loaded;
                let took = now - on.began;
                core.tell(Event::GraphLoaded { stick: number(at), graph, took }, now);
            }
        }
        let rings = self.carry_out(&mut core);
        drop(core);
        self.changed.notify_all();
        self.ring(rings);
    }

    /// A stick has refused a copy. Returns the graph's other copies there, which are of no use alone.
    pub(super) fn copy_refused(&self, at: usize, copy: GraphId, error: &StickError) -> Vec<GraphId> {
        let now = self.now();
        let mut core = self.core.lock();
        let mut others = Vec::new();
        if let Some((graph, entry)) = core.owner_of(at, copy) {
            others = entry.on[at].leave();
            others.retain(|c| *c != copy);
            entry.on[at].presence = Presence::Refused(Cause::of_stick(error));
            core.tell(Event::LoadFailed { stick: number(at), graph }, now);
        }
        // It may have been the last hope of what waits for it.
        self.fail_hopeless(&mut core);
        let rings = self.carry_out(&mut core);
        drop(core);
        self.changed.notify_all();
        self.ring(rings);
        others
    }

    /// A caller's last hold on a graph is gone: it stays where it lies until room is needed, and no longer.
    pub(super) fn handle_dropped(&self, graph: GraphNo) {
        let mut core = self.core.lock();
        let Some(entry) = core.graph_mut(graph) else { return };
        entry.handles -= 1;
        if entry.handles == 0 {
            let spec = entry.sched_spec(Placement::OnDemand);
            let now = self.now();
            core.tell(Event::GraphAdded { graph, spec }, now);
        }
        self.after_ends(&mut core);
        let rings = self.carry_out(&mut core);
        drop(core);
        self.ring(rings);
    }

    /// Forgets graphs that nobody holds and no stick has.
    pub(super) fn let_go(&self, core: &mut Core) {
        for at in 0..core.graphs.len() {
            let idle =
                |g: &GraphEntry| g.handles == 0 && g.active == 0 && !g.on.iter().any(OnStick::is_there);
            if core.graphs[at].as_ref().is_some_and(idle) {
                core.graphs[at] = None;
                let now = self.now();
                core.tell(Event::GraphRemoved { graph: GraphNo(at as u32) }, now);
            }
        }
    }
}
