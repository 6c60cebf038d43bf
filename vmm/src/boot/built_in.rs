//! The guest that comes with the VMM.

/// Its image: a static ELF file with a PVH note.
#[must_use]
pub fn image() -> &'static [u8] {
    &[]
}
