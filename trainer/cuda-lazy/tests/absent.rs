//! A machine without CUDA, or one that is made to look so: every call returns an error code of its library.

use cuda_lazy::{Missing, in_words};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

unsafe extern "C" {
    fn cuInit(flags: c_uint) -> c_uint;
    fn cuDeviceGetCount(count: *mut c_int) -> c_uint;
    fn cublasCreate_v2(handle: *mut *mut c_void) -> c_uint;
    fn cublasGetStatusString(status: c_uint) -> *const c_char;
    fn ncclGetVersion(version: *mut c_int) -> c_uint;
    fn ncclGetErrorString(result: c_uint) -> *const c_char;
    fn nvrtcVersion(major: *mut c_int, minor: *mut c_int) -> c_uint;
}

#[test]
fn calls_into_absent_libraries_return_their_own_error_codes() {
    let missing = cuda_lazy::missing();
    let absent = |name: &str| missing.iter().any(|missing| missing.library == name);
    let mut count = 0;
    // SAFETY: the signatures are NVIDIA's; where a library is there, these calls are harmless.
    unsafe {
        if absent("libcuda.so.1") {
            assert_eq!((cuInit(0), cuDeviceGetCount(&mut count)), (100, 500));
            assert_eq!(cuInit(0), 100, "the second call goes through the slot");
        }
        if absent("libcublas.so.13") {
            assert_eq!(cublasCreate_v2(&mut std::ptr::null_mut()), 1);
            let words = CStr::from_ptr(cublasGetStatusString(1));
            assert_eq!(words.to_str(), Ok("the CUDA library is not present"));
        }
        if absent("libnvrtc.so.13") {
            assert_eq!(nvrtcVersion(&mut count, &mut count), 11);
        }
        if cuda_lazy::nccl_missing().is_some() {
            assert_eq!(ncclGetVersion(&mut count), 2);
            let words = CStr::from_ptr(ncclGetErrorString(2));
            assert_eq!(words.to_str(), Ok("the CUDA library is not present"));
        }
    }
}

#[test]
fn who_has_one_gpu_misses_no_nccl() {
    assert!(cuda_lazy::missing().iter().all(|missing| !missing.library.contains("nccl")));
    let words = cuda_lazy::nccl_missing().map(|missing| in_words(&[missing]));
    assert!(words.is_none_or(|words| words.starts_with("libnccl.so.2 is missing: it comes with NCCL")));
}

#[test]
fn what_is_missing_is_said_once_for_each_thing_that_brings_it() {
    let [driver, toolkit] = ["with a driver", "with a toolkit"];
    let missing = |library, remedy| Missing { library, remedy };
    assert_eq!(in_words(&[]), "");
    assert_eq!(
        in_words(&[missing("a.so", toolkit), missing("b.so", driver), missing("c.so", toolkit)]),
        "a.so, c.so are missing: they come with a toolkit; b.so is missing: it comes with a driver"
    );
}
