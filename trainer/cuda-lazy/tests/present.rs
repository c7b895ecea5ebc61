//! A library that is there: found through CUDA_LIB_DIR, and every argument arrives, in registers and on the stack.

use std::ffi::{c_float, c_int, c_uint};
use std::path::Path;
use std::process::Command;

/// Entry points of NVIDIA's with signatures of our own: all that matters is the way there.
const LIBRARY: &str = r"
int cuInit(unsigned flags) { return flags == 7 ? 42 : -1; }
int cuLaunchKernel(int a, int b, int c, int d, int e, int f, int g, int h, int i, int j, int k) {
  return a + 2*b + 3*c + 4*d + 5*e + 6*f + 7*g + 8*h + 9*i + 10*j + 11*k;
}
float cuMemFree_v2(float a, double b, float c, float d, float e, float f, float g, float h) {
  return a + 2*b + 3*c + 4*d + 5*e + 6*f + 7*g + 8*h;
}
";

const NCCL: &str = r"int ncclGetVersion(int *version) { return *version = 23000, 0; }";

/// As the real one it looks for the other half of it by bare name, in the minor version of the day.
const NVRTC: &str = r#"
#include <dlfcn.h>
int nvrtcVersion(int *major, int *minor) {
  return *major = 13, *minor = 4, !dlopen("libnvrtc-builtins.so.13.4", RTLD_NOW | RTLD_LOCAL);
}
"#;

unsafe extern "C" {
    fn nvrtcVersion(major: *mut c_int, minor: *mut c_int) -> c_int;
    fn ncclGetVersion(version: *mut c_int) -> c_int;
    fn ncclCommAbort() -> c_uint;
    fn cuInit(flags: c_uint) -> c_int;
    #[rustfmt::skip]
    fn cuLaunchKernel(
        a: c_int,
        b: c_int,
        c: c_int,
        d: c_int,
        e: c_int,
        f: c_int,
        g: c_int,
        h: c_int,
        i: c_int,
        j: c_int,
        k: c_int,
    ) -> c_int;
    #[rustfmt::skip]
    fn cuMemFree_v2(
        a: c_float,
        b: f64,
        c: c_float,
        d: c_float,
        e: c_float,
        f: c_float,
        g: c_float,
        h: c_float,
    ) -> c_float;
    fn cuMemAlloc_v2() -> c_uint;
}

#[test]
fn every_argument_arrives_and_an_absent_function_is_an_error_code() {
    // as Python wheels lie: CUDA's libraries in one folder, NCCL beside it in another
    let wheels = tempfile::tempdir().unwrap();
    let folder = wheels.path().join("cu13/lib");
    build(&folder.join("libcuda.so.1"), LIBRARY);
    build(&folder.join("libnvrtc-builtins.so.13.4"), "int builtins;");
    build(&folder.join("libnvrtc.so.13"), NVRTC);
    build(&wheels.path().join("nccl/lib/libnccl.so.2"), NCCL);
    // SAFETY: no other thread of this test program is at work yet.
    unsafe { std::env::set_var("CUDA_LIB_DIR", &folder) };
    if Path::new("/proc/driver/nvidia").exists() {
        return; // the loader finds the real library first, as it should
    }
    assert!(cuda_lazy::missing().iter().all(|missing| missing.library != "libcuda.so.1"));
    // SAFETY: the signatures are those of the library above.
    unsafe {
        for _ in 0..2 {
            assert_eq!(cuInit(7), 42);
            assert_eq!(cuLaunchKernel(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11), (1..12).map(|i| i * i).sum::<i32>());
            assert_eq!(cuMemFree_v2(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0), 204.0);
            assert_eq!(cuMemAlloc_v2(), 500);
        }
        let mut version = 0;
        assert_eq!((nvrtcVersion(&mut 0, &mut version), version), (0, 4));
        assert_eq!((ncclGetVersion(&mut version), version, ncclCommAbort()), (0, 23000, 2));
    }
    assert_eq!(cuda_lazy::nccl_missing(), None);
}

fn build(library: &Path, text: &str) {
    let source = library.with_extension("c");
    let folder = library.parent().expect("it lies in a folder");
    std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&source, text)).expect("written");
    let name = library.file_name().and_then(|name| name.to_str()).expect("a name in ASCII");
    let soname = format!("-Wl,-soname,{name}");
    let built = Command::new("cc").args(["-shared", "-fPIC", &soname, "-o"]).args([library, &source]).status();
    assert!(built.expect("cc links Rust programs, so it is here").success());
}
