//! Hints to the processor and to the memory management: which cache line will be needed, which
//! tables want huge pages.
//!
//! The second of the two places with unsafe code (the other is `afpacket`): the standard library has
//! no stable safe prefetch, and no way to ask for huge pages. Nothing here changes a value.
#![expect(unsafe_code, reason = "the standard library has neither hint in a safe form")]

use std::mem::MaybeUninit;

/// Starts loading the first cache line of `value`. Without effect where the target has no such hint.
///
/// A plain load does not do: it must retire before the processor may run further ahead, so only a
/// few table lines would be under way at once.
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

/// A table of `len` copies of `value`, on huge pages where the system gives them.
///
/// A flood touches a random line for every packet. On pages of 4 KiB each such access misses the TLB
/// as well as the cache, and the prefetch of the line waits for the page walk.
#[must_use]
pub fn table<T: Clone>(len: usize, value: T) -> Box<[T]> {
    let mut table = Vec::with_capacity(len);
    // Before the first write: pages that are there already stay as they are.
    ask_for_huge_pages(table.spare_capacity_mut());
    table.resize(len, value);
    table.into_boxed_slice()
}

/// Asks for huge pages for the whole pages of `memory`. A system that refuses has its reasons; the
/// table works without.
fn ask_for_huge_pages<T>(memory: &mut [MaybeUninit<T>]) {
    const PAGE_BYTES: usize = 4096;
    let bytes = std::mem::size_of_val(memory);
    let start = memory.as_mut_ptr().cast::<u8>();
    let skipped = start.align_offset(PAGE_BYTES);
    let Some(whole) = bytes.checked_sub(skipped).map(|rest| rest / PAGE_BYTES * PAGE_BYTES) else {
        return;
    };
    // SAFETY: the range lies in memory that this function has the only reference to. MADV_HUGEPAGE
    // changes neither its contents nor its protection (madvise(2)); a range that the kernel does not
    // like, such as one that a larger page size leaves unaligned, is refused with an error.
    let _ =
        unsafe { libc::madvise(start.wrapping_add(skipped).cast(), whole, libc::MADV_HUGEPAGE) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_holds_what_it_was_made_of_whatever_its_size() {
        for len in [0, 1, 511, 512, 4096, 1 << 20] {
            let table = table(len, 0xa5_u32);
            assert_eq!(table.len(), len);
            assert!(table.iter().all(|value| *value == 0xa5));
        }
    }
}
