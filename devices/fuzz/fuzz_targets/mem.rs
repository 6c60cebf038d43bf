//! Any bytes as a guest of the `mem` device: `cargo fuzz run --features libfuzzer mem`.
#![no_main]

use devices_fuzz::run;
use devices_fuzz::subjects::MemSubject;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Err(violation) = run::<MemSubject>(bytes) {
        panic!("{violation}");
    }
});
