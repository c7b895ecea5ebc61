//! Intel's AMX: eight tile registers of sixteen rows of 64 bytes, and an instruction that multiplies two of them into a third.
//!
//! Four tiles hold 32 × 32 sums; each step loads two tiles of either operand and multiplies every one of the left with every
//! one of the right. The language knows no tile registers: they are used inside of one `asm!` alone, from loading to storing. Around many of
//! those stands [`Tiles`], the configuration of this thread. The kernel gives tiles to processes that ask for them; one that is
//! refused, or a processor without them, goes on with what `tile.rs` has otherwise.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::OnceLock;

use super::pack::Step;

/// Tiles of sixteen rows of 64 bytes are configured on this thread as long as this lives.
#[derive(Debug)]
pub(super) struct Tiles {
    /// It must not leave the thread.
    here: PhantomData<*const ()>,
}

thread_local! {
    /// How many [`Tiles`] live here: work that waits may run other work that takes them too.
    static LIVING: Cell<usize> = const { Cell::new(0) };
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static SHAPES: Shapes = {
    let (mut row_bytes, mut rows, mut tile) = ([0; 16], [0; 16], 0);
    while tile < 8 {
        (row_bytes[tile], rows[tile]) = (64, 16);
        tile += 1;
    }
    Shapes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
};

impl Tiles {
    /// None without AMX, or without the kernel's permission.
    pub(super) fn take() -> Option<Tiles> {
        static USABLE: OnceLock<bool> = OnceLock::new();
        if !USABLE.get_or_init(|| super::tile::has_bf16() && has_amx() && permitted()) {
            return None;
        }
        LIVING.set(LIVING.get() + 1);
        // SAFETY: there are tiles and we may use them; 64 bytes of valid shapes are read
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const SHAPES, options(nostack, readonly, preserves_flags)) };
        Some(Tiles { here: PhantomData })
    }

    /// # Safety
    /// As [`super::tile::Block::put`]; as many steps on the left as on the right.
    pub(super) unsafe fn put(&self, left: &[Step], right: &[Step], add: bool, to: *mut f32, stride: usize) {
        debug_assert_eq!(left.len(), right.len());
        // SAFETY: tiles are configured while `self` lives; each of the `left.len()` steps reads 2,048 bytes of either slice, from
        // its beginning on; `to` is 32 rows of 128 bytes by the caller's promise, and prefetching never faults. Only registers
        // named here are changed
        unsafe {
            asm!(
                "test {add:e}, {add:e}",
                "jz 2f",
                "tileloadd tmm0, [{to} + 1*{stride}]",
                "tileloadd tmm1, [{to} + 1*{stride} + 64]",
                "tileloadd tmm2, [{below} + 1*{stride}]",
                "tileloadd tmm3, [{below} + 1*{stride} + 64]",
                "jmp 3f",
                "2:",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "3:",
                "test {steps}, {steps}",
                "jz 5f",
                "4:",
                "tileloadd tmm4, [{left} + 1*{row}]",
                "tileloadd tmm6, [{right} + 1*{row}]",
                "tileloadd tmm7, [{right} + 1*{row} + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{left} + 1*{row} + 1024]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "add {left}, 2048",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "add {right}, 2048",
                "tdpbf16ps tmm3, tmm5, tmm7",
                // two rows of results a step: they are far away, and each on a page of its own
                "prefetchw [{ahead}]",
                "prefetchw [{ahead} + 64]",
                "prefetchw [{ahead} + {stride}]",
                "prefetchw [{ahead} + {stride} + 64]",
                "lea {ahead}, [{ahead} + 2 * {stride}]",
                "dec {steps}",
                "jnz 4b",
                "5:",
                "tilestored [{to} + 1*{stride}], tmm0",
                "tilestored [{to} + 1*{stride} + 64], tmm1",
                "tilestored [{below} + 1*{stride}], tmm2",
                "tilestored [{below} + 1*{stride} + 64], tmm3",
                add = in(reg) u32::from(add),
                to = in(reg) to,
                below = in(reg) to.wrapping_add(16 * stride),
                ahead = inout(reg) to => _,
                stride = in(reg) 4 * stride,
                row = in(reg) 64usize,
                left = inout(reg) left.as_ptr() => _,
                right = inout(reg) right.as_ptr() => _,
                steps = inout(reg) left.len() => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        LIVING.set(LIVING.get() - 1);
        if LIVING.get() == 0 {
            // SAFETY: there are tiles, and no other `Tiles` needs them here
            unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
        }
    }
}

/// Whether processor and kernel know of tiles and their products of brain floats.
fn has_amx() -> bool {
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    if __cpuid(0).eax < 7 {
        return false;
    }
    let edx = __cpuid_count(7, 0).edx;
    edx & BF16 != 0 && edx & TILE != 0
}

/// Asks the kernel for the tiles' state, for this process.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XTILEDATA: usize = 18;
    let answer: isize;
    // SAFETY: a system call that takes two numbers; it changes rax, rcx and r11. A kernel that does not know it says so
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => answer,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    answer == 0
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}
