//! A stock Linux guest: a Debian kernel with an initial ramdisk made here, and a shell on the serial console.

mod image;
mod log;
mod memory;

pub(crate) use image::GUEST_PROGRAMS;
pub use image::LinuxImage;
pub use memory::Found;

use std::time::Instant;

use crate::ballast::Home;
use crate::debian::Release;
use crate::running::Running;

/// A stock Linux guest that has booted to its shell. Whatever a test does with it, the guest's kernel must not complain.
/// Its log is looked through after each [`case`](Self::case), before [`last_words`](Self::last_words), and when a guest
/// with a shell is dropped; what it says on the console after `last_words`, when it has booted again or is dropped. All
/// limits are the kernel's own: 21 s for a stall, twice 10 s for a lockup, 120 s for a task.
pub struct LinuxGuest {
    /// The microVM it runs in.
    pub vm: Running,
    position: usize,
    shell: Shell,
}

/// Whether somebody answers on the serial console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shell {
    Open,
    /// The guest boots, or was told something that ends it.
    Closed,
}

impl LinuxGuest {
    /// Boots a guest with the newest of the kernels; otherwise as [`Self::boot_release`].
    ///
    /// # Panics
    /// When it does not get there, or a module cannot be loaded.
    pub fn boot(home: &Home, name: &str, arguments: &[&str], cmdline: &str) -> Self {
        Self::boot_release(Release::V6_12, home, name, arguments, cmdline)
    }

    /// Boots a guest with a kernel of `release` in `home`, with `arguments` to `ballast run` and `cmdline` added to the
    /// kernel's command line, and waits for its shell. `hold=MODULE,...` there keeps modules from being loaded.
    ///
    /// # Panics
    /// When it does not get there, or a module cannot be loaded.
    pub fn boot_release(
        release: Release,
        home: &Home,
        name: &str,
        arguments: &[&str],
        cmdline: &str,
    ) -> Self {
        let image = LinuxImage::prepare(release, &home.files());
        let (kernel, initrd) = (image.kernel.to_string_lossy(), image.initrd.to_string_lossy());
        // What keeps programs from guessing each other's memory costs an emulated processor much, and is not what is tested.
        let cmdline = format!("console=ttyS0 quiet panic=-1 mitigations=off {cmdline}");
        let fixed = ["--kernel", &kernel, "--initrd", &initrd, "--cmdline", &cmdline];
        let vm = home.start(name, &[arguments, &fixed].concat());
        let mut guest = Self {
            vm,
            position: 0,
            shell: Shell::Closed,
        };
        guest.wait_for_shell();
        guest
    }

    /// Waits for the shell of a guest that boots.
    ///
    /// # Panics
    /// When it does not get there, or a module cannot be loaded.
    pub fn wait_for_shell(&mut self) {
        let (before, position) = self.vm.serial.wait_for_after(self.position, "guest: ready");
        self.position = position;
        self.shell = Shell::Open;
        assert!(!before.contains("cannot load"), "a module is missing:\n{before}");
        assert_quiet(&before);
    }

    /// Runs one line of shell in the guest and answers what it wrote.
    ///
    /// # Panics
    /// When its exit status is not 0, or the guest does not answer.
    pub fn shell(&mut self, line: &str) -> String {
        let (status, answer) = self.try_shell(line);
        assert_eq!(status, "0", "the guest's `{line}` failed:\n{answer}");
        answer
    }

    /// Runs one line of shell in the guest and answers its exit status, a number, and what it wrote.
    ///
    /// # Panics
    /// When the guest does not answer.
    pub fn try_shell(&mut self, line: &str) -> (String, String) {
        self.vm.type_in(&format!("{line}\n"));
        let (_, begin) = self.vm.serial.wait_for_after(self.position, "guest: begin\r\n");
        let (answer, end) = self.vm.serial.wait_for_after(begin, "guest: end ");
        let (status, position) = self.vm.serial.wait_for_after(end, "\n");
        self.position = position;
        (status.trim().to_owned(), answer)
    }

    /// Types a line that ends the guest, or has it boot again, so that no answer comes. What the kernel says then is looked
    /// at later.
    ///
    /// # Panics
    /// As [`Self::case`], for what was before.
    pub fn last_words(&mut self, line: &str) {
        self.assert_no_complaints(&[]);
        // What the kernel complains of from now on can only be seen on the console: warnings and what is worse.
        self.shell("dmesg -n 5");
        self.shell = Shell::Closed;
        self.vm.type_in(&format!("{line}\n"));
    }

    /// Tries one of several things with this guest. Its name is printed, so that a failure can be told from one of
    /// another case; afterwards the kernel must not have complained, and nothing of what the guest did may have been a
    /// violation or a fault towards a device.
    ///
    /// # Panics
    /// When `body` does, or the kernel complained, or the VMM counted something.
    pub fn case<T>(&mut self, name: &str, body: impl FnOnce(&mut Self) -> T) -> T {
        self.case_with_complaints(name, &[], body)
    }

    /// As [`Self::case`], but complaints that contain one of `expected` are all right, and each of these must come.
    ///
    /// # Panics
    /// As [`Self::case`], and when the kernel did not complain of something that was expected.
    pub fn case_with_complaints<T>(
        &mut self,
        name: &str,
        expected: &[&str],
        body: impl FnOnce(&mut Self) -> T,
    ) -> T {
        crate::host_box::begin_case(name);
        let begun = Instant::now();
        let answer = body(self);
        self.assert_no_complaints(expected);
        println!("took {:.1} s", begun.elapsed().as_secs_f32());
        answer
    }

    /// Looks at the guest's log since the last time, and at what the VMM has counted.
    fn assert_no_complaints(&mut self, expected: &[&str]) {
        // Looked through in the guest: every byte on the serial console is an exit.
        let found = self.shell(&log::search());
        let complaints = log::complaints(&found, expected);
        if !complaints.is_empty() {
            let log = self.shell(log::WHOLE);
            panic!("the guest's kernel complained: {complaints:#?}\n{log}");
        }
        let missing = log::missing(&found, expected);
        assert!(
            missing.is_empty(),
            "the guest's kernel did not say {missing:?}: {found}"
        );
        let stats = self.vm.stats();
        let counted = ["violations", "guest_faults"].map(|field| stats.number(field));
        assert_eq!(counted, [0, 0], "violations and guest faults");
    }
}

impl Drop for LinuxGuest {
    /// # Panics
    /// When the kernel complained, or the VMM counted something, and the test has not failed already.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        match self.shell {
            Shell::Open => self.assert_no_complaints(&[]),
            Shell::Closed => assert_quiet(&self.vm.serial.text_after(self.position)),
        }
    }
}

/// Looks at what a guest has said on its console while it had no shell.
fn assert_quiet(said: &str) {
    let complaints = log::complaints(said, &[]);
    assert!(
        complaints.is_empty(),
        "the guest's kernel complained: {complaints:#?}\n{said}"
    );
}
