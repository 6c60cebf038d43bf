//! The few facts this guest takes from ACPI (ACPI 6.5): CPUs and interrupt controllers (MADT), how to switch the machine off
//! and reset it (FADT and `\_S5`), which memory and CPUs are near to each other (SRAT and SLIT), and where to report a panic (device `QEMU0001` in the DSDT).
//!
//! There is no AML interpreter: the two facts of the DSDT are found by their encoding, which is constant data in
//! every table this guest is likely to meet. What is not found is absent, never guessed.

pub mod affinity;
mod aml;
#[cfg(test)]
mod tests;

use crate::physical::{PhysicalBytes, Unreadable};
use affinity::{Affinity, AffinityError};
use alloc::vec::Vec;
use core::fmt;

/// Bytes in the header that all tables share.
const HEADER: usize = 36;
/// Largest table that is read, in bytes.
const MAX_TABLE: usize = 1 << 20;
/// Most tables that are looked at.
const MAX_TABLES: usize = 64;
/// MADT entries (sections 5.2.12.2, 5.2.12.3, 5.2.12.12).
const PROCESSOR_LOCAL_APIC: u8 = 0;
const IO_APIC: u8 = 1;
const PROCESSOR_LOCAL_X2APIC: u8 = 9;
/// Flag of an entry for a CPU: it can be used.
const CPU_ENABLED: u32 = 1;
/// FADT flag: the reset register works.
const RESET_REG_SUP: u32 = 1 << 10;
/// Generic address structure: the register is an I/O port.
const SYSTEM_IO: u8 = 1;

/// An I/O APIC of the MADT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoApic {
    /// Physical address of its registers.
    pub address: u32,
    /// The global system interrupt of its first input.
    pub gsi_base: u32,
}

/// A CPU of the MADT that is there and may be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LocalApic {
    /// The number by which interrupts are sent to it.
    pub id: u32,
}

/// A byte to write to an I/O port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortWrite {
    /// The port.
    pub port: u16,
    /// The byte.
    pub value: u8,
}

/// What ACPI says of this machine. Everything may be absent.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Acpi {
    /// The CPUs, in the firmware's order: the boot CPU usually first.
    pub cpus: Vec<LocalApic>,
    /// The I/O APICs.
    pub io_apics: Vec<IoApic>,
    /// Enters S5, soft off, through the sleep control register (section 4.8.3.7).
    pub power_off: Option<PortWrite>,
    /// Resets the machine (section 4.8.3.6).
    pub reset: Option<PortWrite>,
    /// The port of the pvpanic device.
    pub pvpanic_port: Option<u16>,
    /// The nodes of memory and CPUs; one if nothing is said of any.
    pub affinity: Affinity,
    /// Why the SRAT is not believed, and everything is of one node.
    pub affinity_error: Option<AffinityError>,
}

impl Acpi {
    /// Follows the root pointer at `rsdp` to all tables.
    ///
    /// # Errors
    /// If a table cannot be read, or is not what its place says it is.
    pub fn read(memory: &impl PhysicalBytes, rsdp: u64) -> Result<Self, AcpiError> {
        if memory.read_array(rsdp)? != *b"RSD PTR " {
            return Err(AcpiError::NoRootPointer(rsdp));
        }
        let [revision] = memory.read_array(rsdp + 15)?;
        let (root, entry_size) = match revision {
            0 | 1 => (u64::from(memory.read_u32(rsdp + 16)?), 4),
            _ => (memory.read_u64(rsdp + 24)?, 8),
        };
        let root = read_table(memory, root)?;
        let mut acpi = Self::default();
        let (mut srat, mut slit) = (None, None);
        let entries = root.get(HEADER..).unwrap_or_default().chunks_exact(entry_size);
        for entry in entries.take(MAX_TABLES) {
            let mut address = [0; 8];
            address[..entry_size].copy_from_slice(entry);
            let address = u64::from_le_bytes(address);
            match &memory.read_array(address)? {
                b"APIC" => acpi.add_madt(&read_table(memory, address)?),
                b"FACP" => acpi.add_fadt(memory, &read_table(memory, address)?)?,
                b"SRAT" => srat = Some(read_table(memory, address)?),
                b"SLIT" => slit = Some(read_table(memory, address)?),
                _ => {}
            }
        }
        match Affinity::read(srat.as_deref(), slit.as_deref()) {
            Ok(affinity) => acpi.affinity = affinity,
            Err(error) => acpi.affinity_error = Some(error),
        }
        Ok(acpi)
    }

    /// Section 5.2.12: entries of a type byte, a length byte and data, behind 8 bytes of the table's own.
    fn add_madt(&mut self, table: &[u8]) {
        let mut rest = table.get(HEADER + 8..).unwrap_or_default();
        while let [kind, len, ..] = *rest {
            let Some((entry, behind)) = rest.split_at_checked(usize::from(len).max(2)) else {
                return;
            };
            match kind {
                PROCESSOR_LOCAL_APIC => {
                    let id = entry.get(3).copied().map(u32::from);
                    self.add_cpu(id, u32_at(entry, 4));
                }
                PROCESSOR_LOCAL_X2APIC => self.add_cpu(u32_at(entry, 4), u32_at(entry, 8)),
                IO_APIC => {
                    if let (Some(address), Some(gsi_base)) = (u32_at(entry, 4), u32_at(entry, 8)) {
                        self.io_apics.push(IoApic { address, gsi_base });
                    }
                }
                _ => {}
            }
            rest = behind;
        }
    }

    /// A CPU that is enabled; one that is not may be missing, or is to be plugged later.
    fn add_cpu(&mut self, id: Option<u32>, flags: Option<u32>) {
        if let (Some(id), Some(flags)) = (id, flags)
            && flags & CPU_ENABLED != 0
            && self.cpus.iter().all(|known| known.id != id)
        {
            self.cpus.push(LocalApic { id });
        }
    }

    /// Section 5.2.9.
    fn add_fadt(&mut self, memory: &impl PhysicalBytes, table: &[u8]) -> Result<(), AcpiError> {
        let dsdt = match u64_at(table, 140) {
            Some(0) | None => u32_at(table, 40).map(u64::from),
            address => address,
        };
        let dsdt = match dsdt {
            Some(0) | None => Vec::new(),
            Some(address) => read_table(memory, address)?,
        };
        self.pvpanic_port = aml::port_of_device(&dsdt, b"QEMU0001");
        if let (Some(port), Some(sleep_type)) = (io_port(table, 244), aml::sleep_type(&dsdt)) {
            // SLP_TYP in bits 2 to 4, SLP_EN in bit 5.
            self.power_off = Some(PortWrite {
                port,
                value: (sleep_type & 7) << 2 | 1 << 5,
            });
        }
        let can_reset = u32_at(table, 112).is_some_and(|flags| flags & RESET_REG_SUP != 0);
        if let (true, Some(port), Some(&value)) = (can_reset, io_port(table, 116), table.get(128)) {
            self.reset = Some(PortWrite { port, value });
        }
        Ok(())
    }
}

/// The whole table at `address`, with a right checksum.
fn read_table(memory: &impl PhysicalBytes, address: u64) -> Result<Vec<u8>, AcpiError> {
    let len = memory.read_u32(address.saturating_add(4))?;
    let bytes = len as usize;
    if !(HEADER..=MAX_TABLE).contains(&bytes) {
        return Err(AcpiError::Length { address, len });
    }
    let mut table = alloc::vec![0; bytes];
    memory.read(address, &mut table)?;
    match table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)) {
        0 => Ok(table),
        _ => Err(AcpiError::Checksum(address)),
    }
}

/// The port in the generic address structure at `offset` (section 5.2.3.2); absent if it names none.
fn io_port(table: &[u8], offset: usize) -> Option<u16> {
    let address = u64_at(table, offset + 4)?;
    let is_port = *table.get(offset)? == SYSTEM_IO && address != 0;
    u16::try_from(address).ok().filter(|_| is_port)
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes
        .get(offset..)?
        .first_chunk()
        .map(|bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes
        .get(offset..)?
        .first_chunk()
        .map(|bytes| u64::from_le_bytes(*bytes))
}

/// Why there is nothing to learn from ACPI.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AcpiError {
    /// No root pointer lies at this physical address.
    NoRootPointer(u64),
    /// The table at `address` claims to have `len` bytes.
    Length {
        /// Physical address of the table.
        address: u64,
        /// Bytes, by its header.
        len: u32,
    },
    /// The bytes of the table at this physical address do not add up to 0.
    Checksum(u64),
    /// Part of a table cannot be read.
    Unreadable(Unreadable),
}

impl From<Unreadable> for AcpiError {
    fn from(error: Unreadable) -> Self {
        Self::Unreadable(error)
    }
}

impl fmt::Display for AcpiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRootPointer(address) => write!(f, "no ACPI root pointer at {address:#x}"),
            Self::Length { address, len } => write!(f, "ACPI table at {address:#x} has {len} bytes"),
            Self::Checksum(address) => write!(f, "ACPI table at {address:#x} has a wrong checksum"),
            Self::Unreadable(error) => write!(f, "ACPI table: {error}"),
        }
    }
}

impl core::error::Error for AcpiError {}
