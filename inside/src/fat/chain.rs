//! The file allocation table, and the chains in it.

use std::sync::Mutex;

use super::boot::{Geometry, Width};
use crate::numbers::{byte, le16, le32};
use crate::{Disk, Error, Result};

/// What is read of the table at once, in bytes. No entry of 16 or 32 bits lies in two pages.
const PAGE: u64 = 4096;

/// How many pages are kept: fragmented files jump to and fro.
const PAGES: usize = 32;

type Page = Option<(u64, Vec<u8>)>;

/// The file allocation table.
#[derive(Debug)]
pub(super) struct Table<D> {
    disk: D,
    geometry: Geometry,
    /// Each page at its number's remainder.
    pages: Mutex<Vec<Page>>,
}

impl<D: Disk> Table<D> {
    pub(super) fn new(disk: D, geometry: Geometry) -> Self {
        Self { disk, geometry, pages: Mutex::new(vec![None; PAGES]) }
    }

    pub(super) fn disk(&self) -> &D {
        &self.disk
    }

    pub(super) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// `f` of the page with the byte at `offset`, and of where in it that is.
    fn page<T>(&self, offset: u64, f: impl Fn(&[u8], usize) -> Result<T>) -> Result<T> {
        let number = offset / PAGE;
        let place = usize::try_from(number % PAGES as u64).unwrap_or_default();
        let within = usize::try_from(offset % PAGE).unwrap_or_default();
        let mut pages = self.pages.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(Some((found, bytes))) = pages.get(place)
            && *found == number
        {
            return f(bytes, within);
        }
        let start = self.geometry.table + number * PAGE;
        let length = PAGE.min(self.disk.size().saturating_sub(start));
        let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
        self.disk.read_at(start, &mut bytes)?;
        let result = f(&bytes, within);
        if let Some(slot) = pages.get_mut(place) {
            *slot = Some((number, bytes));
        }
        result
    }

    /// What the table says of a cluster, widened to 28 bits.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn entry(&self, cluster: u32) -> Result<u32> {
        let cluster = u64::from(cluster);
        let (value, bad) = match self.geometry.width {
            Width::Twelve => {
                let at = cluster * 3 / 2;
                let byte = |at| self.page(at, byte);
                let both = u32::from(u16::from_le_bytes([byte(at)?, byte(at + 1)?]));
                (if cluster.is_multiple_of(2) { both & 0xFFF } else { both >> 4 }, 0xFF7)
            }
            Width::Sixteen => (u32::from(self.page(cluster * 2, le16)?), 0xFFF7),
            Width::ThirtyTwo => (self.page(cluster * 4, le32)? & 0x0FFF_FFFF, BAD),
        };
        Ok(if value >= bad { 0x0FFF_FFF0 | value & 0xF } else { value })
    }

    /// The cluster after this one in its chain; none at its end.
    ///
    /// # Errors
    /// If it is free, bad, or none.
    fn next(&self, cluster: u32) -> Result<Option<u32>> {
        match self.entry(cluster)? {
            next if next > BAD => Ok(None),
            next => match self.geometry.offset(next) {
                Ok(_) => Ok(Some(next)),
                Err(_) => {
                    Err(Error::corrupt(format!("a chain of clusters goes from {cluster} to {next}, which is none")))
                }
            },
        }
    }
}

/// A cluster that cannot be used; what is greater ends a chain.
const BAD: u32 = 0x0FFF_FFF7;

/// A place in a chain. Finds loops, by Brent's algorithm: a loop is noticed within three times the steps that lead to where it
/// closes.
#[derive(Debug, Clone)]
pub(super) struct Walk {
    /// The cluster.
    pub(super) cluster: u32,
    /// Its place in the chain, from 0 on.
    pub(super) index: u32,
    waiting: u32,
    waits_until: u32,
}

impl Walk {
    /// At the beginning of a chain.
    ///
    /// # Errors
    /// If there is no such cluster.
    pub(super) fn new(geometry: &Geometry, first: u32) -> Result<Self> {
        geometry.offset(first)?;
        Ok(Self { cluster: first, index: 0, waiting: first, waits_until: 1 })
    }

    /// Goes on by one; false at the end.
    ///
    /// # Errors
    /// If the chain is a loop, or leads to what is no cluster.
    pub(super) fn step<D: Disk>(&mut self, table: &Table<D>) -> Result<bool> {
        let Some(next) = table.next(self.cluster)? else { return Ok(false) };
        if next == self.waiting {
            return Err(Error::corrupt(format!("a chain of clusters comes back to {next}")));
        }
        self.cluster = next;
        self.index = self.index.saturating_add(1);
        if self.index == self.waits_until {
            self.waiting = next;
            self.waits_until = self.waits_until.saturating_mul(2);
        }
        Ok(true)
    }
}
