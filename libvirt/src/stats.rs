//! What is told of all domains that run, in one call.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_int};
use std::ptr;

use crate::connection::Connection;
use crate::domain::Domain;
use crate::error::{Error, Result};
use crate::sys::{self, constants as c};

/// A domain that runs, and what it has.
pub struct DomainStats {
    /// The domain.
    pub domain: Domain,
    /// Its disks and drives, in the order of its description.
    pub blocks: Vec<BlockStats>,
}

/// A disk or a drive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockStats {
    /// Its target, such as `vda`.
    pub target: String,
    /// What the guest sees, in bytes. None of a drive without a medium, and where something else is going on in the domain.
    pub capacity: Option<u64>,
    /// Images that it has: its own, those that this one stands on, and that of a copy or a backup that is under way.
    pub images: usize,
}

impl Connection {
    /// The domains that run, with their disks. Of one in which something else is going on, that is not waited for.
    ///
    /// # Errors
    /// [`Code::Unsupported`](crate::Code::Unsupported); when the connection is broken.
    pub fn running_stats(&self) -> Result<Vec<DomainStats>> {
        let api = self.api();
        let mut list: *mut *mut sys::DomainStatsRecord = ptr::null_mut();
        let flags = c::VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE
            | c::VIR_CONNECT_GET_ALL_DOMAINS_STATS_BACKING
            | c::VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT;
        // SAFETY: a live connection, and a place for the list.
        let count = unsafe {
            (api.virConnectGetAllDomainStats)(self.pointer(), c::VIR_DOMAIN_STATS_BLOCK, &raw mut list, flags)
        };
        let Ok(count) = usize::try_from(count) else { return Err(Error::last(api)) };
        let told = (0..count).map(|index| {
            // SAFETY: a list of `count` records, each with a reference to its domain, which the list keeps and we take one
            // more of, and with parameters of its own.
            unsafe {
                let record = &**list.add(index);
                (api.virDomainRef)(record.domain);
                let domain = Domain::owned(self.clone(), record.domain);
                DomainStats { domain, blocks: blocks(record.params, record.count) }
            }
        });
        let told = told.collect();
        // SAFETY: the list is ours, and freed once.
        unsafe { (api.virDomainStatsRecordListFree)(list) };
        Ok(told)
    }
}

/// Reads `block.NUMBER.name` and `block.NUMBER.capacity`.
///
/// # Safety
/// `params` are `count` parameters, or null if there are none.
unsafe fn blocks(params: *const sys::TypedParameter, count: c_int) -> Vec<BlockStats> {
    let count = if params.is_null() { 0 } else { usize::try_from(count).unwrap_or(0) };
    let mut found: BTreeMap<u32, (Option<String>, Option<u64>)> = BTreeMap::new();
    for index in 0..count {
        // SAFETY: as above; the kind says which part of the union it is; a field and a string end in a zero.
        unsafe {
            let param = &*params.add(index);
            let field = CStr::from_ptr(param.field.as_ptr()).to_string_lossy();
            let Some((number, what)) = field.strip_prefix("block.").and_then(|rest| rest.split_once('.')) else {
                continue;
            };
            let Ok(number) = number.parse() else { continue };
            match (what, param.kind) {
                ("name", c::VIR_TYPED_PARAM_STRING) if !param.value.string.is_null() => {
                    let name = CStr::from_ptr(param.value.string).to_string_lossy().into_owned();
                    found.entry(number).or_default().0 = Some(name);
                }
                ("capacity", c::VIR_TYPED_PARAM_ULLONG) => found.entry(number).or_default().1 = Some(param.value.ulong),
                _ => {}
            }
        }
    }
    let mut blocks: Vec<BlockStats> = Vec::new();
    for (target, capacity) in found.into_values() {
        let Some(target) = target else { continue };
        // The image that the guest has comes first.
        match blocks.iter_mut().find(|block| block.target == target) {
            Some(block) => block.images += 1,
            None => blocks.push(BlockStats { target, capacity, images: 1 }),
        }
    }
    blocks
}
