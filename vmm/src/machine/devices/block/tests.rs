//! A disk in its shell, with a driver that is written out register by register: a reset holds its vCPU up until the host
//! is done with the guest's memory.

use std::thread;
use std::time::Duration;

use devices::block::DiskId;
use devices::rate::RateSpec;
use tempfile::NamedTempFile;
use virtio_wire::block::{RequestHeader, RequestType};
use virtio_wire::mmio::Register;
use virtio_wire::ring::{DESC_F_NEXT, DESC_F_WRITE, Descriptor};
use virtio_wire::{feature, status};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::machine::bus::MmioWindow;
use crate::machine::layout::{MIB, RamRange};
use crate::memory::GuestRam;
use crate::spec::{Backing, DiskCache, EngineChoice};

const TABLE: u64 = MIB;
const AVAIL: u64 = MIB + 0x1000;
const USED: u64 = MIB + 0x2000;
const HEADER: u64 = MIB + 0x3000;
const DATA: u64 = MIB + 0x4000;
const STATUS: u64 = MIB + 0x5000;

type DiskShell = VirtioShell<Block<HostDisk>>;

fn set(shell: &DiskShell, register: Register, value: u32) {
    shell.write(register.offset(), &value.to_le_bytes());
}

fn status_of(shell: &DiskShell) -> u32 {
    let mut word = [0; 4];
    shell.read(Register::Status.offset(), &mut word);
    u32::from_le_bytes(word)
}

fn spec(file: &NamedTempFile, engine: EngineChoice) -> DiskSpec {
    DiskSpec {
        path: file.path().into(),
        access: DiskAccess::ReadWrite,
        cache: DiskCache::Host,
        engine,
        id: DiskId::default(),
        rate: RateSpec::default(),
    }
}

/// A live disk whose host is at a read of sector 1, the end of which nobody has taken.
fn reading(ram: &GuestRam, file: &NamedTempFile, engine: EngineChoice) -> Arc<DiskShell> {
    std::fs::write(file.path(), [[7_u8; 512], [9; 512]].concat()).unwrap();
    let spec = spec(file, engine);
    let memory = ram.device_view();
    let disk = HostDisk::open(&spec, memory.clone()).unwrap();
    let limits = disk.limits();
    let shell = VirtioShell::new(Block::new(disk, limits, spec.id), memory.clone()).unwrap();

    let climb = [
        status::ACKNOWLEDGE,
        status::DRIVER,
        status::FEATURES_OK,
        status::DRIVER_OK,
    ];
    let mut bits = 0;
    for step in climb {
        if step == status::FEATURES_OK {
            set(&shell, Register::DriverFeaturesSel, 1);
            set(
                &shell,
                Register::DriverFeatures,
                u32::try_from(feature::VERSION_1 >> 32).unwrap(),
            );
        }
        if step == status::DRIVER_OK {
            for (register, gpa) in [
                (Register::QueueDescLow, TABLE),
                (Register::QueueDriverLow, AVAIL),
                (Register::QueueDeviceLow, USED),
            ] {
                set(&shell, register, u32::try_from(gpa).unwrap());
            }
            set(&shell, Register::QueueReady, 1);
        }
        bits |= step;
        set(&shell, Register::Status, bits);
    }
    assert_eq!(status_of(&shell), 15);

    let header = RequestHeader {
        request_type: RequestType::In as u32,
        sector: 1,
    };
    memory
        .write_slice(&header.encode(), GuestAddress(HEADER))
        .unwrap();
    let chain = [
        (HEADER, 16, DESC_F_NEXT, 1),
        (DATA, 512, DESC_F_NEXT | DESC_F_WRITE, 2),
        (STATUS, 1, DESC_F_WRITE, 0),
    ];
    for (at, (addr, len, flags, next)) in (TABLE..).step_by(Descriptor::SIZE).zip(chain) {
        let descriptor = Descriptor {
            addr,
            len,
            flags,
            next,
        };
        memory
            .write_slice(&descriptor.encode(), GuestAddress(at))
            .unwrap();
    }
    memory.write_obj(1_u16, GuestAddress(AVAIL + 2)).unwrap();
    memory.write_obj(0xee_u8, GuestAddress(STATUS)).unwrap();
    shell.process(0).unwrap();
    assert_eq!(shell.look(|transport| transport.device().in_flight()), 1);
    Arc::new(shell)
}

fn ram() -> GuestRam {
    let ranges = [RamRange {
        gpa: 0,
        size: 32 * MIB,
    }];
    GuestRam::new(&ranges, Backing::Anonymous, &[]).unwrap()
}

/// What the event loop does until the disk has nothing left to do.
fn finish(shell: &DiskShell) {
    while shell.look(|transport| transport.device().in_flight()) > 0 {
        shell
            .work(|transport, memory| transport.finish_requests(memory))
            .unwrap();
        thread::yield_now();
    }
}

#[test]
fn a_reset_holds_its_vcpu_up_until_the_disk_is_done_and_its_request_is_forgotten() {
    for engine in [EngineChoice::IoUring, EngineChoice::Thread] {
        let (ram, file) = (ram(), NamedTempFile::new().unwrap());
        let shell = reading(&ram, &file, engine);
        let theirs = Arc::clone(&shell);
        let vcpu = thread::spawn(move || set(&theirs, Register::Status, status::RESET));
        while !shell.look(devices::mmio::MmioTransport::is_resetting) {
            thread::yield_now();
        }
        thread::sleep(Duration::from_millis(20));
        assert!(!vcpu.is_finished());
        assert_eq!(status_of(&shell), 15);
        finish(&shell);
        vcpu.join().unwrap();
        assert_eq!(status_of(&shell), 0);
        let memory = ram.device_view();
        assert_eq!(memory.read_obj::<u16>(GuestAddress(USED + 2)).unwrap(), 0);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(STATUS)).unwrap(), 0xee);
    }
}

#[test]
fn without_a_reset_the_request_comes_back_with_its_data() {
    for engine in [EngineChoice::IoUring, EngineChoice::Thread] {
        let (ram, file) = (ram(), NamedTempFile::new().unwrap());
        let shell = reading(&ram, &file, engine);
        finish(&shell);
        let memory = ram.device_view();
        let mut data = [0; 512];
        memory.read_slice(&mut data, GuestAddress(DATA)).unwrap();
        assert_eq!(data, [9; 512]);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(STATUS)).unwrap(), 0);
        assert_eq!(memory.read_obj::<u16>(GuestAddress(USED + 2)).unwrap(), 1);
        assert_eq!(memory.read_obj::<u32>(GuestAddress(USED + 8)).unwrap(), 513);
    }
}

#[test]
fn a_vcpu_that_waits_for_a_reset_is_let_go_when_the_machine_ends() {
    let (ram, file) = (ram(), NamedTempFile::new().unwrap());
    let shell = reading(&ram, &file, EngineChoice::Auto);
    let theirs = Arc::clone(&shell);
    let vcpu = thread::spawn(move || set(&theirs, Register::Status, status::RESET));
    while !shell.look(devices::mmio::MmioTransport::is_resetting) {
        thread::yield_now();
    }
    shell.release();
    vcpu.join().unwrap();
    assert_eq!(status_of(&shell), 15);
}
