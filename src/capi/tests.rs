//! What C can do to the boundary, in memory that ends where the caller's does: Miri (`make test-miri`) sees any access beside it,
//! and any read of what nobody has written.

use std::alloc::{alloc, dealloc, Layout};
use std::thread;

use super::boundary::{self, versioned, write_versioned, Array, Need, OutSlice, Versioned};
use super::handles;
use super::types::{
    diffusion_config, diffusion_job, diffusion_parameter, diffusion_process, diffusion_sample_params,
};
use super::{inference, info, jobs, lifecycle, status};
use crate::engine::lone_job;
use crate::{Error, Result};

/// Exactly so many bytes at an address that is a multiple of 8 plus `shift`, unwritten but for what the test writes.
struct Memory {
    block: *mut u8,
    layout: Layout,
    shift: usize,
}

impl Memory {
    fn new(size: usize, shift: usize) -> Self {
        let layout = Layout::from_size_align(size + shift, 8).expect("a layout");
        // SAFETY: the layout's size is not 0.
        Memory { block: unsafe { alloc(layout) }, layout, shift }
    }

    fn pointer<T>(&self) -> *mut T {
        // SAFETY: within the block.
        unsafe { self.block.add(self.shift) }.cast()
    }

    /// A struct of `size` bytes as its caller has filled it: zeros, and the size.
    fn of_struct(size: usize, shift: usize) -> Self {
        let memory = Memory::new(size, shift);
        // SAFETY: `size` bytes are there, four at least.
        unsafe {
            memory.pointer::<u8>().write_bytes(0, size);
            memory.pointer::<u32>().write_unaligned(size as u32);
        }
        memory
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: what `new` allocated.
        unsafe { dealloc(self.block, self.layout) }
    }
}

/// Reads and writes a struct of every size that a caller may know, and some that none may.
fn every_size<T: Versioned>() {
    let whole = size_of::<T>();
    let mut accepted = 0;
    for size in (4..=whole + 40).step_by(4) {
        for shift in [0, 1] {
            let memory = Memory::of_struct(size, shift);
            let fits = size >= T::LEAST && size % 8 == 0;
            // SAFETY: as long as its first field says.
            let read = unsafe { versioned("it", memory.pointer::<T>().cast_const()) };
            assert_eq!(read.is_ok(), fits, "{size} bytes of {}", T::NAME);
            // SAFETY: as above.
            let written = unsafe { write_versioned("it", memory.pointer::<T>(), T::defaults()) };
            assert_eq!(written.is_ok(), fits, "{size} bytes of {}", T::NAME);
            // SAFETY: as above.
            assert_eq!(unsafe { memory.pointer::<u32>().read_unaligned() }, size as u32);
            accepted += u32::from(fits);
            if size > whole && fits {
                // SAFETY: the last byte of the struct.
                unsafe { memory.pointer::<u8>().add(size - 1).write(1) };
                // SAFETY: as above.
                let tail = unsafe { versioned("it", memory.pointer::<T>().cast_const()) };
                assert!(matches!(tail, Err(Error::InvalidArgument(_))), "a tail that is not zero");
            }
        }
    }
    assert!(accepted > 0);
    // Four bytes are all that may be looked at of a size that cannot be.
    for size in [0u32, 3, 1 << 17, u32::MAX, u32::MAX - 7] {
        let memory = Memory::new(4, 0);
        // SAFETY: four bytes are there.
        unsafe { memory.pointer::<u32>().write(size) };
        // SAFETY: the size is refused before more is read.
        assert!(unsafe { versioned("it", memory.pointer::<T>().cast_const()) }.is_err());
    }
    // SAFETY: NULL is allowed.
    assert!(matches!(unsafe { versioned("it", std::ptr::null::<T>()) }, Err(Error::NullPointer(..))));
}

#[test]
fn structs_of_every_size() {
    every_size::<diffusion_config>();
    every_size::<diffusion_sample_params>();
    every_size::<diffusion_parameter>();
}

/// Fails unless the last error of this thread has a message.
fn refused(status: i32) {
    assert_ne!(status, status::DIFFUSION_OK);
    // SAFETY: never NULL.
    let message = unsafe { std::ffi::CStr::from_ptr(info::diffusion_last_error_message()) };
    assert!(!message.is_empty());
}

#[test]
fn configs_of_every_size_through_the_abi() {
    let whole = size_of::<diffusion_config>();
    for size in (8..=whole + 16).step_by(8) {
        let memory = Memory::of_struct(size, 0);
        let mut process = std::ptr::null_mut::<diffusion_process>();
        // SAFETY: as long as it says; zeros make no process, whatever the size.
        refused(unsafe { lifecycle::diffusion_create(memory.pointer(), &mut process) });
        assert!(process.is_null());
        // SAFETY: as above; no live handle.
        refused(unsafe {
            inference::diffusion_sample_with(process, memory.pointer(), std::ptr::null_mut(), 0)
        });
    }
    let memory = Memory::new(whole, 0);
    // SAFETY: room for a config, of which init writes every byte.
    assert_eq!(unsafe { lifecycle::diffusion_config_init(memory.pointer()) }, 0);
    for at in 0..whole {
        // SAFETY: a byte of the config.
        let _written = unsafe { memory.pointer::<u8>().add(at).read() };
    }
}

#[test]
fn arrays_are_looked_at_when_they_are_what_they_must_be() {
    let memory = Memory::new(12, 0);
    // SAFETY: three floats are there.
    unsafe { memory.pointer::<f32>().write_bytes(0, 3) };
    let array = |pointer: *const f32, len| Array { name: "x", pointer, length: "x_len", len };
    let need = Need::new(3, "three");
    let read = |pointer, len| -> Result<Vec<f32>> {
        // SAFETY: what is not refused is three floats long.
        unsafe { boundary::input(array(pointer, len), &need) }
    };
    assert_eq!(read(memory.pointer(), 3), Ok(vec![0.0; 3]));
    for len in [0, 2, 4, usize::MAX, usize::MAX / 4 + 1] {
        assert!(matches!(read(memory.pointer(), len), Err(Error::BufferSize { .. })));
    }
    assert!(read(std::ptr::null(), 3).is_err());
    // SAFETY: within the block.
    let odd = unsafe { memory.pointer::<u8>().add(1) }.cast::<f32>().cast_const();
    assert!(matches!(read(odd, 3), Err(Error::InvalidArgument(_))));
    // SAFETY: three floats are there.
    let out = unsafe { OutSlice::new(array(memory.pointer::<f32>(), 3), &need) }.expect("an array");
    out.write(&[1.0, 2.0, 3.0]);
    assert_eq!(read(memory.pointer(), 3), Ok(vec![1.0, 2.0, 3.0]));
}

/// Found by fuzzing: a name out of a file broke the message's line.
#[test]
fn a_message_is_one_line_whatever_is_quoted() {
    let status = boundary::call(|| Err(Error::format("a\nb", "c\0d\u{1b}[31m is 1: must be é")));
    assert_eq!(status, status::DIFFUSION_ERROR_FORMAT);
    // SAFETY: never NULL.
    let message = unsafe { std::ffi::CStr::from_ptr(info::diffusion_last_error_message()) };
    assert_eq!(message.to_str(), Ok("a\\nb: c\\u{0}d\\u{1b}[31m is 1: must be é"));
}

/// No bits but those of a live handle lead anywhere.
#[test]
fn made_up_handles_are_not_found() {
    let mut tried = 0u32;
    let mut state = 1u64;
    let mut try_bits = |bits: u64| {
        let pointer = std::ptr::without_provenance_mut::<()>(bits as usize);
        assert!(matches!(handles::process(pointer.cast()), Err(Error::InvalidHandle(_))), "{bits:#x}");
        assert!(matches!(handles::job(pointer.cast()), Err(Error::InvalidHandle(_))), "{bits:#x}");
        tried += 1;
    };
    for bit in 0..64 {
        try_bits(1 << bit);
        try_bits(!(1 << bit));
    }
    for _ in 0..200 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        try_bits(state);
    }
    assert_eq!(tried, 328);
}

#[test]
fn a_handle_is_one_things_and_ends_once() {
    let job = handles::add_job(lone_job());
    // Another type's handle, and one bit off.
    assert!(handles::process(job.cast::<diffusion_process>()).is_err());
    assert!(handles::take_process(job.cast::<diffusion_process>()).is_err());
    for bit in 0..64 {
        let bits = job.addr() ^ (1usize << bit);
        assert!(handles::job(std::ptr::without_provenance::<diffusion_job>(bits)).is_err(), "bit {bit}");
    }
    assert!(handles::job(job).is_ok());
    assert!(handles::take_job(job).is_ok());
    assert!(handles::job(job).is_err());
    assert!(handles::take_job(job).is_err());
    // The place in the table is used again, the key is not.
    let next = handles::add_job(lone_job());
    assert_ne!(next, job);
    assert!(handles::job(job).is_err());
    assert!(handles::take_job(next).is_ok());
}

#[test]
fn a_handle_that_several_threads_end_is_ended_by_one() {
    let job = handles::add_job(lone_job()).addr();
    let ended: usize = thread::scope(|scope| {
        let threads: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(move || {
                    let job = std::ptr::without_provenance_mut::<diffusion_job>(job);
                    let mut state = -1;
                    // SAFETY: valid for a write.
                    let polled = unsafe { jobs::diffusion_job_poll(job, &mut state) };
                    assert_eq!(polled == 0, state >= 0);
                    usize::from(jobs::diffusion_job_destroy(job) == 0)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
    });
    assert_eq!(ended, 1);
}
