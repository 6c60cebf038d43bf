//! The command line as an operator meets it: what is refused before anything starts, and what is there when no VM is.
//! No test here starts a guest.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use integration_tests::Home;

/// A lock file and a socket as a VM has them; the VM lives for as long as the lock file is open.
fn pretend_vm(home: &Home, name: &str, pid: u32) -> (File, UnixListener) {
    let directory = home.runtime().join("ballast");
    fs::create_dir_all(&directory).expect("the directory can be made");
    let mut lock = File::create(directory.join(format!("{name}.lock"))).expect("the file can be made");
    lock.lock().expect("nobody else has it");
    writeln!(lock, "{pid}").expect("written");
    (lock, UnixListener::bind(home.socket(name)).expect("bound"))
}

/// A file of the test's own.
fn file(home: &Home, name: &str, content: &str) -> PathBuf {
    let path = home.files().join(name);
    fs::write(&path, content).expect("written");
    path
}

#[test]
fn options_that_contradict_each_other_are_refused_before_anything_is_made() {
    let home = Home::new();
    let cases: [(&[&str], &[&str]); 10] = [
        (&["--block-size", "2M"], &["--block-size without --hotplug"]),
        (&["--initrd", "i"], &["--initrd without --kernel"]),
        (
            &["--kernel", "k", "--program", "hog"],
            &["--program and --kernel"],
        ),
        (&["--program", "hog \"x\""], &["--program", "no quote"]),
        (&["--cmdline", "a\nb"], &["--cmdline", "one line"]),
        (
            &["--serial", "tty"],
            &["--serial \"tty\"", "terminal, stdout, file=PATH, discard"],
        ),
        (&["--serial", "file="], &["--serial", "not empty"]),
        (
            &["--memory", "256M", "--node", "memory=64M", "--node", "memory=64M"],
            &["--memory 256 MiB", "the nodes have 128 MiB together"],
        ),
        (
            &["--node", "memory=64M,cpus=1"],
            &["--node 0 cpus=\"1\"", "CPUs are 0 to 0"],
        ),
        (&["--hotplug", "1G,node=1"], &["--hotplug node=\"1\"", "0 to 0"]),
    ];
    for (options, parts) in cases {
        let outcome = home.run(["run"].iter().chain(options));
        outcome.assert_refusal(2, parts);
        assert!(outcome.stderr.starts_with("ballast: "), "{outcome:?}");
    }
    assert!(
        !home.runtime().join("ballast").exists(),
        "the registry was not even made"
    );
}

#[test]
fn bad_arguments_of_the_other_commands_are_refused() {
    let home = Home::new();
    for (arguments, parts) in [
        (&["resize", "a", "1Q"][..], &["size", "\"1Q\" is not a size"][..]),
        (&["resize", "a", ""], &["size", "\"\" is not a size"]),
        (&["resize", "a"], &["<SIZE>"]),
        (&["resize", "a", "1G", "--wait", "soon"], &["--wait", "soon"]),
        (&["resize", "a", "1G", "--wait", "86401"], &["--wait", "86401"]),
        (&["resize", "a.b", "1G"], &["\"a.b\"", "'.'"]),
        (&["stats", "../a"], &["\"../a\"", "'.'"]),
        (&["stop", ""], &["at least one character"]),
        (&["guest", "a"], &["<COMMAND>"]),
        (&["guest", "a b", "help"], &["\"a b\"", "' '"]),
        (&["fly"], &["'fly'"]),
        (&["ps", "--log", "loud"], &["'loud'", "--log"]),
    ] {
        home.run(arguments).assert_refusal(2, parts);
    }
    home.assert_nothing_left();
}

#[test]
fn vm_files_with_mistakes_are_refused_by_name_line_and_key() {
    let home = Home::new();
    for (name, content, parts) in [
        (
            "key.toml",
            "memory = \"1G\"\nmemmory = \"1G\"\n",
            &["key.toml\":2", "`memmory`"][..],
        ),
        (
            "key.json",
            "{\"memory\": \"1G\",\n\"memmory\": 1}",
            &["key.json\":2", "`memmory`"],
        ),
        ("kind.toml", "program = \"hog\"\n", &["kind.toml\":1", "sequence"]),
        ("syntax.toml", "memory = \n", &["syntax.toml\":1"]),
        (
            "value.toml",
            "memory = \"33M\"\n",
            &["--memory 33 MiB", "not a multiple of 2 MiB"],
        ),
        (
            "negative.toml",
            "hotplug = -2\n",
            &["--hotplug", "\"-2\" is not a size"],
        ),
    ] {
        let path = file(&home, name, content);
        let outcome = home.run(["run".as_ref(), "--config".as_ref(), path.as_os_str()]);
        outcome.assert_refusal(2, parts);
        fs::remove_file(path).expect("it was just written");
    }
    let missing = home.run(["run", "--config", "/nonexistent/vm.toml"]);
    missing.assert_refusal(2, &["/nonexistent/vm.toml", "No such file"]);
    home.assert_nothing_left();
}

#[test]
fn the_command_line_goes_before_the_file() {
    let home = Home::new();
    let path = file(&home, "vm.toml", "memory = \"33M\"\ncpus = 99\n");
    let arguments = [
        "run".as_ref(),
        "--config".as_ref(),
        path.as_os_str(),
        "--memory".as_ref(),
        "64M".as_ref(),
    ];
    home.run(arguments).assert_refusal(2, &["--cpus \"99\""]);
}

#[test]
fn commands_to_a_vm_that_is_not_there_fail_with_its_name() {
    let home = Home::new();
    for arguments in [
        &["resize", "ghost", "1G"][..],
        &["resize", "ghost", "+1G", "--wait", "1"],
        &["stats", "ghost"],
        &["stats", "ghost", "--json"],
        &["stop", "ghost", "--wait"],
        &["guest", "ghost", "meminfo"],
    ] {
        home.run(arguments)
            .assert_refusal(1, &["\"ghost\"", "no VM of this name is running"]);
    }
    home.assert_nothing_left();
}

#[test]
fn commands_to_a_vm_that_has_exited_say_so_and_clear_its_files() {
    for arguments in [
        &["resize", "dead", "1G"][..],
        &["stats", "dead"],
        &["stop", "dead"],
        &["guest", "dead", "meminfo"],
    ] {
        let home = Home::new();
        drop(pretend_vm(&home, "dead", 4242));
        home.run(arguments)
            .assert_refusal(1, &["\"dead\"", "(process 4242) has exited"]);
        home.assert_nothing_left();
    }
}

#[test]
fn ps_clears_what_dead_vms_left_and_lists_a_silent_one() {
    let home = Home::new();
    drop(pretend_vm(&home, "dead", 4242));
    let silent = pretend_vm(&home, "silent-1", 4343);
    let table = home.run(["ps"]).success();
    let lines: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        lines[0],
        [
            "NAME",
            "PID",
            "STATE",
            "UPTIME",
            "MEMORY",
            "RESIDENT",
            "VIOLATIONS"
        ]
    );
    assert_eq!(lines[1..], [["silent-1", "4343", "silent"]]);
    assert!(home.socket("silent-1").exists() && !home.socket("dead").exists());
    drop(silent);
    assert_eq!(home.run(["ps", "--json"]).success(), "[]\n");
    home.assert_nothing_left();
}

#[test]
fn a_name_that_is_taken_is_refused_with_the_process_that_has_it() {
    let home = Home::new();
    let _vm = pretend_vm(&home, "web-1", 4242);
    let outcome = home.run(["run", "--name", "web-1", "--serial", "stdout"]);
    outcome.assert_refusal(1, &["\"web-1\"", "running as process 4242"]);
    assert!(home.socket("web-1").exists(), "the other VM keeps its socket");
}

#[test]
fn a_runtime_directory_that_cannot_be_used_is_named() {
    let home = Home::new();
    let file = file(&home, "file", "");
    for command in [&["run", "--name", "a"][..], &["ps"], &["stats", "a"]] {
        let mut command = home.command(command);
        command.env("XDG_RUNTIME_DIR", &file);
        let outcome = integration_tests::ballast::finish(&mut command);
        outcome.assert_refusal(1, &["file/ballast", "cannot be used: Not a directory"]);
    }
    let mut command = home.command(["run", "--name", "a"]);
    command.env("XDG_RUNTIME_DIR", "/proc/self");
    let outcome = integration_tests::ballast::finish(&mut command);
    outcome.assert_refusal(1, &["/proc/self/ballast", "cannot be used"]);
}

#[test]
fn a_runtime_directory_that_others_may_write_to_is_refused() {
    let home = Home::new();
    let directory = home.runtime().join("ballast");
    fs::create_dir(&directory).expect("an empty home");
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).expect("ours");
    home.run(["run", "--name", "a"])
        .assert_refusal(1, &["mode 777", "only its owner may write"]);
    home.assert_nothing_left();
}

#[test]
fn a_socket_path_longer_than_the_system_takes_is_refused() {
    let home = Home::new();
    let deep = home.runtime().join("d".repeat(80));
    fs::create_dir(&deep).expect("an empty home");
    let mut command = home.command(["run", "--name", "a-name-of-some-length"]);
    command.env("XDG_RUNTIME_DIR", &deep);
    integration_tests::ballast::finish(&mut command)
        .assert_refusal(1, &["a-name-of-some-length.sock", "at most 107"]);
    home.assert_nothing_left();
}

#[test]
fn help_and_version_go_to_standard_output() {
    let home = Home::new();
    for command in ["run", "ps", "resize", "stats", "stop", "guest"] {
        let help = home.run([command, "--help"]).success();
        assert!(
            help.contains("Usage:") && help.contains(&format!("ballast {command}")),
            "{help}"
        );
    }
    assert!(home.run(["--version"]).success().starts_with("ballast "));
    let bare = home.run::<&str>([]);
    assert_eq!(
        (bare.status, bare.stdout.as_str()),
        (2, ""),
        "without a command: help, but no success"
    );
}
