//! A guest that panics says where, and the VM ends with an exit status of its own.

use integration_tests::Home;

/// Boots a guest that provokes `failure` in itself and answers what the VMM said about it.
fn messages_of_a_guest_with(failure: &str) -> String {
    let home = Home::new();
    let cmdline = format!("panic_test={failure}");
    let mut vm = home.start("panicking", &["--memory", "64M", "--cmdline", &cmdline]);
    assert_eq!(vm.wait_for_end(), 3);
    home.assert_nothing_left();
    vm.messages.text()
}

#[test]
fn a_panic_is_reported_with_file_and_line_and_exit_status_3() {
    let messages = messages_of_a_guest_with("manager");
    let (_, place) = messages
        .split_once("guest-mm/kernel/src/")
        .unwrap_or_else(|| panic!("no file in {messages}"));
    let (_, line) = place
        .split_once(".rs:")
        .unwrap_or_else(|| panic!("no line in {messages}"));
    assert!(line.starts_with(|sign: char| sign.is_ascii_digit()), "{messages}");
}

#[test]
fn a_stray_access_of_the_guests_manager_is_reported_too() {
    let messages = messages_of_a_guest_with("fault");
    assert!(messages.contains("guest panicked: access to 0x"), "{messages}");
}

#[test]
fn an_overflow_of_the_managers_stack_is_reported_too() {
    let messages = messages_of_a_guest_with("stack");
    assert!(
        messages.contains("guest panicked: stack overflow at 0x"),
        "{messages}"
    );
}
