//! Any bytes as a guest of the `vsock` device: `cargo fuzz run --features libfuzzer vsock`.
#![no_main]

use devices_fuzz::run;
use devices_fuzz::subjects::VsockSubject;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Err(violation) = run::<VsockSubject>(bytes) {
        panic!("{violation}");
    }
});
