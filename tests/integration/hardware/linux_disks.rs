//! A stock Linux guest with disks and an entropy device, through Linux's own drivers: what it reads is what the host has,
//! what it writes is there when it says so, and a driver that goes while requests are under way loses nothing.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use integration_tests::debian::busybox;
use integration_tests::{Home, LinuxGuest, needs_hardware_kvm};

const DISK: usize = 6 << 20;

/// A file of [`DISK`] bytes, no two sectors of which are alike.
fn make_disk(path: &Path, seed: u32) {
    let words = (0..u32::try_from(DISK / 4).unwrap()).map(|at| at.wrapping_mul(0x9e37_79b9) ^ seed);
    let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
    fs::write(path, bytes).unwrap();
}

/// The checksum of a file on the host.
fn host_sum(path: &Path) -> String {
    let output = Command::new(busybox()).arg("md5sum").arg(path).output().unwrap();
    assert!(output.status.success());
    first_word(&String::from_utf8(output.stdout).unwrap())
}

/// The checksum of a file in the guest, past its cache.
fn guest_sum(guest: &mut LinuxGuest, path: &str) -> String {
    first_word(&guest.shell(&format!("sync; echo 3 >/proc/sys/vm/drop_caches; md5sum {path}")))
}

fn first_word(text: &str) -> String {
    text.split_whitespace().next().unwrap_or_default().to_owned()
}

/// Reads, writes, discards, and takes the driver away in the middle of a read.
fn use_disk(guest: &mut LinuxGuest, name: &str, file: &Path) {
    let device = format!("/dev/{name}");
    assert_eq!(guest_sum(guest, &device), host_sum(file), "read");

    let write = "dd if=/dev/urandom bs=64k count=16 seek=16 conv=notrunc,fsync";
    guest.shell(&format!("{write} of={device} 2>/dev/null"));
    // Flushed: the host has it before anything else happens.
    let written = host_sum(file);
    assert_eq!(guest_sum(guest, &device), written, "written");

    let before = fs::metadata(file).unwrap().blocks();
    guest.shell(&format!("blkdiscard -o 2097152 -l 1048576 {device}"));
    let after = fs::metadata(file).unwrap().blocks();
    assert!(
        after + 2048 <= before,
        "{after} blocks of {before} after a discard of 2048"
    );
    let hole = &fs::read(file).unwrap()[2 << 20..3 << 20];
    assert!(hole.iter().all(|byte| *byte == 0));

    let driver = "/sys/bus/virtio/drivers/virtio_blk";
    let bus_name = first_word(&guest.shell(&format!("basename $(readlink /sys/block/{name}/device)")));
    // Until the disk is gone, and past the cache.
    let drop_caches = "echo 3 >/proc/sys/vm/drop_caches";
    guest.shell(&format!(
        "(while cat {device} >/dev/null 2>&1; do {drop_caches}; done) &"
    ));
    let in_flight = format!("disks.{}.in_flight", name.as_bytes()[2] - b'a');
    guest
        .vm
        .wait_until("a request under way", |stats| stats.number(&in_flight) > 0);
    guest.shell(&format!("echo {bus_name} >{driver}/unbind; wait; true"));
    guest.shell(&format!("test ! -e /sys/block/{name}"));
    guest.shell(&format!("echo {bus_name} >{driver}/bind"));
    assert_eq!(
        guest_sum(guest, &device),
        host_sum(file),
        "after the driver came back"
    );
}

/// A file system that is made, filled, trimmed, unmounted and mounted again.
fn use_file_system(guest: &mut LinuxGuest, name: &str, file: &Path) {
    let device = format!("/dev/{name}");
    guest.shell(&format!(
        "mkdir -p /mnt; mke2fs {device} >/dev/null 2>&1 && mount -t ext4 {device} /mnt"
    ));
    guest.shell("dd if=/dev/urandom of=/mnt/one bs=1M count=1 2>/dev/null; cp /mnt/one /tmp/copy");
    guest.shell("cp /mnt/one /mnt/two && rm /mnt/one && sync");
    let full = fs::metadata(file).unwrap().blocks();
    guest.shell("fstrim /mnt");
    let trimmed = fs::metadata(file).unwrap().blocks();
    assert!(
        trimmed + 4096 <= full,
        "{trimmed} blocks after trimming, {full} before"
    );
    guest.shell("umount /mnt; echo 3 >/proc/sys/vm/drop_caches");
    guest.shell(&format!(
        "mount -t ext4 -o ro {device} /mnt && cmp /mnt/two /tmp/copy && umount /mnt"
    ));
}

fn entropy(guest: &mut LinuxGuest) {
    let source = guest.shell("cat /sys/class/misc/hw_random/rng_current");
    assert!(source.starts_with("virtio_rng"), "{source}");
    assert_eq!(
        guest
            .shell("dd if=/dev/hwrng bs=64 count=16 2>/dev/null | wc -c")
            .trim(),
        "1024"
    );
    let kinds =
        guest.shell("dd if=/dev/hwrng bs=64 count=16 2>/dev/null | od -An -v -tx1 -w1 | sort -u | wc -l");
    assert!(
        kinds.trim().parse::<u32>().unwrap() > 200,
        "{kinds} byte values in 1024 bytes"
    );
    assert!(guest.vm.stats().number("entropy_bytes") >= 2048);
}

/// A box's boot costs more than all of this: one guest for all of it.
#[test]
fn disks_and_entropy_serve_a_stock_linux_guest() {
    needs_hardware_kvm(|| {
        let home = Home::new();
        let file = |name: &str| home.files().join(name);
        let [ring, thread, frozen] = ["ring", "thread", "frozen"].map(file);
        for (seed, path) in (1..).zip([&ring, &thread, &frozen]) {
            make_disk(path, seed);
        }
        let frozen_before = host_sum(&frozen);
        let options = [
            format!("{},engine=io-uring", ring.display()),
            format!("{},engine=thread,id=second disk", thread.display()),
            format!("{},readonly,id=frozen", frozen.display()),
        ];
        let mut arguments = vec!["--memory", "512M", "--rng"];
        arguments.extend(options.iter().flat_map(|option| ["--disk", option]));
        let mut guest = LinuxGuest::boot(&home, "lin", &arguments, "");
        guest.shell("load virtio_blk; load virtio_rng");

        guest.case("sizes, names and rights are those of the files", |guest| {
            let sectors = DISK / 512;
            let sizes = guest.shell("cat /sys/block/vd?/size /sys/block/vd?/ro");
            let expected = format!("{sectors} {sectors} {sectors} 0 0 1");
            assert_eq!(sizes.split_whitespace().collect::<Vec<_>>().join(" "), expected);
            let names = guest.shell("cat /sys/block/vdb/serial; echo; cat /sys/block/vdc/serial");
            assert_eq!(
                names.split_whitespace().collect::<Vec<_>>(),
                ["second", "disk", "frozen"]
            );
        });
        guest.case("a disk by io_uring", |guest| use_disk(guest, "vda", &ring));
        guest.case("a disk by a thread", |guest| use_disk(guest, "vdb", &thread));
        guest.case("a read-only disk", |guest| {
            assert_eq!(guest_sum(guest, "/dev/vdc"), frozen_before);
            let (status, _) =
                guest.try_shell("dd if=/dev/zero of=/dev/vdc bs=4k count=1 conv=notrunc,fsync 2>/dev/null");
            assert_ne!(status, "0");
            assert_eq!(host_sum(&frozen), frozen_before);
        });
        guest.case("a file system on a disk", |guest| {
            use_file_system(guest, "vda", &ring);
        });
        guest.case("entropy", entropy);

        let stats = guest.vm.stats();
        for (disk, engine) in ["io-uring", "thread", "io-uring"].into_iter().enumerate() {
            assert_eq!(stats.text(&format!("disks.{disk}.engine")), engine);
            let number = |field: &str| stats.number(&format!("disks.{disk}.{field}"));
            assert!(number("read_bytes") >= DISK as u64);
            assert_eq!((number("failed"), number("in_flight")), (0, 0));
            let writable = disk < 2;
            let written = ["writes", "flushes", "discards"].map(number);
            assert!(
                written.iter().all(|count| (*count > 0) == writable),
                "{written:?}"
            );
        }
        guest.last_words("poweroff -f");
        assert_eq!(guest.vm.wait_for_end(), 0);
        assert_eq!(host_sum(&frozen), frozen_before);
    });
}
