//! Little-endian fields at fixed offsets of fixed-size byte arrays.
//!
//! Every structure of this crate is encoded and decoded through these functions instead of by casting memory:
//! both ends stay in safe code, and neither alignment nor the compiler's layout can creep into the wire format.
//! Offsets are constants of the structure at hand, never values from the other side.

/// Copies `N` bytes from `offset` of a wire structure.
fn bytes_at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    core::array::from_fn(|i| bytes[offset + i])
}

pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(bytes_at(bytes, offset))
}

pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes_at(bytes, offset))
}

pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes_at(bytes, offset))
}

/// Writes the bytes of one field (from `to_le_bytes`) at `offset` of a wire structure.
pub(crate) fn put<const N: usize>(bytes: &mut [u8], offset: usize, field: [u8; N]) {
    bytes[offset..offset + N].copy_from_slice(&field);
}
