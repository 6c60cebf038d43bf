//! A stock Linux guest: the Debian kernel with an initial ramdisk made here, and a shell on the serial console.
//!
//! The ramdisk holds busybox, the virtio and pvpanic modules, `memcheck` and `vsock-peer`. Its init loads the modules and then
//! runs one line of shell after the other as they are typed on ttyS0, with markers around each answer, so that a
//! test can ask the guest anything.

use std::fs;
use std::path::{Path, PathBuf};

use crate::ballast::Home;
use crate::cpio::Archive;
use crate::debian::{KernelPackage, busybox};
use crate::running::Running;
use crate::{eventually, host_box};

/// Modules that the guest loads, in this order: the panic device first, so that every later panic is reported.
const MODULES: [&str; 4] = [
    "pvpanic-mmio",
    "virtio_mmio",
    "virtio_mem",
    "vmw_vsock_virtio_transport",
];

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
for module in $(cat /modules/order); do
  insmod /modules/$module.ko || echo "guest: cannot load $module"
done
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
    /// The image in `dir`, made there unless the host box brought it along.
    ///
    /// # Panics
    /// When the kernel package or busybox cannot be had, or `dir` cannot be written.
    pub fn prepare(dir: &Path) -> Self {
        if let Some(brought) = host_box::linux_image_dir() {
            return Self::at(&brought);
        }
        let package = KernelPackage::fetch();
        let image = Self::at(dir);
        let copied = fs::copy(package.image(), &image.kernel);
        let written = copied.and_then(|_| fs::write(&image.initrd, initrd(&package)));
        written.unwrap_or_else(|error| panic!("cannot write the guest image to {}: {error}", dir.display()));
        image
    }

    fn at(dir: &Path) -> Self {
        Self {
            kernel: dir.join("bzImage"),
            initrd: dir.join("initrd"),
        }
    }
}

fn initrd(package: &KernelPackage) -> Vec<u8> {
    let mut archive = Archive::default();
    let mut order = String::new();
    for (name, module) in package.modules(&MODULES) {
        archive.add(&format!("/modules/{name}.ko"), &module);
        order.push_str(&format!("{name}\n"));
    }
    archive.add("/modules/order", order.as_bytes());
    archive.add("/init", INIT.as_bytes());
    host_box::add_file(&mut archive, "/bin/busybox", &busybox());
    for program in ["memcheck", "vsock-peer"] {
        host_box::add_program(
            &mut archive,
            &format!("/bin/{program}"),
            &host_box::program(program),
        );
    }
    archive.finish()
}

/// A stock Linux guest that has booted to its shell.
pub struct LinuxGuest {
    /// The microVM it runs in.
    pub vm: Running,
    position: usize,
}

impl LinuxGuest {
    /// Boots the guest in `home` with `arguments` to `ballast run` and `cmdline` added to the kernel's command
    /// line, and waits for its shell.
    ///
    /// # Panics
    /// When it does not get there, or a module cannot be loaded.
    pub fn boot(home: &Home, name: &str, arguments: &[&str], cmdline: &str) -> Self {
        let image = LinuxImage::prepare(&home.files());
        let (kernel, initrd) = (image.kernel.to_string_lossy(), image.initrd.to_string_lossy());
        let cmdline = format!("console=ttyS0 quiet panic=-1 {cmdline}");
        let fixed = ["--kernel", &kernel, "--initrd", &initrd, "--cmdline", &cmdline];
        let vm = home.start(name, &[arguments, &fixed].concat());
        let (before, position) = vm.serial.wait_for_after(0, "guest: ready");
        assert!(!before.contains("cannot load"), "a module is missing:\n{before}");
        Self { vm, position }
    }

    /// Runs one line of shell in the guest and answers what it wrote.
    ///
    /// # Panics
    /// When its exit status is not 0, or the guest does not answer.
    pub fn shell(&mut self, line: &str) -> String {
        self.vm.type_in(&format!("{line}\n"));
        let (_, begin) = self.vm.serial.wait_for_after(self.position, "guest: begin\r\n");
        let (answer, end) = self.vm.serial.wait_for_after(begin, "guest: end ");
        let (status, position) = self.vm.serial.wait_for_after(end, "\n");
        self.position = position;
        assert_eq!(status.trim(), "0", "the guest's `{line}` failed:\n{answer}");
        answer
    }

    /// Types a line that ends the guest, so that no answer comes.
    pub fn last_words(&mut self, line: &str) {
        self.vm.type_in(&format!("{line}\n"));
    }

    /// `MemTotal` of the guest in KiB.
    pub fn mem_total_kib(&mut self) -> u64 {
        let text = self.shell("grep MemTotal /proc/meminfo");
        crate::views::meminfo(&text)["MemTotal"]
    }

    /// Starts `memcheck` on `mebibytes` of memory and waits until it has verified all of it once.
    ///
    /// # Panics
    /// When it does not get there.
    pub fn start_memcheck(&mut self, mebibytes: u64) {
        self.shell(&format!(
            "memcheck {mebibytes} /tmp/memcheck >/tmp/memcheck.log 2>&1 &"
        ));
        self.wait_for_memcheck(1);
    }

    /// Waits until `memcheck` has finished `rounds` more rounds, none of which may have found a wrong word.
    ///
    /// # Panics
    /// When a word was wrong, memcheck has died, or the deadline passes.
    pub fn wait_for_memcheck(&mut self, rounds: u64) {
        let begun = self.memcheck_rounds().unwrap_or(0);
        eventually("memcheck going round", || {
            self.memcheck_rounds().filter(|now| *now >= begun + rounds)
        });
    }

    fn memcheck_rounds(&mut self) -> Option<u64> {
        let text =
            self.shell("pidof memcheck >/dev/null || echo dead; cat /tmp/memcheck /tmp/memcheck.log; true");
        assert!(!text.contains("dead"), "memcheck has died:\n{text}");
        let words: Vec<&str> = text.split_whitespace().collect();
        let ["rounds", rounds, "checked", _, "failed", failed] = words[..] else {
            return None;
        };
        assert_eq!(failed, "0", "memcheck found wrong words:\n{text}");
        rounds.parse().ok()
    }
}
