//! A whole Debian system, bootstrapped from Debian's packages, boots from a virtio disk and works there.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::thread;

use integration_tests::debian::root_disk;
use integration_tests::{Home, LinuxGuest, Parts, finish, needs_hardware_kvm_and};

const MIB: u64 = 1 << 20;

#[test]
#[ignore = "bootstraps a Debian system, which takes minutes: with the full matrix"]
fn debian_boots_from_a_disk_and_has_sockets_and_memory_that_grows() {
    needs_hardware_kvm_and(Parts::root_disk(), || {
        let home = Home::new();
        let socket = home.files().join("vsock");
        let (disk, vsock) = (root_disk(&home), format!("cid=7,path={}", socket.display()));
        let arguments = [
            "--memory",
            "512M",
            "--hotplug",
            "512M",
            "--disk",
            &disk,
            "--vsock",
            &vsock,
            "--rng",
            "--net",
            "tap=ballast-deb0",
        ];
        let cmdline = "memhp_default_state=online_movable disk=/dev/vda systemd.show_status=0";
        let mut guest = LinuxGuest::boot(&home, "deb", &arguments, cmdline);

        guest.case("it is Debian, from the disk, started by its own init", |guest| {
            assert!(
                guest
                    .shell("cat /etc/os-release")
                    .contains("VERSION_CODENAME=bookworm")
            );
            assert_eq!(guest.shell("cat /proc/1/comm").trim(), "systemd");
            let root = guest.shell("grep ' / ' /proc/mounts | grep -v ^rootfs");
            assert!(root.starts_with("/dev/vda / ext4 rw"), "{root}");
            let driver = guest.shell("readlink -f /sys/block/vda/device/driver");
            assert!(driver.trim().ends_with("/virtio_blk"), "{driver}");
        });
        guest.case(
            "what is written to the disk is there when the cache is empty",
            |guest| {
                guest.shell("head -c 24M /dev/urandom >/var/tmp/file && sync");
                let written = guest.shell("sha256sum /var/tmp/file");
                guest.shell("echo 3 >/proc/sys/vm/drop_caches");
                assert_eq!(guest.shell("sha256sum /var/tmp/file"), written);
            },
        );
        guest.case("programs reach the host over vsock", |guest| {
            let listener = UnixListener::bind(format!("{}_5000", socket.display())).unwrap();
            let echo = thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut piece = [0; 10_000];
                while let Ok(len @ 1..) = stream.read(&mut piece) {
                    stream.write_all(&piece[..len]).unwrap();
                }
            });
            let answer = guest.shell("vsock-peer exchange 2 5000 1000000");
            assert_eq!(answer.trim(), "exchanged 1000000");
            echo.join().unwrap();
        });
        network_and_memory(&mut guest);
        guest.last_words("systemctl poweroff");
        assert_eq!(guest.vm.wait_for_end(), 0);
        drop(guest);
        home.assert_nothing_left();
    });
}

fn network_and_memory(guest: &mut LinuxGuest) {
    guest.case("its network reaches the host", |guest| {
        for line in [
            "addr add 198.18.8.1/30 dev ballast-deb0",
            "link set ballast-deb0 up",
        ] {
            finish(Command::new("busybox").arg("ip").args(line.split(' '))).success();
        }
        guest.shell(
            "link=$(basename /sys/class/net/e*); ip addr add 198.18.8.2/30 dev $link && ip link set $link up",
        );
        let ping = guest.shell("ping -c 3 -s 1400 198.18.8.1");
        assert!(ping.contains("3 received"), "{ping}");
    });
    guest.case("its memory grows, is filled, and shrinks", |guest| {
        let before = guest.mem_total_kib();
        guest.vm.resize_to(1024 * MIB);
        guest.mem_total_becomes(before + 512 * 1024);
        guest.fill(90);
        guest.vm.resize_to(512 * MIB);
        guest.mem_total_becomes(before);
    });
}
