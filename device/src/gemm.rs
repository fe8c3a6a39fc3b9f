//! Single-precision matrix product on all cores: the one place of this crate that calls into unsafe code.
#![allow(
    unsafe_code,
    reason = "the gemm crate takes raw pointers; lengths are asserted against the shapes here"
)]

pub mod halves;
pub mod panel;

/// A matrix inside a slice: element (i, j) lies at `i * rows + j * columns`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// Distance between rows.
    pub rows: usize,
    /// Distance between columns.
    pub columns: usize,
}

/// `c[m][n] = a[m][k] · b[k][n]`; `c` is dense and row-major. On all cores of rayon's pool when `parallel` is set.
///
/// # Panics
/// When a slice is shorter than its shape says.
pub fn multiply(
    (m, n, k): (usize, usize, usize),
    a: Matrix<'_>,
    b: Matrix<'_>,
    c: &mut [f32],
    parallel: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    let c = &mut c[..m * n];
    if k == 0 {
        c.fill(0.0);
        return;
    }
    assert!((m - 1) * a.rows + (k - 1) * a.columns < a.data.len(), "left matrix is shorter than its shape");
    assert!((k - 1) * b.rows + (n - 1) * b.columns < b.data.len(), "right matrix is shorter than its shape");
    let parallelism = if parallel { gemm::Parallelism::Rayon(0) } else { gemm::Parallelism::None };
    // SAFETY: all three matrices are borrowed by this call for its whole length, `c` exclusively, so nobody else writes
    // them; the assertions above and the slice of `c` keep every (row, column) that gemm touches inside them. Strides
    // come from `usize` values bounded by slice lengths and so fit `isize`.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            n as isize,
            false,
            a.data.as_ptr(),
            a.columns as isize,
            a.rows as isize,
            b.data.as_ptr(),
            b.columns as isize,
            b.rows as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// Runs `work` as compiled for AVX-512 or AVX2 where the CPU has them: loops over neighbours gain from wide registers. Same results: no
/// operation is fused or reordered by it.
#[inline(always)]
pub fn wide<R>(work: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn compiled<R>(work: impl FnOnce() -> R) -> R {
            work()
        }
        #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,f16c")]
        fn compiled_512<R>(work: impl FnOnce() -> R) -> R {
            work()
        }
        if panel::is_wide() {
            // SAFETY: the CPU has the features, as was just found out; no memory is touched by the call itself.
            return unsafe { compiled_512(work) };
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the CPU has AVX2, as was just found out; no memory is touched by the call itself.
            return unsafe { compiled(work) };
        }
    }
    work()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn product_matches_the_definition_with_strides() {
        let (m, n, k) = (5, 7, 3);
        // a is stored transposed with a gap, b row-major with a gap.
        let a: Vec<f32> = (0..k * 8).map(|i| i as f32 * 0.5 - 3.0).collect();
        let b: Vec<f32> = (0..k * 9).map(|i| (i % 11) as f32 - 5.0).collect();
        for parallel in [false, true] {
            let mut c = vec![f32::NAN; m * n];
            multiply(
                (m, n, k),
                Matrix { data: &a, rows: 1, columns: 8 },
                Matrix { data: &b, rows: 9, columns: 1 },
                &mut c,
                parallel,
            );
            for i in 0..m {
                for j in 0..n {
                    let want: f32 = (0..k).map(|x| a[x * 8 + i] * b[x * 9 + j]).sum();
                    assert!((c[i * n + j] - want).abs() < 1e-4, "({i},{j})");
                }
            }
        }
    }

    #[test]
    fn an_empty_inner_dimension_gives_zeros() {
        let mut c = [1.0; 4];
        let none = Matrix { data: &[], rows: 0, columns: 0 };
        multiply((2, 2, 0), none, none, &mut c, false);
        assert_eq!(c, [0.0; 4]);
    }

    #[test]
    #[should_panic(expected = "right matrix")]
    fn a_short_matrix_is_refused() {
        let mut c = [0.0; 4];
        multiply(
            (2, 2, 2),
            Matrix { data: &[1.0; 4], rows: 2, columns: 1 },
            Matrix { data: &[1.0; 3], rows: 2, columns: 1 },
            &mut c,
            false,
        );
    }
}
