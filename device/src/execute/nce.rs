//! The neural compute engine: convolution with bias, scale and activation, and pooling.
use ncs2::blob::NceOp;

use super::conv::{Convolution, Finish, Setup, Window};
use super::params::Context;
use super::{Prepared, pool};

pub(super) fn prepare(context: &Context<'_>) -> Result<Prepared, String> {
    let nce = context.stage.nce.as_ref().ok_or("its descriptors could not be read")?;
    let (input, output) = (context.operand(nce.input)?, context.target(nce.output)?);
    let (kw, kh) = (nce.kernel.0 as usize, nce.kernel.1 as usize);
    let stride = nce.stride as usize;
    if kw == 0 || kh == 0 || stride == 0 || kw.max(kh).max(stride) > 1 << 16 {
        return Err(format!("kernel {kw}x{kh} with stride {stride}"));
    }
    // The descriptors of a stage are one operation on the output's channels.
    let channels = output.dim(3);
    // Pooling takes the channels of all images for channels of one.
    let covers = if matches!(nce.op, NceOp::Pool(_)) { channels * output.dim(4) } else { channels };
    let mut ranges: Vec<_> = nce.descriptors.iter().map(|d| (d.first_channel, d.channels)).collect();
    ranges.sort_unstable();
    let covered = ranges
        .iter()
        .try_fold(0u32, |end, &(first, count)| (first == end).then(|| first.checked_add(count)).flatten());
    if covered.map(|end| end as usize) != Some(covers) {
        return Err(format!("descriptors do not cover the output's {covers} channels exactly"));
    }
    let finish = Finish {
        relu: nce.activation.relu.map(|(_, below, above)| (below as f32, above as f32)),
        clamp: nce.activation.clamp,
    };
    match nce.op {
        NceOp::Conv | NceOp::ConvPool => {
            let (ic, taps) = (input.dim(3), kw * kh);
            if input.dim(4) != 1 || output.dim(4) != 1 {
                return Err("a convolution of the NCE has a batch of 1".into());
            }
            let blocks = context.constants(nce.weights.ok_or("no weights")?)?;
            let rows = channels.next_multiple_of(8);
            if blocks.len() < rows.saturating_mul(ic).saturating_mul(taps) {
                return Err(format!("{} weights for {rows} by {ic} channels of {kw}x{kh}", blocks.len()));
            }
            // [oc/8][ic][tap][oc%8]
            let mut weights = Vec::with_capacity(channels * ic * taps);
            for oc in 0..channels {
                let block = oc / 8 * ic * taps * 8 + oc % 8;
                weights.extend((0..ic * taps).map(|i| blocks[block + i * 8]));
            }
            let vector = |index: Option<usize>| index.map(|i| context.constants(i)).transpose();
            let setup = Setup {
                input,
                output,
                window: Window {
                    kernel: (kw, kh),
                    stride: (stride, stride),
                    dilation: (1, 1),
                    pad: nce.conv_padding(),
                    stuffing: (1, 1),
                },
                bias: vector(nce.bias)?,
                scale: vector(nce.scale)?,
                finish,
                pooled: nce.op == NceOp::ConvPool,
            };
            Convolution::prepare(setup, &weights, false)
        }
        NceOp::Pool(kind) => {
            let window = pool::Window {
                kernel: (kw, kh),
                stride: (stride, stride),
                pad: if nce.pad == Some(0) {
                    let axis = |digit: u8, kernel: usize, pad: usize| {
                        // With no room for it in the output this axis has no padding: the one flag stands for both.
                        let room = (output.dim(digit) * stride + kernel).saturating_sub(input.dim(digit) + 1);
                        if room >= pad { pad } else { 0 }
                    };
                    let (left, top) = nce.pool_padding();
                    (axis(1, kw, left), axis(2, kh, top))
                } else {
                    nce.pool_padding()
                },
                // Unverified: the descriptor is the same whether the network counts the padding or not, so that the border
                // of a padded average may be divided otherwise on hardware.
                exclude_pad: false,
            };
            pool::Pool::prepare(input, output, window, kind, finish)
        }
        NceOp::FullyConnected => Err("the NCE's FC operation was never seen in a blob".into()),
    }
}
