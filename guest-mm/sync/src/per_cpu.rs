//! A value for each CPU, each on cache lines of its own.

use alloc::boxed::Box;
use core::ops::Deref;

use crate::cpu::{Cpu, CpuId};

/// Two cache lines: processors fetch lines in pairs.
#[derive(Debug)]
#[repr(align(128))]
struct Padded<T>(T);

/// A value for each CPU.
#[derive(Debug)]
pub struct PerCpu<T> {
    values: Box<[Padded<T>]>,
}

impl<T> PerCpu<T> {
    /// Values for CPUs 0 to `nr_cpus - 1`.
    pub fn new(nr_cpus: u8, mut value: impl FnMut(CpuId) -> T) -> Self {
        Self {
            values: (0..nr_cpus)
                .filter_map(CpuId::new)
                .map(|id| Padded(value(id)))
                .collect(),
        }
    }

    /// The CPU's own value.
    ///
    /// # Panics
    /// If there is no value for that CPU.
    #[inline]
    pub fn this<'a>(&'a self, cpu: &'a Cpu) -> Local<'a, T> {
        Local(&self.values[cpu.id().index()].0)
    }

    /// Any CPU's value, as others see it.
    pub fn of(&self, id: CpuId) -> Option<&T> {
        self.values.get(id.index()).map(|value| &value.0)
    }

    /// All values, as others see them.
    pub fn iter(&self) -> impl Iterator<Item = (CpuId, &T)> {
        (0..=u8::MAX)
            .filter_map(CpuId::new)
            .zip(self.values.iter().map(|value| &value.0))
    }
}

/// A CPU's own value: what only its owner may do is a method of `Local<…>`.
#[derive(Debug)]
pub struct Local<'a, T>(&'a T);

impl<'a, T> Local<'a, T> {
    /// A part of the value, which is the CPU's own as well.
    #[inline]
    pub fn map<U>(&self, part: impl FnOnce(&'a T) -> &'a U) -> Local<'a, U> {
        Local(part(self.0))
    }
}

impl<T> Deref for Local<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.0
    }
}

impl<T> Clone for Local<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Local<'_, T> {}
