//! What a graph needs, what a stick has, and why the one does not fit the other.

use std::fmt;

use crate::blob::{BlobHash, Graph};

/// The load options that make two loads of one file two graphs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct LoadKey {
    /// Executors of the instance.
    pub executors: u32,
    /// FIFO elements of each instance.
    pub elements: u32,
    /// Copies of the graph.
    pub instances: u32,
}

/// Content and load options: the same key is the same graph on the stick.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct CacheKey {
    /// Content.
    pub hash: BlobHash,
    /// Options.
    pub options: LoadKey,
}

/// What a graph takes on a stick.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GraphNeeds {
    /// Version of the file's format.
    pub version: (u32, u32),
    /// Size of the file.
    pub file_bytes: u64,
    /// Scratch of one executor.
    pub bss_bytes: u64,
    /// One input FIFO element.
    pub input_bytes: u64,
    /// One output FIFO element.
    pub output_bytes: u64,
    /// Elements of each FIFO, over all instances.
    pub elements: u32,
    /// Copies of the graph, each with its own FIFOs.
    pub instances: u32,
    /// Executors of one copy.
    pub executors: u32,
    /// SHAVE cores of one executor.
    pub shaves: u32,
    /// CMX slices of one executor.
    pub cmx_slices: u32,
}

/// FIFO elements are laid at multiples of this, bytes (the vendor's client rounds to 64).
const ELEMENT_ALIGN: u64 = 64;

impl GraphNeeds {
    /// Reads them from a parsed blob.
    pub fn of(graph: &Graph, options: LoadKey) -> Self {
        GraphNeeds {
            version: graph.version,
            file_bytes: graph.file_bytes as u64,
            bss_bytes: graph.bss_bytes as u64,
            input_bytes: graph.input_bytes as u64,
            output_bytes: graph.output_bytes as u64,
            elements: options.elements.max(1) * options.instances.max(1),
            instances: options.instances.max(1),
            executors: options.executors.max(1),
            shaves: graph.shaves,
            cmx_slices: graph.cmx_slices,
        }
    }

    /// DRAM that it takes: file and scratch of each executor, for each copy, and the elements of both FIFOs.
    pub fn stick_bytes(&self) -> u64 {
        let round = |bytes: u64| bytes.div_ceil(ELEMENT_ALIGN).saturating_mul(ELEMENT_ALIGN);
        let element = round(self.input_bytes).saturating_add(round(self.output_bytes));
        let copy = self.file_bytes.saturating_add(self.bss_bytes.saturating_mul(u64::from(self.executors)));
        copy.saturating_mul(u64::from(self.instances))
            .saturating_add(element.saturating_mul(u64::from(self.elements)))
    }

    /// FIFOs: for each copy one in, one out.
    pub fn fifos(&self) -> u32 {
        2 * self.instances
    }
}

/// What a stick has; from its capabilities, its memory report and, for the chip, NCS2_FACTS section 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StickLimits {
    /// DRAM for graphs.
    pub memory_bytes: u64,
    /// Graphs at the same time.
    pub max_graphs: u32,
    /// FIFOs at the same time.
    pub max_fifos: u32,
    /// Executors of one graph.
    pub max_executors: u32,
    /// SHAVE cores of the chip.
    pub shaves: u32,
    /// CMX slices of the chip that graphs may use.
    pub cmx_slices: u32,
    /// Format version that its firmware reads.
    pub version: (u32, u32),
}

impl StickLimits {
    /// A Myriad X with what the stick itself reported. 16 SHAVEs and 19 CMX slices are the chip's.
    pub fn myriad_x(memory_bytes: u64, max_graphs: u32, max_fifos: u32, max_executors: u32) -> Self {
        StickLimits {
            memory_bytes,
            max_graphs,
            max_fifos,
            max_executors,
            shaves: 16,
            cmx_slices: 19,
            version: (6, 0),
        }
    }

    /// What even an empty stick would refuse. Loaded graphs take turns: only what a single graph asks counts.
    pub fn refuses(&self, needs: &GraphNeeds) -> Option<Refusal> {
        let over = |what, asked: u32, has: u32| (asked > has).then_some(Refusal::Chip { what, asked, has });
        if needs.version != self.version {
            return Some(Refusal::Version { found: needs.version, expected: self.version });
        }
        over("SHAVEs", needs.shaves, self.shaves)
            .or_else(|| over("CMX slices", needs.cmx_slices, self.cmx_slices))
            .or_else(|| over("executors", needs.executors, self.max_executors))
            .or_else(|| over("FIFOs", needs.fifos(), self.max_fifos))
            .or_else(|| over("graphs", needs.instances, self.max_graphs))
            .or_else(|| {
                let asked = needs.stick_bytes();
                (asked > self.memory_bytes)
                    .then_some(Refusal::TooLarge { asked_bytes: asked, memory_bytes: self.memory_bytes })
            })
    }
}

/// Why a graph is not put on a stick.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Another format than the firmware reads.
    Version {
        /// The file's.
        found: (u32, u32),
        /// The firmware's.
        expected: (u32, u32),
    },
    /// More than the chip has, whatever else is loaded.
    Chip {
        /// Of what.
        what: &'static str,
        /// How many the graph asks for.
        asked: u32,
        /// How many there are.
        has: u32,
    },
    /// More memory than the empty stick has.
    TooLarge {
        /// Bytes asked.
        asked_bytes: u64,
        /// Bytes of the stick.
        memory_bytes: u64,
    },
    /// It would fit if these, which are in use or being loaded, had gone.
    Busy {
        /// Bytes asked.
        asked_bytes: u64,
        /// Bytes free once all that may be evicted has gone.
        free_bytes: u64,
        /// Graphs in use.
        must_go: Vec<CacheKey>,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Version { found, expected } => write!(
                f,
                "the blob has version {}.{}, the firmware reads {}.{}; recompile it for that version",
                found.0, found.1, expected.0, expected.1
            ),
            Refusal::Chip { what, asked, has } => {
                write!(f, "the graph asks for {asked} {what}, the stick has {has}; recompile it with fewer")
            }
            Refusal::TooLarge { asked_bytes, memory_bytes } => {
                write!(
                    f,
                    "the graph needs {asked_bytes} bytes, the empty stick has {memory_bytes}; \
                     lower its depth or executors"
                )
            }
            Refusal::Busy { asked_bytes, free_bytes, must_go } => {
                write!(
                    f,
                    "the graph needs {asked_bytes} bytes, {free_bytes} can be had; these in use would have to go:"
                )?;
                must_go.iter().try_for_each(|key| {
                    let hash = key.hash.to_string();
                    write!(f, " {}", &hash[..12.min(hash.len())])
                })
            }
        }
    }
}

impl std::error::Error for Refusal {}
