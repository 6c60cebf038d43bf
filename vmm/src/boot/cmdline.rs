//! The kernel command line: what the user gave, and for the built-in guest what the machine adds.

use super::BootError;
use crate::machine::layout::{CMDLINE_MAX, virtio_gsi, virtio_mmio};

/// A command line that fits and is a C string once a NUL follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine(String);

impl CommandLine {
    /// The line of a kernel that finds its devices by itself.
    ///
    /// # Errors
    /// It is too long or holds control characters.
    pub fn for_kernel(line: &str) -> Result<Self, BootError> {
        let max = CMDLINE_MAX - 1;
        if line.len() > max || line.chars().any(char::is_control) {
            return Err(BootError::CommandLine { len: line.len(), max });
        }
        Ok(Self(line.to_owned()))
    }

    /// The line of the built-in guest: `line`, each of `devices` virtio-mmio devices in Linux's syntax
    /// (`virtio_mmio.device=SIZE@BASE:IRQ`), and each program, quoted.
    ///
    /// # Errors
    /// A program cannot be quoted, or all of it is too long.
    pub fn for_built_in(line: &str, devices: u32, programs: &[String]) -> Result<Self, BootError> {
        let mut words: Vec<String> = Vec::new();
        if !line.is_empty() {
            words.push(line.to_owned());
        }
        words.extend((0..devices).map(|index| {
            let window = virtio_mmio(index);
            let kib = (window.end - window.start) >> 10;
            format!(
                "virtio_mmio.device={kib}K@{:#x}:{}",
                window.start,
                virtio_gsi(index)
            )
        }));
        for program in programs {
            if program.trim().is_empty() || program.chars().any(|c| c.is_control() || c == '"') {
                return Err(BootError::Program(program.clone()));
            }
            words.push(format!("program=\"{program}\""));
        }
        Self::for_kernel(&words.join(" "))
    }

    /// The line, without a NUL.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_guest_is_told_its_devices_and_programs() {
        let line = CommandLine::for_built_in("debug", 2, &["hog fill=70%".to_owned()]).unwrap();
        assert_eq!(
            line.as_bytes(),
            b"debug virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6 \
              program=\"hog fill=70%\""
        );
    }

    #[test]
    fn a_program_that_would_end_its_quotes_is_refused() {
        for bad in ["", " ", "hog\" program=\"x", "a\nb"] {
            let result = CommandLine::for_built_in("", 0, &[bad.to_owned()]);
            assert!(matches!(result, Err(BootError::Program(named)) if named == bad));
        }
    }

    #[test]
    fn a_line_is_as_long_as_linux_takes_and_no_longer() {
        assert!(CommandLine::for_kernel(&"x".repeat(2047)).is_ok());
        let error = CommandLine::for_kernel(&"x".repeat(2048)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "command line of 2048 bytes: at most 2047 printable ones are allowed"
        );
        assert!(CommandLine::for_kernel("a\0b").is_err());
    }
}
