//! `told`: has one file open twice, on a disk that takes nothing any more. Each of the two is told that pages are lost, whatever the other was
//! told before, and neither is told twice.

use crate::call::{self, say};
use crate::file_call::File;
use guest_programs::abi::Error;
use guest_programs::files::open;
use guest_programs::options::ToldOptions;
use guest_programs::pattern::{WORDS, file_page};

/// How often what is dirty may fail before it is given up, and more.
const MOST_SYNCS: u32 = 20;

type Failure = (&'static str, Error);

/// Writes and syncs; the exit status is 1 if one was told wrongly, 3 if a call failed.
pub(crate) fn main<'a>(arguments: impl Iterator<Item = &'a str>) -> u64 {
    let options = match ToldOptions::parse(arguments) {
        Ok(options) => options,
        Err(error) => {
            say(format_args!("{error}"));
            return 2;
        }
    };
    match run(&options) {
        Ok(failed) => {
            say(format_args!("told: {failed} checks failed"));
            u64::from(failed > 0)
        }
        Err((what, error)) => {
            say(format_args!("{what}: {error:?}"));
            3
        }
    }
}

fn run(options: &ToldOptions<'_>) -> Result<u64, Failure> {
    let first = File::open(options.file, open::CREATE).map_err(|error| ("open", error))?;
    let second = File::open(options.file, 0).map_err(|error| ("open", error))?;
    let mut page = [[0; WORDS]];
    for index in 0..options.pages {
        file_page(1, 0, index, 1).fill(&mut page[0]);
        first
            .write_pages(&page, index)
            .map_err(|error| ("write", error))?;
    }
    // Until all that could not be written is given up: from then on there is no new error.
    let errors = (0..MOST_SYNCS).take_while(|_| first.sync().is_err()).count();
    let told = [second.sync(), second.sync(), first.sync()];
    // Who comes after somebody was told has nothing to do with it.
    let third = File::open(options.file, 0).map_err(|error| ("open", error))?;
    let later = third.sync();
    let mut failed = 0;
    for (is_right, what) in [
        (errors > 0 && errors < 20, "what the first was told"),
        (told[0] == Err(Error::Io), "what the second was told"),
        (told[1].is_ok(), "what the second was told again"),
        (told[2].is_ok(), "what the first was told again"),
        (later.is_ok(), "what one who came later was told"),
    ] {
        call::report(u64::from(is_right), u64::from(!is_right));
        failed += u64::from(!is_right);
        if !is_right {
            say(format_args!(
                "{what} is wrong: {errors} errors, {told:?}, {later:?}"
            ));
        }
    }
    Ok(failed)
}
