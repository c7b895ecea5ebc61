//! Writes what the linker needs in the place of NVIDIA's libraries: for every entry point in `symbols.txt` a jump through a
//! slot, a table of their names for `lib.rs`, and an empty archive for each `-l` that cudarc asks for.
//!
//! ```text
//! cuInit:  jmp *slot[i]        at first slot[i] is the next line; later the function itself
//!          push i
//!          jmp common          keeps every argument register, asks cuda_lazy_resolve(i), puts them back, jumps there
//! ```
//! So a call costs one indirect jump, takes any number of arguments, and a missing library is found out only by whoever
//! calls into it.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// How the entry points of each library begin, and its `-l` name; a longer beginning stands before one that it contains.
/// `lib.rs` counts libraries in this order.
const LIBRARIES: [(&str, &str); 5] =
    [("cublasLt", "cublasLt"), ("cublas", "cublas"), ("nvrtc", "nvrtc"), ("cu", "cuda"), ("nccl", "nccl")];

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=symbols.txt");
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
    let listing = fs::read_to_string("symbols.txt")?;
    let symbols: Vec<&str> = listing.split_whitespace().collect();
    fs::write(out.join("jumps.s"), jumps(&symbols))?;
    fs::write(out.join("names.rs"), names(&symbols))?;
    write_empty_archives(&out)?;
    println!("cargo:rustc-link-search=native={}", out.display());
    Ok(())
}

/// The table of slots, the jumps, and what all of them share.
fn jumps(symbols: &[&str]) -> String {
    let mut text = String::from(
        ".pushsection .data.rel,\"aw\",@progbits\n.p2align 3\n.globl cuda_lazy_slots\n.hidden cuda_lazy_slots\n\
         cuda_lazy_slots:\n.popsection\n.text\n.p2align 4\n",
    );
    for (i, symbol) in symbols.iter().enumerate() {
        let _ = write!(
            text,
            ".globl {symbol}\n.type {symbol},@function\n{symbol}: jmpq *cuda_lazy_slots+{slot}(%rip)\n\
             1: pushq ${i}\n jmp cuda_lazy_common\n\
             .pushsection .data.rel,\"aw\",@progbits\n.quad 1b\n.popsection\n",
            slot = 8 * i
        );
    }
    text + COMMON
}

/// System V: arguments travel in six general registers and eight vector registers, al counts the latter for variadic calls;
/// what does not fit lies on the stack, above the return address, and stays there untouched.
const COMMON: &str = "cuda_lazy_common:
 pushq %rbp
 movq %rsp, %rbp
 pushq %rdi
 pushq %rsi
 pushq %rdx
 pushq %rcx
 pushq %r8
 pushq %r9
 pushq %rax
 subq $136, %rsp
 andq $-16, %rsp
 movups %xmm0, (%rsp)
 movups %xmm1, 16(%rsp)
 movups %xmm2, 32(%rsp)
 movups %xmm3, 48(%rsp)
 movups %xmm4, 64(%rsp)
 movups %xmm5, 80(%rsp)
 movups %xmm6, 96(%rsp)
 movups %xmm7, 112(%rsp)
 movq 8(%rbp), %rdi
 call cuda_lazy_resolve
 movq %rax, %r11
 movups (%rsp), %xmm0
 movups 16(%rsp), %xmm1
 movups 32(%rsp), %xmm2
 movups 48(%rsp), %xmm3
 movups 64(%rsp), %xmm4
 movups 80(%rsp), %xmm5
 movups 96(%rsp), %xmm6
 movups 112(%rsp), %xmm7
 movq -8(%rbp), %rdi
 movq -16(%rbp), %rsi
 movq -24(%rbp), %rdx
 movq -32(%rbp), %rcx
 movq -40(%rbp), %r8
 movq -48(%rbp), %r9
 movq -56(%rbp), %rax
 movq %rbp, %rsp
 popq %rbp
 addq $8, %rsp
 jmpq *%r11
";

/// `(library, name)` of every slot.
fn names(symbols: &[&str]) -> String {
    let rows = symbols.iter().map(|symbol| {
        let library = LIBRARIES.iter().position(|(beginning, _)| symbol.starts_with(beginning));
        let library = library.unwrap_or_else(|| panic!("symbols.txt: {symbol} belongs to no known library"));
        format!("({library}, c\"{symbol}\"),\n")
    });
    let (count, rows) = (symbols.len(), rows.collect::<String>());
    format!("const COUNT: usize = {count};\nstatic NAMES: [(usize, &std::ffi::CStr); COUNT] = [\n{rows}];\n")
}

fn write_empty_archives(folder: &Path) -> io::Result<()> {
    LIBRARIES.iter().try_for_each(|(_, name)| fs::write(folder.join(format!("lib{name}.a")), "!<arch>\n"))
}
