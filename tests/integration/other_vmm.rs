//! The guest's image is an ordinary PVH kernel: another VMM boots it too.

use std::fs;
use std::process::Command;

use integration_tests::Home;
use integration_tests::ballast::finish;
use integration_tests::debian::require;

#[test]
fn qemu_microvm_boots_the_image_and_its_programs_run_there() {
    boots_in_qemu(1);
}

#[test]
fn qemu_starts_the_second_cpu_too() {
    boots_in_qemu(2);
}

fn boots_in_qemu(cpus: u32) {
    let home = Home::new();
    let image = home.files().join("guest");
    home.run(["image", image.to_str().unwrap()]).success();
    assert_eq!(fs::read(&image).unwrap()[..4], *b"\x7fELF");
    let mut qemu = Command::new(require("/usr/bin/qemu-system-x86_64", "qemu-system-x86"));
    qemu.args([
        "-accel",
        "kvm",
        "-M",
        "microvm",
        "-m",
        "256M",
        "-nodefaults",
        "-no-user-config",
    ]);
    qemu.args(["-display", "none", "-serial", "stdio", "-no-reboot", "-kernel"])
        .arg(&image);
    qemu.args(["-smp", &cpus.to_string()]);
    qemu.args([
        "-append",
        "program=\"hog size=32M rounds=2\" program=\"hog size=32M rounds=2 seed=2\"",
    ]);
    home.settle(&mut qemu);
    // It powers off when its program has exited, so that QEMU ends by itself.
    let outcome = finish(&mut qemu);
    assert_eq!(outcome.status, 0, "{outcome:#?}");
    assert_eq!(
        outcome.stdout.matches(", 0 checks failed").count(),
        2,
        "{outcome:#?}"
    );
    assert!(outcome.stdout.contains(&format!("CPUs: {cpus}")), "{outcome:#?}");
    assert!(!outcome.stdout.contains("panic"), "{outcome:#?}");
}
