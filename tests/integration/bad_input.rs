//! Input that cannot be: each a one-line error with the value and the rule, and nothing left behind.

use integration_tests::Home;

/// Runs `ballast run ARGUMENTS` and asserts that it is refused without a trace.
fn assert_run_refused(arguments: &[&str], status: i32, parts: &[&str]) {
    let home = Home::new();
    let outcome = home.run([&["run"], arguments].concat());
    outcome.assert_refusal(status, parts);
    home.assert_nothing_left();
}

#[test]
fn sizes_that_break_a_rule_are_refused() {
    let cases: [(&[&str], &[&str]); 14] = [
        (&["--memory", "0"], &["--memory", "0 bytes", "32 MiB"]),
        (&["--memory", "16M"], &["--memory", "16 MiB", "smallest"]),
        (&["--memory", "65M"], &["--memory", "65 MiB", "multiple of 2 MiB"]),
        (&["--memory", "a lot"], &["--memory", "a lot", "not a size"]),
        (&["--memory", "-1"], &["-1"]),
        (
            &["--memory", "99999999999T"],
            &["--memory", "99999999999T", "2^64"],
        ),
        (&["--memory", "16000T"], &["--memory", "address space"]),
        (&["--hotplug", "0"], &["--hotplug", "0 bytes"]),
        (&["--hotplug", "3M"], &["--hotplug", "3 MiB", "multiple of 2 MiB"]),
        (&["--hotplug", "16000T"], &["--hotplug", "address space"]),
        (&["--hotplug", "64M,requested=128M"], &["128 MiB", "64 MiB"]),
        (
            &["--hotplug", "64M", "--block-size", "1M"],
            &["--block-size", "1 MiB", "2 MiB"],
        ),
        (
            &["--hotplug", "64M", "--block-size", "6M"],
            &["--block-size", "6 MiB", "power of two"],
        ),
        (
            &["--hotplug", "64M", "--block-size", "0"],
            &["--block-size", "0 bytes"],
        ),
    ];
    for (arguments, parts) in cases {
        assert_run_refused(arguments, 2, parts);
    }
}

#[test]
fn names_with_odd_characters_are_refused() {
    let long = "n".repeat(65);
    for name in ["", "a/b", "..", "a b", "-a", "a\nb", "é", &long] {
        let name = format!("--name={name}");
        assert_run_refused(&[&name], 2, &["--name"]);
    }
}

#[test]
fn counts_and_choices_that_do_not_exist_are_refused() {
    assert_run_refused(&["--cpus", "0"], 2, &["--cpus", "\"0\"", "1 to 16"]);
    assert_run_refused(&["--cpus", "17"], 2, &["--cpus", "\"17\""]);
    assert_run_refused(&["--on-violation", "shrug"], 2, &["shrug", "kill, pause"]);
    assert_run_refused(&["--initrd", "/bin/true"], 2, &["--initrd", "--kernel"]);
    assert_run_refused(&["--no-such-option"], 2, &["--no-such-option"]);
    assert_run_refused(
        &["--config", "/nonexistent/vm.toml"],
        2,
        &["/nonexistent/vm.toml"],
    );
}

#[test]
fn a_program_that_the_guest_does_not_have_ends_the_vm_with_a_message() {
    let home = Home::new();
    let mut vm = home.start("odd", &["--memory", "64M", "--program", "no-such-program"]);
    vm.wait_for_end();
    let said = vm.serial.text() + &vm.messages.text();
    assert!(said.contains("no-such-program"), "{said}");
    home.assert_nothing_left();
}

#[test]
fn without_dev_kvm_the_error_names_it() {
    let home = Home::new();
    let outcome = home.run_in_namespace("mount -t tmpfs tmpfs /dev", &["run", "--memory", "64M"]);
    outcome.assert_refusal(1, &["/dev/kvm", "No such file"]);
    home.assert_nothing_left();
}

#[test]
fn without_permission_for_dev_kvm_the_error_says_so() {
    let home = Home::new();
    let closed = home.files().join("closed");
    std::fs::write(&closed, "").unwrap();
    let setup = format!("chmod 000 {0} && mount --bind {0} /dev/kvm", closed.display());
    let outcome = home.run_in_namespace(&setup, &["run", "--memory", "64M"]);
    outcome.assert_refusal(1, &["/dev/kvm", "Permission denied"]);
    home.assert_nothing_left();
}

#[test]
fn a_dev_kvm_that_is_something_else_is_refused() {
    let home = Home::new();
    let outcome = home.run_in_namespace("mount --bind /dev/null /dev/kvm", &["run", "--memory", "64M"]);
    outcome.assert_refusal(1, &["/dev/kvm"]);
    home.assert_nothing_left();
}

#[test]
fn a_socket_directory_that_cannot_be_written_is_named() {
    let home = Home::new();
    // A read-only file system refuses root as well.
    let setup = format!("mount -t tmpfs -o ro tmpfs {}", home.runtime().display());
    let outcome = home.run_in_namespace(&setup, &["run", "--memory", "64M"]);
    outcome.assert_refusal(
        1,
        &[&home.runtime().display().to_string(), "Read-only file system"],
    );
    home.assert_nothing_left();
}
