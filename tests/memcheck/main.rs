//! What stock Linux guests do with their memory, for the tests.
//!
//! - `memcheck run MIB FILE` fills memory and keeps checking it until it is killed ([`run`]).
//! - `memcheck fill PERCENT` fills that much of what is available, checks it once, and gives it back ([`fill`]).
//! - `memcheck find-fill ADDRESS BYTES` looks for what `fill` left in physical memory ([`find`]).
//! - `memcheck kexec KERNEL INITRD CMDLINE` starts another kernel ([`kexec`]).
//! - `memcheck pin MIB FILE` holds memory that the kernel cannot move ([`pin`]).

mod fill;
mod find;
mod kexec;
mod pin;
mod run;

use std::process::ExitCode;

/// Bytes of a page.
const PAGE: usize = 4096;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["run", mebibytes, file] => number(mebibytes).and_then(|mebibytes| run::run(mebibytes, file)),
        ["fill", percent] => number(percent).and_then(fill::fill),
        ["find-fill", address, bytes] => {
            number(address).and_then(|address| number(bytes).and_then(|bytes| find::find(address, bytes)))
        }
        ["kexec", kernel, initrd, cmdline] => kexec::kexec(kernel, initrd, cmdline),
        ["pin", mebibytes, file] => number(mebibytes).and_then(|mebibytes| pin::pin(mebibytes, file)),
        _ => Err(
            "one of: run MIB FILE, fill PERCENT, find-fill ADDRESS BYTES, kexec KERNEL INITRD CMDLINE, pin MIB FILE".to_owned(),
        ),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("memcheck: {why}");
            ExitCode::FAILURE
        }
    }
}

fn number(text: &str) -> Result<usize, String> {
    text.parse().map_err(|error| format!("{text}: {error}"))
}

/// Writes `line` to `file` beside and renames it: a reader never sees half a line.
fn report(file: &str, line: &str) -> Result<(), String> {
    let beside = format!("{file}.new");
    let written = std::fs::write(&beside, line).and_then(|()| std::fs::rename(&beside, file));
    written.map_err(|error| format!("cannot report to {file}: {error}"))
}
