//! Links the programs as a static ELF at fixed virtual addresses, without any start-up files or libraries.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=programs.ld");
    let folder = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it for every build script");
    let arguments = [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none",
        "-Wl,-z,max-page-size=4096",
        "-Wl,--gc-sections",
    ];
    for argument in arguments {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
    println!("cargo::rustc-link-arg-bins=-Wl,-T,{folder}/programs.ld");
}
