//! Two facts out of a DSDT, found by how the compiler encodes them (ACPI 6.5, chapter 20).

/// AML opcodes and resource tags.
const NAME_OP: u8 = 0x08;
const BYTE_PREFIX: u8 = 0x0a;
const STRING_PREFIX: u8 = 0x0d;
const PACKAGE_OP: u8 = 0x12;
const EXT_PREFIX: u8 = 0x5b;
const DEVICE_OP: u8 = 0x82;
/// Small resource item "I/O port descriptor" with 7 bytes behind it (section 6.4.2.5).
const IO_PORT_TAG: u8 = 0x47;

/// The SLP_TYP of soft off: the first element of `Name (_S5, Package () { ... })`.
pub(super) fn sleep_type(dsdt: &[u8]) -> Option<u8> {
    let name = find(dsdt, b"_S5_")?;
    let is_name = dsdt[..name].ends_with(&[NAME_OP]) || dsdt[..name].ends_with(&[NAME_OP, b'\\']);
    let package = dsdt[name + 4..].strip_prefix(&[PACKAGE_OP]).filter(|_| is_name)?;
    let (_, elements) = package_contents(package)?;
    match *elements.get(1..)? {
        [BYTE_PREFIX, value, ..] => Some(value),
        [value @ (0 | 1), ..] => Some(value), // ZeroOp and OneOp encode themselves.
        _ => None,
    }
}

/// The first I/O port of the device whose `_HID` is the string `hid`.
pub(super) fn port_of_device(dsdt: &[u8], hid: &[u8]) -> Option<u16> {
    let mut rest = dsdt;
    while let Some(at) = find(rest, &[EXT_PREFIX, DEVICE_OP]) {
        rest = &rest[at + 2..];
        let Some((len, body)) = package_contents(rest) else {
            continue;
        };
        let body = &body[..len.min(body.len())];
        let Some(name) = find(body, hid) else { continue };
        if !body[..name].ends_with(&[STRING_PREFIX]) {
            continue;
        }
        let port = body
            .windows(8)
            .find(|item| item[0] == IO_PORT_TAG && item[2..4] == item[4..6]);
        return port.map(|item| u16::from_le_bytes([item[2], item[3]]));
    }
    None
}

/// Decodes a PkgLength: how many bytes of the package follow it, and everything that follows it.
fn package_contents(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (&lead, behind) = bytes.split_first()?;
    let more = usize::from(lead >> 6);
    let len = match more {
        0 => usize::from(lead & 0x3f),
        _ => behind
            .get(..more)?
            .iter()
            .enumerate()
            .fold(usize::from(lead & 0xf), |len, (index, byte)| {
                len | usize::from(*byte) << (4 + 8 * index)
            }),
    };
    Some((len.checked_sub(1 + more)?, &behind[more..]))
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
