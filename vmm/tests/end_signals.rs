//! The signals that end a VM, in a process of their own: a signal is for all of a process, so that this test would end
//! the machines of any other test beside it.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::raise;
use vmm::terminal::EndSignals;

#[test]
fn each_end_signal_is_read_once() {
    let mut signals = EndSignals::catch().unwrap();
    assert!(!signals.arrived());
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        raise(signal).unwrap();
        assert!(signals.arrived());
        assert!(!signals.arrived());
    }
}
