//! Exact operation counts.
//!
//! Two numbers. `ordered` follows from the descriptors alone. `model`, the network's own count, takes away what the
//! compiler added: junk rows of tiles that nobody reads ([`Needed`], backwards), input channels that only fill up a
//! group ([`Trace`]), depthwise layers run as dense ones, and the zeros of an upsampled plane.
use std::collections::{HashMap, HashSet};

use super::Graph;
use super::needed::Needed;
use super::roles;
use super::stage::{Nce, NceOp, Stage};
use super::tensor::{Location, View};
use super::trace::{Budget, Origin, Place, Trace, Unit};

/// Multiply-accumulates of one inference call (whole batch).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Macs {
    /// The original network's own count: what TOPS are made of.
    pub model: u64,
    /// What the descriptors and software stages order: what time is made of ("NCE work").
    pub ordered: u64,
    /// Per stage of [`Graph::stages`], (model, ordered); an injected stage counts with its parent.
    pub per_stage: Vec<(u64, u64)>,
}

/// Steps of a few nanoseconds. The largest real graph at hand takes some millions; a hostile file gets what follows
/// from the descriptors alone once they are used up.
const STEPS: u64 = 1 << 27;
/// Order digits.
const WIDTH: u8 = 1;
const HEIGHT: u8 = 2;
const CHANNELS: u8 = 3;
const UPSAMPLING: u32 = 73;

pub(super) fn count(graph: &Graph, bytes: &[u8]) -> Macs {
    let mut budget = Budget::new(STEPS);
    let trace = Trace::new(graph, bytes);
    let convs = convolutions(graph, bytes, &trace, &mut budget);
    let used = used_outputs(graph, bytes, &trace, &convs, &mut budget);

    let batch = u64::from(graph.batch);
    let mut macs = Macs { per_stage: vec![(0, 0); graph.stages.len()], ..Macs::default() };
    let mut remainders = HashMap::new();
    for (number, unit) in trace.units.iter().enumerate() {
        let ordered = ordered(unit.stage, bytes);
        let model = match &convs[number] {
            Some(conv) => conv.model(used[number], &mut remainders),
            None => ordered,
        };
        let (model, ordered) = (model.saturating_mul(batch), ordered.saturating_mul(batch));
        let entry = &mut macs.per_stage[unit.top];
        *entry = (entry.0.saturating_add(model), entry.1.saturating_add(ordered));
        macs.model = macs.model.saturating_add(model);
        macs.ordered = macs.ordered.saturating_add(ordered);
    }
    macs
}

/// Bytes of stage operands that lie in the file, overlapping ranges once.
pub(super) fn weights_bytes(graph: &Graph) -> usize {
    let mut ranges: Vec<_> = super::trace::units(graph)
        .iter()
        .flat_map(|unit| &unit.stage.buffers)
        .filter(|view| view.location == Location::Blob)
        .map(|view| (view.offset, view.offset + view.span_bytes()))
        .collect();
    ranges.sort_unstable();
    let (mut sum, mut covered) = (0, 0);
    for (start, end) in ranges {
        sum += end.saturating_sub(start.max(covered));
        covered = covered.max(end);
    }
    sum
}

fn product(factors: impl IntoIterator<Item = usize>) -> u64 {
    factors.into_iter().fold(1, |product: u64, factor| product.saturating_mul(factor as u64))
}

/// What the stage's parameters order, one element of the batch, without the injected stage.
fn ordered(stage: &Stage, bytes: &[u8]) -> u64 {
    if let Some(nce) = &stage.nce {
        return ordered_nce(nce, stage);
    }
    let views = &stage.buffers;
    let (Some(first), Some(second)) = (views.first(), views.get(1)) else { return 0 };
    let word = |index| roles::param(stage, bytes, index).unwrap_or(0) as usize;
    let kernel = || product([word(0), word(1)]);
    let channels = |view: &View| view.dim(CHANNELS);
    match stage.kind.0 {
        // Conv, Im2ColConvolution, RefConvolution; the output's elements are W·H·N·OC.
        0 | 49 | 58 => product([second.elements(), channels(first)]).saturating_mul(kernel()),
        // DepthConv.
        8 => (second.elements() as u64).saturating_mul(kernel()),
        // Deconvolution.
        22 => product([first.elements(), channels(second)]).saturating_mul(kernel()),
        // DepthDeconv.
        63 => (first.elements() as u64).saturating_mul(kernel()),
        // FC: the weights, once for each row.
        4 => views.get(2).map_or(0, |weights| product([weights.elements(), first.dim(4)])),
        // GEMM: alpha, beta, three inputs, transposed A. Inner dimension of A.
        91 => {
            let inner = first.dims.get(usize::from(word(3) != 0)).copied().unwrap_or(1) as usize;
            views.iter().rfind(|view| view.is_present()).map_or(0, |out| product([out.elements(), inner]))
        }
        // ConvND: each output element takes the weights of one output channel.
        116 => views
            .get(2)
            .map_or(0, |weights| product([second.elements(), weights.elements() / channels(second).max(1)])),
        // LSTMCell: forward, cells, batches.
        70 => views.get(3).map_or(0, |weights| product([weights.elements(), word(1), word(2)])),
        _ => 0,
    }
}

fn ordered_nce(nce: &Nce, stage: &Stage) -> u64 {
    let (input, output) = (&stage.buffers[nce.input], &stage.buffers[nce.output]);
    let channels: usize = nce.descriptors.iter().map(|d| d.channels as usize).sum();
    let conv = || {
        let kernel = [nce.kernel.0 as usize, nce.kernel.1 as usize];
        let plane = [output.dim(WIDTH), output.dim(HEIGHT), channels, input.dim(CHANNELS)];
        product(plane.into_iter().chain(kernel))
    };
    match nce.op {
        NceOp::Conv => conv(),
        // The plane that is pooled has four times the elements of the output.
        NceOp::ConvPool => conv().saturating_mul(4),
        NceOp::FullyConnected => product([channels, input.elements()]),
        NceOp::Pool(_) => 0,
    }
}

/// What the original layer of an NCE convolution was.
struct Conv {
    /// Input channels that the network has; the rest fill up a group or belong to the next channel tile.
    real_channels: usize,
    /// Multiply-accumulates of one output element.
    per_output: u64,
    /// Input plane over full output plane, and the upsampling unit, for a transposed convolution.
    upsampled: Option<Upsampled>,
}

struct Upsampled {
    unit: usize,
    input_plane: u64,
    output_plane: u64,
}

impl Conv {
    /// `remainders` holds, for each upsampling, the fraction that the tiles so far have left.
    fn model(&self, used: u64, remainders: &mut HashMap<(usize, u64), u128>) -> u64 {
        let dense = used.saturating_mul(self.per_output);
        let Some(up) = &self.upsampled else { return dense };
        let rest = remainders.entry((up.unit, up.output_plane)).or_default();
        let scaled = u128::from(dense) * u128::from(up.input_plane) + *rest;
        *rest = scaled % u128::from(up.output_plane);
        u64::try_from(scaled / u128::from(up.output_plane)).unwrap_or(u64::MAX)
    }
}

/// For each unit: the convolution that it is, if it is one.
fn convolutions(graph: &Graph, bytes: &[u8], trace: &Trace<'_>, budget: &mut Budget) -> Vec<Option<Conv>> {
    let mut starts = vec![None; trace.units.len()];
    let has_upsampling = trace.units.iter().any(|unit| unit.stage.kind.0 == UPSAMPLING);
    (0..trace.units.len())
        .map(|number| {
            let unit = trace.units[number];
            let nce =
                unit.stage.nce.as_ref().filter(|nce| matches!(nce.op, NceOp::Conv | NceOp::ConvPool))?;
            let input = &unit.stage.buffers[nce.input];
            let weights = Weights::of(unit.stage, nce, graph.const_offset, bytes);
            let real_channels = weights
                .as_ref()
                .and_then(|weights| real_channels(number, nce, weights, trace, &mut starts, budget))
                .unwrap_or(input.dim(CHANNELS));
            let channels: u64 = nce.descriptors.iter().map(|d| u64::from(d.channels)).sum();
            let depthwise =
                channels > 1 && weights.is_some_and(|weights| weights.is_diagonal(budget).unwrap_or(false));
            let planes = if matches!(nce.op, NceOp::ConvPool) { 4 } else { 1 };
            let taken = if depthwise { 1 } else { real_channels };
            let per_output = product([nce.kernel.0 as usize, nce.kernel.1 as usize, taken, planes]);
            let upsampled = if has_upsampling { upsampled(unit, nce, trace, budget) } else { None };
            Some(Conv { real_channels, per_output, upsampled })
        })
        .collect()
}

/// How many of the input channels are the network's. `None` when the budget is used up.
fn real_channels(
    number: usize,
    nce: &Nce,
    weights: &Weights<'_>,
    trace: &Trace<'_>,
    starts: &mut [Option<Origin>],
    budget: &mut Budget,
) -> Option<usize> {
    let unit = trace.units[number];
    let input = &unit.stage.buffers[nce.input];
    let mut real = input.dim(CHANNELS);
    let live = weights.live_channels(budget)?.max(1);
    if live == real {
        return Some(real);
    }

    // From the end: padding is what nobody wrote, or what a stage left there that wrote no live channel. Both are
    // asked of the last writer and of where a Copy or Permute had it from: those carry padding along.
    let mut live_sources: Option<Sources> = None;
    let mut candidates: Vec<[Source; 2]> = Vec::new();
    while live < real - candidates.len() {
        let [first, last] = corners(input, real - candidates.len() - 1);
        let sources = [Source::of(first, unit, trace, budget)?, Source::of(last, unit, trace, budget)?];
        if !sources.iter().all(Source::is_unwritten) && live_sources.is_none() {
            live_sources = Some(Sources::of(input, live, unit, trace, budget)?);
        }
        let foreign = |source| live_sources.as_ref().is_some_and(|live| live.lack(source));
        if !sources.iter().all(|source| source.is_unwritten() || foreign(source)) {
            break;
        }
        candidates.push(sources);
    }
    // Padding only fills up a group of 2^mode. A longer run ends with a branch of a concatenation that was pruned
    // away, real channels with no weight: padding is then what differs in source from them.
    let unwritten = candidates.iter().take_while(|pair| pair.iter().all(Source::is_unwritten)).count();
    let group = 1 << nce.mode;
    real -= if candidates.len() < group {
        candidates.len()
    } else {
        (unwritten + 1..group).rev().find(|&n| candidates[n - 1] != candidates[n]).unwrap_or(unwritten)
    };

    // Then the overlap of channel tiles: another tile of the same layer begins at that channel.
    if real > live {
        for (other, (neighbour, known)) in trace.units.iter().zip(starts).enumerate() {
            if !budget.spend(1 + nce.descriptors.len() as u64) {
                return None;
            }
            let Some(tile) = &neighbour.stage.nce else { continue };
            if other == number || !is_same_layer(nce, unit.stage, tile, neighbour.stage) {
                continue;
            }
            let start = match *known {
                Some(start) => start,
                None => {
                    let first = Place::of(&neighbour.stage.buffers[tile.input], []);
                    *known.insert(trace.origin(first, neighbour.top, budget)?)
                }
            };
            if start == Origin::Unwritten {
                continue;
            }
            for channel in live..real {
                let [first, _] = corners(input, channel);
                if trace.origin(first, unit.top, budget)? == start {
                    real = channel;
                    break;
                }
            }
        }
    }
    Some(real)
}

/// First and last element of a channel's plane.
fn corners(view: &View, channel: usize) -> [Place; 2] {
    let at = |last: bool| {
        let index = view.order.digits().zip(&view.dims).map(move |(digit, &dim)| match digit {
            CHANNELS => channel,
            _ if last => dim as usize - 1,
            _ => 0,
        });
        Place::of(view, index)
    };
    [at(false), at(true)]
}

/// Last writer of a place, and who made what that one wrote; `None` for what no stage wrote.
#[derive(PartialEq)]
struct Source {
    writer: Option<usize>,
    maker: Option<usize>,
    unwritten: bool,
}

impl Source {
    fn of(place: Place, unit: Unit<'_>, trace: &Trace<'_>, budget: &mut Budget) -> Option<Self> {
        let unit_of = |origin| if let Origin::Written(unit, _) = origin { Some(unit) } else { None };
        let writer = trace.writer(place, unit.top, budget)?;
        let origin = trace.origin(place, unit.top, budget)?;
        Some(Source {
            writer: unit_of(writer),
            maker: unit_of(origin),
            unwritten: origin == Origin::Unwritten,
        })
    }

    fn is_unwritten(&self) -> bool {
        self.unwritten
    }
}

/// The units that wrote a range of channels, and those that made what they wrote.
struct Sources {
    writers: HashSet<usize>,
    makers: HashSet<usize>,
}

impl Sources {
    /// Of the first `channels` channels.
    fn of(
        view: &View,
        channels: usize,
        unit: Unit<'_>,
        trace: &Trace<'_>,
        budget: &mut Budget,
    ) -> Option<Self> {
        let mut sources = Sources { writers: HashSet::new(), makers: HashSet::new() };
        for channel in 0..channels {
            for place in corners(view, channel) {
                let source = Source::of(place, unit, trace, budget)?;
                sources.writers.extend(source.writer);
                sources.makers.extend(source.maker);
            }
        }
        Some(sources)
    }

    /// True where a stage wrote or made this that had no part in the range.
    fn lack(&self, source: &Source) -> bool {
        source.writer.is_some_and(|unit| !self.writers.contains(&unit))
            || source.maker.is_some_and(|unit| !self.makers.contains(&unit))
    }
}

fn is_same_layer(a: &Nce, a_stage: &Stage, b: &Nce, b_stage: &Stage) -> bool {
    a.op == b.op
        && a.kernel == b.kernel
        && a.stride == b.stride
        && a.descriptors == b.descriptors
        && a_stage.buffers[a.output].dims == b_stage.buffers[b.output].dims
}

/// A transposed convolution: the input was stuffed with zeros by an Upsampling stage.
fn upsampled(unit: Unit<'_>, nce: &Nce, trace: &Trace<'_>, budget: &mut Budget) -> Option<Upsampled> {
    let first = Place::of(&unit.stage.buffers[nce.input], []);
    let Origin::Written(number, _) = trace.origin(first, unit.top, budget)? else { return None };
    let stage = trace.units[number].stage;
    let (small, stuffed) = (stage.buffers.first()?, stage.buffers.get(1)?);
    if stage.kind.0 != UPSAMPLING {
        return None;
    }
    // Of the whole convolution, not of this tile.
    let (left, top) = nce.conv_padding();
    let side = |size: usize, pad: usize, kernel: u32| {
        (size + 2 * pad).checked_sub(kernel as usize).map(|room| room / nce.stride as usize + 1)
    };
    let width = side(stuffed.dim(WIDTH), left, nce.kernel.0)?;
    let height = side(stuffed.dim(HEIGHT), top, nce.kernel.1)?;
    Some(Upsampled {
        unit: number,
        input_plane: product([small.dim(WIDTH), small.dim(HEIGHT)]),
        output_plane: product([width, height]),
    })
}

/// Weights of an NCE convolution, `[out / 8][in][ky · kx][8]` half floats.
struct Weights<'a> {
    bytes: &'a [u8],
    /// Bytes of the kernels of eight output channels and one input channel.
    block: usize,
    in_channels: usize,
    out_groups: usize,
}

impl<'a> Weights<'a> {
    /// `None` where they are not in the file or not in that form.
    fn of(stage: &Stage, nce: &Nce, const_offset: usize, bytes: &'a [u8]) -> Option<Self> {
        let view = &stage.buffers[nce.weights?];
        let in_channels = stage.buffers[nce.input].dim(CHANNELS);
        let taps = nce.kernel.0 as usize * nce.kernel.1 as usize;
        let block = 16 * taps;
        let [8, view_taps, view_in, groups] = view.dims[..] else { return None };
        let packed = view_taps as usize == taps
            && view_in as usize == in_channels
            && view.strides[1] == 16
            && view.strides[2] as usize == block
            && (groups == 1 || view.strides[3] as usize == block * in_channels);
        if view.location != Location::Blob || !packed {
            return None;
        }
        let start = const_offset + view.offset;
        let bytes = bytes.get(start..start + view.span_bytes())?;
        Some(Weights { bytes, block, in_channels, out_groups: groups as usize })
    }

    fn block(&self, out_group: usize, in_channel: usize) -> &'a [u8] {
        let start = (out_group * self.in_channels + in_channel) * self.block;
        &self.bytes[start..start + self.block]
    }

    /// Number of input channels up to the last one that has a weight other than 0.
    fn live_channels(&self, budget: &mut Budget) -> Option<usize> {
        for channel in (0..self.in_channels).rev() {
            for group in 0..self.out_groups {
                if !budget.spend(self.block as u64 / 16) {
                    return None;
                }
                if !is_zero(self.block(group, channel)) {
                    return Some(channel + 1);
                }
            }
        }
        Some(0)
    }

    /// True where output channel i uses input channel i and no other, and not all weights are 0.
    fn is_diagonal(&self, budget: &mut Budget) -> Option<bool> {
        let mut any = false;
        for group in 0..self.out_groups {
            for channel in 0..self.in_channels {
                if !budget.spend(self.block as u64 / 16) {
                    return None;
                }
                let block = self.block(group, channel);
                if channel / 8 != group {
                    if !is_zero(block) {
                        return Some(false);
                    }
                    continue;
                }
                for tap in block.as_chunks::<16>().0 {
                    for (lane, weight) in tap.as_chunks::<2>().0.iter().enumerate() {
                        if !is_zero(weight) {
                            if lane != channel % 8 {
                                return Some(false);
                            }
                            any = true;
                        }
                    }
                }
            }
        }
        Some(any)
    }
}

/// True for half floats that are all 0 or −0.
fn is_zero(halves: &[u8]) -> bool {
    let (eights, rest) = halves.as_chunks::<8>();
    eights.iter().all(|c| u64::from_le_bytes(*c) & 0x7FFF_7FFF_7FFF_7FFF == 0)
        && rest.as_chunks::<2>().0.iter().all(|c| u16::from_le_bytes(*c) & 0x7FFF == 0)
}

/// For each unit that is a convolution: output elements that somebody reads. The others are 0.
fn used_outputs(
    graph: &Graph,
    bytes: &[u8],
    trace: &Trace<'_>,
    convs: &[Option<Conv>],
    budget: &mut Budget,
) -> Vec<u64> {
    let mut used = vec![0; trace.units.len()];
    let mut needed = Needed::at_end(graph);
    let mut end = trace.units.len();
    while end > 0 {
        // A parent and its injected stage run at the same time.
        let top = trace.units[end - 1].top;
        let start = trace.units[..end].partition_point(|unit| unit.top < top);
        let numbers = start..end;
        if step_back(numbers, &mut needed, &mut used, bytes, trace, convs, budget).is_none() {
            break;
        }
        end = start;
    }
    // What a hostile graph did not leave steps for counts whole.
    for (number, unit) in trace.units[..end].iter().enumerate() {
        if let (Some(_), Some(nce)) = (&convs[number], &unit.stage.nce) {
            used[number] = unit.stage.buffers[nce.output].elements() as u64;
        }
    }
    used
}

fn step_back(
    numbers: std::ops::Range<usize>,
    needed: &mut Needed,
    used: &mut [u64],
    bytes: &[u8],
    trace: &Trace<'_>,
    convs: &[Option<Conv>],
    budget: &mut Budget,
) -> Option<()> {
    let mut bits = Vec::with_capacity(numbers.len());
    for number in numbers.clone() {
        let stage = trace.units[number].stage;
        if let Some(nce) = &stage.nce {
            used[number] = needed.count(&stage.buffers[nce.output], budget)?;
        }
        let moves = roles::is_elementwise(stage.kind) || roles::moved_strides(stage, bytes).is_some();
        let target = stage.buffers.get(1).filter(|_| moves);
        bits.push(match target {
            Some(target) => Some(needed.gather(target, budget)?),
            None => None,
        });
    }
    for number in numbers.clone() {
        for view in roles::outputs(trace.units[number].stage) {
            needed.clear(view, budget)?;
        }
    }
    for (number, bits) in numbers.zip(bits) {
        let stage = trace.units[number].stage;
        if let Some(bits) = bits {
            mark_sources(stage, &bits, needed, bytes, budget)?;
            continue;
        }
        if stage.nce.is_some() && used[number] == 0 {
            continue;
        }
        for (index, view) in roles::inputs(stage) {
            match (&convs[number], &stage.nce) {
                (Some(conv), Some(nce)) if nce.input == index => {
                    needed.mark(&first_channels(view, conv.real_channels), budget)?;
                }
                _ => needed.mark(view, budget)?,
            }
        }
    }
    Some(())
}

/// Copy, Permute and element-wise stages: of an input of the output's shape the needed elements, of others all.
fn mark_sources(
    stage: &Stage,
    bits: &[u64],
    needed: &mut Needed,
    bytes: &[u8],
    budget: &mut Budget,
) -> Option<()> {
    if bits.iter().all(|&word| word == 0) {
        return Some(());
    }
    let target = &stage.buffers[1];
    let moved = roles::moved_strides(stage, bytes);
    for (index, view) in roles::inputs(stage) {
        match &moved {
            Some(strides) if index == 0 => needed.scatter(view, strides, target, bits, budget)?,
            _ if view.dims == target.dims && view.order == target.order => {
                needed.scatter(view, &view.strides, target, bits, budget)?;
            }
            _ => needed.mark(view, budget)?,
        }
    }
    Some(())
}

fn first_channels(view: &View, channels: usize) -> View {
    let mut view = view.clone();
    if let Some(dim) = view.order.position(CHANNELS).and_then(|k| view.dims.get_mut(k)) {
        *dim = (*dim).min(channels as u32);
    }
    view
}
