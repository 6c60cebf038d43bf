//! Writes initial ramdisks: archives in the `newc` format that the Linux kernel unpacks at boot.
//!
//! Format: Linux `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::collections::BTreeSet;

/// An archive under construction. Folders on the way to a file are added by themselves.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    paths: BTreeSet<String>,
    entries: usize,
}

const FOLDER: usize = 0o040_755;
const EXECUTABLE: usize = 0o100_755;

impl Archive {
    /// Adds an executable file at the absolute `path`.
    pub fn add(&mut self, path: &str, contents: &[u8]) {
        let path = path.trim_start_matches('/');
        for (slash, _) in path.match_indices('/') {
            self.add_folder(&path[..slash]);
        }
        self.paths.insert(path.to_owned());
        self.entry(path, EXECUTABLE, contents);
    }

    /// Whether there is a file or folder at the absolute `path` already.
    pub fn contains(&self, path: &str) -> bool {
        self.paths.contains(path.trim_start_matches('/'))
    }

    /// The finished archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn add_folder(&mut self, path: &str) {
        if self.paths.insert(path.to_owned()) {
            self.entry(path, FOLDER, &[]);
        }
    }

    /// One entry: a header of 13 numbers of 8 hexadecimal digits, the name, the contents, each padded to 4 bytes.
    fn entry(&mut self, path: &str, mode: usize, contents: &[u8]) {
        self.entries += 1;
        let (inode, links, size, name_size) = (self.entries, 1, contents.len(), path.len() + 1);
        let header = [inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for number in header {
            self.bytes.extend_from_slice(format!("{number:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_the_bytes_the_format_asks_for() {
        let mut archive = Archive::default();
        archive.add("/a/b", b"hello");
        let zero = "00000000";
        let entry = |inode, mode, size, name_size, name| {
            let zeros = zero.repeat(4);
            format!("070701{inode}{mode}{zero}{zero}00000001{zero}{size}{zeros}{name_size}{zero}{name}")
        };
        let expected = [
            entry("00000001", "000041ed", zero, "00000002", "a\0"),
            entry(
                "00000002",
                "000081ed",
                "00000005",
                "00000004",
                "a/b\0\0\0hello\0\0\0",
            ),
            entry("00000003", zero, zero, "0000000b", "TRAILER!!!\0\0\0\0"),
        ];
        assert_eq!(String::from_utf8(archive.finish()).unwrap(), expected.concat());
    }

    #[test]
    fn a_folder_is_written_once() {
        let mut archive = Archive::default();
        archive.add("/a/b", b"");
        archive.add("/a/c", b"");
        let bytes = archive.finish();
        assert_eq!(bytes.windows(6).filter(|window| window == b"070701").count(), 4);
    }
}
