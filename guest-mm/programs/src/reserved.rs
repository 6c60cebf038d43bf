//! `reserved`: huge pages out of the guest's pool, promised when they are mapped; shared with a child, which copies what it writes to.

use crate::call::{self, Chunk, say};
use guest_programs::abi::{KILLED, map_flags};
use guest_programs::options::ReservedOptions;
use guest_programs::pattern::Pattern;

/// Most chunks.
const MOST_CHUNKS: usize = 64;

/// Runs until it has done its rounds.
pub(crate) fn main<'a>(arguments: impl Iterator<Item = &'a str>) -> u64 {
    let options = match ReservedOptions::parse(arguments) {
        Ok(options) => options,
        Err(error) => {
            say(format_args!("{error}"));
            return 2;
        }
    };
    let mut chunks: [Option<Chunk>; MOST_CHUNKS] = [const { None }; MOST_CHUNKS];
    let wanted = usize::from(options.chunks);
    for (number, place) in chunks[..wanted].iter_mut().enumerate() {
        match Chunk::map(map_flags::HUGETLB) {
            Ok(chunk) => *place = Some(chunk),
            Err(error) => {
                say(format_args!(
                    "only {number} of {wanted} chunks can be reserved: {error:?}"
                ));
                return 3;
            }
        }
    }
    say(format_args!("{wanted} chunks reserved"));
    for chunk in chunks.iter_mut().flatten() {
        fill(chunk, options.seed);
    }
    share(&mut chunks, options.seed);
    let (mut round, mut failed) = (0, 0);
    while failed == 0 && options.rounds.is_none_or(|rounds| round < rounds) {
        round += 1;
        failed = check(&chunks, options.seed);
        call::sleep_ms(20);
    }
    u64::from(failed > 0)
}

/// Has a child that finds what is there, and writes to the first chunk.
fn share(chunks: &mut [Option<Chunk>], seed: u64) {
    match call::fork() {
        Ok(None) => {
            let found = check(chunks, seed);
            if let Some(first) = chunks.iter_mut().flatten().next() {
                fill(first, !seed);
            }
            let kept = check(&chunks[..1], !seed);
            call::exit(u64::from(found + kept > 0));
        }
        Ok(Some(child)) => match call::wait(child) {
            Ok(0) => say(format_args!("the child has a copy")),
            Ok(KILLED) => say(format_args!("the child was ended: no page for its copy")),
            status => {
                say(format_args!("the child ended with {status:?}"));
                call::report(0, 1);
            }
        },
        Err(error) => say(format_args!("no child: {error:?}")),
    }
}

fn fill(chunk: &mut Chunk, seed: u64) {
    for (address, page) in chunk.pages_mut() {
        Pattern::new(seed, address, 1).fill(page);
    }
}

/// Checks all chunks, and reports; returns how many pages were wrong.
fn check(chunks: &[Option<Chunk>], seed: u64) -> u64 {
    let (mut ok, mut failed) = (0, 0);
    for chunk in chunks.iter().flatten() {
        for (address, page) in chunk.pages() {
            match Pattern::new(seed, address, 1).check(page) {
                Ok(()) => ok += 1,
                Err(_) => failed += 1,
            }
        }
    }
    call::report(ok, failed);
    failed
}
