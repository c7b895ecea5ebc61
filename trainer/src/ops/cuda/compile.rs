//! Kernels from their text to functions of a device: NVRTC makes machine code for exactly the processor that is there, in
//! memory. No compiler is needed where Lorikeet is built, no cache has to be writable where it runs.

use std::collections::BTreeMap;
use std::ffi::{CString, c_char};
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaFunction, CudaModule};
use cudarc::nvrtc::{Ptx, result, sys};
use rayon::prelude::*;

use super::GpuError;

/// One file of `trainer/kernels`.
pub(super) struct Source {
    pub(super) file: &'static str,
    pub(super) text: &'static str,
}

macro_rules! source {
    ($file:literal) => {
        Source { file: $file, text: include_str!(concat!("../../../kernels/", $file)) }
    };
}

const PRELUDE: Source = source!("prelude.cuh");

/// Compiled per width of a head, by [`module`].
pub(super) const ATTENTION: Source = source!("attention.cu");
const ATTENTION_KERNELS: &[&str] =
    &["attention_forward", "attention_delta", "attention_backward_queries", "attention_backward_keys"];

/// The others, and the kernels that are taken from them.
const SOURCES: [(Source, &[&str]); 13] = [
    (source!("adamw.cu"), &["square_sums", "clip_from_squares", "adamw"]),
    (source!("decode.cu"), &["decode_parts", "decode_merge", "decode_keep"]),
    (source!("dora.cu"), &["dora_lengths", "dora_forward", "dora_backward", "dora_rest"]),
    (source!("dropout.cu"), &["dropout_draw", "dropout_mask", "dropout_add"]),
    (source!("glu.cu"), &["glu_forward", "glu_backward"]),
    (source!("head.cu"), &["head_loss", "add_losses"]),
    (source!("lookup.cu"), &["lookup_columns", "lookup_add", "table_add"]),
    (source!("lora.cu"), &["lora_down", "lora_parts", "lora_add_parts", "lora_up"]),
    (source!("norm.cu"), &["norm_forward", "norm_backward", "norm_rho"]),
    (source!("quant.cu"), &["nf4_widen", "int8_widen"]),
    (source!("rope.cu"), &["rope_forward", "rope_backward", "rope_gains"]),
    (source!("rows.cu"), &["rows_gather", "rows_scatter", "rows_add_bias", "cast_narrow", "shift"]),
    (source!("sums.cu"), &["row_parts", "add_row_parts"]),
];

/// Every kernel but attention's, by name.
pub(super) fn all(
    context: &Arc<CudaContext>,
    compute: (i32, i32),
) -> Result<BTreeMap<&'static str, CudaFunction>, GpuError> {
    let images: Vec<Vec<u8>> =
        SOURCES.par_iter().map(|(source, _)| image(source, compute, &[])).collect::<Result<_, _>>()?;
    let mut functions = BTreeMap::new();
    for ((_, names), image) in SOURCES.iter().zip(images) {
        let module = load(context, image)?;
        for name in *names {
            functions.insert(*name, find(&module, name)?);
        }
    }
    Ok(functions)
}

/// What users' cards are, and what they will be.
const ARCHITECTURES: [(i32, i32); 5] = [(8, 0), (8, 6), (9, 0), (10, 0), (12, 0)];

/// Widths of heads that models have, and two that fill no tile.
const WIDTHS: [usize; 7] = [64, 72, 80, 96, 128, 144, 256];

/// Compiles every kernel for every architecture and loads none; how many compilations. Needs the compiler and no GPU.
pub fn every_kernel() -> Result<usize, GpuError> {
    let widths = WIDTHS.map(|width| vec![format!("-DHEAD={width}")]);
    let attention = widths.iter().map(|definitions| (&ATTENTION, ATTENTION_KERNELS, &definitions[..]));
    let others = SOURCES.iter().map(|(source, names)| (source, *names, &[][..]));
    let wanted: Vec<_> = attention.chain(others).collect();
    let each: Vec<_> = ARCHITECTURES.iter().flat_map(|compute| wanted.iter().map(move |of| (of, *compute))).collect();
    each.par_iter().try_for_each(|((source, names, definitions), compute)| {
        let image = image(source, *compute, definitions)?;
        let has = |name: &str| image.windows(name.len()).any(|window| window == name.as_bytes());
        match names.iter().find(|name| !has(name)) {
            None => Ok(()),
            Some(name) => {
                let architecture = format!("sm_{}{}", compute.0, compute.1);
                Err(GpuError::Compile { file: source.file, architecture, log: format!("there is no {name} in it") })
            }
        }
    })?;
    Ok(each.len())
}

/// One file with the given definitions, loaded.
pub(super) fn module(
    context: &Arc<CudaContext>,
    source: &Source,
    compute: (i32, i32),
    definitions: &[String],
) -> Result<Arc<CudaModule>, GpuError> {
    load(context, image(source, compute, definitions)?)
}

pub(super) fn find(module: &Arc<CudaModule>, name: &'static str) -> Result<CudaFunction, GpuError> {
    module.load_function(name).map_err(GpuError::driver("find a kernel"))
}

fn load(context: &Arc<CudaContext>, image: Vec<u8>) -> Result<Arc<CudaModule>, GpuError> {
    context.load_module(Ptx::from_binary(image)).map_err(GpuError::driver("load a kernel"))
}

/// Machine code of one file.
fn image(source: &Source, (major, minor): (i32, i32), definitions: &[String]) -> Result<Vec<u8>, GpuError> {
    let architecture = format!("sm_{major}{minor}");
    let mut options = vec![format!("--gpu-architecture={architecture}"), "--std=c++17".into()];
    options.extend(definitions.iter().cloned());
    compiled(source, &options).map_err(|log| GpuError::Compile { file: source.file, architecture, log })
}

/// Compiles with NVRTC; the error is the compiler's own text.
fn compiled(source: &Source, options: &[String]) -> Result<Vec<u8>, String> {
    let program = Program::new(source)?;
    // SAFETY: the program is open.
    match unsafe { result::compile_program(program.0, options) } {
        Ok(()) => program.image(),
        Err(error) => Err(format!("{error:?}\n{}", program.log())),
    }
}

/// An open NVRTC program.
struct Program(sys::nvrtcProgram);

impl Program {
    fn new(source: &Source) -> Result<Program, String> {
        let text = CString::new(source.text).expect("a kernel has no NUL");
        let name = CString::new(source.file).expect("a file name has no NUL");
        let prelude = CString::new(PRELUDE.text).expect("the prelude has no NUL");
        let prelude_name = CString::new(PRELUDE.file).expect("a file name has no NUL");
        let mut program = std::ptr::null_mut();
        // SAFETY: all strings end in NUL and outlive the call, which copies them; there is one header with its one name.
        let made = unsafe {
            let (headers, names) = ([prelude.as_ptr()], [prelude_name.as_ptr()]);
            sys::nvrtcCreateProgram(&mut program, text.as_ptr(), name.as_ptr(), 1, headers.as_ptr(), names.as_ptr())
        };
        made.result().map_err(|error| format!("NVRTC does not start: {error:?}"))?;
        Ok(Program(program))
    }

    fn image(&self) -> Result<Vec<u8>, String> {
        let mut size = 0;
        // SAFETY: the program is open and compiled; the buffer is as long as it was said to be.
        unsafe {
            sys::nvrtcGetCUBINSize(self.0, &mut size)
                .result()
                .map_err(|error| format!("no machine code: {error:?}"))?;
            let mut image = vec![0u8; size];
            let to = image.as_mut_ptr().cast::<c_char>();
            sys::nvrtcGetCUBIN(self.0, to).result().map_err(|error| format!("no machine code: {error:?}"))?;
            Ok(image)
        }
    }

    fn log(&self) -> String {
        // SAFETY: the program is open.
        let log = unsafe { result::get_program_log(self.0) }.unwrap_or_default();
        let bytes: Vec<u8> = log.into_iter().map(|c| c as u8).take_while(|c| *c != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: it is open, and closed here alone; a failure to close leaves nothing that could be done.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The compiler needs no GPU, but it has to be there: `cargo xtask gpu kit` brings it, in `target/gpu/kit/nvidia/cu13/lib`, which is
    /// what CUDA_LIB_DIR has to say. `check` has `lorikeet-gpu kernels` do the same.
    #[test]
    fn every_kernel_compiles_for_every_architecture_where_there_is_a_compiler() {
        if cuda_lazy::missing().iter().any(|missing| missing.library.starts_with("libnvrtc")) {
            return;
        }
        every_kernel().unwrap();
        let broken = Source { file: "broken.cu", text: "#include \"prelude.cuh\"\nKERNEL(f, float* x) { x[0] = y; }" };
        let error = image(&broken, (9, 0), &[]).unwrap_err().to_string();
        assert!(error.contains("broken.cu") && error.contains("\"y\" is undefined"), "{error}");
    }
}
