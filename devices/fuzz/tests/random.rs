//! Random guests against every device: a bounded number, the same ones each time.

use devices_fuzz::subjects::ALL;

/// Runs for each device.
const RUNS: u64 = 100;

/// xorshift64*, whose seed is never 0.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn bytes(&mut self) -> Vec<u8> {
        let len = self.next() % 1500;
        (0..len).map(|_| self.next().to_le_bytes()[5]).collect()
    }
}

#[test]
fn no_random_guest_makes_a_device_break_a_promise() {
    for target in ALL {
        for seed in 1..=RUNS {
            let bytes = Random(seed).bytes();
            if let Err(violation) = (target.run)(&bytes) {
                panic!(
                    "{} with seed {seed}: {violation}\n{}",
                    target.name,
                    (target.explain)(&bytes)
                );
            }
        }
    }
}
