//! A panic of any thread ends the process: the other threads would go on with what it left half done.
//!
//! The profiles of this workspace say so to the compiler too. But tests are compiled to unwind, and so may be a program
//! that shares its parts with them.

use std::panic;

/// From now on panics are said as before, and end the process (SIGABRT).
pub(super) fn end_the_process() {
    let said = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        said(info);
        std::process::abort();
    }));
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};
    use std::{env, thread};

    use super::*;

    const NAME: &str = "cli::panics::tests::a_panic_of_a_thread_ends_the_process_and_says_where_it_was";
    /// Set in the process that is to panic.
    const INSIDE: &str = "BALLAST_TEST_PANIC";

    #[test]
    fn a_panic_of_a_thread_ends_the_process_and_says_where_it_was() {
        if env::var_os(INSIDE).is_some() {
            end_the_process();
            let _ = thread::spawn(|| panic!("on purpose")).join();
            return;
        }
        let this = env::current_exe().expect("the program that runs");
        let mut inside = Command::new(this);
        inside.args(["--exact", NAME, "--nocapture"]).env(INSIDE, "1");
        let output = inside.stdin(Stdio::null()).output().expect("it starts");
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("on purpose") && said.contains(file!()), "{said}");
    }
}
