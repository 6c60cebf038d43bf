//! The guest that comes with the VMM.

/// Its image: a static ELF file with a PVH note, built by `vmm/build.rs`.
#[must_use]
pub fn image() -> &'static [u8] {
    include_bytes!(env!("GUEST_KERNEL_IMAGE"))
}

#[cfg(test)]
mod tests {
    use crate::boot::KernelImage;

    #[test]
    fn the_image_is_one_that_boots() {
        let image = super::image();
        assert!(KernelImage::embedded("built-in guest", image).is_ok());
        assert!(image.windows(4).any(|window| window == b"Xen\0"), "PVH note");
    }
}
