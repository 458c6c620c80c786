//! A hint to the processor: this cache line will be needed.
//!
//! The second of the two places with unsafe code (the other is `afpacket`), because the standard
//! library has no stable safe prefetch. A plain load does not do: it must retire before the
//! processor may run further ahead, so only a few table lines would be under way at once.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "the standard library has no stable safe prefetch")
)]

/// Starts loading the first cache line of `value`. Without effect where the target has no such hint.
#[inline(always)]
pub fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the function asks for SSE, which belongs to the baseline of x86-64. The instruction is a
    // hint that reads nothing into a register and cannot fault, whatever the address (Intel SDM
    // volume 2, PREFETCHh); here it is that of a valid reference besides.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}
