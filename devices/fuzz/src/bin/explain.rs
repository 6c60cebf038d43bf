//! Shows what a fuzzer's input means: `cargo run -p devices-fuzz --bin explain -- TARGET FILE` prints its steps and how
//! the run ends. Exit status 1 if it ends with a broken promise.

use std::process::ExitCode;

use devices_fuzz::subjects::ALL;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, file] = arguments.as_slice() else {
        eprintln!("usage: explain TARGET FILE");
        return ExitCode::from(2);
    };
    let Some(target) = ALL.iter().find(|target| target.name == name) else {
        let names: Vec<&str> = ALL.iter().map(|target| target.name).collect();
        eprintln!("no target {name}; there are {}", names.join(", "));
        return ExitCode::from(2);
    };
    match std::fs::read(file) {
        Ok(bytes) => {
            print!("{}", (target.explain)(&bytes));
            ExitCode::from(u8::from((target.run)(&bytes).is_err()))
        }
        Err(error) => {
            eprintln!("cannot read {file}: {error}");
            ExitCode::FAILURE
        }
    }
}
