//! The files that boot a stock Linux guest: Debian's kernel, and an initial ramdisk made here.
//!
//! The ramdisk holds busybox, the modules of the devices, `memcheck` and `vsock-peer`. Its init loads the modules that every guest
//! needs, and then runs one line of shell after the other as they are typed on ttyS0, or on the console that `terminal=` on
//! the kernel's command line names, with markers around each answer, so that a test can ask the guest anything. With `disk=/dev/vda` on the kernel's command line it goes on to the system on
//! that disk instead. The shell function `load` loads more modules with what they depend on.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cpio::Archive;
use crate::debian::{KernelPackage, Release, busybox};
use crate::host_box;

/// Modules that the guest loads, in this order: the panic device first, so that every later panic is reported. Those
/// named in `hold=` on the kernel's command line are left to the test.
const MODULES: [&str; 4] = ["pvpanic_mmio", "virtio_console", "virtio_mmio", "virtio_mem"];

/// Modules that are there for a test to load.
const MORE_MODULES: [&str; 5] = [
    "virtio_balloon",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "vmw_vsock_virtio_transport",
];

/// Programs of this package that run in guests.
pub(crate) const GUEST_PROGRAMS: [&str; 2] = ["memcheck", "vsock-peer"];

const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox --install -s /bin
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo
# What the kernel has to say is in its log; between the answers of the shell it would tear them apart. A panic is
# printed all the same.
dmesg -n 1
load() {
  for module in $(cat /modules/$1.needs); do
    grep -q "^$module " /proc/modules || insmod /modules/$module.ko || echo "guest: cannot load $module"
  done
}
# The kernel hands words of its command line that it does not know on to init's environment.
for module in $(cat /modules/order); do
  case ",$hold," in *",$module,"*) ;; *) load $module ;; esac
done
# With terminal= the shell moves to another console, one that came with a module.
if [ -n "$terminal" ]; then
  exec </dev/$terminal >/dev/$terminal 2>&1
  stty -echo
fi
# With disk= the ramdisk only brings the system on that disk up.
if [ -n "$disk" ]; then
  for module in virtio_blk vmw_vsock_virtio_transport virtio_net; do load $module; done
  while [ ! -b $disk ]; do usleep 20000; done
  mkdir /system
  mount -t ext4 $disk /system
  cp /bin/memcheck /bin/vsock-peer /system/usr/local/bin
  for folder in proc sys dev; do mount -o move /$folder /system/$folder; done
  exec switch_root /system /sbin/init
fi
echo "guest: ready"
while read -r line; do
  echo "guest: begin"
  eval "$line"
  echo "guest: end $?"
done
"#;

/// The files that boot the guest: a bzImage and an initial ramdisk.
pub struct LinuxImage {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial ramdisk.
    pub initrd: PathBuf,
}

impl LinuxImage {
    /// The image with a kernel of `release` in `dir`, made there unless the host box brought it along.
    ///
    /// # Panics
    /// When the kernel package or busybox cannot be had, or `dir` cannot be written.
    pub fn prepare(release: Release, dir: &Path) -> Self {
        if let Some(brought) = host_box::linux_image_dir() {
            return Self::at(release, &brought);
        }
        let package = KernelPackage::fetch(release);
        let image = Self::at(release, dir);
        let copied = fs::copy(package.image(), &image.kernel);
        let written = copied.and_then(|_| fs::write(&image.initrd, initrd(&package)));
        written.unwrap_or_else(|error| panic!("cannot write the guest image to {}: {error}", dir.display()));
        image
    }

    fn at(release: Release, dir: &Path) -> Self {
        Self {
            kernel: dir.join(format!("bzImage-{}", release.number())),
            initrd: dir.join(format!("initrd-{}", release.number())),
        }
    }
}

fn initrd(package: &KernelPackage) -> Vec<u8> {
    let mut archive = Archive::default();
    let mut order = String::new();
    for name in MODULES.into_iter().chain(MORE_MODULES) {
        let mut needs = String::new();
        for (part, module) in package.modules(&[name]) {
            let path = format!("/modules/{part}.ko");
            if !archive.contains(&path) {
                archive.add(&path, &module);
            }
            needs.push_str(&format!("{part}\n"));
        }
        archive.add(&format!("/modules/{name}.needs"), needs.as_bytes());
        if MODULES.contains(&name) {
            order.push_str(&format!("{name}\n"));
        }
    }
    archive.add("/modules/order", order.as_bytes());
    archive.add("/init", INIT.as_bytes());
    host_box::add_file(&mut archive, "/bin/busybox", &busybox());
    for program in GUEST_PROGRAMS {
        let path = format!("/bin/{program}");
        host_box::add_program(&mut archive, &path, &host_box::program(program));
    }
    archive.finish()
}
