//! Debian's kernel packages: the image, and modules with what they depend on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{find, shared, update_package_lists};
use crate::ballast::finish;

/// The releases of Linux that the tests boot, each in Debian's build for clouds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Release {
    /// Debian 12's own.
    V6_1,
    /// Debian 13's, and in the updates of Debian 12. The host box runs it too.
    V6_12,
}

impl Release {
    /// The two numbers with a dot, as `uname -r` begins.
    pub fn number(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }

    /// What names of its packages match.
    fn package_pattern(self) -> String {
        let number = self.number().replace('.', r"\.");
        format!(r"^linux-image-{number}\..*-cloud-amd64-unsigned$")
    }
}

/// An unpacked Debian kernel package.
pub struct KernelPackage {
    root: PathBuf,
}

impl KernelPackage {
    /// The newest Debian cloud kernel of `release`, fetched when there is none yet.
    ///
    /// # Panics
    /// When it can neither be found nor downloaded.
    pub fn fetch(release: Release) -> Self {
        let root = shared(&format!("kernel-{}", release.number()), |staging| {
            download(release, staging)
        });
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
        // 6.1 has them plain, later ones compressed.
        let files = [format!("{name}.ko"), format!("{name}.ko.xz")];
        let found = self.find_module(&|found| files.contains(&found.replace('-', "_")));
        let Some(path) = found else {
            assert!(
                self.is_built_in(&files[0]),
                "no module {name} in {}",
                self.root.display()
            );
            return;
        };
        let module = unpack(&path);
        for dependency in dependencies(&module) {
            self.add_module(&dependency, ordered);
        }
        ordered.push((name, module));
    }

    fn find_module(&self, wanted: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
        let folders = ["lib/modules", "usr/lib/modules"].map(|folder| self.root.join(folder));
        folders.iter().find_map(|folder| find(folder, wanted))
    }

    /// Whether the kernel's own list of what it has built in names the module in `file`, such as `virtio_ring.ko`.
    fn is_built_in(&self, file: &str) -> bool {
        let list = self.find_module(&|name| name == "modules.builtin");
        let list = list
            .and_then(|path| fs::read_to_string(path).ok())
            .unwrap_or_default();
        list.lines()
            .filter_map(|line| line.rsplit('/').next())
            .any(|name| name.replace('-', "_") == file)
    }
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

fn unpack(path: &Path) -> Vec<u8> {
    if path.extension().is_some_and(|extension| extension == "ko") {
        return fs::read(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    }
    let xz = Command::new("xz")
        .arg("--decompress")
        .arg("--stdout")
        .arg(path)
        .output();
    let output = xz.unwrap_or_else(|error| panic!("cannot run xz (Debian package xz-utils): {error}"));
    assert!(output.status.success(), "xz cannot unpack {}", path.display());
    output.stdout
}

/// Downloads the package and unpacks it below `staging`; answers the unpacked folder.
fn download(release: Release, staging: &Path) -> PathBuf {
    // A package list that is missing or out of date shows as a package that is not known, or not found.
    if let Err(first) = try_download(release, staging) {
        let update = update_package_lists();
        let again = try_download(release, staging);
        again.unwrap_or_else(|error| panic!("no Debian kernel: {first}; {update:?}; then: {error}"));
    }
    let package = find(staging, &|name| name.ends_with(".deb"));
    let package = package.unwrap_or_else(|| panic!("apt-get download left no package"));
    let unpacked = staging.join("kernel");
    finish(Command::new("dpkg").arg("--extract").arg(package).arg(&unpacked)).success();
    unpacked
}

fn try_download(release: Release, dir: &Path) -> Result<(), String> {
    let pattern = release.package_pattern();
    let search = finish(Command::new("apt-cache").args(["search", "--names-only", &pattern]));
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
        .ok_or_else(|| format!("apt-cache knows none that matches {pattern}"))?;
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

    #[test]
    fn packages_of_6_1_are_not_those_of_6_12() {
        assert_eq!(
            Release::V6_1.package_pattern(),
            r"^linux-image-6\.1\..*-cloud-amd64-unsigned$"
        );
    }
}
