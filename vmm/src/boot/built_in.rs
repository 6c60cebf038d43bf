//! The guest that comes with the VMM.
#![expect(unsafe_code, reason = "madvise has no safe form")]

/// A static, so that there is one copy of it in the program, however many functions use it.
static IMAGE: &[u8] = include_bytes!(env!("GUEST_KERNEL_IMAGE"));

/// Its image: a static ELF file with a PVH note, built by `vmm/build.rs`.
#[must_use]
pub fn image() -> &'static [u8] {
    IMAGE
}

/// Gives the pages of the image back, once it has been loaded: a tenth of the VMM's resident memory otherwise. They
/// come again from the program's file when they are next read.
pub fn release() {
    const PAGE: usize = 4096;
    let bytes = image();
    let start = bytes.as_ptr() as usize;
    let (first, end) = (start.next_multiple_of(PAGE), (start + bytes.len()) / PAGE * PAGE);
    if first < end {
        let whole_pages = bytes.as_ptr().wrapping_add(first - start).cast_mut();
        // SAFETY: the image is a constant of bytes without relocations, which the linker puts into a read-only segment
        // of the program's file: nobody has written to these pages, so that reading them again gives the same.
        // Advice that is refused leaves them where they are.
        unsafe { libc::madvise(whole_pages.cast(), end - first, libc::MADV_DONTNEED) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::KernelImage;

    #[test]
    fn the_image_is_one_that_boots() {
        assert!(KernelImage::embedded("built-in guest", image()).is_ok());
        assert!(image().windows(4).any(|window| window == b"Xen\0"), "PVH note");
    }

    #[test]
    fn a_released_image_is_still_there() {
        let before = image().to_vec();
        release();
        assert!(image() == before, "the image has changed");
    }
}
