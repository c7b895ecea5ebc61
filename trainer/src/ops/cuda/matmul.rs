//! Matrix products on the device: `c = s · a b + k · c`, by cuBLASLt, bf16 in, `f32` sums, bf16 or `f32` out; by cuBLAS where cuBLASLt has
//! no algorithm.
//!
//! k is what candle's product lacks: with k = 1 an adapter's product lands on what the frozen layer wrote, and a gradient on
//! what earlier micro-batches left. cuBLAS counts columns first; a matrix stored row by row is its transpose there, so that the
//! product is asked for with its factors exchanged.

mod blas_lt;

use std::ffi::c_void;

use cudarc::cublas::result::gemm_ex;
use cudarc::cublas::sys::{cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cudaDataType_t};
use cudarc::cublaslt::sys::cudaDataType_t as LtDataType;
use cudarc::driver::{CudaView, CudaViewMut, DevicePtr, DevicePtrMut};
use half::bf16;

use self::blas_lt::Placement;
use super::timeline::Work;
use super::{Done, Gpu, GpuError};

pub(super) use self::blas_lt::{BlasLt, WORKSPACE_BYTES};

/// Said of whatever goes wrong here.
const DOING: &str = "multiply matrices";

/// Numbers that a product can end in.
pub trait Stored {
    /// As cuBLAS calls them.
    const KIND: cudaDataType_t;
    /// As cuBLASLt does.
    const LT_KIND: LtDataType;
}

impl Stored for bf16 {
    const KIND: cudaDataType_t = cudaDataType_t::CUDA_R_16BF;
    const LT_KIND: LtDataType = LtDataType::CUDA_R_16BF;
}

impl Stored for f32 {
    const KIND: cudaDataType_t = cudaDataType_t::CUDA_R_32F;
    const LT_KIND: LtDataType = LtDataType::CUDA_R_32F;
}

/// A matrix somewhere on the device: rows that begin `stride` apart, or its transpose.
#[derive(Debug, Clone, Copy)]
pub struct Matrix {
    address: u64,
    rows: usize,
    cols: usize,
    stride: usize,
    turned: bool,
}

impl Matrix {
    /// Consecutive rows.
    pub fn new(gpu: &Gpu, data: &CudaView<'_, bf16>, rows: usize, cols: usize) -> Matrix {
        Matrix::strided(gpu, data, rows, cols, cols)
    }

    /// Rows that begin `stride` apart.
    pub fn strided(gpu: &Gpu, data: &CudaView<'_, bf16>, rows: usize, cols: usize, stride: usize) -> Matrix {
        assert!(fits(data.len(), rows, cols, stride), "{rows} × {cols} by {stride} within {} numbers", data.len());
        Matrix { address: data.device_ptr(gpu.stream()).0, rows, cols, stride, turned: false }
    }

    /// The transpose, in place.
    pub fn t(self) -> Matrix {
        Matrix { turned: !self.turned, ..self }
    }

    fn shape(self) -> (usize, usize) {
        if self.turned { (self.cols, self.rows) } else { (self.rows, self.cols) }
    }

    fn placement(self) -> Placement {
        let Matrix { address, rows, cols, stride, turned } = self;
        Placement { rows, cols, stride, turned, kind: bf16::LT_KIND, aligned: alignment(address) }
    }

    fn operation(self) -> cublasOperation_t {
        if self.turned { cublasOperation_t::CUBLAS_OP_T } else { cublasOperation_t::CUBLAS_OP_N }
    }
}

/// What becomes of the product.
#[derive(Debug, Clone, Copy)]
pub struct Into {
    /// Rows of the result begin so far apart.
    pub stride: usize,
    /// The factor s.
    pub scale: f32,
    /// The factor k.
    pub keep: f32,
}

/// `c = s · a b + k · c`.
pub fn product<T: Stored>(gpu: &Gpu, a: Matrix, b: Matrix, into: Into, c: &mut CudaViewMut<'_, T>) -> Done {
    let to = c.device_ptr_mut(gpu.stream()).0;
    gpu.timed(work(a, b), || {
        if by_lt::<T>(gpu, a, b, into, ([to, to], c.len()))? { Ok(()) } else { by_cublas(gpu, a, b, into, c) }
    })
}

/// `d = s · a b + k · c`: what is added to stays as it is.
pub fn product_onto(
    gpu: &Gpu,
    a: Matrix,
    b: Matrix,
    into: Into,
    c: &CudaView<'_, bf16>,
    d: &mut CudaViewMut<'_, bf16>,
) -> Done {
    assert_eq!(c.len(), d.len(), "a product lies as what it is added to");
    let (from, to) = (c.device_ptr(gpu.stream()).0, d.device_ptr_mut(gpu.stream()).0);
    let done = gpu.timed(work(a, b), || by_lt::<bf16>(gpu, a, b, into, ([from, to], d.len())))?;
    if done {
        return Ok(());
    }
    gpu.copy(c, d)?;
    gpu.timed(work(a, b), || by_cublas(gpu, a, b, into, d))
}

fn work(a: Matrix, b: Matrix) -> Work {
    let ((rows, inner), (_, cols)) = (a.shape(), b.shape());
    Work::Product { rows, cols, inner }
}

/// From what lies at the first of two addresses to the second, each with room for so many numbers; false, and nothing done, where
/// cuBLASLt has no algorithm for that.
fn by_lt<T: Stored>(
    gpu: &Gpu,
    a: Matrix,
    b: Matrix,
    into: Into,
    ([c, d], len): ([u64; 2], usize),
) -> Result<bool, GpuError> {
    let ((rows, inner), (other, cols)) = (a.shape(), b.shape());
    assert_eq!(inner, other, "inner sizes of a product");
    assert!(fits(len, rows, cols, into.stride), "a product lands within its buffer");
    if rows == 0 || cols == 0 {
        return Ok(true);
    }
    gpu.context.bind_to_thread().map_err(GpuError::driver("use a GPU"))?;
    let aligned = alignment(c).min(alignment(d));
    let of_c = Placement { rows, cols, stride: into.stride, turned: false, kind: T::LT_KIND, aligned };
    let (shape, addresses) = ([b.placement(), a.placement(), of_c], [b.address, a.address, c, d]);
    // SAFETY: all four lie within live buffers of this device, as was checked when they were made and above; its one stream uses them.
    unsafe { gpu.blas_lt.multiply(shape, into, addresses) }.map_err(|source| GpuError::BlasLt { doing: DOING, source })
}

/// The same by cuBLAS, which has a way for every shape.
pub(super) fn by_cublas<T: Stored>(gpu: &Gpu, a: Matrix, b: Matrix, into: Into, c: &mut CudaViewMut<'_, T>) -> Done {
    let ((rows, inner), (_, cols)) = (a.shape(), b.shape());
    let size = |n: usize| i32::try_from(n).expect("matrices have fewer than 2^31 rows and columns");
    let (to, _order) = c.device_ptr_mut(gpu.stream());
    let pointer = |address: u64| address as *const c_void;
    // SAFETY: as in `product`, whose matrices these are; the factors are read during the call.
    let done = unsafe {
        gemm_ex(
            *gpu.blas.handle(),
            b.operation(),
            a.operation(),
            size(cols),
            size(rows),
            size(inner),
            (&raw const into.scale).cast(),
            pointer(b.address),
            bf16::KIND,
            size(b.stride),
            pointer(a.address),
            bf16::KIND,
            size(a.stride),
            (&raw const into.keep).cast(),
            to as *mut c_void,
            T::KIND,
            size(into.stride),
            cublasComputeType_t::CUBLAS_COMPUTE_32F,
            cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    };
    done.map_err(|source| GpuError::Blas { doing: DOING, source })
}

/// Overwrites consecutive rows.
pub fn set<T: Stored>(gpu: &Gpu, a: Matrix, b: Matrix, c: &mut CudaViewMut<'_, T>) -> Done {
    let stride = b.shape().1;
    product(gpu, a, b, Into { stride, scale: 1.0, keep: 0.0 }, c)
}

/// The largest power of two that divides an address, as far as cuBLASLt cares.
fn alignment(address: u64) -> u32 {
    1 << address.trailing_zeros().min(8)
}

fn fits(len: usize, rows: usize, cols: usize, stride: usize) -> bool {
    rows == 0 || cols == 0 || (stride >= cols && (rows - 1) * stride + cols <= len)
}
