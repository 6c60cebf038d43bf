//! The console device with Linux's own driver: hvc0 is the terminal, and named ports are beside it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

use integration_tests::{Home, LinuxGuest, eventually, needs_hardware_kvm};

/// The device file of the port called `name`.
fn port(guest: &mut LinuxGuest, name: &str) -> String {
    let found = guest.shell(&format!("grep -lx {name} /sys/class/virtio-ports/*/name"));
    let file = found.trim().split('/').nth_back(1);
    format!("/dev/{}", file.expect("the name is in the port's folder"))
}

#[test]
fn hvc0_is_a_terminal_and_named_ports_reach_a_program_and_a_file_of_the_host() {
    needs_hardware_kvm(|| {
        let home = Home::new();
        let (socket, log) = (home.files().join("agent"), home.files().join("log"));
        let agent = format!("name=agent,path={}", socket.display());
        let file = format!("name=log,file={}", log.display());
        let arguments = [
            "--memory",
            "512M",
            "--console-port",
            &agent,
            "--console-port",
            &file,
            "--hvc",
            "terminal",
        ];
        // All that is typed and answered from here on goes through port 0.
        let mut guest = LinuxGuest::boot(&home, "lin", &arguments, "terminal=hvc0");
        assert_eq!(guest.shell("tty").trim(), "/dev/hvc0");
        let many = guest.shell("seq 1 300");
        let numbers = many.lines().map(|line| line.trim().parse::<u32>().unwrap());
        assert!(numbers.eq(1..=300), "nothing of an answer is lost");
        let refused = guest.vm.order("guest", &["ps"]);
        assert!(refused.stderr.contains("no control channel"), "{refused:?}");

        let device = port(&mut guest, "log");
        guest.shell(&format!("seq 1 2000 >{device}"));
        let expected: String = (1..=2000).map(|number| format!("{number}\n")).collect();
        eventually("the file having all of it", || {
            (fs::read_to_string(&log).unwrap() == expected).then_some(())
        });

        let device = port(&mut guest, "agent");
        for round in 0..2 {
            // One program after the other.
            let mut program = UnixStream::connect(&socket).unwrap();
            guest.shell(&format!("exec 3<>{device}"));
            program
                .write_all(format!("question {round}\n").as_bytes())
                .unwrap();
            assert_eq!(
                guest.shell("read -r line <&3; echo \"$line\"").trim(),
                format!("question {round}")
            );
            guest.shell("echo answer >&3; exec 3>&-");
            let mut answer = String::new();
            BufReader::new(&program).read_line(&mut answer).unwrap();
            assert_eq!(answer, "answer\n");
        }
        assert_eq!(guest.vm.stats().number("guest_faults"), 0);
        guest.last_words("poweroff -f");
        assert_eq!(guest.vm.wait_for_end(), 0);
        assert!(!socket.exists(), "the socket stays behind");
    });
}
