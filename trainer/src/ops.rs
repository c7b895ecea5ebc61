//! The arithmetic of the decoder, one operation per file, each backward beside its forward.
//!
//! Every operation has a plain form, generic over [`real::Real`]: the definition, checked in `f64` against finite differences.
//! The CPU form beside it works on `f32` slices with `gemm`, rayon and wide vectors and is checked against the plain one;
//! a CUDA form takes its place beside both. Nothing above this module does arithmetic on activations.
//!
//! **Bits.** Work is cut into pieces by shape alone, each piece is computed in one fixed order, and sums over pieces are taken
//! in index order: the result does not depend on how many threads the surrounding rayon pool has.
//!
//! **Proof that the tests bite.** In every backward the line that carries a term's sign ends in `// mutate: flip`; `cargo
//! xtask mutate` exchanges its `+=` and `-=`, one line at a time, and expects a failing test. The marks stand in [`norm`],
//! [`rope`], [`attention`], [`softcap`], [`glu`], [`linear`], [`lora`], [`dropout`], [`dora`], [`lookup`], [`head`] and [`adamw`]: in the plain forms (caught by finite
//! differences) and in the CPU forms (caught by the plain ones).

pub mod adamw;
pub mod attention;
pub mod bf16;
pub mod buffer;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod decode;
pub mod dora;
pub mod dropout;
pub mod glu;
pub mod head;
pub mod linear;
pub mod lookup;
pub mod lora;
pub mod machine;
pub mod matmul;
pub mod norm;
#[cfg(any(test, feature = "cuda"))]
pub mod parity;
pub mod profile;
pub mod qk_norm;
pub mod random;
pub mod real;
pub mod rope;
pub mod simd;
pub mod softcap;
pub mod widen;

#[cfg(test)]
pub(crate) mod check;
