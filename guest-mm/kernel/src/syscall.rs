//! System calls: what programs can ask for (`guest_programs::abi`).

use crate::exercise;
use crate::fault;
use crate::files;
use crate::futex;
use crate::kernel::{Kernel, Memory};
use crate::log::log;
use crate::machine::cpu::this_cpu;
use crate::machine::nucleus::Context;
use crate::process::{self, Doomed, Program};
use alloc::string::String;
use core::sync::atomic::Ordering;
use guest_kernel::physical::to_usize;
use guest_kernel::sync::yield_now;
use guest_mm::mm::{Advice, BrkError, CopyError, FaultError, MmapError, Reserve};
use guest_mm::pagetable::VaRange;
use guest_mm::reclaim::oom::{OOM_SCORE_ADJ_MAX, OOM_SCORE_ADJ_MIN};
use guest_mm::{Backing, BlockState, Gfp, HugeAdvice, MapRequest, PAGE_SIZE, Pfn, Place, Prot, SpaceId};
use guest_programs::abi::{Call, Error, MAX_LINE, StressRow, SystemInfo, advice, map_flags, prot};

/// What a system call leads to.
pub(crate) enum Outcome {
    /// The program goes on with this in rax.
    Result(u64),
    /// It ends with this status.
    Exit(u64),
}

/// Carries out the call in the program's registers.
pub(crate) async fn serve(
    kernel: &'static Kernel,
    program: &Program,
    space: SpaceId,
    context: &Context,
) -> Outcome {
    let Context {
        rdi: first,
        rsi: second,
        rdx: third,
        ..
    } = *context;
    let result = match Call::from_number(context.rax) {
        Some(Call::Exit) => return Outcome::Exit(first),
        Some(Call::Write) => write(kernel, program, space, first, second).await,
        Some(Call::Map) => map(kernel, space, first, second, third),
        Some(Call::RemapFilePages) => {
            let page = u32::try_from(third).unwrap_or(u32::MAX);
            change(kernel, program, |mm| {
                mm.remap_file_pages(this_cpu(), space, first, second, page)
            })
            .await
        }
        Some(Call::FutexWait) => futex::wait(kernel, program, space, (first, second, third)).await,
        Some(Call::FutexWake) => futex::wake(kernel, space, first, second),
        Some(Call::Unmap) => change(kernel, program, |mm| mm.munmap(this_cpu(), space, first, second)).await,
        Some(Call::Protect) => {
            let prot = rights(third);
            change(kernel, program, |mm| {
                mm.mprotect(this_cpu(), space, first, second, prot?)
            })
            .await
        }
        Some(Call::Advise) => advise(kernel, program, space, (first, second), third).await,
        Some(Call::Lock) => lock(kernel, program, space, (first, second)).await,
        Some(Call::Unlock) => {
            change(kernel, program, |mm| mm.munlock(this_cpu(), space, first, second)).await
        }
        Some(Call::Break) => set_break(kernel, program, space, first).await,
        Some(Call::Fork) => process::fork(kernel, program, space, context)
            .await
            .map(u64::from),
        Some(Call::Wait) => process::wait(kernel, program, first).await,
        Some(Call::Yield) => {
            yield_now().await;
            Ok(0)
        }
        Some(Call::SleepUntil) => {
            let slept = program.interruptible(kernel.timers().sleep_until(first)).await;
            slept.map(|()| 0).map_err(|Doomed| Error::Interrupted)
        }
        Some(Call::Clock) => Ok(kernel.clock.now()),
        Some(Call::SystemInfo) => {
            let bytes = system_info(kernel).to_words().map(u64::to_le_bytes);
            copy_out(kernel, program, space, first, bytes.as_flattened())
                .await
                .map(|()| 0)
        }
        Some(Call::Report) => {
            report(program, first, second);
            Ok(0)
        }
        Some(Call::Arguments) => arguments(kernel, program, space, first, second).await,
        Some(Call::OomScoreAdj) => adjust_oom_score(program, first),
        Some(Call::Stress) => stress(kernel, program, space, (first, second, third)).await,
        None => files::serve(kernel, program, space, context).await,
    };
    Outcome::Result(result.unwrap_or_else(Error::to_result))
}

async fn write(
    kernel: &'static Kernel,
    program: &Program,
    space: SpaceId,
    address: u64,
    len: u64,
) -> Result<u64, Error> {
    let mut bytes = [0; MAX_LINE];
    let line = &mut bytes[..to_usize(len).min(MAX_LINE)];
    fault::copy(kernel, program, |mm| {
        mm.read_user(this_cpu(), space, address, line)
    })
    .await
    .map_err(copy_error)?;
    let text = String::from_utf8_lossy(line);
    log!(Info, "{}[{}]: {}", program.name(), program.pid, text.trim_end());
    Ok(line.len() as u64)
}

fn map(kernel: &Kernel, space: SpaceId, len: u64, flags: u64, gpa: u64) -> Result<u64, Error> {
    let known = map_flags::NO_HUGE | map_flags::PHYSICAL | map_flags::HUGETLB | map_flags::SHARED;
    if flags & !known != 0 || !gpa.is_multiple_of(PAGE_SIZE) {
        return Err(Error::Invalid);
    }
    // Let go once it is mapped.
    let mut shared = None;
    let backing = match (flags & map_flags::PHYSICAL != 0, flags & map_flags::NO_HUGE != 0) {
        (true, _) => Backing::Physical(Pfn::containing(gpa).ok_or(Error::Invalid)?),
        _ if flags & map_flags::SHARED != 0 => {
            let (backing, file) = files::anonymous_shm(kernel, len);
            shared = Some(file);
            backing
        }
        _ if flags & map_flags::HUGETLB != 0 => Backing::HugeTlb(Reserve::Held),
        (false, true) => Backing::Anonymous(HugeAdvice::NoHuge),
        (false, false) => Backing::Anonymous(HugeAdvice::Huge),
    };
    let request = MapRequest {
        len,
        place: Place::Anywhere,
        prot: Prot::READ.with(Prot::WRITE),
        backing,
    };
    let mapped = kernel.mm().mmap(space, &request).map_err(map_error);
    drop(shared);
    mapped
}

/// Repeats a change of the program's areas until none of its pages is on the move, and there is memory for page tables.
async fn change(
    kernel: &'static Kernel,
    program: &Program,
    mut change: impl FnMut(&Memory) -> Result<(), MmapError>,
) -> Result<u64, Error> {
    loop {
        let attempt = || match change(&kernel.mm()) {
            Err(MmapError::NoMemory) => None,
            outcome => Some(outcome),
        };
        let outcome = fault::until_memory_for(kernel, program, Gfp::KERNEL, attempt).await;
        match outcome.map_err(|Doomed| Error::Interrupted)? {
            Ok(()) => {
                kernel.memory_came.raise();
                return Ok(0);
            }
            Err(MmapError::Migrating(id)) => program.wait_for(kernel.until_settled(id)).await,
            Err(error) => return Err(map_error(error)),
        }
    }
}

async fn advise(
    kernel: &'static Kernel,
    program: &Program,
    space: SpaceId,
    (va, len): (u64, u64),
    number: u64,
) -> Result<u64, Error> {
    if number == advice::PAGE_OUT {
        return page_out(kernel, program, space, (va, len)).await;
    }
    let advice = memory_advice(number);
    change(kernel, program, |mm| {
        mm.madvise(this_cpu(), space, va, len, advice?)
    })
    .await
}

/// Has memory leave in pieces, no faster than the disks take it. What has been written is free.
async fn page_out(
    kernel: &'static Kernel,
    program: &Program,
    space: SpaceId,
    (va, len): (u64, u64),
) -> Result<u64, Error> {
    let end = va.checked_add(len).ok_or(Error::Invalid)?;
    for start in (va..end).step_by(PAGE_OUT_BYTES) {
        let bytes = (end - start).min(PAGE_OUT_BYTES as u64);
        change(kernel, program, |mm| {
            mm.madvise(this_cpu(), space, start, bytes, Advice::PageOut)
        })
        .await?;
        while u64::from(kernel.phys.nr_being_written()) * PAGE_SIZE > 4 * PAGE_OUT_BYTES as u64 {
            let fewer = program.interruptible(kernel.phys.throttle()).await;
            fewer.map_err(|Doomed| Error::Interrupted)?;
        }
    }
    Ok(0)
}

/// Bytes of memory that leave at a time when a program asks for that.
const PAGE_OUT_BYTES: usize = 1 << 20;

/// One program may keep this part of all memory.
const LOCK_SHARE: u64 = 4;

/// Keeps memory in, once it is there.
async fn lock(
    kernel: &'static Kernel,
    program: &Program,
    space: SpaceId,
    (va, len): (u64, u64),
) -> Result<u64, Error> {
    let limit = kernel.phys.memory_stats().total_pages / LOCK_SHARE;
    change(kernel, program, |mm| {
        mm.mlock(this_cpu(), space, (va, len), limit)
    })
    .await?;
    let range = VaRange::new(va, len).ok_or(Error::Invalid)?;
    let populate = |mm: &Memory| mm.populate(this_cpu(), space, range);
    fault::copy(kernel, program, populate).await.map_err(copy_error)?;
    kernel.mm().mark_locked(space, range);
    Ok(0)
}

/// What the program says about its memory; an error for what means nothing.
fn memory_advice(number: u64) -> Result<Advice, MmapError> {
    Ok(match number {
        advice::DONT_NEED => Advice::DontNeed,
        advice::HUGE => Advice::Huge(HugeAdvice::Huge),
        advice::NO_HUGE => Advice::Huge(HugeAdvice::NoHuge),
        _ => return Err(MmapError::BadRange { va: 0, len: 0 }),
    })
}

fn rights(number: u64) -> Result<Prot, MmapError> {
    let right = |bit, right| if number & bit != 0 { right } else { Prot::NONE };
    if number & !(prot::READ | prot::WRITE | prot::EXEC) != 0 {
        return Err(MmapError::BadRange { va: 0, len: 0 });
    }
    let (read, write) = (right(prot::READ, Prot::READ), right(prot::WRITE, Prot::WRITE));
    Ok(read.with(write).with(right(prot::EXEC, Prot::EXEC)))
}

async fn set_break(
    kernel: &'static Kernel,
    program: &Program,
    space: SpaceId,
    end: u64,
) -> Result<u64, Error> {
    loop {
        let outcome = kernel.mm().brk(this_cpu(), space, end);
        match outcome {
            Ok(end) => return Ok(end),
            Err(BrkError::Unmap(MmapError::Migrating(id))) => {
                program.wait_for(kernel.until_settled(id)).await;
            }
            Err(BrkError::Unmap(error)) => return Err(map_error(error)),
            Err(BrkError::OutOfRange { .. } | BrkError::Occupied(_)) => return Err(Error::NoMemory),
        }
    }
}

fn system_info(kernel: &Kernel) -> SystemInfo {
    let stats = kernel.phys.memory_stats();
    let region = kernel.phys.hotplug_region();
    let total = stats.total_pages * PAGE_SIZE;
    // Pages in the balloon are nobody's, and those that it still wants will be.
    let balloon = *kernel.balloon.lock();
    let counts = kernel.phys.stats();
    let is_online = |state| matches!(state, BlockState::Online | BlockState::GoingOffline);
    let blocks_online = region.iter().filter(|&(_, state)| is_online(state)).count() as u64;
    let online = blocks_online * u64::from(region.block_nr_pages()) * PAGE_SIZE;
    let unplugged = region.iter().find(|&(_, state)| state == BlockState::Unplugged);
    SystemInfo {
        total: total.saturating_sub(balloon.held * PAGE_SIZE),
        future_total: (total - online + kernel.resize.lock().requested)
            .saturating_sub(balloon.target * PAGE_SIZE),
        available: stats.available_pages * PAGE_SIZE,
        first_unplugged: unplugged
            .and_then(|(block, _)| region.block_range(block))
            .map_or(0, |range| range.start().gpa()),
        swapped_in: counts.pswpin,
        swapped_out: counts.pswpout,
        file_in: counts.pgpgin,
        scanned: counts.pgscan,
        freed: counts.pgsteal,
    }
}

fn report(program: &Program, ok: u64, failed: u64) {
    program.checks_ok.fetch_add(ok, Ordering::Relaxed);
    program.checks_failed.fetch_add(failed, Ordering::Relaxed);
}

fn adjust_oom_score(program: &Program, adjustment: u64) -> Result<u64, Error> {
    // As it lies in the register, two's complement.
    let adjustment = i16::try_from(adjustment.cast_signed()).map_err(|_| Error::Invalid)?;
    if !(OOM_SCORE_ADJ_MIN..=OOM_SCORE_ADJ_MAX).contains(&adjustment) {
        return Err(Error::Invalid);
    }
    program.oom_score_adj.store(adjustment, Ordering::Relaxed);
    Ok(0)
}

async fn stress(
    kernel: &'static Kernel,
    program: &Program,
    space: SpaceId,
    (row, seed, address): (u64, u64, u64),
) -> Result<u64, Error> {
    let row = StressRow::from_number(row).ok_or(Error::Invalid)?;
    let outcome = exercise::round(kernel, program, row, seed).await?;
    let bytes = outcome.to_words().map(u64::to_le_bytes);
    copy_out(kernel, program, space, address, bytes.as_flattened()).await?;
    Ok(0)
}

async fn arguments(
    kernel: &'static Kernel,
    program: &Program,
    space: SpaceId,
    address: u64,
    room: u64,
) -> Result<u64, Error> {
    let mut text = String::new();
    for word in &program.words {
        text.push_str(word);
        text.push('\0');
    }
    let fits = &text.as_bytes()[..text.len().min(to_usize(room))];
    copy_out(kernel, program, space, address, fits).await?;
    Ok(text.len() as u64)
}

async fn copy_out(
    kernel: &'static Kernel,
    program: &Program,
    space: SpaceId,
    address: u64,
    bytes: &[u8],
) -> Result<(), Error> {
    fault::copy(kernel, program, |mm| {
        mm.write_user(this_cpu(), space, address, bytes)
    })
    .await
    .map_err(copy_error)
}

pub(crate) fn copy_error(error: CopyError) -> Error {
    match error {
        CopyError::Fault {
            error: FaultError::OutOfMemory(_),
            ..
        } => Error::NoMemory,
        CopyError::Fault {
            error: FaultError::Io { .. },
            ..
        } => Error::Io,
        CopyError::Fault { .. } | CopyError::Locked { .. } | CopyError::NeedsBlock { .. } => Error::Fault,
    }
}

pub(crate) fn map_error(error: MmapError) -> Error {
    match error {
        MmapError::NoRoom { .. }
        | MmapError::NoMemory
        | MmapError::NoHugePages { .. }
        | MmapError::LockLimit { .. } => Error::NoMemory,
        MmapError::UnknownSpace(_)
        | MmapError::UnknownMapping(_)
        | MmapError::BadRange { .. }
        | MmapError::BadFrames
        | MmapError::Occupied(_)
        | MmapError::Pinned { .. }
        | MmapError::Migrating(_) => Error::Invalid,
    }
}
