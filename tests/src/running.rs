//! A microVM that is running: its serial console, its messages, and the commands an operator gives it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};

use serde_json::Value;

use crate::ballast::{Outcome, Reaper, binary, finish, shell_status};
use crate::control;
use crate::transcript::Transcript;
use crate::views::{self, Process};
use crate::wait::eventually;

/// A `ballast run` process. Dropping it kills the process; a failing test prints what the VM said.
pub struct Running {
    name: String,
    runtime: PathBuf,
    child: Reaper,
    input: Option<ChildStdin>,
    /// Standard output: the guest's serial console.
    pub serial: Transcript,
    /// Standard error: the VMM's own messages.
    pub messages: Transcript,
}

impl Running {
    /// Starts `command`, which must be a `ballast run` for the VM `name`.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(name: &str, runtime: &Path, mut command: Command) -> Self {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Self {
            name: name.to_owned(),
            runtime: runtime.to_owned(),
            input: child.stdin.take(),
            serial: Transcript::of(child.stdout.take().expect("stdout was set to a pipe above")),
            messages: Transcript::of(child.stderr.take().expect("stderr was set to a pipe above")),
            child: Reaper(child),
        }
    }

    /// The VM's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Process id of the VMM.
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// Types `text` on the serial console.
    ///
    /// # Panics
    /// When the VM no longer reads it.
    pub fn type_in(&mut self, text: &str) {
        let input = self
            .input
            .as_mut()
            .expect("standard input stays open as long as the VM runs");
        let written = input.write_all(text.as_bytes()).and_then(|()| input.flush());
        written.unwrap_or_else(|error| panic!("the serial console of {} is closed: {error}", self.name));
    }

    /// Runs `ballast COMMAND NAME ARGUMENTS...` to its end.
    ///
    /// # Panics
    /// When it does not end within the deadline.
    pub fn order(&self, command: &str, arguments: &[&str]) -> Outcome {
        let mut line = Command::new(binary());
        line.arg(command).arg(&self.name).args(arguments);
        line.env("XDG_RUNTIME_DIR", &self.runtime).stdin(Stdio::null());
        finish(&mut line)
    }

    /// What the VM says of itself: fields of `VmStatus`, sizes in bytes.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn stats(&self) -> Stats {
        self.try_stats().unwrap_or_else(|why| panic!("{why}"))
    }

    fn try_stats(&self) -> Result<Stats, String> {
        match control::ask(&self.socket(), "GET", "/ballast/v1/vm", "")? {
            (200, body) => Ok(Stats(body)),
            (status, body) => Err(format!("no statistics: {status} {body}")),
        }
    }

    fn socket(&self) -> PathBuf {
        self.runtime.join("ballast").join(format!("{}.sock", self.name))
    }

    /// Asks for a total of `bytes`, waits for at most `seconds`, and answers the report: fields of `ResizeReport`.
    ///
    /// # Panics
    /// When the VM refuses, or does not answer.
    pub fn try_resize(&self, bytes: u64, seconds: u64) -> Stats {
        let body = format!("{{\"total_bytes\":{bytes},\"wait_seconds\":{seconds}}}");
        match control::ask(&self.socket(), "PUT", "/ballast/v1/memory", &body) {
            Ok((200, report)) => Stats(report),
            other => panic!("no resize to {bytes}: {other:?}"),
        }
    }

    /// Tells the balloon something, such as `{"do":"statistics"}`, and answers its report: fields of `BalloonReport`.
    ///
    /// # Panics
    /// When the VM refuses, or does not answer.
    pub fn balloon(&self, order: &str) -> Stats {
        match control::ask(&self.socket(), "POST", "/ballast/v1/balloon", order) {
            Ok((200, report)) => Stats(report),
            other => panic!("the balloon and {order}: {other:?}"),
        }
    }

    /// Changes what a disk may do: `limits` is a `RateLimiter` of the API.
    ///
    /// # Panics
    /// When the VM refuses, or does not answer.
    pub fn limit_disk(&self, disk: usize, limits: &str) {
        let body = format!("{{\"disk\":{disk},\"rate_limiter\":{limits}}}");
        match control::ask(&self.socket(), "POST", "/ballast/v1/rate-limiter", &body) {
            Ok((200, _)) => {}
            other => panic!("disk {disk} and {limits}: {other:?}"),
        }
    }

    /// Asks for a total of `bytes` and waits until the guest has it.
    ///
    /// # Panics
    /// When it does not get there.
    pub fn resize_to(&self, bytes: u64) {
        let report = self.try_resize(bytes, 200);
        assert_eq!(
            (report.text("outcome"), report.number("reached_bytes")),
            ("reached", bytes),
            "{report:?}"
        );
    }

    /// Asks the guest through `ballast guest NAME QUESTION`.
    ///
    /// # Panics
    /// When the command fails.
    pub fn guest(&self, question: &str) -> String {
        self.order("guest", &[question]).success()
    }

    /// Waits until the guest's virtio-mem driver is in charge of the device.
    ///
    /// # Panics
    /// When the VM ends first, or the deadline passes.
    pub fn wait_for_driver(&mut self) {
        self.wait_until("its virtio-mem driver being ready", |stats| {
            stats.flag("driver_ready")
        });
    }

    /// Waits until `condition` holds for the statistics.
    ///
    /// # Panics
    /// When the VM ends first, or the deadline passes.
    pub fn wait_until(&mut self, what: &str, mut condition: impl FnMut(&Stats) -> bool) -> Stats {
        let what = format!("{}: {what}", self.name);
        eventually(&what, || {
            self.assert_alive(&what);
            self.try_stats().ok().filter(|stats| condition(stats))
        })
    }

    /// The programs of the built-in guest.
    ///
    /// # Panics
    /// When the guest does not answer.
    pub fn programs(&self) -> Vec<Process> {
        views::ps(&self.guest("ps"))
    }

    /// Waits until the built-in guest answers questions: its console may come up after its memory device.
    ///
    /// # Panics
    /// When the deadline passes.
    pub fn wait_for_answers(&self) {
        eventually("the guest's control channel", || {
            (self.order("guest", &["help"]).status == 0).then_some(())
        });
    }

    /// Waits until every program of the built-in guest has verified its memory `more` times from now on.
    ///
    /// # Panics
    /// When a verification failed, a program ended, or the deadline passes.
    pub fn wait_for_checks(&mut self, more: u64) {
        self.wait_for_answers();
        // Programs start after the file system was mounted.
        let begun: BTreeMap<u64, u64> = eventually("a program", || {
            let programs = self.programs();
            let checks = programs.iter().map(|it| (it.pid, it.checks_ok)).collect();
            (!programs.is_empty()).then_some(checks)
        });
        eventually("programs verifying their memory", || {
            let programs = self.programs();
            for program in &programs {
                assert_eq!(program.checks_failed, 0, "wrong memory: {program:?}");
                assert!(program.is_alive(), "a program ended: {program:?}");
            }
            let done = |it: &Process| it.checks_ok >= begun.get(&it.pid).copied().unwrap_or(0) + more;
            programs.iter().all(done).then_some(())
        });
    }

    /// Resizes the VM to `total` (such as `768M`) and waits until the guest has reached it.
    ///
    /// # Panics
    /// When the command fails: the guest did not get there.
    pub fn resize(&self, total: &str) -> String {
        self.order("resize", &[total, "--wait", "140"]).success()
    }

    /// Waits for the VM to end and answers its exit status.
    ///
    /// # Panics
    /// When the deadline passes first.
    pub fn wait_for_end(&mut self) -> i32 {
        let name = self.name.clone();
        let status = eventually(&format!("the end of the VM {name}"), || {
            self.child
                .0
                .try_wait()
                .unwrap_or_else(|error| panic!("cannot wait for {name}: {error}"))
        });
        self.messages.wait_for_end();
        self.serial.wait_for_end();
        shell_status(status)
    }

    /// Has the machine switched off in order, which a guest told to (`validate`) does only after it has found all that its memory manager knows
    /// to be right.
    ///
    /// # Panics
    /// When that fails.
    pub fn stop(&mut self) {
        self.order("stop", &[]).success();
        assert_eq!(self.wait_for_end(), 0, "{}", self.messages.text());
    }

    /// Sends the signal called `name` (such as `TERM`) to the VMM process.
    ///
    /// # Panics
    /// When it cannot be sent.
    pub fn signal(&self, name: &str) {
        // The shell's own `kill`: the command of that name is in a package that not every machine has.
        let mut shell = Command::new("sh");
        shell.args(["-c", "kill -s \"$1\" \"$2\"", "sh", name, &self.pid().to_string()]);
        finish(&mut shell).success();
    }

    /// Ends the VMM process the hard way, as the kernel's out-of-memory killer would, and reaps it.
    ///
    /// # Panics
    /// When it has ended already.
    pub fn kill_hard(&mut self) {
        self.child
            .0
            .kill()
            .unwrap_or_else(|error| panic!("{} has ended already: {error}", self.name));
        self.wait_for_end();
    }

    fn assert_alive(&mut self, what: &str) {
        if let Ok(Some(status)) = self.child.0.try_wait() {
            panic!(
                "the VM ended with status {} while waiting for {what}",
                shell_status(status)
            );
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (name, serial, messages) = (&self.name, self.serial.text(), self.messages.text());
            eprintln!("---- serial console of {name}\n{serial}\n---- messages of {name}\n{messages}\n----");
            eprintln!("---- threads of {name}\n{}\n----", threads(self.pid()));
        }
    }
}

/// What each thread of a process is doing: its name, state and processor time, and where in the kernel it waits.
fn threads(pid: u32) -> String {
    let mut lines = String::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let stat = read("stat");
        // The fields behind the name, which is in brackets: state, ..., processor time in user space and in the kernel.
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        let field = |number: usize| fields.get(number).copied().unwrap_or("?");
        lines.push_str(&format!(
            "{:<16} {} user {} kernel {} ticks, in {}\n{}",
            read("comm").trim(),
            field(0),
            field(11),
            field(12),
            read("wchan"),
            read("stack"),
        ));
    }
    lines
}

/// A JSON object that a VM answered, such as its statistics.
#[derive(Debug, Clone)]
pub struct Stats(Value);

impl Stats {
    /// The number in `field`; a field of a part is `part.field`.
    ///
    /// # Panics
    /// When there is no such field, or it is not a whole number of at least 0.
    pub fn number(&self, field: &str) -> u64 {
        let found = self.0.pointer(&format!("/{}", field.replace('.', "/")));
        found
            .and_then(Value::as_u64)
            .unwrap_or_else(|| panic!("no number {field} in {}", self.0))
    }

    /// The truth of `field`.
    ///
    /// # Panics
    /// When there is no such field, or it is neither true nor false.
    pub fn flag(&self, field: &str) -> bool {
        self.0[field]
            .as_bool()
            .unwrap_or_else(|| panic!("no flag {field} in {}", self.0))
    }

    /// The text in `field`.
    ///
    /// # Panics
    /// When there is no such field, or it is not text.
    pub fn text(&self, field: &str) -> &str {
        self.find_text(field)
            .unwrap_or_else(|| panic!("no text {field} in {}", self.0))
    }

    /// The text in `field`, if there is one.
    pub fn find_text(&self, field: &str) -> Option<&str> {
        let found = self.0.pointer(&format!("/{}", field.replace('.', "/")));
        found.and_then(Value::as_str)
    }
}
