//! Any bytes as a guest of the `balloon` device: `cargo fuzz run --features libfuzzer balloon`.
#![no_main]

use devices_fuzz::run;
use devices_fuzz::subjects::BalloonSubject;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Err(violation) = run::<BalloonSubject>(bytes) {
        panic!("{violation}");
    }
});
