//! The vCPU threads: enter the guest, serve what it came out for, and look at the gate before each entry.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use vmm_sys_util::signal::Killable;

use super::bus::MachineRequest;
use super::firmware::Boot;
use super::lifecycle::Gate;
use super::shared::Shared;
use super::violation::Violation;
use super::{VmError, VmExit};
use crate::hv::{ActiveVcpu, Partition, Vcpu, VcpuEvent};
use crate::journal::EventKind;
use crate::spec::OnViolation;

const STACK: usize = 256 << 10;
/// RIP of an x86 CPU after a reset.
const RESET_RIP: u64 = 0xFFF0;
/// How often in a row accesses may fail without an explanation.
const MAX_UNEXPLAINED: u32 = 16;

/// All vCPU threads of a VM.
#[derive(Debug)]
pub(super) struct VcpuThreads {
    threads: Vec<JoinHandle<()>>,
    kick: libc::c_int,
}

impl VcpuThreads {
    /// Starts a thread for each vCPU, which `kick`, a signal, gets out of the guest. If one cannot be started, the VM
    /// ends with that.
    pub(super) fn start(boot: Boot, shared: &Arc<Shared>, kick: libc::c_int) -> Self {
        let mut threads = Vec::new();
        for vcpu in boot.vcpus {
            let builder = thread::Builder::new()
                .name(format!("vcpu{}", vcpu.id()))
                .stack_size(STACK);
            let theirs = Arc::clone(shared);
            let partition = Arc::clone(&boot.partition);
            let body = move || VcpuLoop::new(vcpu, &partition, &theirs).run();
            match builder.spawn(body) {
                Ok(thread) => threads.push(thread),
                Err(source) => {
                    shared
                        .lifecycle
                        .end(Err(VmError::host("start a vCPU thread")(source)));
                    break;
                }
            }
        }
        Self { threads, kick }
    }

    /// Gets every vCPU out of the guest and to the gate.
    pub(super) fn kick(&self) {
        for thread in &self.threads {
            // A thread that has ended needs no kick.
            let _ = thread.kill(self.kick);
        }
    }

    /// Waits for all threads, and leaves nothing of the boot behind. The VM must have ended or reboot, and the vCPUs been
    /// kicked.
    pub(super) fn join(self) {
        for thread in self.threads {
            // A vCPU thread that panicked has said so; the VM ends all the same.
            let _ = thread.join();
        }
    }
}

/// One vCPU thread.
struct VcpuLoop<'a> {
    vcpu: ActiveVcpu,
    partition: &'a Partition,
    shared: &'a Shared,
    /// Accesses in a row that failed although no unplugged block explains it.
    unexplained: u32,
}

/// What is left to do once an exit's own data is no longer borrowed.
enum Then {
    /// Nothing: the guest has got on.
    GoOn,
    /// Nothing: a signal, or no reason at all.
    Again,
    /// An access failed at protected memory; KVM may know the address.
    Protected(Option<u64>),
    /// An access to an unplugged block.
    Violation(Violation),
    /// Do what the guest asked of the machine.
    Request(MachineRequest),
    /// The guest is at a dead end.
    TripleFault,
    /// KVM is.
    InternalError,
    /// The VM cannot go on.
    Fail(VmError),
}

impl<'a> VcpuLoop<'a> {
    fn new(vcpu: Vcpu, partition: &'a Partition, shared: &'a Shared) -> Self {
        shared.lifecycle.vcpu_arrives();
        Self {
            vcpu: vcpu.activate(),
            partition,
            shared,
            unexplained: 0,
        }
    }

    fn run(mut self) {
        loop {
            self.vcpu.rearm();
            match self.shared.lifecycle.gate() {
                Gate::Leave => return,
                Gate::Enter => {}
                Gate::EnterAfterHold => self.vcpu.announce_hold(),
            }
            match self.enter() {
                Then::Protected(Some(gpa)) => self.protected_at(gpa),
                Then::Protected(None) => self.find_out(),
                other => self.settle(other),
            }
        }
    }

    fn enter(&mut self) -> Then {
        let (bus, watch) = (&self.shared.bus, &self.shared.violations);
        let event = match self.vcpu.run() {
            Ok(event) => event,
            Err(error) => return Then::Fail(error.into()),
        };
        match event {
            VcpuEvent::PortRead(port, data) => bus.read_port(port, data),
            VcpuEvent::PortWrite(port, data) => {
                return bus.write_port(port, data).map_or(Then::GoOn, Then::Request);
            }
            // KVM's instruction emulator takes memory that it cannot reach for a device.
            VcpuEvent::MmioRead(gpa, data) => match watch.at(gpa) {
                Some(violation) => {
                    data.fill(0xFF);
                    return Then::Violation(violation);
                }
                None => bus.read_mmio(gpa, data),
            },
            VcpuEvent::MmioWrite(gpa, data) => match watch.at(gpa) {
                Some(violation) => return Then::Violation(violation),
                None => bus.write_mmio(gpa, data),
            },
            VcpuEvent::MemoryFault(gpa) => return Then::Protected(gpa),
            VcpuEvent::Interrupted => return Then::Again,
            VcpuEvent::Shutdown => return Then::TripleFault,
            VcpuEvent::InternalError => return Then::InternalError,
            VcpuEvent::FailedEntry(reason) => {
                let name = format!("entry into the guest failed, hardware reason {reason:#x}");
                return Then::Fail(VmError::UnexpectedExit(name));
            }
            VcpuEvent::Unexpected(name) => return Then::Fail(VmError::UnexpectedExit(name)),
        }
        Then::GoOn
    }

    /// Everything but protected memory.
    fn settle(&mut self, then: Then) {
        let lifecycle = &self.shared.lifecycle;
        match then {
            Then::GoOn => self.unexplained = 0,
            Then::Again | Then::Protected(_) => {}
            Then::Violation(violation) => self.violation(violation),
            Then::Request(request) => self.shared.serve(request),
            Then::TripleFault => {
                let (id, rip) = (self.vcpu.id(), self.vcpu.rip());
                let mut message = format!("triple fault of vCPU {id}");
                // On AMD CPUs the vCPU has been reset by now, and where it was is lost.
                if rip != RESET_RIP {
                    message += &format!(" at rip {rip:#x}");
                }
                self.shared.triple_fault(message);
            }
            Then::InternalError => lifecycle.end(Err(VmError::Emulation(self.vcpu.emulation_fault()))),
            Then::Fail(error) => lifecycle.end(Err(error)),
        }
    }

    /// An access failed at `gpa`, by KVM's own word.
    fn protected_at(&mut self, gpa: u64) {
        match self
            .shared
            .violations
            .at(gpa)
            .filter(|violation| !self.shared.violations.is_plugged(*violation))
        {
            Some(violation) => self.violation(violation),
            None => self.unexplained(Some(gpa)),
        }
    }

    /// An access failed at protected memory, and KVM does not say where. So the same access is made once more, while
    /// all unplugged blocks are out of KVM's sight: it then leaves the guest as one without memory behind it.
    fn find_out(&mut self) {
        let shared = self.shared;
        // Another vCPU is at it, or the VM ends: the gate comes first, and this access again after it.
        let Some(alone) = shared.lifecycle.alone() else {
            return;
        };
        self.vcpu.rearm();
        let partition = self.partition;
        let found = partition.with_plugged_only(|| self.enter());
        drop(alone);
        match found {
            Err(error) => shared.lifecycle.end(Err(error.into())),
            Ok(Then::Protected(gpa)) => self.unexplained(gpa),
            Ok(Then::InternalError) => self.beyond_emulation(),
            Ok(other) => self.settle(other),
        }
    }

    /// The access is by an instruction that KVM cannot emulate, which it only tries where there is no memory: so it is
    /// a violation, if its address can be told.
    fn beyond_emulation(&mut self) {
        let fault = self.vcpu.emulation_fault();
        let gpa = self.vcpu.operand_gpa(&fault);
        match gpa.and_then(|gpa| self.shared.violations.at(gpa)) {
            Some(violation) => self.violation(violation),
            None => self.shared.lifecycle.end(Err(VmError::Emulation(fault))),
        }
    }

    /// A block may have been plugged by another vCPU between the access and the look at it; if it goes on like that,
    /// the host cannot provide memory that the guest owns.
    fn unexplained(&mut self, gpa: Option<u64>) {
        self.unexplained += 1;
        if self.unexplained > MAX_UNEXPLAINED {
            self.shared.lifecycle.end(Err(VmError::HostMemory {
                gpa,
                rip: self.vcpu.rip(),
            }));
        }
    }

    fn violation(&mut self, violation: Violation) {
        let watch = &self.shared.violations;
        let Violation { gpa, region, block } = violation;
        let rip = self.vcpu.rip();
        watch.record(violation, rip);
        self.shared.events.emit(EventKind::Violation {
            gpa,
            region,
            block,
            rip,
        });
        match watch.policy() {
            OnViolation::Kill => self.shared.lifecycle.end(Ok(VmExit::Violation(violation))),
            OnViolation::Pause => {
                self.shared.lifecycle.pause();
            }
        }
    }
}
