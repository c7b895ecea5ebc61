//! A library that is there: found through CUDA_LIB_DIR, and every argument arrives, in registers and on the stack.

use std::ffi::{c_float, c_int, c_uint};
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

unsafe extern "C" {
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
    let folder = tempfile::tempdir().unwrap();
    let (source, library) = (folder.path().join("cuda.c"), folder.path().join("libcuda.so.1"));
    std::fs::write(&source, LIBRARY).unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    assert!(built.expect("cc links Rust programs, so it is here").success());
    // SAFETY: no other thread of this test program is at work yet.
    unsafe { std::env::set_var("CUDA_LIB_DIR", folder.path()) };
    if std::path::Path::new("/proc/driver/nvidia").exists() {
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
    }
}
