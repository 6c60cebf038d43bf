//! `ballast disk`: images for the built-in guest, made of a directory and looked into again.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use integration_tests::Home;

/// A directory with an empty file, a file of several pages and a directory with a file.
fn tree(files: &Path) -> String {
    let tree = files.join("tree");
    fs::create_dir_all(tree.join("inner")).unwrap();
    fs::write(tree.join("empty"), b"").unwrap();
    fs::write(tree.join("pages"), pages()).unwrap();
    fs::write(tree.join("inner/note"), b"a note\n").unwrap();
    tree.to_str().unwrap().to_owned()
}

fn pages() -> String {
    (0..4000).map(|line| format!("line {line}\n")).collect()
}

#[test]
fn what_was_copied_into_an_image_is_listed_and_read_from_it() {
    let home = Home::new();
    let (tree, image) = (tree(&home.files()), home.files().join("data.img"));
    let image = image.to_str().unwrap();
    home.run(["disk", "make", image, "--size", "4M", "--from", &tree])
        .success();
    let listed = home.run(["disk", "list", image, "--json"]).success();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let names: Vec<(&str, &str, u64)> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            let text = |key: &str| entry[key].as_str().unwrap();
            (text("name"), text("kind"), entry["size"].as_u64().unwrap())
        })
        .collect();
    let expected = [
        ("empty", "file", 0),
        ("inner", "directory", 4096),
        ("pages", "file", pages().len() as u64),
    ];
    assert_eq!(names, expected);
    assert_eq!(home.run(["disk", "cat", image, "/pages"]).success(), pages());
    assert_eq!(
        home.run(["disk", "cat", image, "inner/note"]).success(),
        "a note\n"
    );
    let whole = home.run(["disk", "check", image]).success();
    assert!(
        whole.contains("whole: 3 files, 2 directories") && whole.contains("4 MiB"),
        "{whole}"
    );
}

#[test]
fn a_damaged_image_is_named_and_never_changed() {
    let home = Home::new();
    let (tree, path) = (tree(&home.files()), home.files().join("data.img"));
    let image = path.to_str().unwrap();
    home.run(["disk", "make", image, "--size", "4M", "--from", &tree])
        .success();
    // Generation 2 is in block 0, and points to its inode map.
    let mut bytes = fs::read(&path).unwrap();
    let root = u32::from_le_bytes(bytes[24..][..4].try_into().unwrap());
    bytes[root as usize * 4096] ^= 1;
    fs::write(&path, &bytes).unwrap();
    home.run(["disk", "check", image])
        .assert_refusal(1, &["data.img", "CRC-32"]);
    home.run(["disk", "list", image])
        .assert_refusal(1, &["data.img", "CRC-32"]);
    assert!(fs::read(&path).unwrap() == bytes);
}

#[test]
fn the_programs_of_the_built_in_guest_can_be_had_alone_and_in_an_image() {
    let home = Home::new();
    let (file, image) = (home.files().join("programs"), home.files().join("root.img"));
    home.run(["disk", "programs", file.to_str().unwrap()]).success();
    let executable = fs::read(&file).unwrap();
    assert!(executable.starts_with(b"\x7fELF\x02\x01\x01"));
    let (image, tree) = (image.to_str().unwrap(), tree(&home.files()));
    let arguments = [
        "disk",
        "make",
        image,
        "--size",
        "8M",
        "--from",
        &tree,
        "--programs",
    ];
    home.run(arguments).success();
    let listed = home.run(["disk", "list", image, "/bin", "--json"]).success();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let listed = listed.as_array().unwrap();
    assert!(listed.iter().any(|entry| entry["name"] == "hog"), "{listed:?}");
    // One file with all of the names.
    for entry in listed {
        assert_eq!(entry["size"], executable.len(), "{entry}");
        assert_eq!(entry["links"], listed.len(), "{entry}");
    }
    home.run(["disk", "check", image]).success();
}

#[test]
fn what_cannot_be_an_image_leaves_what_was_there() {
    let home = Home::new();
    let files = home.files();
    let (tree, path) = (tree(&files), files.join("data.img"));
    let image = path.to_str().unwrap();
    fs::write(&path, b"something else").unwrap();
    let refused: [(&[&str], i32, &[&str]); 7] = [
        (
            &["disk", "make", image, "--size", "32K", "--from", &tree],
            1,
            &["tree/", "no block is free"],
        ),
        (
            &["disk", "make", image, "--size", "8K"],
            1,
            &["data.img", "2 blocks"],
        ),
        (
            &["disk", "make", image, "--size", "much"],
            2,
            &["much", "not a size"],
        ),
        (
            &["disk", "make", image, "--size", "1M", "--from", "/nowhere"],
            1,
            &["/nowhere"],
        ),
        (
            &["disk", "swap", image, "--size", "4K"],
            2,
            &["4 KiB", "2 to 2^32 - 1"],
        ),
        (&["disk", "list", image], 1, &["data.img"]),
        (&["disk", "cat", "/nowhere", "x"], 1, &["/nowhere"]),
    ];
    for (arguments, status, parts) in refused {
        home.run(arguments).assert_refusal(status, parts);
    }
    assert_eq!(fs::read(&path).unwrap(), b"something else");
    let left: Vec<_> = fs::read_dir(&files)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(
        !left.iter().any(|name| name.to_string_lossy().ends_with(".new")),
        "{left:?}"
    );
}

#[test]
fn a_swap_area_has_its_header_and_its_size() {
    let home = Home::new();
    let path = home.files().join("swap.img");
    home.run(["disk", "swap", path.to_str().unwrap(), "--size", "1M"])
        .success();
    let file = fs::File::open(&path).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 1 << 20);
    let mut header = [0; 16];
    file.read_exact_at(&mut header, 0).unwrap();
    assert_eq!(header, *b"BLSTSWAP\x01\0\0\0\0\x01\0\0");
}
