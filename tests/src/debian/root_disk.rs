//! A Debian system as a disk: bootstrapped from Debian's packages, on an ext4 file system, with a shell for the tests on
//! its serial port.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::{as_root, shared};
use crate::ballast::Home;
use crate::host_box;

/// Makes the system in `$1` and the disk with it in `$2`. What would only cost time is left out or off: documents, package
/// lists, the wait for a login, the first boot's questions.
const MAKE: &str = r#"set -e
system=$1 disk=$2 suite=bookworm
debootstrap --variant=minbase --include=systemd-sysv,iproute2,iputils-ping $suite "$system" http://deb.debian.org/debian
rm -rf "$system"/var/cache/apt/* "$system"/var/lib/apt/lists/* "$system"/usr/share/doc/* "$system"/usr/share/man/* "$system"/usr/share/locale/*
echo guest >"$system"/etc/hostname
echo 7d1c0e0a4b6f4c1f9a52b6b0c3a5e9d1 >"$system"/etc/machine-id
echo "/dev/vda / ext4 defaults 0 0" >"$system"/etc/fstab
units=$system/etc/systemd/system
mkdir -p "$units"/multi-user.target.wants
for unit in serial-getty@ttyS0.service getty@tty1.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer; do
  ln -sf /dev/null "$units"/$unit
done
ln -sf /lib/systemd/system/multi-user.target "$units"/default.target
cp "$3" "$system"/usr/local/sbin/test-shell
chmod 755 "$system"/usr/local/sbin/test-shell
cat >"$units"/test-shell.service <<UNIT
[Unit]
Description=Runs what is typed on the serial port
[Service]
Type=idle
ExecStart=/usr/local/sbin/test-shell
StandardInput=tty
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
UNIT
ln -sf ../test-shell.service "$units"/multi-user.target.wants/test-shell.service
mke2fs -q -t ext4 -d "$system" "$disk" 512M
rm -rf "$system"
chmod 644 "$disk"
"#;

/// As the one in the initial ramdisk, so that a guest answers in the same way whichever it runs.
const SHELL: &str = r#"#!/bin/sh
stty -echo
echo "guest: ready"
while read -r line; do
  echo "guest: begin"
  eval "$line"
  echo "guest: end $?"
done
"#;

/// The argument of `--disk` for a disk with Debian on it, which may be written: what is written does not last beyond the
/// test.
///
/// # Panics
/// When debootstrap or mke2fs cannot make it.
pub fn root_disk(home: &Home) -> String {
    if let Some(brought) = host_box::root_disk() {
        return brought;
    }
    let copy = home.files().join("root-disk");
    fs::copy(root_image(), &copy).unwrap_or_else(|error| panic!("cannot copy the root disk: {error}"));
    copy.to_string_lossy().into_owned()
}

/// The image of that disk, made once.
///
/// # Panics
/// As [`root_disk`].
pub fn root_image() -> PathBuf {
    shared("debian.img", make)
}

fn make(staging: &Path) -> PathBuf {
    let (system, disk, shell) = (
        staging.join("system"),
        staging.join("disk"),
        staging.join("test-shell"),
    );
    fs::write(&shell, SHELL).unwrap_or_else(|error| panic!("cannot write {}: {error}", shell.display()));
    let mut script = as_root("sh");
    script.args(["-c", MAKE, "sh"]).args([&system, &disk, &shell]);
    // Dozens of packages are downloaded and unpacked: that takes as long as it takes.
    let outcome = script
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot run sh: {error}"));
    assert!(
        outcome.status.success(),
        "no Debian system (Debian packages debootstrap, e2fsprogs): {outcome:?}"
    );
    disk
}
