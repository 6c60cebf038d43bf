//! `sparse`: looks at much memory and stores to little of it. What it did not store to is zero for it and for its child, and takes no memory.

use crate::call::{self, Chunk, Table, say};
use guest_programs::abi::{Error, map_flags};
use guest_programs::options::SparseOptions;
use guest_programs::pattern::{Pattern, WORDS};

type Failure = (&'static str, Error);

/// Looks, stores, looks again, and stays; the exit status is 3 if a call failed.
pub(crate) fn main<'a>(arguments: impl Iterator<Item = &'a str>) -> u64 {
    let options = match SparseOptions::parse(arguments) {
        Ok(options) => options,
        Err(error) => {
            say(format_args!("{error}"));
            return 2;
        }
    };
    match run(&options) {
        Ok(failed) => say(format_args!("sparse: {failed} checks failed")),
        Err((what, error)) => {
            say(format_args!("{what}: {error:?}"));
            return 3;
        }
    }
    loop {
        call::sleep_ms(1000);
    }
}

fn run(options: &SparseOptions) -> Result<u64, Failure> {
    let capacity = usize::try_from(options.chunks).unwrap_or(0);
    let mut chunks = Table::new(capacity).map_err(|error| ("map", error))?;
    for _ in 0..options.chunks {
        let chunk = Chunk::map(map_flags::NO_HUGE).map_err(|error| ("map", error))?;
        chunks.push(chunk);
    }
    let mut failed = check(&mut chunks, options, |_| false);
    store(&mut chunks, options);
    failed += check(&mut chunks, options, |page| is_stored(options, page));
    // Nor does a child's store show in what others have not stored to.
    let Some(child) = call::fork().map_err(|error| ("fork", error))? else {
        let own = SparseOptions {
            seed: !options.seed,
            ..*options
        };
        store(&mut chunks, &own);
        let wrong = check(&mut chunks, &own, |page| is_stored(&own, page));
        call::exit(u64::from(wrong > 0));
    };
    let ended = call::wait(child).map_err(|error| ("wait", error))?;
    call::report(u64::from(ended == 0), u64::from(ended != 0));
    failed += u64::from(ended != 0);
    failed += check(&mut chunks, options, |page| is_stored(options, page));
    Ok(failed)
}

fn store(chunks: &mut Table<Chunk>, options: &SparseOptions) {
    for index in 0..chunks.len() {
        let pages = chunks.at(index).into_iter().flat_map(Chunk::pages_mut);
        for (_, (address, page)) in (0..).zip(pages).filter(|(number, _)| is_stored(options, *number)) {
            Pattern::new(options.seed, address, 1).fill(page);
        }
    }
}

const fn is_stored(options: &SparseOptions, page: u64) -> bool {
    page.is_multiple_of(options.one_in)
}

/// Checks all pages, and reports; how many were wrong.
fn check(chunks: &mut Table<Chunk>, options: &SparseOptions, holds: impl Fn(u64) -> bool) -> u64 {
    let (mut ok, mut failed) = (0, 0);
    for index in 0..chunks.len() {
        let Some(chunk) = chunks.at(index) else { continue };
        for (number, (address, page)) in (0..).zip(chunk.pages()) {
            let is_right = match holds(number) {
                true => Pattern::new(options.seed, address, 1).check(page).is_ok(),
                false => *page == [0; WORDS],
            };
            ok += u64::from(is_right);
            failed += u64::from(!is_right);
        }
    }
    call::report(ok, failed);
    failed
}
