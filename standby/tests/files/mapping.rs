//! Writing to a file without a system call.

#![expect(
    unsafe_code,
    reason = "a mapping is memory that the kernel gives, and no safe call writes through it"
)]

use std::ffi::c_void;
use std::fs::File;

use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};

/// How much of a file is mapped, from its beginning.
const LENGTH: usize = 4096;

/// The first page of a file, shared with all who read it.
pub(crate) struct Mapping(*mut c_void);

impl Mapping {
    pub(crate) fn new(file: &File) -> Self {
        assert!(file.metadata().unwrap().len() >= LENGTH as u64);
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: the kernel chooses the place, and nothing else knows of it.
        let place = unsafe { mmap(std::ptr::null_mut(), LENGTH, protection, flags, file, 0) };
        Self(place.unwrap())
    }

    pub(crate) fn write(&self, offset: usize, byte: u8) {
        assert!(offset < LENGTH);
        // SAFETY: it lies within what is mapped for as long as this value lives.
        unsafe { self.0.cast::<u8>().add(offset).write_volatile(byte) };
    }

    pub(crate) fn sync(&self) {
        // SAFETY: it is mapped for as long as this value lives.
        unsafe { msync(self.0, LENGTH, MsyncFlags::SYNC) }.unwrap();
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nothing refers to it any more.
        unsafe { munmap(self.0, LENGTH) }.unwrap();
    }
}
