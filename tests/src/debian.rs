//! What the tests take from Debian: the kernel that runs in the host box and as stock guest, and busybox.
//!
//! The kernel package is downloaded and unpacked below the target directory, never installed. Tests run as
//! processes side by side, so a file lock lets the first one fetch it while the others wait; a folder that
//! exists is complete, because it is renamed into place.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::ballast::{finish, profile_dir};

/// An unpacked Debian kernel package.
pub struct KernelPackage {
    root: PathBuf,
}

impl KernelPackage {
    /// The newest Debian 6.12 cloud kernel, fetched when there is none yet.
    ///
    /// # Panics
    /// When it can neither be found nor downloaded.
    pub fn fetch() -> Self {
        let target = profile_dir()
            .parent()
            .expect("a profile's folder has a parent")
            .join("host-box");
        make_dir(&target);
        let lock = File::create(target.join("lock")).unwrap_or_else(|error| panic!("no lock file: {error}"));
        lock.lock().unwrap_or_else(|error| panic!("cannot lock: {error}"));
        let root = target.join("kernel");
        if !root.is_dir() {
            download(&target, &root);
        }
        Self { root }
    }

    /// The kernel image, a bzImage.
    ///
    /// # Panics
    /// When the package holds none.
    pub fn image(&self) -> PathBuf {
        let found = find(&self.root.join("boot"), &|name| name.starts_with("vmlinuz-"));
        found.unwrap_or_else(|| panic!("no vmlinuz in {}", self.root.display()))
    }

    /// The modules called `names` and everything they depend on, decompressed, in the order of loading.
    /// Names that the kernel has built in are passed over.
    ///
    /// # Panics
    /// When a module is neither in the package nor built in.
    pub fn modules(&self, names: &[&str]) -> Vec<(String, Vec<u8>)> {
        let mut ordered = Vec::new();
        for name in names {
            self.add_module(name, &mut ordered);
        }
        ordered
    }

    fn add_module(&self, name: &str, ordered: &mut Vec<(String, Vec<u8>)>) {
        // File names have either of the two signs where module names have an underscore.
        let name = name.replace('-', "_");
        if ordered.iter().any(|(known, _)| *known == name) {
            return;
        }
        let file = format!("{name}.ko.xz");
        let modules = ["lib/modules", "usr/lib/modules"].map(|folder| self.root.join(folder));
        let found = modules
            .iter()
            .find_map(|dir| find(dir, &|found| found.replace('-', "_") == file));
        let path = found.unwrap_or_else(|| panic!("no module {name} in {}", self.root.display()));
        let module = unpack(&path);
        for dependency in dependencies(&module) {
            self.add_module(&dependency, ordered);
        }
        ordered.push((name, module));
    }
}

/// Path of the statically linked busybox.
///
/// # Panics
/// When the Debian package is missing.
pub fn busybox() -> PathBuf {
    require("/bin/busybox", "busybox-static")
}

/// Answers `path`, which a Debian package called `package` brings.
///
/// # Panics
/// When it is not there.
pub fn require(path: &str, package: &str) -> PathBuf {
    let path = PathBuf::from(path);
    assert!(
        path.is_file(),
        "{} is missing: install the Debian package {package}, or run tests/run",
        path.display()
    );
    path
}

/// Names of the modules that `module` needs: the `depends=` entry of its `.modinfo` section.
fn dependencies(module: &[u8]) -> Vec<String> {
    const ENTRY: &[u8] = b"\0depends=";
    let Some(found) = module.windows(ENTRY.len()).position(|window| window == ENTRY) else {
        return Vec::new();
    };
    let value = module[found + ENTRY.len()..]
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    names
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Whether this process runs as the superuser, and so needs no `sudo`.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

fn unpack(path: &Path) -> Vec<u8> {
    let xz = Command::new("xz")
        .arg("--decompress")
        .arg("--stdout")
        .arg(path)
        .output();
    let output = xz.unwrap_or_else(|error| panic!("cannot run xz (Debian package xz-utils): {error}"));
    assert!(output.status.success(), "xz cannot unpack {}", path.display());
    output.stdout
}

fn download(target: &Path, root: &Path) {
    let staging = tempfile::tempdir_in(target).unwrap_or_else(|error| panic!("no staging folder: {error}"));
    // A package list that is missing or out of date shows as a package that is not known, or not found.
    if let Err(first) = try_download(staging.path()) {
        let command = if is_root() { "apt-get" } else { "sudo" };
        let mut update = Command::new(command);
        if command == "sudo" {
            update.arg("apt-get");
        }
        let update = finish(update.args(["update", "--quiet"]));
        let again = try_download(staging.path());
        again.unwrap_or_else(|error| panic!("no Debian kernel: {first}; {update:?}; then: {error}"));
    }
    let package = find(staging.path(), &|name| name.ends_with(".deb"));
    let package = package.unwrap_or_else(|| panic!("apt-get download left no package"));
    let unpacked = staging.path().join("kernel");
    finish(Command::new("dpkg").arg("--extract").arg(package).arg(&unpacked)).success();
    fs::rename(&unpacked, root).unwrap_or_else(|error| panic!("cannot keep the kernel package: {error}"));
}

fn try_download(dir: &Path) -> Result<(), String> {
    let pattern = r"^linux-image-6\.12.*-cloud-amd64-unsigned$";
    let search = finish(Command::new("apt-cache").args(["search", "--names-only", pattern]));
    let mut names: Vec<&str> = search
        .stdout
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    names.sort_by_key(|name| version(name));
    // The list also names packages that only others refer to; the newest that exists is wanted.
    let name = names
        .into_iter()
        .rev()
        .find(|name| has_candidate(name))
        .ok_or("apt-cache knows none")?;
    let mut fetch = Command::new("apt-get");
    let outcome = finish(fetch.args(["download", "--quiet", name]).current_dir(dir));
    if outcome.status == 0 {
        Ok(())
    } else {
        Err(format!("cannot download {name}: {}", outcome.stderr))
    }
}

fn has_candidate(name: &str) -> bool {
    let policy = finish(
        Command::new("apt-cache")
            .env("LC_ALL", "C")
            .args(["policy", name]),
    );
    policy
        .stdout
        .lines()
        .any(|line| line.trim().starts_with("Candidate:") && !line.contains("(none)"))
}

/// The numbers in a package name, for comparing versions.
fn version(name: &str) -> Vec<u64> {
    name.split(|sign: char| !sign.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

fn make_dir(dir: &Path) {
    fs::create_dir_all(dir).unwrap_or_else(|error| panic!("cannot make {}: {error}", dir.display()));
}

fn find(dir: &Path, wanted: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    for entry in fs::read_dir(dir).ok()?.flatten() {
        let path = entry.path();
        let found = if path.is_dir() {
            find(&path, wanted)
        } else {
            wanted(&entry.file_name().to_string_lossy()).then_some(path)
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_the_module_itself() {
        let module = b"\x7fELF..\0license=GPL\0depends=irqbypass,kvm\0retpoline=Y\0";
        assert_eq!(dependencies(module), ["irqbypass", "kvm"]);
        assert!(dependencies(b"\0license=GPL\0depends=\0").is_empty());
    }

    #[test]
    fn versions_compare_by_number() {
        let (old, new) = (
            "linux-image-6.12.9+deb13-cloud",
            "linux-image-6.12.107+deb12-cloud",
        );
        assert!(version(old) < version(new));
    }
}
