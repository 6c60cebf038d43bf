//! What is in the box: an initial ramdisk with a KVM module, the test binary, `ballast`, and the stock guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Parts;
use super::machine::{QEMU, QEMU_PACKAGE};
use crate::ballast::{binary, finish};
use crate::cpio::Archive;
use crate::debian::{KernelPackage, busybox, require, root_image};
use crate::linux::{GUEST_PROGRAMS, LinuxImage};

/// Loads KVM, says on the second serial port that it is ready, waits for the program's arguments, runs it, reports its exit
/// status there too, and switches the box off.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox --install -s /bin
ANSWER
exec >/dev/ttyS1 2>&1
for module in $(cat /modules/order); do
  insmod /modules/$module.ko || echo "host box: cannot load $module"
done
export PATH=/bin HOME=/root RUST_BACKTRACE=1 VARIABLE=/guest
DISK
cd /
echo "READY"
read -r arguments <ORDER
/box/deps/PROGRAM $arguments
echo "host box: exit status $?"
poweroff -f
"#;

/// What a box says once it only waits for its order.
pub(super) const READY: &str = "host box: ready";

/// Name of the program in the box.
const PROGRAM: &str = "integration";

/// What QEMU reads when it boots a kernel on an ordinary PC, from Debian's `qemu-system-data` and `seabios`.
const QEMU_FILES: [&str; 3] = [
    "/usr/share/seabios/bios-256k.bin",
    "/usr/share/qemu/kvmvapic.bin",
    "/usr/share/qemu/linuxboot_dma.bin",
];

/// The ramdisk of a box that runs this very program, and has `parts`.
///
/// # Panics
/// When one of its parts is missing.
pub(super) fn ramdisk(package: &KernelPackage, parts: Parts) -> Vec<u8> {
    let mut archive = Archive::default();
    let mut order = String::new();
    let disk_driver: &[&str] = if parts.root_disk { &["virtio_blk"] } else { &[] };
    for (name, module) in package.modules(&[&["kvm-amd", "tun"], disk_driver].concat()) {
        archive.add(&format!("/modules/{name}.ko"), &module);
        order.push_str(&format!("{name}\n"));
    }
    archive.add("/modules/order", order.as_bytes());
    archive.add("/init", init(parts).as_bytes());
    add_file(&mut archive, "/bin/busybox", &busybox());
    if parts.qemu {
        add_program(&mut archive, QEMU, &require(QEMU, QEMU_PACKAGE));
        for file in QEMU_FILES {
            add_file(&mut archive, file, Path::new(file));
        }
    }
    // Laid out like a target directory, so that the test binary finds its neighbours in the same way.
    add_program(&mut archive, &format!("/box/deps/{PROGRAM}"), &this_program());
    add_program(&mut archive, "/box/ballast", &binary());
    let staging = tempfile::tempdir().unwrap_or_else(|error| panic!("no temporary directory: {error}"));
    for release in parts.releases() {
        let guest = LinuxImage::prepare(*release, staging.path());
        for file in [&guest.kernel, &guest.initrd] {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            add_file(&mut archive, &format!("/guest/{name}"), file);
        }
    }
    archive.finish()
}

fn init(parts: Parts) -> String {
    let disk = if parts.root_disk {
        format!("export {}=/dev/vda", super::DISK_VARIABLE)
    } else {
        String::new()
    };
    INIT.replace("VARIABLE", super::IMAGE_VARIABLE)
        .replace("DISK", &disk)
        .replace("PROGRAM", PROGRAM)
        .replace("READY", READY)
        .replace("ANSWER", super::pulse::ANSWER)
        .replace("ORDER", super::pulse::ORDER)
}

/// The files that a box with `parts` is made of, and the program that emulates it.
///
/// # Panics
/// When one of them is missing.
pub(super) fn sources(parts: Parts) -> Vec<PathBuf> {
    let mut files = vec![this_program(), binary(), busybox(), require(QEMU, QEMU_PACKAGE)];
    files.extend(GUEST_PROGRAMS.map(super::program));
    files.extend(
        parts
            .releases()
            .iter()
            .map(|it| KernelPackage::fetch(*it).image()),
    );
    files.extend(parts.root_disk.then(root_image));
    files
}

fn this_program() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|error| panic!("where am I? {error}"))
}

/// Adds the file at `from` as `to`.
///
/// # Panics
/// When it cannot be read.
pub fn add_file(archive: &mut Archive, to: &str, from: &Path) {
    let contents = fs::read(from).unwrap_or_else(|error| panic!("cannot read {}: {error}", from.display()));
    archive.add(to, &contents);
}

/// Adds the program at `from` as `to`, with the shared libraries it needs at their own places.
///
/// # Panics
/// When it or a library cannot be read.
pub fn add_program(archive: &mut Archive, to: &str, from: &Path) {
    add_file(archive, to, from);
    for library in shared_libraries(&finish(Command::new("ldd").arg(from)).success()) {
        if !archive.contains(&library) {
            add_file(archive, &library, Path::new(&library));
        }
    }
}

/// The absolute paths in what `ldd` printed: `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)`.
fn shared_libraries(listing: &str) -> Vec<String> {
    let paths = listing
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    paths.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_libraries_are_the_absolute_paths_ldd_prints() {
        let listing = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x2)\n\t/lib64/ld-linux-x86-64.so.2 (0x3)\n";
        assert_eq!(
            shared_libraries(listing),
            ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]
        );
    }
}
