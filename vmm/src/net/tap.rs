//! A tap device: an interface of the host whose far end is a file descriptor (Linux `Documentation/networking/tuntap.rst`).
//!
//! An interface that exists is joined, one that does not is made and lasts as long as the VM; both need CAP_NET_ADMIN, or,
//! for one that exists, its owner. Addresses, bridges and whether it is up are the operator's affair.
#![expect(unsafe_code, reason = "the tap's ioctls have no safe form")]

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::mem::size_of;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use devices::net::{NetHost, Offloads};
use virtio_wire::net::Header;

/// Where taps come from.
const TUN: &str = "/dev/net/tun";
/// Bytes of an interface's name, without the zero that ends it (`IFNAMSIZ`).
const NAME_MAX: usize = libc::IFNAMSIZ - 1;

// Messages name it.
const _: () = assert!(NAME_MAX == 15);

/// The name of an interface: 1 to 15 bytes, as Linux takes them (`dev_valid_name`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapName(String);

impl TapName {
    /// A name that an interface can have. `%` is left out too: to the kernel it means that a number is to be put there.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let is_name = (1..=NAME_MAX).contains(&text.len())
            && !matches!(text, "." | "..")
            && !text
                .chars()
                .any(|sign| matches!(sign, '/' | ':' | '%' | '\0') || sign.is_whitespace());
        is_name.then(|| Self(text.to_owned()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TapName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An open tap; never waits.
#[derive(Debug)]
pub struct Tap(File);

/// `struct ifreq`, as far as TUNSETIFF reads it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    unused: [u8; size_of::<libc::ifreq>() - libc::IFNAMSIZ - size_of::<libc::c_short>()],
}

const _: () = assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>());

impl Tap {
    /// Opens the tap called `name`, with the virtio header in front of each frame.
    ///
    /// # Errors
    /// The host has no taps, the VMM may not use this one, or another program does.
    pub fn open(name: &TapName) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(TUN)?;
        let tap = Self(file);
        let mut request = InterfaceRequest {
            name: [0; libc::IFNAMSIZ],
            flags: flags()?,
            unused: [0; _],
        };
        request.name[..name.0.len()].copy_from_slice(name.0.as_bytes());
        tap.ioctl_with(libc::TUNSETIFF, &request)?;
        let size = libc::c_int::try_from(Header::SIZE).map_err(io::Error::other)?;
        tap.ioctl_with(libc::TUNSETVNETHDRSZ, &size)?;
        tap.ioctl_with(libc::TUNSETVNETLE, &1)?;
        // Once with and once without, so that a host that cannot is found out before the guest runs.
        tap.offload(Offloads { checksum: true })?;
        tap.offload(Offloads::default())?;
        Ok(tap)
    }

    fn offload(&self, offloads: Offloads) -> io::Result<()> {
        let bits = if offloads.checksum { libc::TUN_F_CSUM } else { 0 };
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        done(unsafe { libc::ioctl(self.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(bits)) })
    }

    /// An ioctl that reads a `T` and keeps no pointer to it.
    fn ioctl_with<T>(&self, request: libc::Ioctl, argument: &T) -> io::Result<()> {
        // SAFETY: each request that is used here reads a value of the type that it is given, during the call only.
        done(unsafe { libc::ioctl(self.as_raw_fd(), request, std::ptr::from_ref(argument)) })
    }
}

fn flags() -> io::Result<libc::c_short> {
    libc::c_short::try_from(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR).map_err(io::Error::other)
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

impl NetHost for Tap {
    fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }

    fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        match self.0.write(packet)? {
            len if len == packet.len() => Ok(()),
            _ => Err(ErrorKind::WriteZero.into()),
        }
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        self.offload(offloads)
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_linux_takes_for_one() {
        for name in ["tap0", "a", "vm-1.eth0", "fifteen-letters"] {
            assert_eq!(
                TapName::new(name).map(|name| name.to_string()),
                Some(name.to_owned())
            );
        }
        for name in [
            "",
            "sixteen-letters-",
            ".",
            "..",
            "a/b",
            "a b",
            "a:1",
            "tap%d",
            "a\0b",
            "a\tb",
        ] {
            assert_eq!(TapName::new(name), None, "{name:?}");
        }
    }

    #[test]
    fn the_flags_are_those_of_a_tap_with_headers() {
        assert_eq!(flags().unwrap(), 0x5002);
    }
}
