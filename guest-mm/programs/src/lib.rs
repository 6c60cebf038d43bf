#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

/// The programs: what a word of a command line can name, alone or at the end of a path.
pub const NAMES: [&str; 20] = [
    "bench", "crash", "direct", "family", "files", "hog", "kept", "kind", "names", "pager", "reserved",
    "rights", "scatter", "shared", "sparse", "storm", "stress", "told", "trespass", "window",
];

/// The name of the program in the first word of a command line, which may be a path.
pub fn name_of(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or(word)
}

pub mod abi;
pub mod aio;
pub mod files;
pub mod options;
pub mod pattern;
