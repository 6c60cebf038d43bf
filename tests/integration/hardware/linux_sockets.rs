//! Programs of a stock Linux guest and of the host reach each other over vsock, with Linux's own driver.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::{self, JoinHandle};

use integration_tests::{Home, LinuxGuest, eventually, needs_hardware_kvm};

const ECHO_PORT: u32 = 1024;

/// A stream to a port of the guest, or nothing if the guest refuses.
fn connect(socket: &Path, port: u32) -> Option<UnixStream> {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
    let mut answer = Vec::new();
    let mut byte = [0];
    while answer.last() != Some(&b'\n') {
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            assert!(answer.is_empty(), "cut off: {answer:?}");
            return None;
        }
        answer.extend(byte);
    }
    let answer = String::from_utf8(answer).unwrap();
    let host_port = answer
        .strip_prefix("OK ")
        .and_then(|port| port.trim_end().parse::<u32>().ok());
    assert!(host_port.is_some(), "{answer:?}");
    Some(stream)
}

/// Bytes that are told apart by their place and by the stream.
fn pattern(stream: u32, len: u32) -> Vec<u8> {
    (0..len)
        .map(|at| at.wrapping_mul(0x9e37_79b9).wrapping_add(stream).to_le_bytes()[3])
        .collect()
}

/// Sends bytes to the guest's echo while it reads them back, until both directions have ended.
fn exchange(mut stream: UnixStream, bytes: &[u8]) {
    thread::scope(|scope| {
        let mut writer = stream.try_clone().unwrap();
        scope.spawn(move || {
            writer.write_all(bytes).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        stream.read_to_end(&mut back).unwrap();
        assert_eq!(back.len(), bytes.len());
        assert!(back == bytes, "bytes came back changed or in another order");
    });
}

/// A program of the host that gives back what comes to a port of the host, one stream after the other.
fn echo_once(socket: &Path, port: u32) -> JoinHandle<()> {
    let listener = UnixListener::bind(format!("{}_{port}", socket.display())).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut piece = [0; 10_000];
        loop {
            let len = stream.read(&mut piece).unwrap();
            if len == 0 {
                break;
            }
            stream.write_all(&piece[..len]).unwrap();
        }
    })
}

/// A box's boot costs more than all of this: one guest for all of it.
#[test]
fn programs_of_guest_and_host_reach_each_other_over_vsock() {
    needs_hardware_kvm(|| {
        let home = Home::new();
        let socket = home.files().join("vsock");
        let device = format!("cid=42,path={}", socket.display());
        let mut guest = LinuxGuest::boot(&home, "lin", &["--memory", "512M", "--vsock", &device], "");
        guest.shell("load vmw_vsock_virtio_transport");
        guest.shell(&format!("vsock-peer echo {ECHO_PORT} >/tmp/echo 2>&1 & true"));
        eventually("the guest listening", || {
            guest.shell("cat /tmp/echo").contains("listening").then_some(())
        });

        // To the guest: more than all buffers on the way hold together.
        exchange(
            connect(&socket, ECHO_PORT).expect("the guest listens"),
            &pattern(0, 3 << 20),
        );
        assert!(connect(&socket, 9).is_none(), "nobody listens there in the guest");
        let streams: Vec<UnixStream> = (0..20).map(|_| connect(&socket, ECHO_PORT).unwrap()).collect();
        thread::scope(|scope| {
            for (number, stream) in (0..).zip(streams) {
                scope.spawn(move || exchange(stream, &pattern(number, 100_000)));
            }
        });

        // From the guest.
        let echo = echo_once(&socket, 5000);
        let answer = guest.shell("vsock-peer exchange 2 5000 3000000");
        assert_eq!(answer.trim(), "exchanged 3000000");
        echo.join().unwrap();
        let refused = guest.shell("vsock-peer exchange 2 7 1 2>&1 || true");
        assert!(
            refused.contains("reset") || refused.contains("refused"),
            "{refused}"
        );

        // A stream that is open when the driver goes is closed, and the driver that comes back finds a device that works.
        let mut open = connect(&socket, ECHO_PORT).unwrap();
        let name = guest.shell("basename /sys/bus/virtio/drivers/vmw_vsock_virtio_transport/virtio*");
        let name = name.trim();
        guest.shell(&format!(
            "echo {name} >/sys/bus/virtio/drivers/vmw_vsock_virtio_transport/unbind"
        ));
        assert_eq!(open.read(&mut [0; 1]).unwrap_or(0), 0);
        assert!(connect(&socket, ECHO_PORT).is_none(), "there is no driver");
        guest.shell(&format!(
            "echo {name} >/sys/bus/virtio/drivers/vmw_vsock_virtio_transport/bind"
        ));
        exchange(
            connect(&socket, ECHO_PORT).expect("the guest listens"),
            &pattern(7, 100_000),
        );

        let stats = guest.vm.stats();
        let sockets = |field: &str| stats.number(&format!("vsock.{field}"));
        assert_eq!(
            (sockets("cid"), sockets("breaches"), sockets("streams")),
            (42, 0, 0)
        );
        // What the driver's going has thrown away is not counted here, and nothing was sent on that stream.
        let total = (3 << 20) + 20 * 100_000 + 3_000_000 + 100_000;
        assert_eq!(
            (sockets("bytes_from_guest"), sockets("bytes_to_guest")),
            (total, total)
        );
        assert_eq!((stats.number("guest_faults"), stats.number("violations")), (0, 0));
        guest.last_words("poweroff -f");
        assert_eq!(guest.vm.wait_for_end(), 0);
        assert!(!socket.exists(), "the socket stays behind");
    });
}
