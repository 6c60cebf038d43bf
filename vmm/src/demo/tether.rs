//! Ties child processes to the demo: no guest is left running, not even when the demo is killed with SIGKILL.
#![expect(unsafe_code, reason = "what runs between fork and exec is unsafe to choose")]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Lets the kernel kill the command's process (SIGKILL) when the thread that spawns it ends (`PR_SET_PDEATHSIG`, prctl(2)),
/// and keeps the terminal's Ctrl-C from it, which is the demo's to handle. Spawn it from a thread that outlives it.
pub(super) fn tie_to_this_thread(command: &mut Command) {
    let parent = std::process::id();
    command.process_group(0);
    // SAFETY: between fork and exec the closure makes two system calls, both async-signal-safe, and allocates nothing.
    unsafe { command.pre_exec(move || tie(parent)) };
}

/// Runs in the child.
fn tie(parent: u32) -> io::Result<()> {
    // SAFETY: the call changes an attribute of this process and takes no pointer.
    let result = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // A parent that ended before the attribute was set sends nothing any more.
    if std::os::unix::process::parent_id() != parent {
        return Err(io::Error::from(io::ErrorKind::BrokenPipe));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Child;
    use std::thread;

    use super::*;

    fn spawn() -> Child {
        let mut command = Command::new("sleep");
        command.arg("600");
        tie_to_this_thread(&mut command);
        command.spawn().expect("sleep is there")
    }

    #[test]
    fn a_child_ends_with_the_thread_that_spawned_it() {
        let mut child = thread::spawn(spawn).join().expect("no panic");
        let status = child.wait().expect("our child");
        assert_eq!(status.signal(), Some(libc::SIGKILL));
    }

    #[test]
    fn a_child_lives_as_long_as_its_thread() {
        let mut child = spawn();
        assert!(child.try_wait().expect("our child").is_none());
        child.kill().expect("it runs");
        child.wait().expect("our child");
    }
}
