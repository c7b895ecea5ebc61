//! Matrix products over strided views: `dst.set(a.times(b))`, `dst += a.times(b.t()).scaled(s)`. Every dense product of the
//! trainer is one of these.

use std::ops::{AddAssign, SubAssign};

use gemm::Parallelism;

/// A matrix somewhere in a slice.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    shape: Shape,
}

/// A matrix somewhere in a slice, to be written.
#[derive(Debug)]
pub struct ViewMut<'a> {
    data: &'a mut [f32],
    shape: Shape,
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl Shape {
    fn check(self, len: usize) -> Shape {
        let last = |n: usize, stride: usize| n.saturating_sub(1) * stride;
        let empty = self.rows == 0 || self.cols == 0;
        assert!(
            empty || last(self.rows, self.row_stride) + last(self.cols, self.col_stride) < len,
            "{self:?} does not lie within {len} numbers"
        );
        self
    }
}

impl<'a> View<'a> {
    /// Consecutive rows.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> View<'a> {
        View::strided(data, rows, cols, cols)
    }

    /// Rows that begin `row_stride` apart.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> View<'a> {
        View { data, shape: Shape { rows, cols, row_stride, col_stride: 1 }.check(data.len()) }
    }

    /// The transpose, in place.
    pub fn t(self) -> View<'a> {
        let Shape { rows, cols, row_stride, col_stride } = self.shape;
        View {
            data: self.data,
            shape: Shape { rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride },
        }
    }
}

impl<'a> ViewMut<'a> {
    /// Consecutive rows.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> ViewMut<'a> {
        ViewMut::strided(data, rows, cols, cols)
    }

    /// Rows that begin `row_stride` apart.
    pub fn strided(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> ViewMut<'a> {
        assert!(row_stride >= cols || rows < 2, "rows must not overlap");
        let shape = Shape { rows, cols, row_stride, col_stride: 1 }.check(data.len());
        ViewMut { data, shape }
    }
}

/// Who computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workers {
    /// The surrounding rayon pool; the bits are those of one thread, since only rows and columns are shared out.
    Pool,
    /// The calling thread.
    Caller,
}

/// A product that waits for its destination: `dst += lhs.times(rhs).scaled(s)`.
#[derive(Debug, Clone, Copy)]
pub struct Product<'a> {
    lhs: View<'a>,
    rhs: View<'a>,
    factor: f32,
    workers: Workers,
}

impl<'a> View<'a> {
    /// The product with `rhs`, by the pool.
    pub fn times(self, rhs: View<'a>) -> Product<'a> {
        Product { lhs: self, rhs, factor: 1.0, workers: Workers::Pool }
    }
}

impl Product<'_> {
    /// The product times a number.
    pub fn scaled(self, factor: f32) -> Self {
        Product { factor: self.factor * factor, ..self }
    }

    /// Computed by the calling thread alone.
    pub fn here(self) -> Self {
        Product { workers: Workers::Caller, ..self }
    }
}

impl ViewMut<'_> {
    /// Overwrites with the product.
    pub fn set(&mut self, product: Product<'_>) {
        self.gemm(product, false);
    }

    fn gemm(&mut self, Product { lhs, rhs, factor, workers }: Product<'_>, add: bool) {
        let dst = self.shape;
        assert_eq!((lhs.shape.rows, rhs.shape.cols), (dst.rows, dst.cols), "shapes of a product");
        assert_eq!(lhs.shape.cols, rhs.shape.rows, "inner sizes of a product");
        let parallelism = match workers {
            Workers::Pool => Parallelism::Rayon(0),
            Workers::Caller => Parallelism::None,
        };
        let stride = |n: usize| isize::try_from(n).expect("a slice is no longer than isize::MAX");
        // SAFETY: each view's last element was checked to lie in its slice when it was made, the strides are not negative,
        // the rows of the destination do not overlap, and being borrowed mutably it is apart from both operands.
        unsafe {
            gemm::gemm(
                dst.rows,
                dst.cols,
                lhs.shape.cols,
                self.data.as_mut_ptr(),
                stride(dst.col_stride),
                stride(dst.row_stride),
                add,
                lhs.data.as_ptr(),
                stride(lhs.shape.col_stride),
                stride(lhs.shape.row_stride),
                rhs.data.as_ptr(),
                stride(rhs.shape.col_stride),
                stride(rhs.shape.row_stride),
                1.0,
                factor,
                false,
                false,
                false,
                parallelism,
            );
        }
    }
}

impl AddAssign<Product<'_>> for ViewMut<'_> {
    fn add_assign(&mut self, product: Product<'_>) {
        self.gemm(product, true);
    }
}

impl SubAssign<Product<'_>> for ViewMut<'_> {
    fn sub_assign(&mut self, product: Product<'_>) {
        self.gemm(product.scaled(-1.0), true);
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{assert_close, assert_same_bits_on_any_threads, numbers32};
    use super::*;

    #[test]
    fn products_of_all_orientations_equal_the_sum_over_the_inner_index() {
        let (m, n, k) = (37, 21, 65);
        let (a, b) = (numbers32(1, m * k), numbers32(2, k * n));
        let start = numbers32(3, m * n);
        let mut expected = start.clone();
        for i in 0..m {
            for j in 0..n {
                expected[i * n + j] += 0.5 * (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum::<f32>();
            }
        }
        let (at, bt) = (transposed(&a, m, k), transposed(&b, k, n));
        for lhs in [View::new(&a, m, k), View::new(&at, k, m).t()] {
            for rhs in [View::new(&b, k, n), View::new(&bt, n, k).t()] {
                let mut c = start.clone();
                let mut dst = ViewMut::new(&mut c, m, n);
                dst += lhs.times(rhs).here().scaled(0.5);
                assert_close("sum", &c, &expected, 1e-5);
                let mut dst = ViewMut::new(&mut c, m, n);
                dst -= lhs.times(rhs).scaled(0.5);
                assert_close("difference", &c, &start, 1e-4);
            }
        }
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        for (m, n, k) in [(300, 200, 700), (64, 1200, 576), (1024, 16, 576), (16, 576, 1024), (1, 300, 4000)] {
            let (a, b) = (numbers32(1, m * k), numbers32(2, k * n));
            assert_same_bits_on_any_threads(|| {
                let mut c = vec![0.0; m * n];
                ViewMut::new(&mut c, m, n).set(View::new(&a, m, k).times(View::new(&b, n, k).t()));
                let mut d = vec![0.0; m * n];
                ViewMut::new(&mut d, m, n).set(View::new(&a, k, m).t().times(View::new(&b, k, n)));
                c.extend(d);
                c
            });
        }
    }

    #[test]
    #[should_panic(expected = "does not lie within")]
    fn a_view_past_its_slice_is_refused() {
        View::strided(&[0.0; 10], 3, 4, 4);
    }

    fn transposed(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
        (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
    }
}
