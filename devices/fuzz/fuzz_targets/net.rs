//! Any bytes as a guest of the `net` device: `cargo fuzz run --features libfuzzer net`.
#![no_main]

use devices_fuzz::run;
use devices_fuzz::subjects::NetSubject;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Err(violation) = run::<NetSubject>(bytes) {
        panic!("{violation}");
    }
});
