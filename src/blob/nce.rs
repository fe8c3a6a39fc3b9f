//! Parameters of a neural-compute-engine stage (type 38).
use super::BlobError;
use super::reader::{Parsed, Reader};
use super::stage::{Activation, Nce, NceDescriptor, NceOp, PoolKind};
use super::tensor::{DataType, Location, View};

/// The least words of a descriptor: a convolution with no padding word and no activation.
const MIN_DESCRIPTOR_BYTES: usize = 4 * 16;
/// Order digit of channels.
const CHANNELS: u8 = 3;
/// Order digit of the batch inside a shape.
const BATCH: u8 = 4;
/// Largest kernel side and stride. The engine convolves up to 15×15, stride 8; pooling kernels may be a whole plane.
const MAX_KERNEL: u32 = 1 << 14;

/// Reads the number of descriptors and the descriptors, and leaves the injected flag to the caller.
pub(super) fn read(r: &mut Reader<'_>, buffers: &[View]) -> Parsed<Nce> {
    let at = r.pos();
    let count = r.usize("number of descriptors")?;
    let room = r.rest() / MIN_DESCRIPTOR_BYTES;
    if count == 0 || count > room {
        let problem = format!("1 to {room} expected, {count} found");
        return Err(BlobError::new(at, "number of descriptors", problem));
    }
    let (mut nce, first) = descriptor(r, buffers).map_err(|e| e.within("descriptor 0"))?;
    let mut ranges = Vec::with_capacity(count);
    ranges.push(first);
    for index in 1..count {
        let at = r.pos();
        let (next, range) =
            descriptor(r, buffers).map_err(|e| e.within(format_args!("descriptor {index}")))?;
        if next != nce {
            let problem = "the same as descriptor 0 but for the channel range expected, another found";
            return Err(BlobError::new(at, format!("descriptor {index}"), problem));
        }
        ranges.push(range);
    }
    nce.descriptors = ranges;
    check_operands(&nce, buffers).map_err(|problem| BlobError::new(at, "operands", problem))?;
    Ok(nce)
}

/// One descriptor: what all of a stage share, with no ranges yet, and its own range.
fn descriptor(r: &mut Reader<'_>, buffers: &[View]) -> Parsed<(Nce, NceDescriptor)> {
    let op_at = r.pos();
    let op = match r.u32("operation")? {
        0 => NceOp::Conv,
        1 => NceOp::ConvPool,
        2 => NceOp::FullyConnected,
        4 if r.flag("pool type")? => NceOp::Pool(PoolKind::Average),
        4 => NceOp::Pool(PoolKind::Max),
        other => {
            return Err(BlobError::new(op_at, "operation", format!("0, 1, 2 or 4 expected, {other} found")));
        }
    };
    let mode = r.at_most(4, "mode")?;
    let pad = if r.flag("with padding")? { Some(r.at_most(15, "padding mode")?) } else { None };

    let indices_at = r.pos();
    let mut operand = |field: &'static str| {
        let at = r.pos();
        match r.i32(field)? {
            -1 => Ok(None),
            index => match usize::try_from(index).ok().filter(|&i| i < buffers.len()) {
                Some(index) => Ok(Some(index)),
                None => {
                    let problem = format!("-1 to {} expected, {index} found", buffers.len() as i64 - 1);
                    Err(BlobError::new(at, field, problem))
                }
            },
        }
    };
    let (input, output) = (operand("input")?, operand("output")?);
    let (weights, bias, scale) = (operand("weights")?, operand("bias")?, operand("scale")?);
    let (Some(input), Some(output)) = (input, output) else {
        return Err(BlobError::new(indices_at, "input, output", "a buffer each expected, none found"));
    };

    // The fully connected form is known from public sources only: input range and accumulation flag are left in the
    // raw parameters.
    let (range, kernel, stride) = if op == NceOp::FullyConnected {
        let _input_range = (r.u32("first input channel")?, r.u32("input channels")?);
        let range = NceDescriptor { first_channel: r.u32("first channel")?, channels: r.u32("channels")? };
        r.u32("accumulate")?;
        (range, (1, 1), 1)
    } else {
        let range = NceDescriptor { first_channel: r.u32("first channel")?, channels: r.u32("channels")? };
        let kernel = (r.between(1, MAX_KERNEL, "kernel width")?, r.between(1, MAX_KERNEL, "kernel height")?);
        (range, kernel, r.between(1, MAX_KERNEL, "stride")?)
    };
    if op == NceOp::ConvPool {
        // The model of the engine knows this one form; the stage means something else if the words differ.
        r.between(2, 2, "pool width")?;
        r.between(2, 2, "pool height")?;
    }

    let relu = if r.flag("with ReLU")? { Some((r.u32("t0")?, r.i32("a0")?, r.i32("a1")?)) } else { None };
    let clamp = if r.flag("with clamp")? {
        let at = r.pos();
        let max = f32::from_bits(r.u32("clamp")?);
        if max.is_nan() {
            return Err(BlobError::new(at, "clamp", "a number expected, NaN found"));
        }
        Some(max)
    } else {
        None
    };
    r.u32("reuse data")?;
    r.u32("reuse coefficients")?;

    let activation = Activation { relu, clamp };
    let nce = Nce {
        op,
        mode,
        pad,
        kernel,
        stride,
        activation,
        input,
        output,
        weights,
        bias,
        scale,
        descriptors: Vec::new(),
    };
    Ok((nce, range))
}

/// What the engine's arithmetic relies on: channel ranges inside the output, weights as large as the kernel needs.
fn check_operands(nce: &Nce, buffers: &[View]) -> Result<(), String> {
    let (input, output) = (&buffers[nce.input], &buffers[nce.output]);
    for view in [input, output] {
        if !view.is_present() || view.dtype != DataType::F16 {
            return Err(format!(
                "input and output of FP16 expected, {:?} {:?} found",
                view.location, view.dtype
            ));
        }
    }
    if matches!(output.location, Location::Input(_) | Location::Blob) {
        return Err(format!("output in memory that can be written expected, {:?} found", output.location));
    }
    // A batch inside the shape (batch detection off) is pooled as so many more channels; a convolution has N = 1.
    let out_channels = match nce.op {
        NceOp::Pool(_) => output.dim(CHANNELS) as u64 * output.dim(BATCH) as u64,
        _ => output.dim(CHANNELS) as u64,
    };
    let mut most = 0;
    for range in &nce.descriptors {
        let end = u64::from(range.first_channel) + u64::from(range.channels);
        if end > out_channels {
            return Err(format!("channels up to {end} ordered, the output has {out_channels}"));
        }
        most = most.max(end);
    }
    if matches!(nce.op, NceOp::Pool(_)) {
        return Ok(());
    }

    let Some(weights) = nce.weights.map(|i| &buffers[i]) else {
        return Err("weights expected, none found".into());
    };
    // Weights are [out/8][in][ky][kx][8]: counted in whole groups of 8 output channels.
    let taps = u64::from(nce.kernel.0) * u64::from(nce.kernel.1) * input.dim(CHANNELS) as u64;
    let needed = taps.saturating_mul(most.next_multiple_of(8));
    if weights.dtype != DataType::F16 || (weights.elements() as u64) < needed {
        let found = weights.elements();
        return Err(format!(
            "FP16 weights of {needed} elements expected, {:?} of {found} found",
            weights.dtype
        ));
    }
    for (what, index) in [("bias", nce.bias), ("scale", nce.scale)] {
        if let Some(vector) = index.map(|i| &buffers[i])
            && (vector.dtype != DataType::F16 || (vector.elements() as u64) < most)
        {
            return Err(format!("{what} of {most} FP16 elements expected, {} found", vector.elements()));
        }
    }
    Ok(())
}
