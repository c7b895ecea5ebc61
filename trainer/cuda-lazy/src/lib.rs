//! NVIDIA's libraries, opened at first use, so that one binary starts everywhere.
//!
//! cudarc, linked in the ordinary way, would make a program that the loader refuses on a machine without CUDA. This crate
//! defines every entry point that cudarc names (`symbols.txt`) as a jump that finds the real function when it is first called
//! (`build.rs`). Where the library is absent the call returns an error code of that library instead, and [`missing`] says
//! which one it is. Exact sonames are opened, so that an older CUDA beside this one is never picked up by accident.
//!
//! Searched in order: where the loader looks, `$CUDA_LIB_DIR`, `$CUDA_HOME` and `$CUDA_PATH` (`lib64`, `lib`),
//! `/usr/local/cuda/lib64`. NCCL, which only jobs on several GPUs need ([`nccl_missing`]), is looked for beside `$CUDA_LIB_DIR` as well.
//!
//! `symbols.txt` is made again when cudarc changes, from its unpacked source; a name too many costs a few bytes, one that is
//! missing fails the link:
//! ```sh
//! for d in driver nvrtc cublas cublaslt nccl; do grep -ohE '\bfn (cu|nvrtc|nccl)[A-Za-z0-9_]+' src/$d/sys/mod.rs; done \
//!   | awk '{print $2}' | grep -v '^culib$' | LC_ALL=C sort -u > symbols.txt
//! ```

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!("the jumps of cuda-lazy are written for x86-64 Linux; leave the feature `cuda` off elsewhere");

use std::env;
use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

include!(concat!(env!("OUT_DIR"), "/names.rs"));
core::arch::global_asm!(include_str!(concat!(env!("OUT_DIR"), "/jumps.s")), options(att_syntax));

unsafe extern "C" {
    /// What each jump goes through, one per entry of `NAMES`.
    static cuda_lazy_slots: [AtomicPtr<c_void>; COUNT];
}

/// One of the libraries, in the order of `build.rs`.
#[derive(Debug, Clone, Copy)]
struct Library {
    soname: &'static CStr,
    /// How the names of those begin that are opened before it from the same place: what it would look for by bare name.
    first: Option<&'static str>,
}

const LIBRARIES: [Library; 5] = [
    Library { soname: c"libcublasLt.so.13", first: None },
    Library { soname: c"libcublas.so.13", first: Some("libcublasLt.so.13") },
    Library { soname: c"libnvrtc.so.13", first: Some("libnvrtc-builtins.so.13.") },
    Library { soname: c"libcuda.so.1", first: None },
    Library { soname: c"libnccl.so.2", first: None },
];
const CUBLAS_LT: usize = 0;
const CUBLAS: usize = 1;
const NVRTC: usize = 2;
const CUDA: usize = 3;
const NCCL: usize = 4;

/// From the folder of CUDA's libraries to that of NCCL's, where both came as Python wheels: `nvidia/cu13/lib`, `nvidia/nccl/lib`.
const NCCL_BESIDE: &str = "../../nccl/lib";

/// A library that this machine lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// Its file name.
    pub library: &'static str,
    /// What brings it: `with …`.
    pub remedy: &'static str,
}

/// The libraries that cannot be opened. Empty: CUDA may be used. NCCL is none of them: one GPU does without.
pub fn missing() -> Vec<Missing> {
    // Names the jumps, so that the linker takes them in before it looks at a libcuda.so that happens to lie about.
    std::hint::black_box(&raw const cuda_lazy_slots);
    (0..LIBRARIES.len()).filter(|library| *library != NCCL).filter_map(absent).collect()
}

/// NCCL, where it cannot be opened.
pub fn nccl_missing() -> Option<Missing> {
    absent(NCCL)
}

fn absent(library: usize) -> Option<Missing> {
    open(library).is_null().then(|| Missing { library: soname(library), remedy: remedy(library) })
}

/// Several of them in one sentence: `libcublas.so.13 and libnvrtc.so.13 are missing: they come with …`. Empty for none.
pub fn in_words(missing: &[Missing]) -> String {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for Missing { library, remedy } in missing {
        match groups.iter_mut().find(|(known, _)| known == remedy) {
            Some((_, libraries)) => libraries.push(library),
            None => groups.push((remedy, vec![library])),
        }
    }
    let sentence = |(remedy, libraries): &(&str, Vec<&str>)| {
        let (verb, pronoun) = if libraries.len() == 1 { ("is", "it comes") } else { ("are", "they come") };
        format!("{} {verb} missing: {pronoun} {remedy}", libraries.join(", "))
    };
    groups.iter().map(sentence).collect::<Vec<_>>().join("; ")
}

fn soname(library: usize) -> &'static str {
    LIBRARIES[library].soname.to_str().expect("sonames are ASCII")
}

fn remedy(library: usize) -> &'static str {
    match library {
        CUDA => "with NVIDIA's driver, version 580 or newer",
        NCCL => "with NCCL for CUDA 13: the package libnccl2, or the Python wheel nvidia-nccl-cu13",
        _ => "with the CUDA 13 libraries (where they lie in another folder, name it in CUDA_LIB_DIR)",
    }
}

/// The handle of a library, looked for once; null where it is absent.
fn open(library: usize) -> *mut c_void {
    static HANDLES: [OnceLock<usize>; LIBRARIES.len()] = [const { OnceLock::new() }; LIBRARIES.len()];
    let Library { soname, first } = LIBRARIES[library];
    let found = HANDLES[library].get_or_init(|| {
        let mut places = folders().into_iter();
        let handle = places.find_map(|folder| {
            if let Some(first) = first {
                load_all(&folder, first);
            }
            load(&folder, soname)
        });
        handle.unwrap_or_default()
    });
    *found as *mut c_void
}

/// Where libraries may lie; an empty name is the loader's own search.
fn folders() -> Vec<String> {
    let mut folders = vec![String::new()];
    if let Ok(folder) = env::var("CUDA_LIB_DIR") {
        let beside = format!("{folder}/{NCCL_BESIDE}");
        folders.extend([folder, beside]);
    }
    for home in ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(|name| env::var(name).ok()) {
        folders.extend([format!("{home}/lib64"), format!("{home}/lib")]);
    }
    folders.push("/usr/local/cuda/lib64".into());
    folders
}

/// Every library of a folder whose name begins so: which minor version it is the other one knows. In its own places the loader finds it.
fn load_all(folder: &str, beginning: &str) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| CString::new(entry.file_name().into_encoded_bytes()).ok());
    for name in names.filter(|name| name.to_bytes().starts_with(beginning.as_bytes())) {
        load(folder, &name);
    }
}

fn load(folder: &str, name: &CStr) -> Option<usize> {
    let name = name.to_str().ok()?;
    let path = if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") };
    let path = CString::new(path).ok()?;
    // SAFETY: the path is a C string that outlives the call; loading runs initialisers of NVIDIA's libraries, which is what
    // linking against them would have done as well.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    (!handle.is_null()).then_some(handle as usize)
}

// What a call returns where its library or the function in it is absent; each a status that the library itself may give.
extern "C" fn cublas_not_initialized() -> u32 {
    1
}
extern "C" fn nvrtc_internal_error() -> u32 {
    11
}
extern "C" fn nccl_system_error() -> u32 {
    2
}
extern "C" fn cuda_not_found() -> u32 {
    500
}
extern "C" fn cuda_no_device() -> u32 {
    100
}
extern "C" fn words() -> *const c_char {
    c"the CUDA library is not present".as_ptr()
}

fn stand_in(library: usize, name: &str) -> *const c_void {
    match (library, name) {
        (CUDA, "cuInit") => cuda_no_device as *const c_void,
        (CUBLAS_LT | CUBLAS, name) if name.ends_with("String") || name.ends_with("StatusName") => {
            words as *const c_void
        }
        (NVRTC, "nvrtcGetErrorString") | (NCCL, "ncclGetErrorString" | "ncclGetLastError") => words as *const c_void,
        (CUBLAS_LT | CUBLAS, _) => cublas_not_initialized as *const c_void,
        (NVRTC, _) => nvrtc_internal_error as *const c_void,
        (NCCL, _) => nccl_system_error as *const c_void,
        _ => cuda_not_found as *const c_void,
    }
}

/// Called by the jumps, once for each entry point: finds the function and puts it into its slot.
#[unsafe(no_mangle)]
extern "C" fn cuda_lazy_resolve(slot: usize) -> *const c_void {
    let (library, name) = NAMES[slot];
    let handle = open(library);
    // SAFETY: the handle came from dlopen and is never closed; the name is a C string.
    let found = if handle.is_null() { std::ptr::null_mut() } else { unsafe { libc::dlsym(handle, name.as_ptr()) } };
    let function = if found.is_null() {
        stand_in(library, name.to_str().expect("entry points are ASCII"))
    } else {
        found.cast_const()
    };
    // SAFETY: the assembly defines one pointer-sized, aligned, writable slot per name; they are only read by jumps and
    // written here, whole.
    unsafe { cuda_lazy_slots[slot].store(function.cast_mut(), Ordering::Release) };
    function
}
