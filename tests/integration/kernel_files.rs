//! Kernel files that are not what they should be.

use std::fs;
use std::path::{Path, PathBuf};

use integration_tests::Home;
use integration_tests::debian::{KernelPackage, Release};

/// Asserts that `ballast run --kernel FILE` is refused with the file's name, `rule`, and without a trace.
fn assert_refused(home: &Home, file: &Path, rule: &str) {
    let path = file.to_str().unwrap();
    let outcome = home.run(["run", "--memory", "64M", "--kernel", path]);
    outcome.assert_refusal(1, &[path, rule]);
    home.assert_nothing_left();
}

/// Writes `contents` to a file of the test's own.
fn file(home: &Home, name: &str, contents: &[u8]) -> PathBuf {
    let path = home.files().join(name);
    fs::write(&path, contents).unwrap();
    path
}

/// A program header of an ELF image.
struct Segment {
    /// Offset of the header itself.
    header: usize,
    /// Whether it is of the kind PT_LOAD.
    is_load: bool,
    /// Offset behind its content.
    file_end: usize,
}

/// The program headers of an ELF-64 image (`e_phoff`, `e_phentsize`, `e_phnum`).
fn segments(image: &[u8]) -> Vec<Segment> {
    let number =
        |at: usize| usize::try_from(u64::from_le_bytes(image[at..at + 8].try_into().unwrap())).unwrap();
    let half = |at: usize| usize::from(u16::from_le_bytes(image[at..at + 2].try_into().unwrap()));
    let (table, size, count) = (number(32), half(54), half(56));
    let headers = (0..count).map(|index| table + index * size);
    let segment = |header: usize| Segment {
        header,
        is_load: image[header..header + 4] == [1, 0, 0, 0],
        file_end: number(header + 8) + number(header + 32),
    };
    headers.map(segment).collect()
}

/// The built-in guest's image, as `ballast image` writes it.
fn image(home: &Home) -> Vec<u8> {
    let path = home.files().join("image");
    home.run(["image", path.to_str().unwrap()]).success();
    fs::read(path).unwrap()
}

#[test]
fn a_file_that_is_not_there_or_not_a_file() {
    let home = Home::new();
    assert_refused(&home, Path::new("/nonexistent/kernel"), "No such file");
    assert_refused(&home, &home.files(), "directory");
}

#[test]
fn a_file_that_is_neither_elf_nor_bzimage() {
    let home = Home::new();
    assert_refused(
        &home,
        &file(&home, "text", "not a kernel\n".repeat(500).as_bytes()),
        "neither",
    );
    assert_refused(&home, &file(&home, "empty", b""), "empty");
    assert_refused(&home, &file(&home, "short", b"\x7fELF"), "truncated");
}

#[test]
fn an_elf_without_a_pvh_note() {
    let home = Home::new();
    assert_refused(&home, &integration_tests::debian::busybox(), "PVH");
    assert_refused(&home, Path::new("/bin/true"), "PVH");
}

#[test]
fn a_truncated_elf() {
    let home = Home::new();
    let whole = image(&home);
    let ends = segments(&whole).into_iter().map(|segment| segment.file_end);
    let end = ends.max().unwrap();
    // The symbols behind the last segment are nothing that booting needs.
    for length in [32, 64, 200, 4096, end / 2, end - 1] {
        assert_refused(&home, &file(&home, "truncated", &whole[..length]), "truncated");
    }
}

#[test]
fn a_truncated_bzimage() {
    let home = Home::new();
    let whole = fs::read(KernelPackage::fetch(Release::V6_12).image()).unwrap();
    for length in [600, 0x300, 4096, whole.len() / 2, whole.len() - 4096] {
        assert_refused(&home, &file(&home, "truncated", &whole[..length]), "");
    }
}

#[test]
fn an_image_that_does_not_fit_into_memory() {
    let home = Home::new();
    let mut whole = image(&home);
    let load = segments(&whole)
        .into_iter()
        .find(|segment| segment.is_load)
        .unwrap();
    // Its p_paddr: 1 TiB, where no guest of 64 MiB has memory.
    whole[load.header + 24..load.header + 32].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    assert_refused(&home, &file(&home, "far", &whole), "memory");
}

#[test]
fn an_initrd_that_is_missing_or_too_large() {
    let home = Home::new();
    let kernel = KernelPackage::fetch(Release::V6_12).image();
    let run = |initrd: &Path| {
        let kernel = kernel.to_str().unwrap();
        home.run([
            "run",
            "--memory",
            "256M",
            "--kernel",
            kernel,
            "--initrd",
            initrd.to_str().unwrap(),
        ])
    };
    run(Path::new("/nonexistent/initrd")).assert_refusal(1, &["/nonexistent/initrd", "No such file"]);
    let large = home.files().join("large");
    fs::File::create(&large).unwrap().set_len(256 << 20).unwrap();
    run(&large).assert_refusal(1, &[large.to_str().unwrap()]);
    home.assert_nothing_left();
}
