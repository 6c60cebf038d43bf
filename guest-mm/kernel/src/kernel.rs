//! The manager's state, and the main loop of each CPU: polls its tasks while there are any to poll, and sleeps when
//! there are not.
//!
//! There is one of it, it lives for ever, and all CPUs use it, with interrupts off. Locks are taken in the order of
//! [`Kernel`]'s documentation and never held across an `await`: clippy refuses it (`await-holding-invalid-types`), and so
//! does the compiler in a task that may come from another CPU.

mod frames;
mod status;

pub(crate) use frames::KernelFrames;
pub(crate) use status::{BalloonStatus, Passes, ResizeStatus};

use crate::boot::Machine;
use crate::disks::DiskStatus;
use crate::drivers::Driver;
use crate::files::{self, Files, Shm};
use crate::log::log;
use crate::machine::activity::{self, AllCpus, CpuBell};
use crate::machine::apic::{CALL_VECTOR, GSI_VECTOR, LocalApics, TIMER_VECTOR};
use crate::machine::areas::{self, Areas};
use crate::machine::clock::Clock;
use crate::machine::cpu::{BootCpuOnly, this_cpu};
use crate::machine::direct_map::DirectMap;
use crate::machine::heap::Slabs;
use crate::machine::high_memory::{self, AllFrames, HighMemory};
use crate::machine::io_apic::IoApic;
use crate::machine::nucleus::TimerCount;
use crate::machine::{power, quiet};
use crate::memory_failure::MemoryFailures;
use crate::nodes::NodeTasks;
use crate::oom::Oom;
use crate::process::Programs;
use crate::reclaim;
use crate::resize::orders::Orders;
use crate::swap::Swap;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::ops::Deref;
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use guest_kernel::acpi::Acpi;
use guest_kernel::activity::Hearing;
use guest_kernel::executor::{Executor, Remote};
use guest_kernel::stress::Pantry;
use guest_kernel::sync::Signal;
use guest_kernel::timers::Timers;
use guest_mm::compact::{CompactResult, Compaction, Defrag, Goal};
use guest_mm::futex::Futexes;
use guest_mm::kernel_map::Vmemmap;
use guest_mm::mm::{IoChoice, PageWait};
use guest_mm::phys::PhysicalMemory;
use guest_mm::reclaim::Reclaim;
use guest_mm::{Gfp, Mm, NodeId, Order, SpaceId, Zone};
use guest_sync::{CpuId, PerCpu, SpinLock};

/// Physical and virtual memory, on this machine.
pub(crate) type Memory = Mm<'static, AllFrames, AllCpus>;

/// Free memory that caches do not need is given back this often (Linux `REAPTIMEOUT_AC`).
const REAP_NS: u64 = 2_000_000_000;

/// What belongs to one CPU: its tasks, and what they wait for.
struct Work {
    tasks: Arc<Remote>,
    timers: Timers,
    nr_programs: AtomicU32,
}

/// See the module.
///
/// Lock order: the victim of `oom`, then `programs`, then a program's `status`, then `resize`, then `balloon`, then `disks`, then `drivers`, then the areas of `swap`; then any one of those that guard a single
/// step: a signal's, the timers', an executor's, the heap's, the serial line's. Waiting for another CPU to flush its
/// translations is allowed under all of them (machine/activity.rs).
pub(crate) struct Kernel {
    mm: &'static Memory,
    pub(crate) direct_map: DirectMap,
    /// Frames, which every CPU takes and frees without the lock of `mm`.
    pub(crate) phys: &'static PhysicalMemory<'static>,
    /// Caches of the manager's own objects.
    pub(crate) slabs: &'static Slabs,
    /// How memory is got back when there is none.
    pub(crate) reclaim: Reclaim<'static>,
    /// Who had to go when there was nothing to be got back.
    pub(crate) oom: Oom,
    pub(crate) failures: MemoryFailures,
    /// What reclaim gets from programs that work on it; asked before the slabs.
    pub(crate) pantry: &'static Pantry<'static>,
    pub(crate) vmemmap: Vmemmap,
    /// The manager's own areas, made of single frames.
    pub(crate) areas: &'static Areas,
    /// What is not in the direct map, and windows to look at it.
    pub(crate) high: &'static HighMemory,
    /// The contents of all frames.
    pub(crate) frames: AllFrames,
    pub(crate) clock: Clock,
    /// For each CPU that there is; `nr_cpus` of them are in use, which are the first ones.
    work: PerCpu<Work>,
    nr_cpus: AtomicU8,
    /// Frames became free, or came with a block: a resize that stalled for lack of them tries again.
    pub(crate) memory_came: Signal,
    /// A program ended.
    pub(crate) program_ended: Signal,
    /// The programs by number; the first is 1.
    pub(crate) programs: Programs,
    pub(crate) resize: SpinLock<ResizeStatus>,
    /// What an operator wants of blocks.
    pub(crate) orders: Orders,
    /// The daemons of nodes.
    pub(crate) nodes: NodeTasks,
    pub(crate) balloon: SpinLock<BalloonStatus>,
    /// The file system.
    pub(crate) files: Files,
    /// The one without a disk.
    pub(crate) shm: Shm,
    /// The one whose files never leave memory.
    pub(crate) ram: Shm,
    /// Programs that wait for words of memory.
    pub(crate) futexes: Futexes,
    /// The disks, in the order of the machine.
    pub(crate) disks: SpinLock<Vec<DiskStatus>>,
    /// The drivers of devices, in the order of the machine.
    pub(crate) drivers: SpinLock<Vec<&'static Driver>>,
    pub(crate) swap: Swap,
    pub(crate) tick_ns: u64,
    /// How often old dirty pages are looked for, and how old they may get, in nanoseconds.
    pub(crate) dirty_ns: (u64, u64),
    validates: bool,
    acpi: Acpi,
    local_apics: LocalApics,
    /// Of the boot CPU, which gets the devices' interrupts.
    apic_id: u32,
    io_apics: Vec<IoApic>,
    handlers: BootCpuOnly<RefCell<Vec<(u8, Handler)>>>,
}

/// See [`Kernel::mm`].
pub(crate) struct Working<'a> {
    mm: &'a Memory,
    _visit: quiet::Visit,
}

impl Deref for Working<'_> {
    type Target = Memory;

    fn deref(&self) -> &Memory {
        self.mm
    }
}

/// What to do when an interrupt comes in: takes note and wakes, and never waits.
type Handler = Rc<dyn Fn()>;

impl Kernel {
    /// The kernel of a machine that has booted, with `nr_others` CPUs yet to be started.
    pub(crate) fn new(machine: Machine, nr_others: u8) -> &'static Self {
        let tables = machine.direct_map.tables();
        let areas = areas::start(tables, machine.memory);
        let maps = (1 + nr_others, machine.options.kmap_slots.get());
        let high = HighMemory::new(tables, &KernelFrames(machine.memory), machine.high, maps);
        let high = match high {
            Ok(high) => high_memory::start(high),
            Err(error) => panic!("windows for high memory: {error}"),
        };
        let mut mm = Mm::new(machine.memory, AllFrames(high), AllCpus);
        let fault_around = Order::holding(u64::from(machine.options.fault_around_kib) << 10);
        mm.set_fault_around(fault_around.unwrap_or(Order::PAGEBLOCK));
        mm.set_defrag(machine.options.thp_defrag);
        match machine.memory.alloc_pages(this_cpu(), Gfp::KERNEL, Order::ZERO) {
            Ok(zero_page) => mm.set_zero_page(zero_page),
            Err(error) => panic!("the zero page: {error}"),
        }
        let work = |id| Work {
            tasks: Remote::new(CpuBell(id)),
            timers: Timers::new(),
            nr_programs: AtomicU32::new(0),
        };
        let pantry: &Pantry<'_> = Box::leak(Box::new(Pantry::new(machine.memory)));
        let mm: &Memory = Box::leak(Box::new(mm));
        Box::leak(Box::new(Self {
            mm,
            phys: machine.memory,
            slabs: machine.slabs,
            reclaim: reclaim::start(
                machine.memory,
                mm,
                [pantry, areas, &files::NAMES, &files::INODES, machine.slabs],
                machine.options.reclaim,
            ),
            oom: Oom::default(),
            failures: MemoryFailures::default(),
            pantry,
            direct_map: machine.direct_map,
            vmemmap: machine.vmemmap,
            areas,
            high,
            frames: AllFrames(high),
            clock: machine.clock,
            work: PerCpu::new(1 + nr_others, work),
            nr_cpus: AtomicU8::new(1),
            memory_came: Signal::new(),
            program_ended: Signal::new(),
            programs: Programs::new(),
            resize: SpinLock::default(),
            orders: Orders::new(&machine.options),
            nodes: NodeTasks::new(machine.options.thp_defrag != Defrag::Never),
            balloon: SpinLock::default(),
            disks: SpinLock::default(),
            drivers: SpinLock::default(),
            files: Files::default(),
            shm: Shm::new(mm, this_cpu),
            ram: Shm::in_ram(mm, this_cpu),
            futexes: Futexes::default(),
            swap: Swap::new(),
            dirty_ns: machine.options.dirty_ns(),
            tick_ns: u64::from(machine.options.tick_ms.get()) * 1_000_000,
            validates: machine.options.validate,
            acpi: machine.acpi,
            local_apics: machine.local_apics,
            apic_id: machine.apic_id,
            io_apics: machine.io_apics,
            handlers: BootCpuOnly::new(RefCell::new(Vec::new())),
        }))
    }

    /// Runs the tasks of this CPU for ever.
    ///
    /// Interrupts come in while it sleeps, and while a task runs a process. Should its tasks do neither for long, as there
    /// is always another one that is ready, it lets them in all the same: devices would wait otherwise.
    pub(crate) fn run(&self, executor: &Executor) -> ! {
        let mut hearing = Hearing::default();
        loop {
            activity::answer();
            let now = self.clock.now();
            self.timers().advance(now);
            executor.run_ready();
            let (is_idle, is_deaf) = (!executor.has_ready(), activity::is_deaf(&mut hearing, now));
            if is_idle {
                self.areas.purge();
            } else {
                self.areas.purge_if_many();
            }
            let interrupt = match (is_idle, is_deaf) {
                (true, _) => activity::sleep(|| executor.has_ready(), self.timer_until(None)),
                // What is pending comes first; the timer ends the sleep if nothing is.
                (false, true) => activity::sleep(|| false, self.local_apics.count(0)),
                (false, false) => None,
            };
            if let Some(vector) = interrupt {
                self.interrupt(vector);
            }
        }
    }

    /// The executor of this CPU. To be called once on each.
    pub(crate) fn executor(&self) -> Executor {
        Executor::new(self.this_work().tasks.clone())
    }

    /// From now on this many CPUs run programs.
    pub(crate) fn use_cpus(&self, nr_cpus: u8) {
        self.nr_cpus.store(nr_cpus, Ordering::Relaxed);
    }

    fn this_work(&self) -> &Work {
        let id = this_cpu().id();
        self.work
            .of(id)
            .expect("there is work for every CPU that was started")
    }

    /// The deadlines that this CPU's tasks wait for.
    pub(crate) fn timers(&self) -> &Timers {
        &self.this_work().timers
    }

    /// Whether another task waits for this CPU.
    pub(crate) fn has_ready(&self) -> bool {
        self.this_work().tasks.has_ready()
    }

    /// The CPUs in use, with the number of programs on each.
    pub(crate) fn programs_by_cpu(&self) -> impl Iterator<Item = (CpuId, u32)> {
        let nr_cpus = usize::from(self.nr_cpus.load(Ordering::Relaxed));
        let in_use = self.work.iter().take(nr_cpus);
        in_use.map(|(id, work)| (id, work.nr_programs.load(Ordering::Relaxed)))
    }

    /// The CPU with the fewest programs; among those the boot CPU last, as it has the devices to look after.
    pub(crate) fn least_loaded_cpu(&self) -> CpuId {
        let load = |&(id, nr_programs): &(CpuId, u32)| (nr_programs, id == CpuId::ZERO);
        self.programs_by_cpu()
            .min_by_key(load)
            .map_or(CpuId::ZERO, |(id, _)| id)
    }

    /// Adds a program's task to a CPU, on which it stays. False if it cannot have another one.
    pub(crate) fn start_program(&self, cpu: CpuId, task: impl Future<Output = ()> + Send + 'static) -> bool {
        let Some(work) = self.work.of(cpu) else {
            return false;
        };
        work.nr_programs.fetch_add(1, Ordering::Relaxed);
        let spawned = work.tasks.spawn(task);
        if let Err(error) = &spawned {
            work.nr_programs.fetch_sub(1, Ordering::Relaxed);
            log!(Error, "cannot start a program: {error}");
        }
        spawned.is_ok()
    }

    /// The CPU for what belongs to a node: one of that node if it has any.
    pub(crate) fn cpu_near(&self, node: NodeId) -> CpuId {
        let topology = self.phys.topology();
        let mut cpus = self.programs_by_cpu().map(|(id, _)| id);
        cpus.find(|&id| topology.node_of(id) == node)
            .unwrap_or(CpuId::ZERO)
    }

    /// Adds a task of the manager's to a CPU, on which it stays. False if it cannot have another one.
    pub(crate) fn start_task(&self, cpu: CpuId, task: impl Future<Output = ()> + Send + 'static) -> bool {
        let spawned = self.work.of(cpu).map(|work| work.tasks.spawn(task));
        if let Some(Err(error)) = &spawned {
            log!(Error, "cannot start a task: {error}");
        }
        matches!(spawned, Some(Ok(_)))
    }

    /// A program on this CPU has ended.
    pub(crate) fn program_left(&self) {
        self.this_work().nr_programs.fetch_sub(1, Ordering::Relaxed);
    }

    /// The timer for running or sleeping until `end` or the next deadline, whichever comes first.
    pub(crate) fn timer_until(&self, end: Option<u64>) -> TimerCount {
        let next = end.into_iter().chain(self.timers().next_deadline()).min()?;
        self.local_apics.count(next.saturating_sub(self.clock.now()))
    }

    /// Serves an interrupt: wakes whoever waits for it.
    pub(crate) fn interrupt(&self, vector: u8) {
        match vector {
            TIMER_VECTOR => self.timers().advance(self.clock.now()),
            // What it is for was seen on the way back from where it came in, or is seen next by the main loop.
            CALL_VECTOR => {}
            _ => self.device_interrupt(vector),
        }
    }

    fn device_interrupt(&self, vector: u8) {
        let Some(all) = self.handlers.get() else {
            return;
        };
        // Not borrowed while a handler runs: handlers may start devices.
        let handlers: Vec<Handler> = all
            .borrow()
            .iter()
            .filter(|(of, _)| *of == vector)
            .map(|(_, handler)| handler.clone())
            .collect();
        handlers.iter().for_each(|handler| handler());
    }

    /// Lets `handler` be called for every interrupt `gsi`. False if no I/O APIC has that input.
    pub(crate) fn on_interrupt(&self, gsi: u32, handler: impl Fn() + 'static) -> bool {
        let vector = u8::try_from(gsi).ok().and_then(|gsi| GSI_VECTOR.checked_add(gsi));
        let Some(vector) = vector.filter(|&vector| vector < u8::MAX) else {
            return false;
        };
        // An I/O APIC knows the first 256 CPUs only.
        let Ok(apic_id) = u8::try_from(self.apic_id) else {
            return false;
        };
        let Some(handlers) = self.handlers.get() else {
            return false;
        };
        handlers.borrow_mut().push((vector, Rc::new(handler)));
        self.io_apics
            .iter()
            .any(|io_apic| io_apic.route(gsi, vector, apic_id))
    }

    /// Gives back what caches do not need, and reports what was done wrong with them, for ever.
    pub(crate) async fn reap(&self) {
        loop {
            self.timers().sleep(REAP_NS).await;
            {
                let _visit = quiet::visit(this_cpu());
                self.slabs.reap(this_cpu());
            }
            while let Some(misuse) = self.slabs.next_misuse() {
                log!(Error, "slab: {misuse}");
            }
        }
    }

    /// The node of a physical address.
    pub(crate) fn node_at(&self, gpa: u64) -> NodeId {
        NodeId::new(self.acpi.affinity.node_of_address(gpa)).unwrap_or_default()
    }

    /// The memory manager, for one step of work, during which nobody checks it.
    pub(crate) fn mm(&self) -> Working<'_> {
        Working {
            mm: self.mm,
            _visit: quiet::visit(this_cpu()),
        }
    }

    /// Waits until a disk of a swap area is to do something.
    pub(crate) async fn swap_io_wanted(&self, choice: IoChoice) {
        self.mm.swap_io_wanted(choice).await;
    }

    /// Starts compacting a zone.
    ///
    /// # Errors
    /// Why there is nothing to be done.
    pub(crate) fn begin_compaction<'a>(
        &'a self,
        zone: &'a Zone,
        goal: Goal,
    ) -> Result<Compaction<'a>, CompactResult> {
        let _visit = quiet::visit(this_cpu());
        self.mm.begin_compaction(zone, goal)
    }

    /// The memory manager, for a future whose steps are watched elsewhere ([`files::steps`]).
    pub(crate) fn memory(&self) -> &Memory {
        self.mm
    }

    /// Waits until nobody has the lock of a page.
    pub(crate) async fn until_unlocked(&self, page: PageWait) {
        self.mm.until_unlocked(page).await;
    }

    /// Waits until no page of an address space is on the move.
    pub(crate) async fn until_settled(&self, space: SpaceId) {
        self.mm.until_settled(space).await;
    }

    /// Checks everything that the memory manager knows, if the command line asks for it.
    ///
    /// # Panics
    /// If any of it is wrong.
    pub(crate) fn validate(&self) {
        if !self.validates {
            return;
        }
        let checked = quiet::keep_quiet(|| self.mm.validate().and_then(|()| self.slabs.validate()));
        if let Err(error) = checked {
            panic!("memory manager: {error}");
        }
    }

    /// Switches the machine off, after a last look at everything if the command line asks for it.
    pub(crate) fn power_off(&self) -> ! {
        self.validate();
        log!(Info, "switching off");
        power::off(&self.acpi)
    }

    /// Resets the machine.
    pub(crate) fn reboot(&self) -> ! {
        log!(Info, "rebooting");
        power::restart(&self.acpi)
    }
}

/// Adds a task to this CPU. It need not be `Send`: it is never anywhere else.
pub(crate) fn spawn(executor: &Executor, task: impl Future<Output = ()> + 'static) {
    if let Err(error) = executor.spawn(task) {
        log!(Error, "cannot start a task: {error}");
    }
}
