//! Programs: loaded from the executable that the image carries, each a task that runs its process and serves what
//! stops it. A fault, a system call, an interrupt: all come back from the nucleus as a [`Trap`].

mod load;

use crate::exercise::{self, Exercises};
use crate::fault;
use crate::files::Descriptors;
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
use guest_mm::mm::ForkError;
use guest_programs::abi::{Error, KILLED};
use guest_sync::{CpuId, SpinLock};
use load::{load, load_file};

static PROGRAM_CACHE: ObjectCache<Program> = ObjectCache::new("program");
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
    /// Checks of its own data that it reported.
    pub(crate) checks_ok: AtomicU64,
    pub(crate) checks_failed: AtomicU64,
    /// Page faults served for it.
    pub(crate) faults: AtomicU64,
    /// What it has under way in the memory manager itself.
    pub(crate) exercises: Exercises,
    /// What is added to its score when memory is out: `guest_mm::reclaim::oom`.
    pub(crate) oom_score_adj: AtomicI16,
    /// It is to end, whatever it is doing.
    is_doomed: AtomicBool,
    doom: Signal,
    /// The files that it has open.
    pub(crate) files: Descriptors,
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
    /// Who forked it and has not waited for it yet.
    pub(crate) parent: Option<u32>,
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
    let Some(program) = register(kernel, words, None) else {
        return;
    };
    let loaded = if program.words.first().is_some_and(|word| word.starts_with('/')) {
        load_file(kernel, program).await
    } else {
        load(&kernel.mm())
    };
    match loaded {
        Ok((space, context)) => begin(kernel, program, space, context),
        Err(error) => {
            log!(
                Error,
                "{}[{}]: cannot be loaded: {error}",
                program.name(),
                program.pid
            );
            program.status.lock().state = State::Killed;
            kernel.program_ended.raise();
        }
    }
}

/// Doubles a program: its child goes on from `context` with a result of 0. Returns the child's number.
///
/// # Errors
/// When there is no memory for it, or it cannot be started.
pub(crate) async fn fork(
    kernel: &'static Kernel,
    parent: &Program,
    space: SpaceId,
    context: &Context,
) -> Result<u32, Error> {
    let child_space = loop {
        let forked = kernel.mm().fork(this_cpu(), space);
        match forked {
            Ok(child) => break child,
            Err(ForkError::Migrating(id)) => parent.wait_for(kernel.until_settled(id)).await,
            Err(ForkError::NoMemory | ForkError::UnknownSpace(_)) => return Err(Error::NoMemory),
        }
    };
    let root = kernel
        .mm()
        .space(child_space)
        .map_or(0, |space| space.root().gpa());
    let stored = CONTEXT_CACHE.store(context.for_child(root)).ok();
    let registered = stored.and_then(|context| {
        let child = register(kernel, parent.words.clone(), Some(parent.pid))?;
        Some((child, context))
    });
    let Some((child, context)) = registered else {
        // Nothing of a space that never ran is under migration for long.
        while kernel.mm().destroy_space(this_cpu(), child_space).is_err() {
            kernel.until_settled(child_space).await;
        }
        return Err(Error::NoMemory);
    };
    child.files.copy_from(&parent.files);
    let pid = child.pid;
    begin(kernel, child, child_space, context);
    Ok(pid)
}

/// Waits until a child of a program has ended, and forgets whose child it was.
///
/// # Errors
/// When the program has no such child.
pub(crate) async fn wait(kernel: &'static Kernel, parent: &Program, pid: u64) -> Result<u64, Error> {
    let is_child = |child: &&&'static Program| {
        u64::from(child.pid) == pid && child.status.lock().parent == Some(parent.pid)
    };
    let found = kernel.programs.lock().iter().find(is_child).copied();
    let child = found.ok_or(Error::NoChild)?;
    loop {
        let seen = kernel.program_ended.count();
        // Whoever has ended has given its memory back by then.
        let status = *child.status.lock();
        match (status.state, status.space) {
            (State::Exited(status), None) => {
                child.status.lock().parent = None;
                return Ok(status & u64::from(u32::MAX));
            }
            (State::Killed, None) => {
                child.status.lock().parent = None;
                return Ok(KILLED);
            }
            _ => {
                let ended = parent.interruptible(kernel.program_ended.after(seen)).await;
                ended.map_err(|Doomed| Error::Interrupted)?;
            }
        }
    }
}

/// A new program in the list of all, without memory yet.
fn register(kernel: &'static Kernel, words: Vec<String>, parent: Option<u32>) -> Option<&'static Program> {
    let cpu = kernel.least_loaded_cpu();
    let mut programs = kernel.programs.lock();
    let pid = u32::try_from(programs.len() + 1).unwrap_or(u32::MAX);
    let of_parent = programs.iter().find(|program| Some(program.pid) == parent);
    let inherited_adj = of_parent.map_or(0, |parent| parent.oom_score_adj.load(Ordering::Relaxed));
    let stored = PROGRAM_CACHE.store(Program {
        pid,
        words,
        cpu,
        status: SpinLock::new(Status {
            state: State::Running,
            space: None,
            parent,
        }),
        checks_ok: AtomicU64::new(0),
        checks_failed: AtomicU64::new(0),
        faults: AtomicU64::new(0),
        exercises: Exercises::default(),
        oom_score_adj: AtomicI16::new(inherited_adj),
        is_doomed: AtomicBool::new(false),
        doom: Signal::new(),
        files: Descriptors::default(),
    });
    match stored {
        Ok(program) => {
            let program: &'static Program = program.leak();
            programs.push(program);
            Some(program)
        }
        Err(error) => {
            drop(programs);
            log!(Error, "program {pid} cannot be started: {error}");
            None
        }
    }
}

/// Starts a program that is loaded.
fn begin(kernel: &'static Kernel, program: &'static Program, space: SpaceId, context: CacheBox<Context>) {
    program.status.lock().space = Some(space);
    if kernel.start_program(program.cpu, live(kernel, program, space, context)) {
        return;
    }
    // It never ran, so that nobody but a migration can stand in the way, and that one is not awaited here.
    let _ = kernel.mm().destroy_space(this_cpu(), space);
    let mut status = program.status.lock();
    (status.state, status.space) = (State::Killed, None);
    drop(status);
    kernel.program_ended.raise();
}

/// A program's whole life.
async fn live(
    kernel: &'static Kernel,
    program: &'static Program,
    space: SpaceId,
    mut context: CacheBox<Context>,
) {
    let end = serve(kernel, program, space, &mut context).await;
    exercise::end(kernel, program).await;
    program.files.close_all(kernel.files.root()).await;
    // A page under migration holds the address space until it has arrived.
    loop {
        let destroyed = kernel.mm().destroy_space(this_cpu(), space);
        if destroyed.is_ok() {
            break;
        }
        kernel.until_settled(space).await;
    }
    {
        let mut status = program.status.lock();
        (status.state, status.space) = (end, None);
    }
    log!(Info, "{}[{}]: {end}", program.name(), program.pid);
    kernel.oom.has_ended(program.pid);
    kernel.program_left();
    kernel.memory_came.raise();
    kernel.program_ended.raise();
}

/// Runs the process and serves its traps until it ends.
async fn serve(kernel: &'static Kernel, program: &Program, space: SpaceId, context: &mut Context) -> State {
    let mut slice_end = kernel.clock.now() + kernel.tick_ns;
    loop {
        // Alone, it needs no time limit: whatever makes another task ready is an interrupt.
        if program.is_doomed() {
            return State::Killed;
        }
        // Looked at last of all, as is whether it is to end: what comes later interrupts it.
        let has_limit = || kernel.has_ready() || program.is_doomed();
        let timer = || kernel.timer_until(has_limit().then_some(slice_end));
        match activity::run(context, timer) {
            Trap::SystemCall => match syscall::serve(kernel, program, space, context).await {
                Outcome::Result(result) => context.rax = result,
                Outcome::Exit(status) => return State::Exited(status),
            },
            Trap::PageFault { address, error } => {
                program.faults.fetch_add(1, Ordering::Relaxed);
                if let Err(why) = fault::serve(kernel, program, space, address, error).await {
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
