//! Hints to the processor and to the memory management: which cache line will be needed, which
//! tables want huge pages, which memory is to be there from the start.
//!
//! The second of the sensor's two places with unsafe code (the other is `afpacket`): the standard library has
//! no stable safe prefetch, and no boxed slice that begins on the border of a huge page.
#![expect(unsafe_code, reason = "the standard library has neither in a safe form")]

use std::alloc::{self, Layout};
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;

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

/// Has the system give the memory of this room now, and not when it is first used, so that what the process
/// takes does not grow under load.
pub fn take<T>(room: &mut [MaybeUninit<T>]) {
    room.fill_with(MaybeUninit::zeroed);
}

/// What the processor maps by one entry of its TLB where the system gives huge pages. Unit: bytes.
const HUGE_PAGE: usize = 2 << 20;

/// A table of fixed length, on huge pages where the system gives them.
///
/// A flood touches a random line for every packet. On pages of 4 KiB each such access misses the TLB
/// as well as the cache, and the prefetch of the line waits for the page walk. So a table begins on the border of
/// a huge page, and a rest of more than half a huge page gets a whole one; a smaller rest, and a table that is
/// smaller than that, lie on small pages.
pub struct Table<T> {
    start: NonNull<T>,
    len: usize,
}

// SAFETY: a table owns its values, as a `Box<[T]>` does, and gives them out by the same rules.
unsafe impl<T: Send> Send for Table<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Table<T> {}

impl<T: Copy> Table<T> {
    /// A table of so many copies of `value`.
    ///
    /// # Panics
    /// If it would be larger than any memory can be.
    #[must_use]
    pub fn new(len: usize, value: T) -> Self {
        let layout = Self::layout(len);
        if layout.size() == 0 {
            return Self { start: NonNull::dangling(), len };
        }
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc::alloc(layout) };
        let Some(start) = NonNull::new(memory.cast::<T>()) else {
            alloc::handle_alloc_error(layout)
        };
        if layout.align() == HUGE_PAGE {
            // SAFETY: the range is what was allocated, of which nothing was written yet; the kernel rounds it up
            // to whole small pages. MADV_HUGEPAGE changes neither contents nor protection, of these bytes nor of
            // others (madvise(2)). A system that refuses has its reasons; the table works without.
            let _ = unsafe { libc::madvise(memory.cast(), layout.size(), libc::MADV_HUGEPAGE) };
        }
        for index in 0..len {
            // SAFETY: the layout has room for `len` values, aligned as they need it or better, and `index` is
            // below that.
            unsafe { start.add(index).write(value) };
        }
        Self { start, len }
    }
}

impl<T> Table<T> {
    /// Memory of a table of so many values. Unit: bytes.
    ///
    /// # Panics
    /// If it would be larger than any memory can be.
    #[must_use]
    pub const fn memory(len: usize) -> usize {
        Self::layout(len).size()
    }

    const fn layout(len: usize) -> Layout {
        const { assert!(align_of::<T>() <= HUGE_PAGE) };
        let Ok(values) = Layout::array::<T>(len) else { panic!("a table larger than memory") };
        let (bytes, rest) = (values.size(), values.size() % HUGE_PAGE);
        let bytes = if rest <= HUGE_PAGE / 2 { bytes } else { bytes - rest + HUGE_PAGE };
        let align = if bytes < HUGE_PAGE { values.align() } else { HUGE_PAGE };
        match Layout::from_size_align(bytes, align) {
            Ok(layout) => layout,
            Err(_) => panic!("a table larger than memory"),
        }
    }
}

impl<T> Deref for Table<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `new` wrote `len` values from `start` on, which is aligned for them, and the table owns them
        // until it is dropped.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Table<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed for writing.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T> Drop for Table<T> {
    fn drop(&mut self) {
        let layout = Self::layout(self.len);
        if layout.size() > 0 {
            // SAFETY: `new` allocated it with the layout of the same length. The values are `Copy`, which needs
            // no drop.
            unsafe { alloc::dealloc(self.start.as_ptr().cast(), layout) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_holds_what_it_was_made_of_whatever_its_size() {
        for len in [0, 1, 511, 512, 4096, 1 << 20] {
            let mut table = Table::new(len, 0xa5_u32);
            assert_eq!(table.len(), len);
            assert!(table.iter().all(|value| *value == 0xa5));
            table.fill(0x5a);
            assert!(table.iter().all(|value| *value == 0x5a));
        }
    }

    #[test]
    fn a_table_begins_on_a_huge_page_and_has_a_whole_one_for_a_rest_of_more_than_half_of_it() {
        let lengths_and_bytes = [
            (100, 100),
            (HUGE_PAGE / 2, HUGE_PAGE / 2),
            (HUGE_PAGE / 2 + 1, HUGE_PAGE),
            (HUGE_PAGE, HUGE_PAGE),
            (HUGE_PAGE + 100, HUGE_PAGE + 100),
            (HUGE_PAGE * 5 / 2, HUGE_PAGE * 5 / 2),
            (HUGE_PAGE * 5 / 2 + 1, HUGE_PAGE * 3),
        ];
        for (len, bytes) in lengths_and_bytes {
            assert_eq!(Table::<u8>::memory(len), bytes, "length {len}");
            let start = Table::new(len, 0_u8).as_ptr().addr();
            assert!(bytes < HUGE_PAGE || start.is_multiple_of(HUGE_PAGE), "length {len}");
        }
    }
}
