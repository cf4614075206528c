//! What all fuzz targets share: an account of the memory that an input takes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// An input may take so much for each of its bytes, and so much besides.
const BYTES_PER_BYTE: usize = 64;
/// See [`BYTES_PER_BYTE`].
const BYTES_BESIDES: usize = 4 << 20;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Runs a target, and panics if it takes more memory than so many bytes deserve.
pub fn bounded(input: &[u8], target: impl FnOnce(&[u8])) {
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    target(input);
    let peak = PEAK.load(Ordering::Relaxed).saturating_sub(before);
    let allowed = BYTES_BESIDES + BYTES_PER_BYTE * input.len();
    assert!(
        peak <= allowed,
        "{} bytes of input took {peak} bytes of memory, {allowed} are allowed",
        input.len()
    );
}
