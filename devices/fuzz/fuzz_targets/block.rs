//! Any bytes as a guest of the `block` device: `cargo fuzz run --features libfuzzer block`.
#![no_main]

use devices_fuzz::run;
use devices_fuzz::subjects::BlockSubject;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Err(violation) = run::<BlockSubject>(bytes) {
        panic!("{violation}");
    }
});
