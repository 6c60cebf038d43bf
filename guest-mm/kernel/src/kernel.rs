//! The manager's state, and its main loop: polls tasks while there are any to poll, and sleeps when there are not.
//!
//! There is one of it, it lives for ever, and everything in it is used by one CPU with interrupts off. No borrow of
//! a cell is held across an `await`, so none can fail.

use crate::boot::Machine;
use crate::log::log;
use crate::machine::apic::{GSI_VECTOR, LocalApics, TIMER_VECTOR};
use crate::machine::clock::Clock;
use crate::machine::direct_map::DirectMap;
use crate::machine::frames::{DirectFrames, OneCpu};
use crate::machine::heap::KernelChunk;
use crate::machine::io_apic::IoApic;
use crate::machine::nucleus::TimerCount;
use crate::machine::{heap, nucleus, power};
use crate::process::Program;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use guest_kernel::acpi::Acpi;
use guest_kernel::executor::Executor;
use guest_kernel::sync::Signal;
use guest_kernel::timers::Timers;
use guest_mm::kernel_map::{FrameSource, Vmemmap};
use guest_mm::phys::PhysicalMemory;
use guest_mm::{Gfp, Mm, Order, Pfn};
use guest_virtio::plan::StallReason;

/// Physical and virtual memory, on this machine.
pub(crate) type Memory = Mm<DirectFrames, OneCpu>;

/// The heap is filled up when less than this is free.
const HEAP_RESERVE: usize = 512 << 10;

/// What the resize worker tells the world.
#[derive(Debug, Default)]
pub(crate) struct ResizeStatus {
    /// Bytes that the host wants plugged.
    pub(crate) requested: Cell<u64>,
    /// Bytes that are plugged.
    pub(crate) plugged: Cell<u64>,
    /// Why it does not go on; `None` while it does, and when there is nothing to do.
    pub(crate) stall: Cell<Option<StallReason>>,
}

/// See the module.
pub(crate) struct Kernel {
    pub(crate) mm: RefCell<Memory>,
    pub(crate) direct_map: DirectMap,
    #[expect(
        dead_code,
        reason = "descriptors are still the heap's; the array takes over with zones that share them"
    )]
    pub(crate) vmemmap: Vmemmap,
    pub(crate) clock: Clock,
    pub(crate) executor: Executor,
    pub(crate) timers: Timers,
    /// Frames became free, or came with a block: who waits for memory looks again.
    pub(crate) memory_came: Signal,
    /// Pages that were under migration can be used again.
    pub(crate) migrated: Signal,
    /// A program ended.
    pub(crate) program_ended: Signal,
    /// All programs that were ever started, by number; the first is 1.
    pub(crate) programs: RefCell<Vec<Rc<Program>>>,
    pub(crate) resize: ResizeStatus,
    pub(crate) tick_ns: u64,
    validates: bool,
    acpi: Acpi,
    local_apics: LocalApics,
    /// Of the boot CPU, which gets the devices' interrupts.
    apic_id: u32,
    io_apics: Vec<IoApic>,
    handlers: RefCell<Vec<(u8, Handler)>>,
}

/// What to do when an interrupt comes in: takes note and wakes, and never waits.
type Handler = Rc<dyn Fn()>;

impl Kernel {
    /// The kernel of a machine that has booted.
    pub(crate) fn new(machine: Machine) -> &'static Self {
        let mut mm = Mm::new(machine.memory, DirectFrames, OneCpu);
        let fault_around = Order::holding(u64::from(machine.options.fault_around_kib) << 10);
        mm.set_fault_around(fault_around.unwrap_or(Order::PAGEBLOCK));
        Box::leak(Box::new(Self {
            mm: RefCell::new(mm),
            direct_map: machine.direct_map,
            vmemmap: machine.vmemmap,
            clock: machine.clock,
            executor: Executor::new(),
            timers: Timers::new(),
            memory_came: Signal::new(),
            migrated: Signal::new(),
            program_ended: Signal::new(),
            programs: RefCell::new(Vec::new()),
            resize: ResizeStatus::default(),
            tick_ns: u64::from(machine.options.tick_ms.get()) * 1_000_000,
            validates: machine.options.validate,
            acpi: machine.acpi,
            local_apics: machine.local_apics,
            apic_id: machine.apic_id,
            io_apics: machine.io_apics,
            handlers: RefCell::new(Vec::new()),
        }))
    }

    /// Runs tasks for ever.
    pub(crate) fn run(&self) -> ! {
        loop {
            self.timers.advance(self.clock.now());
            self.executor.run_ready();
            self.fill_heap(HEAP_RESERVE);
            if !self.executor.has_ready() {
                let vector = nucleus::idle(self.timer_until(None));
                self.interrupt(vector);
            }
        }
    }

    /// Adds a task.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        if let Err(error) = self.executor.spawn(task) {
            log!(Error, "cannot start a task: {error}");
        }
    }

    /// The timer for running or sleeping until `end` or the next deadline, whichever comes first.
    pub(crate) fn timer_until(&self, end: Option<u64>) -> TimerCount {
        let next = end.into_iter().chain(self.timers.next_deadline()).min()?;
        self.local_apics.count(next.saturating_sub(self.clock.now()))
    }

    /// Serves an interrupt: wakes whoever waits for it.
    pub(crate) fn interrupt(&self, vector: u8) {
        if vector == TIMER_VECTOR {
            self.timers.advance(self.clock.now());
            return;
        }
        // Not borrowed while a handler runs: handlers may start devices.
        let handlers: Vec<Handler> = self
            .handlers
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
        self.handlers.borrow_mut().push((vector, Rc::new(handler)));
        self.io_apics
            .iter()
            .any(|io_apic| io_apic.route(gsi, vector, apic_id))
    }

    /// Gives the heap frames until `bytes` can be allocated in one piece and half as much is left. False when there
    /// are none. To be called when nothing is borrowed: the heap itself never asks for frames.
    pub(crate) fn fill_heap(&self, bytes: usize) -> bool {
        while !heap::has_room_for(bytes + bytes / 2) {
            let wanted = (bytes + bytes / 2 + 64) as u64;
            let Some(order) = Order::holding(wanted) else {
                return heap::has_room_for(bytes);
            };
            let Some(chunk) = KernelChunk::allocate(&mut self.mm.borrow_mut().phys, order) else {
                return heap::has_room_for(bytes);
            };
            chunk.add();
        }
        true
    }

    /// Checks everything that the memory manager knows, if the command line asks for it.
    ///
    /// # Panics
    /// If any of it is wrong.
    pub(crate) fn validate(&self) {
        if self.validates
            && let Err(error) = self.mm.borrow_mut().validate()
        {
            panic!("memory manager: {error}");
        }
    }

    /// Switches the machine off.
    pub(crate) fn power_off(&self) -> ! {
        log!(Info, "switching off");
        power::off(&self.acpi)
    }
}

/// Frames for the manager's page tables, out of those for the kernel's own data.
pub(crate) struct KernelFrames<'a>(RefCell<&'a mut PhysicalMemory>);

impl<'a> KernelFrames<'a> {
    /// Frames of this memory.
    pub(crate) fn of(memory: &'a mut PhysicalMemory) -> Self {
        Self(RefCell::new(memory))
    }
}

impl FrameSource for KernelFrames<'_> {
    fn take(&self, order: Order) -> Option<Pfn> {
        self.0.borrow_mut().alloc_pages(Gfp::Kernel, order).ok()
    }

    fn give(&self, pfn: Pfn, order: Order) {
        if let Err(error) = self.0.borrow_mut().free_pages(pfn, order) {
            panic!("the kernel's own frames: {error}");
        }
    }
}
