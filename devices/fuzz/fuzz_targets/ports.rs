//! Any bytes as a guest of the `ports` device: `cargo fuzz run --features libfuzzer ports`.
#![no_main]

use devices_fuzz::run;
use devices_fuzz::subjects::PortsSubject;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Err(violation) = run::<PortsSubject>(bytes) {
        panic!("{violation}");
    }
});
