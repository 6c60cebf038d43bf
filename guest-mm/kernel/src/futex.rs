//! Programs that wait for each other: `Call::FutexWait` and `Call::FutexWake`. Who waits is a future, and leaves nothing behind when its time is
//! up or it has to end.

use crate::fault;
use crate::kernel::Kernel;
use crate::machine::cpu::this_cpu;
use crate::process::{Doomed, Program};
use crate::syscall::copy_error;
use guest_kernel::sync::{Winner, race};
use guest_mm::SpaceId;
use guest_mm::futex::{FUTEX_BYTES, NoRoom, Queued};
use guest_programs::abi::{Error, FOR_EVER};

/// Waits until somebody calls for the word at `address`, if it is `expected`.
///
/// # Errors
/// [`Error::Again`] if the word is another one, [`Error::TimedOut`] when it is `deadline`.
pub(crate) async fn wait(
    kernel: &'static Kernel,
    program: &Program,
    space: SpaceId,
    (address, expected, deadline): (u64, u64, u64),
) -> Result<u64, Error> {
    check(address)?;
    let expected = u32::try_from(expected).map_err(|_| Error::Invalid)?;
    loop {
        // Has the page come in: what is looked at below is not waited for.
        let word = |mm: &crate::kernel::Memory| mm.futex_word(this_cpu(), space, address);
        let seen = fault::copy(kernel, program, word).await.map_err(copy_error)?;
        if seen != expected {
            return Err(Error::Again);
        }
        let key = kernel.mm().futex_key(space, address).map_err(copy_error)?;
        let queued = kernel.futexes.enter(key).map_err(|NoRoom| Error::NoMemory)?;
        // Looked at once more, among those who wait: who changes it from here on calls.
        let seen = word(&kernel.mm());
        match seen {
            Ok(word) if word == expected => return until_called(kernel, program, queued, deadline).await,
            Ok(_) => return Err(Error::Again),
            // The page has just left again.
            Err(_) => {}
        }
    }
}

async fn until_called(
    kernel: &'static Kernel,
    program: &Program,
    queued: Queued<'_>,
    deadline: u64,
) -> Result<u64, Error> {
    if deadline == FOR_EVER {
        let called = program.interruptible(queued).await;
        return called.map(|()| 0).map_err(|Doomed| Error::Interrupted);
    }
    let time = kernel.timers().sleep_until(deadline);
    match program.interruptible(race(queued, time)).await {
        Ok(Winner::First(())) => Ok(0),
        Ok(Winner::Second(())) => Err(Error::TimedOut),
        Err(Doomed) => Err(Error::Interrupted),
    }
}

/// Calls up to `most` of those who wait for the word at `address`; how many those were.
///
/// # Errors
/// The program has no memory there.
pub(crate) fn wake(kernel: &Kernel, space: SpaceId, address: u64, most: u64) -> Result<u64, Error> {
    check(address)?;
    let key = kernel.mm().futex_key(space, address).map_err(copy_error)?;
    let most = u32::try_from(most).unwrap_or(u32::MAX);
    Ok(kernel.futexes.wake(key, most).into())
}

fn check(address: u64) -> Result<(), Error> {
    match address.is_multiple_of(FUTEX_BYTES) {
        true => Ok(()),
        false => Err(Error::Invalid),
    }
}
