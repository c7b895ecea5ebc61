//! [`crate::ops::linear`] on the device.

use cudarc::driver::{CudaSlice, CudaView, CudaViewMut};
use half::bf16;

use super::matmul::{self, Into, Matrix};
use super::{Done, Gpu, GpuError, rows};

/// A frozen weight, `[rows, cols]`: rows are outputs.
#[derive(Debug)]
pub struct Weight {
    data: CudaSlice<bf16>,
    bias: Option<CudaSlice<f32>>,
    rows: usize,
    cols: usize,
}

impl Weight {
    /// From consecutive rows on the host; an empty bias is none.
    pub fn upload(gpu: &Gpu, data: &[bf16], bias: &[f32], rows: usize, cols: usize) -> Result<Weight, GpuError> {
        assert!(data.len() == rows * cols && (bias.is_empty() || bias.len() == rows), "a weight of {rows} × {cols}");
        let bias = if bias.is_empty() { None } else { Some(gpu.upload(bias)?) };
        Ok(Weight { data: gpu.upload(data)?, bias, rows, cols })
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// All numbers: the embedding is looked up in them.
    pub fn data(&self) -> CudaView<'_, bf16> {
        self.data.as_view()
    }

    fn matrix(&self, gpu: &Gpu) -> Matrix {
        Matrix::new(gpu, &self.data.as_view(), self.rows, self.cols)
    }
}

/// `y = x Wᵀ + b`.
pub fn forward(gpu: &Gpu, x: &CudaView<'_, bf16>, weight: &Weight, y: &mut CudaViewMut<'_, bf16>) -> Done {
    product(gpu, x, weight, 0.0, y)
}

/// `y += x Wᵀ + b`.
pub fn forward_add(gpu: &Gpu, x: &CudaView<'_, bf16>, weight: &Weight, y: &mut CudaViewMut<'_, bf16>) -> Done {
    product(gpu, x, weight, 1.0, y)
}

fn product(gpu: &Gpu, x: &CudaView<'_, bf16>, weight: &Weight, keep: f32, y: &mut CudaViewMut<'_, bf16>) -> Done {
    let x = Matrix::new(gpu, x, x.len() / weight.cols, weight.cols);
    matmul::product(gpu, x, weight.matrix(gpu).t(), Into { stride: weight.rows, scale: 1.0, keep }, y)?;
    weight.bias.as_ref().map_or(Ok(()), |bias| rows::add_bias(gpu, &bias.as_view(), y))
}

/// `dx = dy W`.
pub fn backward(gpu: &Gpu, dy: &CudaView<'_, bf16>, weight: &Weight, dx: &mut CudaViewMut<'_, bf16>) -> Done {
    let dy = Matrix::new(gpu, dy, dy.len() / weight.rows, weight.rows);
    matmul::set(gpu, dy, weight.matrix(gpu), dx)
}
