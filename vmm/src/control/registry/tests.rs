//! Registrations of living and dead VMs, in directories of the tests' own.

use std::sync::{Arc, Barrier};
use std::time::Duration;

use super::*;

fn name(name: &str) -> VmName {
    VmName::new(name).expect("a valid name")
}

/// A registry that goes away with the first value.
fn registry() -> (tempfile::TempDir, RuntimeDir) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let registry = RuntimeDir::at(directory.path().join("ballast"));
    (directory, registry)
}

/// What a VM leaves that was killed: its files, and no lock.
fn leave_behind(registry: &RuntimeDir, dead: &str) {
    drop(registry.register(&name("keeps-the-directory")));
    fs::write(registry.lock_file(&name(dead)), "4242\n").expect("written");
    drop(UnixListener::bind(registry.socket(&name(dead))).expect("bound"));
}

#[test]
fn a_registered_vm_is_found_with_its_process_and_socket() {
    let (_directory, registry) = registry();
    let (registration, _listener) = registry.register(&name("a")).expect("free");
    let entry = registry.find(&name("a")).expect("running");
    assert_eq!(
        (entry.pid, &entry.socket),
        (std::process::id(), &registration.socket())
    );
    assert!(entry.socket.exists());
    assert_eq!(registry.list().expect("readable"), [entry]);
}

#[test]
fn an_orderly_end_leaves_nothing_behind() {
    let (_directory, registry) = registry();
    drop(registry.register(&name("a")).expect("free"));
    assert_eq!(fs::read_dir(registry.path()).expect("there").count(), 0);
    assert!(matches!(
        registry.find(&name("a")),
        Err(RegistryError::Unknown { .. })
    ));
}

#[test]
fn a_second_vm_of_the_same_name_is_refused_with_the_process_of_the_first() {
    let (_directory, registry) = registry();
    let first = registry.register(&name("a")).expect("free");
    let refused = registry.register(&name("a")).expect_err("taken");
    let expected = format!(
        "name \"a\": a VM of this name is running as process {}",
        std::process::id()
    );
    assert_eq!(refused.to_string(), expected);
    drop(first);
    assert!(registry.register(&name("a")).is_ok());
}

#[test]
fn the_files_of_a_dead_vm_are_removed_by_whoever_finds_them() {
    let (_directory, registry) = registry();
    leave_behind(&registry, "dead");
    assert_eq!(registry.list().expect("readable"), []);
    assert_eq!(fs::read_dir(registry.path()).expect("there").count(), 0);

    leave_behind(&registry, "dead");
    let error = registry.find(&name("dead")).expect_err("dead");
    assert!(
        matches!(error, RegistryError::Exited { pid: 4242, .. }),
        "{error}"
    );
    assert_eq!(fs::read_dir(registry.path()).expect("there").count(), 0);

    leave_behind(&registry, "dead");
    assert!(
        registry.register(&name("dead")).is_ok(),
        "the dead socket is out of the way"
    );
}

#[test]
fn of_many_that_race_for_a_name_one_gets_it_whoever_looks_meanwhile() {
    let (_directory, registry) = registry();
    for _ in 0..50 {
        let barrier = Arc::new(Barrier::new(5));
        let racers: Vec<_> = (0..5)
            .map(|racer| {
                let (barrier, registry) = (Arc::clone(&barrier), registry.clone());
                std::thread::spawn(move || {
                    barrier.wait();
                    if racer < 3 {
                        return registry.register(&name("a")).ok();
                    }
                    // Looks until there is something to see.
                    while registry.find(&name("a")).is_err() {}
                    None
                })
            })
            .collect();
        let winners: Vec<_> = racers
            .into_iter()
            .filter_map(|racer| racer.join().expect("no panic"))
            .collect();
        assert_eq!(winners.len(), 1);
        assert!(
            registry.find(&name("a")).is_ok(),
            "nobody removed the winner's files"
        );
    }
}

#[test]
fn registering_looking_and_leaving_wait_for_one_another() {
    let (_directory, registry) = registry();
    let leaving = registry.register(&name("leaving")).expect("free");
    let guard = registry.lock().expect("ours");
    let (done, is_done) = std::sync::mpsc::channel();
    let spawn = |act: Box<dyn FnOnce(&RuntimeDir) + Send>| {
        let (done, registry) = (done.clone(), registry.clone());
        std::thread::spawn(move || {
            act(&registry);
            done.send(()).expect("the test waits");
        })
    };
    let acts = [
        spawn(Box::new(|registry| {
            drop(registry.register(&name("a")).expect("free"));
        })),
        spawn(Box::new(|registry| drop(registry.find(&name("a"))))),
        spawn(Box::new(|registry| drop(registry.list().expect("readable")))),
        spawn(Box::new(|_| drop(leaving))),
    ];
    // An act that does not wait is done within microseconds; one that does is never done too early.
    assert!(
        is_done.recv_timeout(Duration::from_millis(200)).is_err(),
        "somebody did not wait"
    );
    drop(guard);
    for act in acts {
        act.join().expect("no panic");
    }
    assert_eq!(fs::read_dir(registry.path()).expect("there").count(), 0);
}

#[test]
fn the_directory_is_for_its_owner_only() {
    let (_directory, registry) = registry();
    let registered = registry.register(&name("a")).expect("free");
    let mode = fs::metadata(registry.path()).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    drop(registered);
    fs::set_permissions(registry.path(), fs::Permissions::from_mode(0o770)).expect("ours");
    let error = registry.register(&name("a")).expect_err("others may write");
    assert!(
        error
            .to_string()
            .ends_with("has mode 770: only its owner may write to it"),
        "{error}"
    );
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let registry = RuntimeDir::at(file.path().join("ballast"));
    let text = crate::cli::chain(&registry.register(&name("a")).expect_err("below a file"));
    assert!(text.contains("cannot be used: Not a directory"), "{text}");
    assert!(matches!(
        registry.find(&name("a")),
        Err(RegistryError::Directory { .. })
    ));
}

#[test]
fn a_directory_that_is_not_there_holds_no_vms() {
    let (_directory, registry) = registry();
    assert_eq!(registry.list().expect("empty"), []);
    assert!(matches!(
        registry.find(&name("a")),
        Err(RegistryError::Unknown { .. })
    ));
    assert!(!registry.path().exists(), "looking creates nothing");
}

#[test]
fn a_socket_path_longer_than_the_system_takes_is_refused_before_anything_is_made() {
    let (directory, _) = registry();
    let deep = RuntimeDir::at(directory.path().join("d".repeat(60)));
    let error = deep.register(&name(&"n".repeat(64))).expect_err("too long");
    assert!(
        error.to_string().ends_with("a socket path has at most 107"),
        "{error}"
    );
    assert!(!deep.path().exists());
}

#[test]
fn files_of_others_are_passed_over() {
    let (_directory, registry) = registry();
    let _registration = registry.register(&name("a")).expect("free");
    for other in ["notes.txt", "with space.lock", ".lock", "x"] {
        fs::write(registry.path().join(other), "").expect("written");
    }
    assert_eq!(registry.list().expect("readable").len(), 1);
    assert!(registry.path().join("with space.lock").exists());
}
