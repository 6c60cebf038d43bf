//! Any bytes as a guest of the `console` device: `cargo fuzz run --features libfuzzer console`.
#![no_main]

use devices_fuzz::run;
use devices_fuzz::subjects::ConsoleSubject;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Err(violation) = run::<ConsoleSubject>(bytes) {
        panic!("{violation}");
    }
});
