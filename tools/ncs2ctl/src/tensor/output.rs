//! What comes out of inferences, as arrays.

use ncs2::blob::{Graph, IoTensor};
use ncs2::runtime::Output;

use super::{Array, Values, layout};

/// Output `index` of an answer, all batch elements.
pub fn array(graph: &Graph, answer: &Output, index: usize) -> Array {
    let tensor = &graph.outputs[index];
    let batch = graph.batch.max(1) as usize;
    let bytes = answer.tensor(index);
    let packed: Vec<u8> =
        (0..batch).flat_map(|b| layout::gather(tensor, &bytes[b * tensor.bytes()..])).collect();
    Array { shape: batched_shape(tensor, batch), values: Values::decode(tensor.dtype, &packed) }
}

/// The tensor's shape with the batch in front: in place of a leading one, else before it.
fn batched_shape(tensor: &IoTensor, batch: usize) -> Vec<usize> {
    let mut shape = layout::shape(tensor);
    match shape.first_mut() {
        _ if batch == 1 => {}
        Some(n @ 1) => *n = batch,
        _ => shape.insert(0, batch),
    }
    shape
}
