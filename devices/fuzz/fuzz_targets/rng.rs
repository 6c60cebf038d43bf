//! Any bytes as a guest of the `rng` device: `cargo fuzz run --features libfuzzer rng`.
#![no_main]

use devices_fuzz::run;
use devices_fuzz::subjects::RngSubject;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Err(violation) = run::<RngSubject>(bytes) {
        panic!("{violation}");
    }
});
