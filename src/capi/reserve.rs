//! A reserve for the moment when memory ends.
//!
//! Rust's own types (a name, a message, a list) end the host where an allocation fails. What a caller decides the size of
//! is allocated through [`crate::memory`], which reports it; everything else is small, and is served from here when
//! the system has no more. So the call comes to its end: with success, or with the OUT_OF_MEMORY of libtorch or of
//! [`crate::memory`], whose message and clean-up need memory too.
//!
//! It belongs to the shared library. A Rust program that uses the crate and has an allocator of its own turns the
//! feature `reserve` off.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr::{null_mut, NonNull};
use std::sync::{Mutex, PoisonError};

use linked_list_allocator::Heap;

/// Bytes of the reserve. They cost address space only: nothing is written there before memory ends.
const SIZE: usize = 8 << 20;
/// What is larger is not served: that is for [`crate::memory`] to report.
const LARGEST: usize = 1 << 20;

#[repr(align(64))]
struct Room(UnsafeCell<[u8; SIZE]>);

// SAFETY: reached through `HEAP` only, under its lock.
unsafe impl Sync for Room {}

static ROOM: Room = Room(UnsafeCell::new([0; SIZE]));
/// What is free of the room; made when first needed.
static HEAP: Mutex<Option<Heap>> = Mutex::new(None);

/// The system's allocator, then the reserve.
struct Reserve;

#[global_allocator]
static ALLOCATOR: Reserve = Reserve;

fn with_heap<T>(body: impl FnOnce(&mut Heap) -> T) -> T {
    let mut heap = HEAP.lock().unwrap_or_else(PoisonError::into_inner);
    body(heap.get_or_insert_with(|| {
        let mut heap = Heap::empty();
        // SAFETY: the room is ours alone, for as long as the program runs, and this happens once.
        unsafe { heap.init(ROOM.0.get().cast(), SIZE) };
        heap
    }))
}

fn from_reserve(layout: Layout) -> *mut u8 {
    if layout.size() > LARGEST {
        return null_mut();
    }
    with_heap(|heap| heap.allocate_first_fit(layout)).map_or(null_mut(), NonNull::as_ptr)
}

fn is_in_reserve(pointer: *mut u8) -> bool {
    pointer.addr().wrapping_sub(ROOM.0.get().addr()) < SIZE
}

// SAFETY: every block comes from the system's allocator or from the heap in the room, and goes back to where its
// address says that it came from, with the layout that it was made with.
unsafe impl GlobalAlloc for Reserve {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: passed on from the caller.
        let block = unsafe { System.alloc(layout) };
        if block.is_null() {
            return from_reserve(layout);
        }
        block
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: passed on from the caller.
        let block = unsafe { System.alloc_zeroed(layout) };
        if !block.is_null() {
            return block;
        }
        let block = from_reserve(layout);
        if !block.is_null() {
            // SAFETY: a new block of that size.
            unsafe { block.write_bytes(0, layout.size()) };
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match NonNull::new(block).filter(|_| is_in_reserve(block)) {
            // SAFETY: a block of the heap, with its layout.
            Some(block) => with_heap(|heap| unsafe { heap.deallocate(block, layout) }),
            // SAFETY: a block of the system's, with its layout.
            None => unsafe { System.dealloc(block, layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !is_in_reserve(block) {
            // SAFETY: a block of the system's, with its layout.
            let grown = unsafe { System.realloc(block, layout, size) };
            if !grown.is_null() {
                return grown;
            }
        }
        // SAFETY: the caller vouches for a size that makes a layout.
        let new = unsafe { self.alloc(Layout::from_size_align_unchecked(size, layout.align())) };
        if !new.is_null() {
            // SAFETY: both are valid for the smaller size, and the old block is one of this allocator's.
            unsafe {
                new.copy_from_nonoverlapping(block, layout.size().min(size));
                self.dealloc(block, layout);
            }
        }
        new
    }
}
