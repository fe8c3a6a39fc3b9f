//! The product at the heart of convolutions: constant weights, packed once, times a band of unfolded input, packed by the
//! caller. What follows the sum (bias, activation, rounding) is done while a tile is still in registers or the nearest
//! cache.
//!
//! ```text
//! Weights: [block of ROWS rows][depth][ROWS]        panels: [panel of LANES columns][depth][LANES]
//! ```
//! Every element is one sum in the order of `depth`, whatever the tile, so that a result depends on neither the
//! number of threads nor the bands; fused where the CPU can.
#![allow(unsafe_code, reason = "vector intrinsics; features are checked before each call, lengths by arrays")]

#[cfg(target_arch = "x86_64")]
pub(super) use x86::is_wide;

/// Rows of a tile.
pub const ROWS: usize = 8;
/// Columns of a tile.
pub const LANES: usize = 32;

/// One step in depth of a panel.
pub type Line = [f32; LANES];

/// What becomes of the sums. A trait and not a closure, so that it can be compiled into each kernel with its registers.
pub trait After {
    /// `sums` of a row, from a column on that a panel begins with; lanes beyond the product's columns hold anything.
    fn take(&mut self, row: usize, first: usize, sums: &mut Line);
}

impl<F: FnMut(usize, usize, &mut Line)> After for F {
    #[inline(always)]
    fn take(&mut self, row: usize, first: usize, sums: &mut Line) {
        self(row, first, sums);
    }
}

/// The constant left matrix.
#[derive(Debug)]
pub struct Weights {
    blocks: Vec<[f32; ROWS]>,
    rows: usize,
    depth: usize,
}

impl Weights {
    /// Packs a dense row-major matrix of `depth` columns.
    ///
    /// # Panics
    /// When the matrix has no columns or is not a whole number of rows.
    pub fn new(matrix: &[f32], depth: usize) -> Self {
        assert!(depth > 0 && matrix.len().is_multiple_of(depth), "a matrix of whole rows");
        let rows = matrix.len() / depth;
        let mut blocks = vec![[0.0; ROWS]; rows.div_ceil(ROWS) * depth];
        for (row, values) in matrix.chunks_exact(depth).enumerate() {
            let block = &mut blocks[row / ROWS * depth..][..depth];
            block.iter_mut().zip(values).for_each(|(slot, &value)| slot[row % ROWS] = value);
        }
        Weights { blocks, rows, depth }
    }

    /// Columns of the matrix, lines of a panel.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// The product with `panels`, of which the last counts up to column `n`, handed to `after` row by row.
    ///
    /// # Panics
    /// When there are fewer panels than `n` columns take.
    pub fn multiply(&self, panels: &[Line], n: usize, after: impl After) {
        let panels = &panels[..n.div_ceil(LANES) * self.depth];
        #[cfg(target_arch = "x86_64")]
        {
            if x86::is_wide() {
                // SAFETY: the CPU has what `x86::wide` is compiled for, as was just found out.
                return unsafe { x86::wide(self, panels, n, after) };
            }
            if x86::is_narrow() {
                // SAFETY: as above, for `x86::narrow`.
                return unsafe { x86::narrow(self, panels, n, after) };
            }
        }
        self.walk(panels, n, plain, after);
    }

    /// Every tile: `tile(weights, panel, columns in use, sums)`.
    #[inline(always)]
    fn walk(
        &self,
        panels: &[Line],
        n: usize,
        tile: impl Fn(&[[f32; ROWS]], &[Line], usize, &mut [Line; ROWS]),
        mut after: impl After,
    ) {
        let mut sums = [[0.0; LANES]; ROWS];
        for (number, panel) in panels.chunks_exact(self.depth).enumerate() {
            let first = number * LANES;
            for (block, weights) in self.blocks.chunks_exact(self.depth).enumerate() {
                tile(weights, panel, n - first, &mut sums);
                let row = block * ROWS;
                for (i, line) in sums.iter_mut().enumerate().take(self.rows - row) {
                    after.take(row + i, first, line);
                }
            }
        }
    }
}

fn plain(weights: &[[f32; ROWS]], panel: &[Line], _: usize, sums: &mut [Line; ROWS]) {
    *sums = [[0.0; LANES]; ROWS];
    for (column, line) in weights.iter().zip(panel) {
        for (sums, &weight) in sums.iter_mut().zip(column) {
            sums.iter_mut().zip(line).for_each(|(sum, &x)| *sum += weight * x);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{After, LANES, Line, ROWS, Weights};

    /// Whether the CPU has AVX-512 as [`wide`] needs it.
    pub(in crate::gemm) fn is_wide() -> bool {
        is_narrow()
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
    }

    /// Whether the CPU has what [`narrow`] needs.
    pub(super) fn is_narrow() -> bool {
        is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
    }

    /// [`Weights::multiply`] for AVX-512, with all that `after` does.
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c")]
    pub(super) fn wide(weights: &Weights, panels: &[Line], n: usize, after: impl After) {
        let tile = |weights: &[[f32; ROWS]], panel: &[Line], columns: usize, sums: &mut [Line; ROWS]| {
            if columns > 16 {
                tile_512::<2>(weights, panel, sums);
            } else {
                tile_512::<1>(weights, panel, sums);
            }
        };
        weights.walk(panels, n, tile, after);
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c")]
    fn tile_512<const VECTORS: usize>(weights: &[[f32; ROWS]], panel: &[Line], sums: &mut [Line; ROWS]) {
        let mut registers = [[_mm512_setzero_ps(); VECTORS]; ROWS];
        for (column, line) in weights.iter().zip(panel) {
            let vectors: [__m512; VECTORS] = std::array::from_fn(|v| {
                // SAFETY: VECTORS times 16 floats are at most the line's.
                unsafe { _mm512_loadu_ps(line.as_ptr().add(16 * v)) }
            });
            for r in 0..ROWS {
                let weight = _mm512_set1_ps(column[r]);
                for v in 0..VECTORS {
                    registers[r][v] = _mm512_fmadd_ps(weight, vectors[v], registers[r][v]);
                }
            }
        }
        for (sums, registers) in sums.iter_mut().zip(registers) {
            for (v, register) in registers.into_iter().enumerate() {
                // SAFETY: as above.
                unsafe { _mm512_storeu_ps(sums.as_mut_ptr().add(16 * v), register) };
            }
        }
    }

    /// [`Weights::multiply`] for AVX2 and FMA, with all that `after` does.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn narrow(weights: &Weights, panels: &[Line], n: usize, after: impl After) {
        let tile = |weights: &[[f32; ROWS]], panel: &[Line], columns: usize, sums: &mut [Line; ROWS]| {
            // Sixteen registers: a quarter of the tile at a time.
            for lane in (0..columns.min(LANES)).step_by(16) {
                for row in (0..ROWS).step_by(4) {
                    tile_256(weights, panel, (row, lane), sums);
                }
            }
        };
        weights.walk(panels, n, tile, after);
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn tile_256(
        weights: &[[f32; ROWS]],
        panel: &[Line],
        (row, lane): (usize, usize),
        sums: &mut [Line; ROWS],
    ) {
        let mut registers = [[_mm256_setzero_ps(); 2]; 4];
        for (column, line) in weights.iter().zip(panel) {
            let (line, column) = (&line[lane..lane + 16], &column[row..row + 4]);
            // SAFETY: the slice has sixteen elements.
            let vectors = unsafe { [_mm256_loadu_ps(line.as_ptr()), _mm256_loadu_ps(line.as_ptr().add(8))] };
            for r in 0..4 {
                let weight = _mm256_set1_ps(column[r]);
                for v in 0..2 {
                    registers[r][v] = _mm256_fmadd_ps(weight, vectors[v], registers[r][v]);
                }
            }
        }
        for (sums, registers) in sums[row..row + 4].iter_mut().zip(registers) {
            let sums = &mut sums[lane..lane + 16];
            // SAFETY: the slice has sixteen elements.
            unsafe {
                _mm256_storeu_ps(sums.as_mut_ptr(), registers[0]);
                _mm256_storeu_ps(sums.as_mut_ptr().add(8), registers[1]);
            }
        }
    }

    #[cfg(test)]
    mod tests {
        use super::super::tests::{check, whole};
        use super::*;

        #[test]
        fn both_kernels_are_the_definition_and_agree_bit_by_bit() {
            let have = |narrow: bool| if narrow { is_narrow() } else { is_wide() };
            if !have(true) || !have(false) {
                println!("skipped in part: this CPU has no AVX-512, or no AVX2 with FMA");
            }
            for (rows, depth, n) in [(1, 1, 1), (8, 5, 32), (13, 40, 49), (24, 7, 17), (3, 64, 100)] {
                let [a, b] = [true, false].map(|narrow_one| {
                    have(narrow_one).then(|| {
                        check(rows, depth, n, |weights, panels, each| {
                            // SAFETY: the features were detected.
                            unsafe {
                                if narrow_one {
                                    narrow(weights, panels, n, each);
                                } else {
                                    wide(weights, panels, n, each);
                                }
                            }
                        })
                    })
                });
                if let (Some(a), Some(b)) = (a, b) {
                    assert!(whole(&a).eq(whole(&b)), "{rows} x {depth} x {n}");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn whole(values: &[f32]) -> impl Iterator<Item = u32> + '_ {
        values.iter().map(|v| v.to_bits())
    }

    type Each<'a> = &'a mut dyn FnMut(usize, usize, &mut Line);

    /// Compares with the definition; the sums, dense.
    pub(super) fn check(
        rows: usize,
        depth: usize,
        n: usize,
        multiply: impl Fn(&Weights, &[Line], Each<'_>),
    ) -> Vec<f32> {
        let value = |i: usize| ((i * 37 + 11) % 23) as f32 * 0.25 - 2.0;
        let matrix: Vec<f32> = (0..rows * depth).map(value).collect();
        let right: Vec<f32> = (0..depth * n).map(|i| value(i + 5)).collect();
        let mut panels = vec![[f32::NAN; LANES]; n.div_ceil(LANES) * depth];
        for k in 0..depth {
            for x in 0..n {
                panels[x / LANES * depth + k][x % LANES] = right[k * n + x];
            }
        }
        let mut sums = vec![f32::NAN; rows * n];
        multiply(&Weights::new(&matrix, depth), &panels, &mut |row, first, line| {
            let count = LANES.min(n - first);
            sums[row * n + first..][..count].copy_from_slice(&line[..count]);
        });
        for row in 0..rows {
            for x in 0..n {
                let want: f32 = (0..depth).map(|k| matrix[row * depth + k] * right[k * n + x]).sum();
                assert!(
                    (sums[row * n + x] - want).abs() < 1e-3,
                    "({row}, {x}): {} {want}",
                    sums[row * n + x]
                );
            }
        }
        sums
    }

    #[test]
    fn product_is_the_definition() {
        for (rows, depth, n) in [(1, 1, 1), (8, 3, 32), (9, 20, 33), (16, 5, 48), (5, 9, 64)] {
            let any = check(rows, depth, n, |weights, panels, each| weights.multiply(panels, n, each));
            let plain = check(rows, depth, n, |weights, panels, each| weights.walk(panels, n, plain, each));
            assert_eq!(any.len(), plain.len());
        }
    }
}
