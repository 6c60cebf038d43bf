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

/// The executable with all of its programs, which is part of the image: the section `.guest_programs`. `None` if there is no such
/// section, which the linker script of the image sees to.
#[must_use]
pub fn programs() -> Option<&'static [u8]> {
    section(image(), b".guest_programs")
}

/// The contents of a section of an ELF64 file (gABI, chapter 4).
fn section<'a>(file: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    const HEADER: usize = 64;
    let number = |at: usize, len: usize| {
        let bytes = file.get(at..at.checked_add(len)?)?;
        let value = bytes
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte));
        usize::try_from(value).ok()
    };
    let (table, nr, names) = (number(40, 8)?, number(60, 2)?, number(62, 2)?);
    let header = |index: usize| (index < nr).then_some(table + index * HEADER);
    let contents = |header: usize| {
        let (start, len) = (number(header + 24, 8)?, number(header + 32, 8)?);
        file.get(start..start.checked_add(len)?)
    };
    let names = contents(header(names)?)?;
    let is_named = |header: &usize| {
        let rest = number(*header, 4).and_then(|at| names.get(at..));
        rest.and_then(|rest| rest.split(|byte| *byte == 0).next()) == Some(name)
    };
    contents((0..nr).filter_map(header).find(is_named)?)
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
    fn the_programs_are_an_executable_of_their_own_in_the_image() {
        let programs = programs().unwrap();
        assert!(programs.starts_with(b"\x7fELF\x02\x01\x01") && programs.len().is_multiple_of(8));
        // Each is known by its name, which the executable compares its first word with.
        for name in guest_programs::NAMES {
            let is_there = programs.windows(name.len()).any(|bytes| bytes == name.as_bytes());
            assert!(is_there, "{name}");
        }
        assert_eq!(section(image(), b".guest"), None);
        assert_eq!(section(&image()[..1000], b".text"), None);
    }

    #[test]
    fn a_released_image_is_still_there() {
        let before = image().to_vec();
        release();
        assert!(image() == before, "the image has changed");
    }
}
