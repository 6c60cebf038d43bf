//! A stock Linux guest on a tap of the host, with Linux's own driver. Makes an interface, which takes CAP_NET_ADMIN: in the
//! host box every test has it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread::{self, JoinHandle};

use integration_tests::{Home, LinuxGuest, eventually, finish, needs_hardware_kvm};

/// Both ends, of the range that is set aside for tests of networks (RFC 2544).
const HOST: &str = "198.18.7.1";
const GUEST: &str = "198.18.7.2";
const TAP: &str = "ballast-test0";
const MAC: &str = "02:00:00:12:34:56";

/// What `seq 1 60000` prints: 340 kB in which every line says where it belongs.
fn lines() -> String {
    (1..=60_000).map(|number| format!("{number}\n")).collect()
}

fn ip(arguments: &str) {
    finish(Command::new("busybox").arg("ip").args(arguments.split(' '))).success();
}

/// Takes one connection and answers all that came over it.
fn receive_once() -> JoinHandle<Vec<u8>> {
    let listener = TcpListener::bind((HOST, 5000)).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

fn bring_up(guest: &mut LinuxGuest) {
    guest.shell(&format!("ip addr add {GUEST}/30 dev eth0 && ip link set eth0 up"));
    let ping = guest.shell(&format!("ping -c 3 -s 1472 {HOST}"));
    assert!(ping.contains("3 packets received"), "{ping}");
}

/// A box's boot costs more than all of this: one guest for all of it.
#[test]
fn a_guest_on_a_tap_exchanges_what_it_has_with_its_host() {
    needs_hardware_kvm(|| {
        let home = Home::new();
        let net = format!("tap={TAP},mac={MAC}");
        let mut guest = LinuxGuest::boot(&home, "lin", &["--memory", "512M", "--net", &net], "");
        ip(&format!("addr add {HOST}/30 dev {TAP}"));
        ip(&format!("link set {TAP} up"));
        guest.shell("load virtio_net");
        assert_eq!(guest.shell("cat /sys/class/net/eth0/address").trim(), MAC);
        bring_up(&mut guest);
        assert_eq!(guest.shell("cat /sys/class/net/eth0/carrier").trim(), "1");
        for (link, carrier) in [("down", "0"), ("up", "1")] {
            guest.vm.order("link", &[link]).success();
            // The driver hears of it by an interrupt, and says so a moment later.
            eventually("the guest hearing of its link", || {
                (guest.shell("cat /sys/class/net/eth0/carrier").trim() == carrier).then_some(())
            });
        }

        let received = receive_once();
        guest.shell(&format!("seq 1 60000 | nc {HOST} 5000"));
        assert!(
            received.join().unwrap() == lines().as_bytes(),
            "bytes changed on their way to the host"
        );
        let stats = guest.vm.stats();
        let (frames, bytes) = (
            stats.number("net.0.frames_from_guest"),
            stats.number("net.0.bytes_from_guest"),
        );
        // What is larger than a frame on the wire was not cut by the guest.
        assert!(
            bytes / frames > 1514,
            "{bytes} bytes in {frames} frames: no segment was left to the host"
        );

        guest.shell("nc -l -p 6000 >/tmp/received & true");
        let mut stream = eventually("the guest listening", || TcpStream::connect((GUEST, 6000)).ok());
        stream.write_all(lines().as_bytes()).unwrap();
        drop(stream);
        eventually("all of it arriving", || {
            guest
                .shell("seq 1 60000 | cmp - /tmp/received && echo same || true")
                .contains("same")
                .then_some(())
        });

        // The driver that comes back finds a device that works.
        let driver = "/sys/bus/virtio/drivers/virtio_net";
        let name = guest.shell(&format!("basename {driver}/virtio*"));
        guest.shell(&format!(
            "echo {0} >{driver}/unbind && echo {0} >{driver}/bind",
            name.trim()
        ));
        bring_up(&mut guest);

        let stats = guest.vm.stats();
        for lost in [
            "net.0.lost_from_guest",
            "net.0.lost_to_guest",
            "guest_faults",
            "violations",
        ] {
            assert_eq!(stats.number(lost), 0, "{lost}");
        }
        guest.last_words("poweroff -f");
        assert_eq!(guest.vm.wait_for_end(), 0);
        assert!(
            !Path::new("/sys/class/net").join(TAP).exists(),
            "the tap stays behind"
        );
    });
}
