//! Kernels for tests: hand-made PVH images around a few bytes of 32-bit code.

/// Where the code of a [`pvh_image`] is, and begins.
pub(crate) const CODE_AT: u32 = 0x20_0000;

/// An ELF image whose one segment, at [`CODE_AT`], is `segment`; its PVH note points to the first byte of it.
pub(crate) fn pvh_image(segment: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 64 + 2 * 56];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &2u16.to_le_bytes());
    put(18, &62u16.to_le_bytes());
    put(24, &u64::from(CODE_AT).to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &2u16.to_le_bytes());
    let note_at = 64 + 2 * 56;
    let note_size = 20;
    for (at, kind, offset, size) in [
        (64, 1u32, note_at + note_size, segment.len() as u64),
        (64 + 56, 4, note_at, note_size),
    ] {
        put(at, &kind.to_le_bytes());
        put(at + 8, &offset.to_le_bytes());
        put(at + 24, &u64::from(CODE_AT).to_le_bytes());
        put(at + 32, &size.to_le_bytes());
        put(at + 40, &size.to_le_bytes());
    }
    for word in [4u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), CODE_AT] {
        image.extend(word.to_le_bytes());
    }
    image.extend(segment);
    image
}
