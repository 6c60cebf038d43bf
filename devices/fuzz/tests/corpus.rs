//! The inputs that a fuzzer has found interesting, against every device: each device has some.

use std::fs;
use std::path::Path;

use devices_fuzz::subjects::ALL;

#[test]
fn no_guest_of_the_corpus_makes_a_device_break_a_promise() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for target in ALL {
        let folder = corpus.join(target.name);
        let entries = fs::read_dir(&folder).expect("every device has a corpus");
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        assert!(
            files.len() >= 20,
            "{} has {} inputs",
            folder.display(),
            files.len()
        );
        for file in files {
            let bytes = fs::read(&file).unwrap();
            if let Err(violation) = (target.run)(&bytes) {
                let steps = (target.explain)(&bytes);
                panic!("{}: {violation}\n{steps}", file.display());
            }
        }
    }
}
