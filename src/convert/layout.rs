//! Between the order that users write (N, C, H, W, packed) and the order and gaps that a blob asks for.

use crate::blob::{IoTensor, Order};

/// Positions of the dimensions (0 = minor) in the order of [`IoTensor::shape`]: N, C, D, H, W, or major to minor
/// where there are six or more, or any without a name.
fn positions(order: Order, count: usize) -> Vec<usize> {
    let named: Vec<usize> = [4, 3, 5, 2, 1].into_iter().filter_map(|digit| order.position(digit)).collect();
    if count < 6 && named.len() == count && named.iter().all(|&p| p < count) {
        named
    } else {
        (0..count).rev().collect()
    }
}

/// Dimensions as users write them.
pub fn named_shape(order: Order, dims: &[u32]) -> Vec<usize> {
    positions(order, dims.len()).into_iter().map(|p| dims[p] as usize).collect()
}

/// Shape of one batch element as users write it.
pub fn shape(tensor: &IoTensor) -> Vec<usize> {
    named_shape(tensor.order, &tensor.dims)
}

/// Size and stride in bytes of each dimension, in the order of [`shape`].
fn dimensions(tensor: &IoTensor) -> Vec<(usize, usize)> {
    let at = |p: usize| (tensor.dims[p] as usize, tensor.strides[p] as usize);
    positions(tensor.order, tensor.dims.len()).into_iter().map(at).collect()
}

/// Number of values of one batch element.
pub fn elements(tensor: &IoTensor) -> usize {
    dimensions(tensor).into_iter().map(|(size, _)| size).product()
}

/// Calls `copy(packed, strided)` with the byte offsets of every run of adjacent elements, and its length in bytes.
fn runs(tensor: &IoTensor, mut copy: impl FnMut(usize, usize, usize)) {
    let mut dims = dimensions(tensor);
    // Merge minor dimensions that follow each other without gaps into one run.
    let mut run = tensor.dtype.bytes();
    while let Some(&(size, stride)) = dims.last() {
        if size > 1 && stride != run {
            break;
        }
        run *= size;
        dims.pop();
    }
    let mut index = vec![0usize; dims.len()];
    let mut packed = 0;
    loop {
        let strided = index.iter().zip(&dims).map(|(i, (_, stride))| i * stride).sum();
        copy(packed, strided, run);
        packed += run;
        let mut d = dims.len();
        loop {
            if d == 0 {
                return;
            }
            d -= 1;
            index[d] += 1;
            if index[d] < dims[d].0 {
                break;
            }
            index[d] = 0;
        }
    }
}

/// True where the tensor's own memory is one packed run in the order of [`shape`].
pub fn is_packed(tensor: &IoTensor) -> bool {
    let mut packed = tensor.dtype.bytes();
    dimensions(tensor).into_iter().rev().all(|(size, stride)| {
        let fits = size <= 1 || stride == packed;
        packed *= size;
        fits
    })
}

/// Places one packed element into the tensor's own memory, `to`, which begins at the element.
pub fn scatter(tensor: &IoTensor, packed: &[u8], to: &mut [u8]) {
    runs(tensor, |from, at, len| to[at..at + len].copy_from_slice(&packed[from..from + len]));
}

/// Takes one element out of the tensor's own memory, packed.
pub fn gather(tensor: &IoTensor, from: &[u8]) -> Vec<u8> {
    let mut packed = vec![0; elements(tensor) * tensor.dtype.bytes()];
    runs(tensor, |to, at, len| packed[to..to + len].copy_from_slice(&from[at..at + len]));
    packed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::{DataType, Order};

    fn tensor(order: u32, dims: &[u32], strides: &[u32]) -> IoTensor {
        IoTensor {
            name: "t".into(),
            dtype: DataType::U8,
            order: Order(order),
            dims: dims.to_vec(),
            strides: strides.to_vec(),
            offset: 0,
        }
    }

    #[test]
    fn nhwc_is_transposed_both_ways() {
        // NHWC, minor to major: C=2, W=3, H=1, N=1.
        let t = tensor(0x4213, &[2, 3, 1, 1], &[1, 2, 6, 6]);
        assert_eq!(shape(&t), [1, 2, 1, 3]);
        let mut wire = [0; 6];
        scatter(&t, &[1, 2, 3, 11, 12, 13], &mut wire);
        assert_eq!(wire, [1, 11, 2, 12, 3, 13]);
        assert_eq!(gather(&t, &wire), [1, 2, 3, 11, 12, 13]);
        assert!(!is_packed(&t));
    }

    #[test]
    fn row_gaps_are_left_alone() {
        // NCHW with rows of 3 at a stride of 4.
        let t = tensor(0x4321, &[3, 2, 1, 1], &[1, 4, 8, 8]);
        let mut wire = [9; 8];
        scatter(&t, &[1, 2, 3, 4, 5, 6], &mut wire);
        assert_eq!(wire, [1, 2, 3, 9, 4, 5, 6, 9]);
        assert_eq!(gather(&t, &wire), [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn packed_tensor_is_one_run() {
        let t = tensor(0x4321, &[3, 2, 2, 1], &[1, 3, 6, 12]);
        let mut count = 0;
        runs(&t, |_, _, len| {
            count += 1;
            assert_eq!(len, 12);
        });
        assert!(is_packed(&t));
        assert_eq!(count, 1);
    }

    #[test]
    fn unnamed_dimensions_are_kept() {
        let t = tensor(0x76, &[4, 2], &[1, 4]);
        assert_eq!(shape(&t), [2, 4]);
        assert_eq!(elements(&t), 8);
    }
}
