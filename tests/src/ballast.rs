//! Where the `ballast` under test is, and a place of its own for each test to run it in.
//!
//! A [`Home`] is one operator's view: a private `XDG_RUNTIME_DIR`, so that tests running side by side never
//! see each other's microVMs, and the commands typed there. It is empty again when every VM is gone, which
//! [`Home::assert_nothing_left`] checks.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::debian::is_root;
use crate::running::Running;
use crate::transcript::Transcript;
use crate::wait::eventually;

/// A private run-time directory with the commands run in it.
pub struct Home {
    home: TempDir,
}

/// How a finished command ended.
#[derive(Debug)]
pub struct Outcome {
    /// Exit status; 128 + N for a command killed by signal N, as a shell would say.
    pub status: i32,
    /// Standard output, whole.
    pub stdout: String,
    /// Standard error, whole.
    pub stderr: String,
}

impl Outcome {
    /// The standard output of a command that must have succeeded.
    ///
    /// # Panics
    /// When the exit status is not 0.
    pub fn success(self) -> String {
        assert_eq!(self.status, 0, "the command failed: {self:#?}");
        self.stdout
    }

    /// Asserts the form of every refusal: this exit status, nothing on standard output, and one line on standard
    /// error that contains each of `parts` (the value and the rule).
    ///
    /// # Panics
    /// When any of it is not so.
    pub fn assert_refusal(&self, status: i32, parts: &[&str]) {
        assert_eq!(self.status, status, "wrong exit status: {self:#?}");
        assert_eq!(
            self.stdout, "",
            "a refusal says nothing on standard output: {self:#?}"
        );
        assert_eq!(self.stderr.lines().count(), 1, "a refusal is one line: {self:#?}");
        for part in parts {
            assert!(
                self.stderr.contains(part),
                "the refusal must name {part:?}: {self:#?}"
            );
        }
    }
}

impl Default for Home {
    fn default() -> Self {
        Self::new()
    }
}

impl Home {
    /// An empty home.
    ///
    /// # Panics
    /// When no temporary directory can be made.
    pub fn new() -> Self {
        let home = tempfile::Builder::new().prefix("ballast-test-").tempdir();
        let home = Self {
            home: home.unwrap_or_else(|error| panic!("no temporary directory: {error}")),
        };
        let runtime = home.runtime();
        fs::create_dir(&runtime).unwrap_or_else(|error| panic!("cannot make {}: {error}", runtime.display()));
        home
    }

    /// The directory that serves as `XDG_RUNTIME_DIR`.
    pub fn runtime(&self) -> PathBuf {
        self.home.path().join("run")
    }

    /// Path of the control socket of the VM called `name`.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.runtime().join("ballast").join(format!("{name}.sock"))
    }

    /// A command line of the `ballast` under test, set up for this home and not started.
    pub fn command<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Command {
        let mut command = Command::new(binary());
        command.args(arguments);
        self.settle(&mut command);
        command
    }

    /// Makes any command run in this home, without standard input.
    pub fn settle(&self, command: &mut Command) {
        command
            .env("XDG_RUNTIME_DIR", self.runtime())
            .env_remove("TERM")
            .stdin(Stdio::null());
    }

    /// Runs `ballast` with `arguments` to its end.
    ///
    /// # Panics
    /// When it cannot be started or does not end within the deadline.
    pub fn run<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Outcome {
        finish(&mut self.command(arguments))
    }

    /// Runs `ballast` with `arguments` in a mount namespace of its own, after the shell line `setup` has changed what
    /// is mounted there, and without the privilege to pass over file permissions.
    ///
    /// # Panics
    /// When the namespace cannot be made, or the command does not end within the deadline.
    pub fn run_in_namespace(&self, setup: &str, arguments: &[&str]) -> Outcome {
        let drop_privilege = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"].map(OsStr::new);
        let binary = binary();
        let command = drop_privilege
            .into_iter()
            .chain([binary.as_os_str()])
            .chain(arguments.iter().map(OsStr::new));
        self.in_namespace(setup, command)
    }

    /// Runs any program with its arguments in a mount namespace of its own, after the shell line `setup`.
    ///
    /// # Panics
    /// As [`run_in_namespace`](Self::run_in_namespace).
    pub fn run_tool_in_namespace(&self, setup: &str, command: &[&str]) -> Outcome {
        self.in_namespace(setup, command.iter().map(OsStr::new))
    }

    fn in_namespace<'a>(&self, setup: &str, command: impl Iterator<Item = &'a OsStr>) -> Outcome {
        let mut unshare = Command::new("unshare");
        unshare.arg("--mount");
        if !is_root() {
            unshare.args(["--user", "--map-root-user"]);
        }
        let script = format!("{setup} || exit 99; exec \"$@\"");
        unshare.args(["sh", "-c", &script, "sh"]).args(command);
        self.settle(&mut unshare);
        let outcome = finish(&mut unshare);
        assert!(
            ![99, 126, 127].contains(&outcome.status),
            "no such namespace: {outcome:#?}"
        );
        outcome
    }

    /// Starts `ballast run` with `arguments` and answers it running.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(&self, name: &str, arguments: &[&str]) -> Running {
        let mut command = self.command(["run", "--name", name]);
        command.args(arguments);
        Running::start(name, &self.runtime(), command)
    }

    /// A folder for a test's own files, which are no trace of a VM.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn files(&self) -> PathBuf {
        let dir = self.home.path().join("files");
        fs::create_dir_all(&dir).unwrap_or_else(|error| panic!("cannot make {}: {error}", dir.display()));
        dir
    }

    /// An image with a swap area of that size (as `64M`), among this home's files.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn swap_image(&self, name: &str, size: &str) -> PathBuf {
        let path = self.files().join(name);
        let text = path.display().to_string();
        self.run(["disk", "swap", &text, "--size", size]).success();
        path
    }

    /// Asserts that no file is left in the run-time directory (empty directories are no trace of a VM), and that no
    /// process started in this home is alive.
    ///
    /// # Panics
    /// When a file or process is found; the message names all of them.
    pub fn assert_nothing_left(&self) {
        let files = files_below(&self.runtime());
        assert!(
            files.is_empty(),
            "left behind in the run-time directory: {files:?}"
        );
        let processes = processes_of(&self.runtime());
        assert!(processes.is_empty(), "left behind as processes: {processes:?}");
    }
}

/// Runs `command` to its end, both outputs captured.
///
/// # Panics
/// When it cannot be started, or does not end within the deadline (it is killed then).
pub fn finish(command: &mut Command) -> Outcome {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    let stdout = Transcript::of(child.stdout.take().expect("stdout was set to a pipe above"));
    let stderr = Transcript::of(child.stderr.take().expect("stderr was set to a pipe above"));
    let mut guard = Reaper(child);
    let status = eventually(&format!("the end of {command:?}"), || {
        guard
            .0
            .try_wait()
            .unwrap_or_else(|error| panic!("cannot wait for {command:?}: {error}"))
    });
    Outcome {
        status: shell_status(status),
        stdout: stdout.wait_for_end(),
        stderr: stderr.wait_for_end(),
    }
}

/// The exit status as a shell reports it: 128 + N for signal N.
pub fn shell_status(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(-1)
}

/// Kills and reaps the child it holds, if that still runs.
pub struct Reaper(
    /// The child.
    pub std::process::Child,
);

impl Drop for Reaper {
    fn drop(&mut self) {
        // Both fail only for a child that has been reaped already, which is what they are for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The profile's folder of the target directory, such as `target/debug`: the test executable is in its `deps`.
///
/// # Panics
/// When the test executable does not know where it is.
pub fn profile_dir() -> PathBuf {
    let executable = std::env::current_exe().unwrap_or_else(|error| panic!("where am I? {error}"));
    let dir = executable.parent().and_then(Path::parent);
    dir.expect("cargo puts test executables into TARGET/PROFILE/deps")
        .to_owned()
}

/// The `ballast` built beside this test executable.
///
/// # Panics
/// When there is none: cargo does not build another package's binary for a test.
pub fn binary() -> PathBuf {
    let path = profile_dir().join("ballast");
    assert!(
        path.is_file(),
        "{} does not exist: run tests/run, or build it first with `cargo build -p vmm --bin ballast`",
        path.display()
    );
    path
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("cannot list {}: {error}", dir.display()));
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files.extend(files_below(&entry.path()));
        } else {
            files.push(entry.path());
        }
    }
    files
}

/// Process ids with command lines of the processes whose environment names `runtime`.
fn processes_of(runtime: &Path) -> Vec<String> {
    let needle = runtime.as_os_str().as_encoded_bytes();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        // A process of another user, or one that ends meanwhile, cannot be read; neither is of this home.
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.windows(needle.len()).any(|window| window == needle) {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            found.push(format!("{} {line}", entry.file_name().to_string_lossy()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_is_clean_until_something_is_left_in_it() {
        let home = Home::new();
        home.assert_nothing_left();
        fs::create_dir(home.runtime().join("ballast")).unwrap();
        home.assert_nothing_left();
        assert_eq!(files_below(&home.runtime()).len(), 0);
        fs::write(home.socket("a"), "").unwrap();
        assert_eq!(files_below(&home.runtime()), [home.socket("a")]);
    }

    #[test]
    fn a_process_left_in_a_home_is_found_until_it_is_gone() {
        let home = Home::new();
        let mut sleeper = Command::new("sleep");
        sleeper.arg("1000");
        home.settle(&mut sleeper);
        let reaper = Reaper(sleeper.spawn().unwrap());
        eventually("the sleeper showing up", || {
            (processes_of(&home.runtime()).len() == 1).then_some(())
        });
        drop(reaper);
        home.assert_nothing_left();
    }

    #[test]
    fn a_signal_is_reported_as_a_shell_does() {
        let outcome = finish(Command::new("sh").args(["-c", "kill -9 $$"]));
        assert_eq!(outcome.status, 128 + 9);
    }
}
