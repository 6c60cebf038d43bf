//! The host itself, without any guest: what the other tests of this folder take for granted.

use std::fs::OpenOptions;
use std::path::Path;

use integration_tests::needs_hardware_kvm;

#[test]
fn dev_kvm_opens_and_is_not_the_software_one() {
    needs_hardware_kvm(|| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .unwrap();
        let vendor = ["kvm_amd", "kvm_intel"].map(|module| Path::new("/sys/module").join(module).exists());
        assert!(vendor[0] || vendor[1], "KVM without a vendor module");
        assert!(!Path::new("/sys/module/kvm_pvm").exists());
    });
}
