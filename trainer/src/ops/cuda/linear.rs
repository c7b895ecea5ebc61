//! [`crate::ops::linear`] on the device.

use std::ops::Range;

use cudarc::driver::{CudaSlice, CudaView, CudaViewMut};
use half::bf16;

use super::matmul::{self, Into, Matrix};
use super::quant::Stacked;
use super::{Done, Gpu, GpuError, rows, sums};
use crate::ops::linear::{self, Numbers};
use crate::ops::lora::Columns;

/// A weight, `[rows, cols]`: rows are outputs.
#[derive(Debug)]
pub struct Weight {
    numbers: Stored,
    bias: Option<CudaSlice<f32>>,
    rows: usize,
    cols: usize,
}

/// How the numbers lie in the device's memory.
#[derive(Debug)]
enum Stored {
    Bf16(CudaSlice<bf16>),
    /// Made brain floats for one product, all rows at once.
    Quantised(Stacked),
}

impl Weight {
    /// From consecutive rows on the host; an empty bias is none.
    pub fn upload(gpu: &Gpu, data: &[bf16], bias: &[f32], rows: usize, cols: usize) -> Result<Weight, GpuError> {
        assert!(data.len() == rows * cols && (bias.is_empty() || bias.len() == rows), "a weight of {rows} × {cols}");
        Weight::new(gpu, Stored::Bf16(gpu.upload(data)?), bias, rows, cols)
    }

    /// That of the host: brain floats, or the few bits that it lies in there.
    pub fn of_host(gpu: &Gpu, weight: &linear::Weight) -> Result<Weight, GpuError> {
        let numbers = match weight.numbers() {
            Numbers::F32(numbers) => {
                Stored::Bf16(gpu.upload(&numbers.iter().map(|x| bf16::from_f32(*x)).collect::<Vec<_>>())?)
            }
            Numbers::Bf16(numbers) => Stored::Bf16(gpu.upload(numbers)?),
            Numbers::Quantised(stack) => Stored::Quantised(Stacked::upload(gpu, stack)?),
        };
        Weight::new(gpu, numbers, weight.bias(), weight.rows(), weight.cols())
    }

    fn new(gpu: &Gpu, numbers: Stored, bias: &[f32], rows: usize, cols: usize) -> Result<Weight, GpuError> {
        let bias = if bias.is_empty() { None } else { Some(gpu.upload(bias)?) };
        Ok(Weight { numbers, bias, rows, cols })
    }

    /// Outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// All numbers: the embedding, which is never quantised, is looked up in them.
    pub fn data(&self) -> CudaView<'_, bf16> {
        match &self.numbers {
            Stored::Bf16(numbers) => numbers.as_view(),
            Stored::Quantised(_) => panic!("an embedding lies in brain floats"),
        }
    }

    /// Consecutive rows on the host, as products see them.
    pub fn rows_of(&self, gpu: &Gpu, rows: Range<usize>) -> Result<Vec<f32>, GpuError> {
        let narrow = self.with_rows(gpu, rows, |numbers| gpu.download(numbers))?;
        Ok(narrow.into_iter().map(bf16::to_f32).collect())
    }

    /// Puts numbers in the place of consecutive rows, as brain floats. Only a weight that lies in those is ever trained.
    pub fn set_rows(&mut self, gpu: &Gpu, rows: Range<usize>, numbers: &CudaView<'_, f32>) -> Done {
        let Stored::Bf16(own) = &mut self.numbers else { panic!("a weight that is trained lies in brain floats") };
        rows::narrow(gpu, numbers, &mut own.slice_mut(rows.start * self.cols..rows.end * self.cols))
    }

    /// Puts numbers in the place of the bias of some rows.
    pub fn set_bias(&mut self, gpu: &Gpu, rows: Range<usize>, numbers: &CudaView<'_, f32>) -> Done {
        let bias = self.bias.as_mut().expect("a bias that is trained is there");
        gpu.copy(numbers, &mut bias.slice_mut(rows))
    }

    /// Hands the numbers of consecutive rows to `use_them`; of a weight in few bits the modules that they are of are taken apart for that.
    pub(super) fn with_rows<T>(
        &self,
        gpu: &Gpu,
        rows: Range<usize>,
        use_them: impl FnOnce(&CudaView<'_, bf16>) -> Result<T, GpuError>,
    ) -> Result<T, GpuError> {
        let place = |first: usize| (rows.start - first) * self.cols..(rows.end - first) * self.cols;
        match &self.numbers {
            Stored::Bf16(numbers) => use_them(&numbers.slice(place(0))),
            Stored::Quantised(stacked) => {
                let around = stacked.around(&rows);
                let mut wide = gpu.take(around.len() * self.cols)?;
                stacked.widen(gpu, &around, &mut wide.as_view_mut())?;
                use_them(&wide.slice(place(around.start)))
            }
        }
    }

    /// The input as a matrix, and how the product lands.
    fn factor(&self, gpu: &Gpu, x: &CudaView<'_, bf16>, keep: f32) -> (Matrix, Into) {
        let x = Matrix::new(gpu, x, x.len() / self.cols, self.cols);
        (x, Into { stride: self.rows, scale: 1.0, keep })
    }

    fn add_bias(&self, gpu: &Gpu, y: &mut CudaViewMut<'_, bf16>) -> Done {
        self.bias.as_ref().map_or(Ok(()), |bias| rows::add_bias(gpu, &bias.as_view(), y))
    }

    /// Hands all of them to `use_it` as a matrix.
    fn with_matrix(&self, gpu: &Gpu, use_it: impl FnOnce(Matrix) -> Done) -> Done {
        self.with_rows(gpu, 0..self.rows, |numbers| use_it(Matrix::new(gpu, numbers, self.rows, self.cols)))
    }
}

/// `y = x Wᵀ + b`.
pub fn forward(gpu: &Gpu, x: &CudaView<'_, bf16>, weight: &Weight, y: &mut CudaViewMut<'_, bf16>) -> Done {
    let (x, into) = weight.factor(gpu, x, 0.0);
    weight.with_matrix(gpu, |matrix| matmul::product(gpu, x, matrix.t(), into, y))?;
    weight.add_bias(gpu, y)
}

/// `y = onto + x Wᵀ + b`.
pub fn forward_onto(
    gpu: &Gpu,
    x: &CudaView<'_, bf16>,
    weight: &Weight,
    onto: &CudaView<'_, bf16>,
    y: &mut CudaViewMut<'_, bf16>,
) -> Done {
    let (x, into) = weight.factor(gpu, x, 1.0);
    weight.with_matrix(gpu, |matrix| matmul::product_onto(gpu, x, matrix.t(), into, onto, y))?;
    weight.add_bias(gpu, y)
}

/// `dx = dy W`.
pub fn backward(gpu: &Gpu, dy: &CudaView<'_, bf16>, weight: &Weight, dx: &mut CudaViewMut<'_, bf16>) -> Done {
    let dy = Matrix::new(gpu, dy, dy.len() / weight.rows, weight.rows);
    weight.with_matrix(gpu, |matrix| matmul::set(gpu, dy, matrix, dx))
}

/// Adds to the gradient of the rows of a weight whose outputs are those columns of `dy`.
pub fn weight_backward(
    gpu: &Gpu,
    x: &CudaView<'_, bf16>,
    inputs: usize,
    (dy, columns): (&CudaView<'_, bf16>, Columns),
    dw: &mut CudaViewMut<'_, f32>,
) -> Done {
    let tokens = x.len() / inputs;
    let dy = Matrix::strided(gpu, &dy.slice(columns.first..), tokens, columns.count, columns.stride);
    let into = Into { stride: inputs, scale: 1.0, keep: 1.0 };
    matmul::product(gpu, dy.t(), Matrix::new(gpu, x, tokens, inputs), into, dw)
}

/// Adds to the gradient of their bias.
pub fn bias_backward(gpu: &Gpu, (dy, columns): (&CudaView<'_, bf16>, Columns), db: &mut CudaViewMut<'_, f32>) -> Done {
    assert_eq!(db.len(), columns.count, "one number for each column");
    sums::add_rows(gpu, (dy, columns), None, db)
}
