//! Programs: loaded from the executable that the image carries, each a task that runs its process and serves what
//! stops it. A fault, a system call, an interrupt: all come back from the nucleus as a [`Trap`].

mod family;
mod load;
mod table;

pub(crate) use family::{fork, wait};
pub(crate) use table::{ProgramRef, Programs};

use crate::exercise::{self, Exercises};
use crate::fault;
use crate::files::{self, Aio, Descriptors, Registered};
use crate::kernel::Kernel;
use crate::log::log;
use crate::machine::activity::{self, CpuBell};
use crate::machine::cpu::this_cpu;
use crate::machine::nucleus::{Context, Trap};
use crate::machine::object_cache::{CacheBox, ObjectCache};
use crate::syscall::{self, Outcome};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicI16, AtomicU64, Ordering};
use guest_kernel::executor::Bell;
use guest_kernel::sync::{Signal, Winner, race, yield_now};
use guest_mm::SpaceId;
use guest_mm::mm::FaultError;
use guest_sync::{CpuId, SpinLock};
use load::{load, load_file};

static CONTEXT_CACHE: ObjectCache<Context> = ObjectCache::new("context");

/// A program, running or ended.
pub(crate) struct Program {
    /// Its number, from 1.
    pub(crate) pid: u32,
    /// Its name and arguments.
    pub(crate) words: Vec<String>,
    /// The CPU on which it runs, from start to end.
    pub(crate) cpu: CpuId,
    pub(crate) status: SpinLock<Status>,
    /// Checks of its own data that it reported, and those of children that it has waited for.
    pub(crate) checks_ok: AtomicU64,
    pub(crate) checks_failed: AtomicU64,
    /// Page faults served for it, and for children that it has waited for.
    pub(crate) faults: AtomicU64,
    /// What it has under way in the memory manager itself.
    pub(crate) exercises: Exercises,
    /// What is added to its score when memory is out: `guest_mm::reclaim::oom`.
    pub(crate) oom_score_adj: AtomicI16,
    /// It is to end, whatever it is doing.
    is_doomed: AtomicBool,
    doom: Signal,
    /// It ends because memory failed that it had a page in.
    pub(crate) has_lost_a_page: AtomicBool,
    /// The files that it has open.
    pub(crate) files: Descriptors,
    /// Reads that go on meanwhile.
    pub(crate) aio: Aio,
    /// Its memory that stays where it is.
    pub(crate) registered: Registered,
}

/// The program is to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Doomed;

/// What changes while a program lives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Status {
    pub(crate) state: State,
    /// Its address space, as long as it has one.
    pub(crate) space: Option<SpaceId>,
    pub(crate) kin: Kin,
}

/// Who wants to know how a program ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kin {
    /// The operator, who has named it on the command line: it stays in the list for ever.
    Operator,
    /// The program with this number, which forked it: it stays until that one has waited for it.
    ChildOf(u32),
    /// Nobody any more: it leaves the list when it ends.
    Orphan,
}

/// What a program is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    /// It runs or is about to.
    Running,
    /// It waits for time, memory or a page that moves.
    Waiting,
    /// It ended by itself with this status.
    Exited(u64),
    /// It did what no program may.
    Killed,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running => f.write_str("running"),
            Self::Waiting => f.write_str("waiting"),
            Self::Exited(status) => write!(f, "exited({status})"),
            Self::Killed => f.write_str("killed"),
        }
    }
}

impl Program {
    /// Its name.
    pub(crate) fn name(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(self.status.lock().state, State::Exited(_) | State::Killed)
    }

    /// Lets it end as soon as it waits for nothing but what has to come first: a disk that is at its memory.
    pub(crate) fn doom(&self) {
        self.is_doomed.store(true, Ordering::SeqCst);
        self.doom.raise();
        // It may be running.
        CpuBell(self.cpu).ring();
    }

    /// Whether it is to end.
    pub(crate) fn is_doomed(&self) -> bool {
        self.is_doomed.load(Ordering::SeqCst)
    }

    /// Waits for something that can be given up at any time, visibly so.
    ///
    /// # Errors
    /// The program is to end, and what it waited for was given up.
    pub(crate) async fn interruptible<T>(&self, what: impl Future<Output = T>) -> Result<T, Doomed> {
        let seen = self.doom.count();
        if self.is_doomed() {
            return Err(Doomed);
        }
        match self.wait_for(race(what, self.doom.after(seen))).await {
            Winner::First(result) => Ok(result),
            Winner::Second(()) => Err(Doomed),
        }
    }

    /// Waits for something, visibly so.
    pub(crate) async fn wait_for<T>(&self, what: impl Future<Output = T>) -> T {
        self.status.lock().state = State::Waiting;
        let result = what.await;
        self.status.lock().state = State::Running;
        result
    }
}

/// Loads a program, `words` being its name and arguments, and starts it on the CPU that has the fewest.
/// A name that is a path is that of an executable in the file system; others are of those that the image carries.
pub(crate) async fn start(kernel: &'static Kernel, words: Vec<String>) {
    let program = match kernel.programs.register(kernel, words, None) {
        Ok(program) => program,
        Err(error) => {
            log!(Error, "a program cannot be started: {error}");
            return;
        }
    };
    let loaded = if program.words.first().is_some_and(|word| word.starts_with('/')) {
        load_file(kernel, &program).await
    } else {
        load(&kernel.mm())
    };
    let begun = match loaded {
        Ok((space, context)) => begin(kernel, &program, space, context),
        Err(error) => {
            let (name, pid) = (program.name(), program.pid);
            log!(Error, "{name}[{pid}]: cannot be loaded: {error}");
            false
        }
    };
    if !begun {
        program.status.lock().state = State::Killed;
        kernel.program_ended.raise();
    }
}

/// Starts a program that is loaded. Whether its CPU has room for it; its address space is gone if not.
fn begin(kernel: &'static Kernel, program: &ProgramRef, space: SpaceId, context: CacheBox<Context>) -> bool {
    program.status.lock().space = Some(space);
    if kernel.start_program(program.cpu, live(kernel, program.clone(), space, context)) {
        return true;
    }
    program.status.lock().space = None;
    // It never ran, so that nobody but a migration can stand in the way, and that one is not awaited here.
    let _ = kernel.mm().destroy_space(this_cpu(), space);
    false
}

/// A program's whole life.
async fn live(kernel: &'static Kernel, program: ProgramRef, space: SpaceId, mut context: CacheBox<Context>) {
    let end = serve(kernel, &program, space, &mut context).await;
    exercise::end(kernel, &program).await;
    files::end_aio(kernel, &program).await;
    // Its memory first: the end of a file may wait for a disk, and others wait for the memory. A page under migration holds the address space until it has arrived.
    loop {
        let destroyed = kernel.mm().destroy_space(this_cpu(), space);
        if destroyed.is_ok() {
            break;
        }
        kernel.until_settled(space).await;
    }
    kernel.oom.has_ended(program.pid);
    kernel.memory_came.raise();
    program.files.close_all(kernel.files.root()).await;
    log!(Info, "{}[{}]: {end}", program.name(), program.pid);
    kernel.programs.end(&program, end);
    kernel.program_left();
    kernel.program_ended.raise();
}

/// Runs the process and serves its traps until it ends.
async fn serve(kernel: &'static Kernel, program: &Program, space: SpaceId, context: &mut Context) -> State {
    let Some(address_space) = kernel.mm().space(space) else {
        return State::Killed;
    };
    let mut slice_end = kernel.clock.now() + kernel.tick_ns;
    loop {
        // Alone, it needs no time limit: whatever makes another task ready is an interrupt.
        if program.is_doomed() {
            return State::Killed;
        }
        // Looked at last of all, as is whether it is to end: what comes later interrupts it.
        let has_limit = || kernel.has_ready() || program.is_doomed();
        let timer = || kernel.timer_until(has_limit().then_some(slice_end));
        match activity::run(context, &address_space, timer) {
            Trap::SystemCall => match syscall::serve(kernel, program, space, context).await {
                Outcome::Result(result) => context.rax = result,
                Outcome::Exit(status) => return State::Exited(status),
            },
            Trap::PageFault { address, error } => {
                program.faults.fetch_add(1, Ordering::Relaxed);
                if let Err(why) = fault::serve(kernel, program, space, address, error).await {
                    if matches!(why, FaultError::Poisoned { .. }) {
                        kernel.failures.ends(program);
                    }
                    if program.is_doomed() {
                        return State::Killed;
                    }
                    return kill(program, context, format_args!("{why}"));
                }
            }
            Trap::Interrupt(vector) => kernel.interrupt(vector),
            Trap::Exception { vector, error } => {
                return kill(
                    program,
                    context,
                    format_args!("exception {vector}, error code {error:#x}"),
                );
            }
        }
        // Others had their turn while it waited; at the end of its time they have it now.
        let now = kernel.clock.now();
        if now >= slice_end || kernel.has_ready() {
            yield_now().await;
            slice_end = kernel.clock.now() + kernel.tick_ns;
        }
    }
}

fn kill(program: &Program, context: &Context, why: fmt::Arguments<'_>) -> State {
    log!(
        Warning,
        "{}[{}]: {why}, at {:#x}",
        program.name(),
        program.pid,
        context.rip
    );
    State::Killed
}
