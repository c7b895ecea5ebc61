//! cuBLASLt: which of its algorithms makes a product is the first that its heuristic names, asked once for a shape and kept.
//!
//! The first, and not the fastest of several that were tried: trials end otherwise from run to run, and two runs would not have
//! the same bits. The heuristic takes addresses for aligned to 256 bytes unless it is told what they are. Sums are `f32` to the end: without
//! being told so it may choose an algorithm that adds parts of a sum in the numbers of the result.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::cublas::sys::cublasOperation_t;
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{
    cublasComputeType_t, cublasLtHandle_t, cublasLtMatmulAlgo_t, cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t,
    cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t, cublasLtMatrixLayout_t,
    cublasLtReductionScheme_t, cublasStatus_t, cudaDataType_t,
};
use cudarc::driver::{CudaSlice, DevicePtr};

use super::Into;

/// What an algorithm may use beside its matrices: as much as NVIDIA advises for Hopper.
pub(in crate::ops::cuda) const WORKSPACE_BYTES: usize = 32 << 20;

/// Shapes that are remembered: packed micro-batches differ in length, so that a long run meets any number of them.
const REMEMBERED: usize = 4096;

/// A matrix as it lies in memory: consecutive numbers are `cols` of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Placement {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) stride: usize,
    pub(super) turned: bool,
    pub(super) kind: cudaDataType_t,
    /// Bytes, a power of two.
    pub(super) aligned: u32,
}

impl Placement {
    fn layout(self) -> Result<Layout, CublasError> {
        let made = result::create_matrix_layout(self.kind, self.cols as u64, self.rows as u64, self.stride as i64);
        made.map(Layout)
    }

    fn operation(self) -> cublasOperation_t {
        if self.turned { cublasOperation_t::CUBLAS_OP_T } else { cublasOperation_t::CUBLAS_OP_N }
    }
}

/// What a choice depends on: both factors in the order of cuBLAS, and the product.
type Shape = [Placement; 3];

/// cuBLASLt on one stream, and what it has chosen.
#[derive(Debug)]
pub(in crate::ops::cuda) struct BlasLt {
    handle: Handle,
    /// Held while a product is put on the stream: it may be two kernels, the second of which reads what the first left here.
    workspace: Mutex<CudaSlice<u8>>,
    known: Mutex<HashMap<Shape, Option<Arc<Choice>>>>,
}

impl BlasLt {
    /// All work is put on the stream of the workspace, which has [`WORKSPACE_BYTES`].
    pub(in crate::ops::cuda) fn new(workspace: CudaSlice<u8>) -> Result<BlasLt, CublasError> {
        let handle = Handle(result::create_handle()?);
        Ok(BlasLt { handle, workspace: Mutex::new(workspace), known: Mutex::default() })
    }

    /// `d = s · a b + k · c`, factors in the order of cuBLAS, c and d one matrix or alike; false, and nothing done, where it has no algorithm for that.
    ///
    /// # Safety
    /// The addresses are those of live matrices that lie so on the device of the workspace; only its stream uses them.
    pub(super) unsafe fn multiply(
        &self,
        shape: Shape,
        into: Into,
        [a, b, c, d]: [u64; 4],
    ) -> Result<bool, CublasError> {
        let Some(choice) = self.choice(shape)? else { return Ok(false) };
        let [of_a, of_b, of_c] = &choice.layouts;
        let workspace = self.workspace.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = workspace.stream();
        let (place, _order) = workspace.device_ptr(stream);
        // SAFETY: descriptions and handle are open; the matrices are the caller's, the workspace is ours.
        let done = unsafe {
            result::matmul(
                self.handle.0,
                choice.product.0,
                (&raw const into.scale).cast(),
                (&raw const into.keep).cast(),
                a as *const c_void,
                of_a.0,
                b as *const c_void,
                of_b.0,
                c as *const c_void,
                of_c.0,
                d as *mut c_void,
                of_c.0,
                &raw const choice.algorithm,
                place as *mut c_void,
                WORKSPACE_BYTES,
                stream.cu_stream().cast(),
            )
        };
        match done {
            Ok(()) => Ok(true),
            // said before anything is on the stream
            Err(error) if is_refusal(error) => {
                self.known().insert(shape, None);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn choice(&self, shape: Shape) -> Result<Option<Arc<Choice>>, CublasError> {
        let mut known = self.known();
        if let Some(choice) = known.get(&shape) {
            return Ok(choice.clone());
        }
        let choice = match Choice::new(&self.handle, shape) {
            Ok(choice) => Some(Arc::new(choice)),
            Err(error) if is_refusal(error) => None,
            Err(error) => return Err(error),
        };
        if known.len() == REMEMBERED {
            known.clear();
        }
        known.insert(shape, choice.clone());
        Ok(choice)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Shape, Option<Arc<Choice>>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether it is only this shape that it has nothing for.
fn is_refusal(CublasError(status): CublasError) -> bool {
    matches!(
        status,
        cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED
            | cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE
            | cublasStatus_t::CUBLAS_STATUS_ARCH_MISMATCH
    )
}

/// An algorithm and the product that it was chosen for.
#[derive(Debug)]
struct Choice {
    product: Product,
    layouts: [Layout; 3],
    algorithm: cublasLtMatmulAlgo_t,
}

// SAFETY: descriptions are plain memory of the library's, which it only reads once they are made.
unsafe impl Send for Choice {}
// SAFETY: as above.
unsafe impl Sync for Choice {}

impl Choice {
    fn new(handle: &Handle, shape: Shape) -> Result<Choice, CublasError> {
        let [a, b, c] = shape;
        let product = Product::new([a.operation(), b.operation()])?;
        let layouts = [a.layout()?, b.layout()?, c.layout()?];
        let preference = Preference::new([a.aligned, b.aligned, c.aligned])?;
        let [of_a, of_b, of_c] = &layouts;
        // SAFETY: all of them were made a moment ago and are open.
        let found = unsafe {
            result::get_matmul_algo_heuristic(handle.0, product.0, of_a.0, of_b.0, of_c.0, of_c.0, preference.0)
        };
        Ok(Choice { algorithm: found?.algo, product, layouts })
    }
}

/// Something of the library's that has to be given back.
macro_rules! owned {
    ($name:ident, $raw:ty, $give_back:path) => {
        #[derive(Debug)]
        struct $name($raw);

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: it is open, and given back here alone; a failure leaves nothing that could be done.
                let _ = unsafe { $give_back(self.0) };
            }
        }
    };
}

owned!(Handle, cublasLtHandle_t, result::destroy_handle);
owned!(Layout, cublasLtMatrixLayout_t, result::destroy_matrix_layout);
owned!(Product, cublasLtMatmulDesc_t, result::destroy_matmul_desc);
owned!(Preference, cublasLtMatmulPreference_t, result::destroy_matmul_pref);

// SAFETY: the library's handle may be used by several threads.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Product {
    /// With `f32` sums; factors as they lie there or turned.
    fn new(factors: [cublasOperation_t; 2]) -> Result<Product, CublasError> {
        let sums = cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let product = Product(result::create_matmul_desc(sums, cudaDataType_t::CUDA_R_32F)?);
        let names = [
            cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
            cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSB,
        ];
        for (name, factor) in names.into_iter().zip(factors) {
            let at = (&raw const factor).cast();
            // SAFETY: the description is open; the value is read during the call.
            unsafe { result::set_matmul_desc_attribute(product.0, name, at, size_of_val(&factor)) }?;
        }
        Ok(product)
    }
}

impl Preference {
    /// The workspace, sums in `f32`, and how both factors and the product are aligned, in bytes.
    fn new([a, b, c]: [u32; 3]) -> Result<Preference, CublasError> {
        use cublasLtMatmulPreferenceAttributes_t as Name;
        let preference = Preference(result::create_matmul_pref()?);
        let set = |name: Name, at: *const c_void, bytes: usize| {
            // SAFETY: the preference is open; the value is read during the call.
            unsafe { result::set_matmul_pref_attribute(preference.0, name, at, bytes) }
        };
        let most = WORKSPACE_BYTES;
        set(Name::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const most).cast(), size_of_val(&most))?;
        let sums = cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        set(Name::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, (&raw const sums).cast(), size_of_val(&sums))?;
        for (name, bytes) in [
            (Name::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, a),
            (Name::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, b),
            (Name::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c),
            (Name::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c),
        ] {
            set(name, (&raw const bytes).cast(), size_of_val(&bytes))?;
        }
        Ok(preference)
    }
}
