//! One guest of the demo: a `ballast run` process of its own, which cannot outlive the demo.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::error::DemoError;
use super::home::Home;
use super::plan::{Plan, Side};
use super::tether;
use crate::control::client::{ClientError, ControlClient};
use crate::spec::{MIB, VmName};

/// How long a VM has to end after it was asked to.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a child that should end is looked at.
const END_POLL: Duration = Duration::from_millis(10);
/// Lines of a VM's serial output that are shown when it has failed.
const LAST_LINES: usize = 12;

/// The programs in each guest: one that follows the size of its guest with huge pages, so that most memory is in use
/// however large the guest is, and one that holds small pages, so that blocks cannot be emptied by moving huge pages alone.
pub(super) const PROGRAMS: [&str; 2] = ["hog fill=70% pages=huge", "hog size=48M pages=small"];

/// A running guest.
#[derive(Debug)]
pub(super) struct Guest {
    side: Side,
    name: VmName,
    child: Child,
    serial: PathBuf,
    messages: PathBuf,
}

impl Guest {
    /// Starts the VM's process. It ends with the thread that calls this, however that ends.
    ///
    /// # Errors
    /// The host does not start it.
    pub(super) fn start(home: &Home, plan: &Plan, side: Side) -> Result<Self, DemoError> {
        let failed = |action| move |source| DemoError::Process { side, action, source };
        let name = format!("demo-{}-{}", std::process::id(), side.letter());
        let name = VmName::new(&name).map_err(|error| failed("naming it")(io::Error::other(error)))?;
        let program = std::env::current_exe().map_err(failed("finding this program's own file"))?;
        let serial = home.path().join(format!("{}.serial", side.letter()));
        let messages = home.path().join(format!("{}.messages", side.letter()));
        let stderr = File::create(&messages).map_err(|source| DemoError::File {
            path: messages.clone(),
            source,
        })?;
        let mut command = Command::new(program);
        command
            .args(arguments(plan, side, &name, &serial))
            .env("XDG_RUNTIME_DIR", home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr);
        tether::tie_to_this_thread(&mut command);
        let child = command.spawn().map_err(failed("starting its process"))?;
        Ok(Self {
            side,
            name,
            child,
            serial,
            messages,
        })
    }

    /// The VM's process.
    #[must_use]
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The VM's name.
    #[must_use]
    pub(super) fn name(&self) -> &VmName {
        &self.name
    }

    /// Checks that the VM still runs.
    ///
    /// # Errors
    /// It has ended: how, and what it said last.
    pub(super) fn check_alive(&mut self) -> Result<(), DemoError> {
        let side = self.side;
        let ended = self.child.try_wait().map_err(|source| DemoError::Process {
            side,
            action: "looking at its process",
            source,
        })?;
        ended.map_or(Ok(()), |status| Err(self.died(status)))
    }

    fn died(&self, status: ExitStatus) -> DemoError {
        let said = last_lines(&self.messages, 1).pop();
        let message = said.as_deref().unwrap_or("it said nothing");
        DemoError::Died {
            side: self.side,
            status: status.to_string(),
            // It is this very program that speaks.
            message: message.trim_start_matches("ballast: ").to_owned(),
        }
    }

    /// The end of the guest's serial output.
    pub(super) fn last_serial_lines(&self) -> Vec<String> {
        last_lines(&self.serial, LAST_LINES)
    }

    /// Asks the VM to end, and makes it end if it does not.
    pub(super) fn end(&mut self, client: &ControlClient) {
        let asked = matches!(client.stop(), Ok(()) | Err(ClientError::Exited { .. }));
        let deadline = Instant::now() + END_TIMEOUT;
        while asked && Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(END_POLL);
        }
        self.kill();
    }

    fn kill(&mut self) {
        // Both fail only if the process has already been reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The command line of one guest.
fn arguments(plan: &Plan, side: Side, name: &VmName, serial: &Path) -> Vec<String> {
    let sizes = plan.sizes();
    let mib = |bytes: u64| format!("{}M", bytes / MIB);
    let mut arguments = vec!["run".to_owned()];
    let mut option = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
    option("--name", name.to_string());
    option("--memory", mib(sizes.boot));
    option(
        "--hotplug",
        format!("{},requested={}", mib(sizes.region), mib(sizes.start[side])),
    );
    option("--block-size", mib(sizes.block));
    option("--serial", format!("file={}", serial.display()));
    for (seed, program) in (1..).zip(PROGRAMS) {
        option("--program", format!("{program} seed={seed}"));
    }
    arguments
}

/// The last lines of a file that are not empty, at most `count`, without control characters.
fn last_lines(path: &Path, count: usize) -> Vec<String> {
    let text = read_text(path);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..]
        .iter()
        .map(|line| visible(line.trim_end()))
        .collect()
}

/// The text with control characters spelled out: what a guest prints does not get at the terminal.
fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            out.extend(character.escape_debug());
        } else {
            out.push(character);
        }
    }
    out
}

/// A file's text, whatever bytes it holds; empty if it was never written.
fn read_text(path: &Path) -> String {
    fs::read(path).map_or(String::new(), |bytes| {
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::plan::DEFAULT_MOVES;

    #[test]
    fn a_guest_is_started_with_what_the_plan_says() {
        let plan = Plan::new(DEFAULT_MOVES).expect("the default is in range");
        let name = VmName::new("demo-1-a").expect("a valid name");
        let text = arguments(&plan, Side::A, &name, Path::new("/tmp/a.serial")).join(" ");
        assert_eq!(
            text,
            "run --name demo-1-a --memory 128M --hotplug 1024M,requested=768M --block-size 8M \
             --serial file=/tmp/a.serial --program hog fill=70% pages=huge seed=1 \
             --program hog size=48M pages=small seed=2"
        );
    }

    #[test]
    fn the_last_lines_are_those_at_the_end_that_say_something() {
        let home = Home::new().expect("made");
        let path = home.path().join("a.serial");
        assert_eq!(last_lines(&path, 1), Vec::<String>::new());
        fs::write(&path, "one \"1\"\n\ntwo\u{1b}[31m\r\n\n").expect("written");
        assert_eq!(last_lines(&path, 1), ["two\\u{1b}[31m"]);
        assert_eq!(last_lines(&path, 9), ["one \"1\"", "two\\u{1b}[31m"]);
    }
}
