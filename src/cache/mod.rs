//! Per-stick graph cache, pure: what lies on which stick, the ledger of its memory, what to evict, what a load costs.
//!
//! ```text
//! HostKeys (file's identity → hash, so that a hit reads nothing)
//! StickCache::plan(key, needs) ─► Hit | Load{evict, cost} | Refused(what would have to go)
//!            ::begin_load ─► loaded | load_failed      ::pin / unpin      ::evicted
//! ```
//! Admission is decided before a byte is sent. A pinned graph (jobs in flight, or pinned by its user) is never evicted.

mod host;
mod needs;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use host::{FileIdentity, HostKeys};
pub use needs::{CacheKey, GraphNeeds, LoadKey, Refusal, StickLimits};

/// What [`StickCache::plan`] says about putting a graph on a stick.
#[derive(Clone, PartialEq, Debug)]
pub enum Plan {
    /// It lies there already.
    Hit,
    /// It is being uploaded.
    Loading,
    /// It fits once these have gone, in this order.
    Load {
        /// Graphs to evict first, least recently used first; empty where there is room.
        evict: Vec<CacheKey>,
        /// Estimated time until it is usable; see [`StickCache::load_cost`].
        cost: Duration,
    },
    /// It does not fit, and why.
    Refused(Refusal),
}

/// Counters of one stick's cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CacheStats {
    /// Requests that found their graph on the stick.
    pub hits: u64,
    /// Requests that had to load it.
    pub misses: u64,
    /// Graphs thrown out to make room.
    pub evictions: u64,
    /// Refusals.
    pub refusals: u64,
    /// Uploads finished.
    pub loads: u64,
    /// Bytes uploaded.
    pub uploaded_bytes: u64,
    /// Time spent uploading.
    pub upload_time: Duration,
    /// Graphs there now, being loaded included.
    pub graphs: u32,
    /// Bytes that the ledger charges now.
    pub used_bytes: u64,
    /// Bytes that the stick has.
    pub memory_bytes: u64,
}

impl CacheStats {
    /// Share of hits, 0 to 1; `None` before the first request.
    pub fn hit_rate(&self) -> Option<f64> {
        let all = self.hits + self.misses;
        (all > 0).then(|| self.hits as f64 / all as f64)
    }
}

#[derive(Clone, Debug)]
struct Entry {
    key: CacheKey,
    needs: GraphNeeds,
    /// Order of last use; larger is later.
    used: u64,
    pins: u32,
    loading: bool,
}

/// The ledger of one stick. All sizes in bytes.
#[derive(Clone, Debug)]
pub struct StickCache {
    limits: StickLimits,
    entries: Vec<Entry>,
    tick: u64,
    /// What the stick said it uses beyond what the ledger charges (firmware's own bookkeeping).
    unaccounted_bytes: u64,
    /// Measured upload rate, bytes per second.
    upload_rate: Option<f64>,
    stats: CacheStats,
}

/// Upload rate assumed before one was measured: half of a USB 3 stick's 310 MB/s (NCS2_FACTS section 4).
const ASSUMED_RATE: f64 = 150.0e6;
/// Cost of a load beside its bytes: commands, allocation, verification. Assumed, unverified.
const LOAD_OVERHEAD: Duration = Duration::from_millis(5);
/// Weight of a new measurement of the upload rate.
const RATE_GAIN: f64 = 0.3;
/// Below this many bytes, a load measures its commands rather than the link.
const RATE_MIN_BYTES: u64 = 64 << 10;

impl StickCache {
    /// An empty stick with these limits (the stick's own figures).
    pub fn new(limits: StickLimits) -> Self {
        let stats = CacheStats { memory_bytes: limits.memory_bytes, ..CacheStats::default() };
        StickCache { limits, entries: Vec::new(), tick: 0, unaccounted_bytes: 0, upload_rate: None, stats }
    }

    /// The limits.
    pub fn limits(&self) -> &StickLimits {
        &self.limits
    }

    /// Bytes charged now.
    pub fn used_bytes(&self) -> u64 {
        self.entries.iter().map(|e| e.needs.stick_bytes()).sum::<u64>() + self.unaccounted_bytes
    }

    /// Bytes that the stick still has by the ledger.
    pub fn free_bytes(&self) -> u64 {
        self.limits.memory_bytes.saturating_sub(self.used_bytes())
    }

    /// Takes the stick's answer to GET_USED_MEMORY. Where it uses more than the ledger knows, the difference is charged;
    /// a smaller figure is not believed, since graphs may allocate late.
    pub fn reported_used(&mut self, bytes: u64) {
        let known: u64 = self.entries.iter().filter(|e| !e.loading).map(|e| e.needs.stick_bytes()).sum();
        self.unaccounted_bytes = bytes.saturating_sub(known);
    }

    /// True where the graph is usable.
    pub fn holds(&self, key: &CacheKey) -> bool {
        self.entry(key).is_some_and(|e| !e.loading)
    }

    /// Keys on the stick, least recently used first.
    pub fn keys(&self) -> Vec<CacheKey> {
        let mut order: Vec<&Entry> = self.entries.iter().collect();
        order.sort_by_key(|e| e.used);
        order.into_iter().map(|e| e.key).collect()
    }

    /// What it takes to have `key` on the stick. Changes nothing and counts nothing.
    pub fn plan(&self, key: &CacheKey, needs: &GraphNeeds) -> Plan {
        if let Some(entry) = self.entry(key) {
            return if entry.loading { Plan::Loading } else { Plan::Hit };
        }
        if let Some(refusal) = self.limits.refuses(needs) {
            return Plan::Refused(refusal);
        }
        let mut order: Vec<&Entry> = self.entries.iter().filter(|e| e.pins == 0 && !e.loading).collect();
        order.sort_by_key(|e| e.used);
        let mut order = order.into_iter();
        let (mut free, mut graphs) = (self.free_bytes(), self.copies());
        let mut fifos: u32 = self.entries.iter().map(|e| e.needs.fifos()).sum();
        let asked = needs.stick_bytes();
        let mut victims: Vec<&Entry> = Vec::new();
        while free < asked
            || graphs + needs.instances > self.limits.max_graphs
            || fifos + needs.fifos() > self.limits.max_fifos
        {
            let Some(victim) = order.next() else {
                return Plan::Refused(self.in_the_way(needs));
            };
            free += victim.needs.stick_bytes();
            graphs -= victim.needs.instances;
            fifos -= victim.needs.fifos();
            victims.push(victim);
        }
        // A small graph evicted first may turn out needless once a large one has gone: keep what can stay.
        let fits_without = |spare: &Entry| {
            free - spare.needs.stick_bytes() >= asked
                && graphs + spare.needs.instances + needs.instances <= self.limits.max_graphs
                && fifos + spare.needs.fifos() + needs.fifos() <= self.limits.max_fifos
        };
        if let Some(spare) = victims.iter().rposition(|v| fits_without(v)) {
            victims.remove(spare);
        }
        let cost = self.load_cost(needs) + LOAD_OVERHEAD * victims.len() as u32;
        Plan::Load { evict: victims.into_iter().map(|v| v.key).collect(), cost }
    }

    /// Copies of graphs on the stick, those being loaded included.
    fn copies(&self) -> u32 {
        self.entries.iter().map(|e| e.needs.instances).sum()
    }

    /// What stands in the way of a graph that the empty stick would take.
    fn in_the_way(&self, needs: &GraphNeeds) -> Refusal {
        let pinned: Vec<CacheKey> =
            self.entries.iter().filter(|e| e.pins > 0 || e.loading).map(|e| e.key).collect();
        let asked = needs.stick_bytes();
        let pinned_bytes: u64 = self
            .entries
            .iter()
            .filter(|e| e.pins > 0 || e.loading)
            .map(|e| e.needs.stick_bytes())
            .sum::<u64>()
            + self.unaccounted_bytes;
        Refusal::Busy {
            asked_bytes: asked,
            free_bytes: self.limits.memory_bytes.saturating_sub(pinned_bytes),
            must_go: pinned,
        }
    }

    /// Estimated time of an upload: bytes over the measured rate, and a fixed cost.
    pub fn load_cost(&self, needs: &GraphNeeds) -> Duration {
        let rate = self.upload_rate.unwrap_or(ASSUMED_RATE);
        Duration::from_secs_f64(needs.file_bytes as f64 / rate) + LOAD_OVERHEAD
    }

    /// Counts a request for `key`: a hit moves it to the end of the eviction order. Returns whether it was a hit.
    pub fn touch(&mut self, key: &CacheKey) -> bool {
        self.tick += 1;
        let tick = self.tick;
        match self.entry_mut(key) {
            Some(entry) if !entry.loading => {
                entry.used = tick;
                self.stats.hits += 1;
                true
            }
            _ => {
                self.stats.misses += 1;
                false
            }
        }
    }

    /// Carries out a plan's ledger side: charges the graph and forgets what is evicted. The caller unloads those first.
    /// Returns the graphs to evict.
    ///
    /// # Errors
    /// The refusal of [`StickCache::plan`]; the ledger is unchanged.
    pub fn begin_load(&mut self, key: CacheKey, needs: GraphNeeds) -> Result<Vec<CacheKey>, Refusal> {
        match self.plan(&key, &needs) {
            Plan::Hit | Plan::Loading => Ok(Vec::new()),
            Plan::Refused(refusal) => {
                self.stats.refusals += 1;
                Err(refusal)
            }
            Plan::Load { evict, .. } => {
                self.entries.retain(|e| !evict.contains(&e.key));
                self.stats.evictions += evict.len() as u64;
                self.tick += 1;
                self.entries.push(Entry { key, needs, used: self.tick, pins: 0, loading: true });
                Ok(evict)
            }
        }
    }

    /// The upload is done and took `took`. False where no such load was under way.
    pub fn loaded(&mut self, key: &CacheKey, took: Duration) -> bool {
        let Some(entry) = self.entry_mut(key).filter(|e| e.loading) else { return false };
        entry.loading = false;
        let bytes = entry.needs.file_bytes;
        self.stats.loads += 1;
        self.stats.uploaded_bytes += bytes;
        self.stats.upload_time += took;
        let link = took.saturating_sub(LOAD_OVERHEAD).as_secs_f64();
        if bytes >= RATE_MIN_BYTES && link > 0.0 {
            let measured = bytes as f64 / link;
            self.upload_rate =
                Some(self.upload_rate.map_or(measured, |rate| rate + RATE_GAIN * (measured - rate)));
        }
        true
    }

    /// The upload failed, or the graph was unloaded for another reason: no longer charged. False where it was not there.
    pub fn gone(&mut self, key: &CacheKey) -> bool {
        let before = self.entries.len();
        self.entries.retain(|e| e.key != *key);
        self.entries.len() != before
    }

    /// Keeps the graph from being evicted; pins count. False where it is not there.
    pub fn pin(&mut self, key: &CacheKey) -> bool {
        self.entry_mut(key).map(|e| e.pins += 1).is_some()
    }

    /// Undoes one [`StickCache::pin`].
    pub fn unpin(&mut self, key: &CacheKey) {
        if let Some(entry) = self.entry_mut(key) {
            entry.pins = entry.pins.saturating_sub(1);
        }
    }

    /// The stick was reset: nothing lies there any more. Counters and the measured rate stay.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.unaccounted_bytes = 0;
    }

    /// Measured upload rate, bytes per second; `None` before the first load of some size.
    pub fn upload_rate(&self) -> Option<f64> {
        self.upload_rate
    }

    /// Snapshot of the counters.
    pub fn stats(&self) -> CacheStats {
        CacheStats { graphs: self.copies(), used_bytes: self.used_bytes(), ..self.stats }
    }

    fn entry(&self, key: &CacheKey) -> Option<&Entry> {
        self.entries.iter().find(|e| e.key == *key)
    }

    fn entry_mut(&mut self, key: &CacheKey) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|e| e.key == *key)
    }
}
