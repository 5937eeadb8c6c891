//! Inode numbers, and the nodes that the kernel knows.
//!
//! A number is a hash of what the node stands for, so it is the same in every mount of the same machine, and a node can be found
//! by its number alone, as a handle that somebody kept needs it. The kernel also gets a *generation* with each node that
//! shows a disk: it stands for the point in time that opening it will lease, tells nodes whose size is an estimate from
//! those whose size is exact, and one disk or checkpoint from the next of its name. When a node is looked up again with
//! another generation, the kernel cuts all old descriptors off from it (fs/fuse/inode.c `fuse_iget`), so pages of one instant
//! can never be read through a descriptor of another; and a handle of another generation is stale (`fuse_get_dentry`).

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Node;
use super::partitions::{Inside, Medium};
use crate::options::Formats;
use crate::vm::Inventory;

/// The root's number, by the FUSE protocol.
pub const ROOT: u64 = 1;

struct Known {
    told: Told,
    /// References that the kernel holds, from look-ups not yet forgotten.
    lookups: u64,
    /// It was opened, so the kernel may have pages of it.
    opened: bool,
}

/// What tells the nodes of one number apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Generation {
    /// What opening a node that shows a disk leases; 0 for all else.
    pub lease: u64,
    /// Which disk or checkpoint of that name it is of, in 32 bits; 0 where that does not matter.
    pub identity: u64,
}

/// A node as the kernel knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// What it is.
    pub node: Node,
    /// The generation it was last told.
    pub generation: Generation,
    /// The size it was last told: cached pages end there.
    pub size: u64,
}

/// The nodes that the kernel holds references to. Bounded by what the kernel caches.
pub struct Inodes {
    machine: String,
    /// Held for look-ups in the table only.
    known: Mutex<HashMap<u64, Known>>,
}

impl Inodes {
    /// `machine` is what tells this machine from others.
    pub fn new(machine: &str) -> Self {
        let told = Told { node: Node::Root, generation: Generation::default(), size: 0 };
        let root = Known { told, lookups: 1, opened: false };
        Self { machine: machine.to_owned(), known: Mutex::new(HashMap::from([(ROOT, root)])) }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of a node.
    pub fn number(&self, node: &Node) -> u64 {
        let known = self.lock();
        self.find(&known, node)
    }

    fn find(&self, known: &HashMap<u64, Known>, node: &Node) -> u64 {
        if *node == Node::Root {
            return ROOT;
        }
        let mut number = hash(&self.machine, node);
        // Two names with one hash: the later one moves on.
        while number <= ROOT || known.get(&number).is_some_and(|known| known.told.node != *node) {
            number = number.wrapping_add(1);
        }
        number
    }

    /// Notes that the kernel was told of a node with this generation and size; its number comes back.
    pub fn tell(&self, node: &Node, generation: Generation, size: u64) -> u64 {
        let mut known = self.lock();
        let number = self.find(&known, node);
        let told = Told { node: node.clone(), generation, size };
        let entry = known.entry(number).or_insert_with(|| Known { told: told.clone(), lookups: 0, opened: false });
        entry.lookups = entry.lookups.saturating_add(1);
        entry.told = told;
        number
    }

    /// Notes that the kernel was told another size.
    pub fn tell_size(&self, number: u64, size: u64) {
        if let Some(known) = self.lock().get_mut(&number) {
            known.told.size = size;
        }
    }

    /// What the kernel was told under a number.
    pub fn get(&self, number: u64) -> Option<Told> {
        self.lock().get(&number).map(|known| known.told.clone())
    }

    /// The node of a number that the kernel may have forgotten, if the machine has it and its inventory tells of it. None
    /// also if two nodes could have been told under that number.
    pub fn search(&self, number: u64, inventory: &Inventory, formats: Formats) -> Option<Node> {
        let mut all = Node::Root.tree(inventory, formats).filter(|node| hash(&self.machine, node) == number);
        let found = all.next().filter(|node| self.number(node) == number)?;
        all.next().is_none().then_some(found)
    }

    /// Whether what the kernel was told under a number is a file of a guest's.
    pub fn is_guest(&self, number: u64) -> bool {
        self.lock().get(&number).is_some_and(|known| known.told.node.guest().is_some())
    }

    /// Drops references that the kernel gives back.
    pub fn forget(&self, number: u64, lookups: u64) {
        let mut known = self.lock();
        if let Some(entry) = known.get_mut(&number) {
            entry.lookups = entry.lookups.saturating_sub(lookups);
            if entry.lookups == 0 && number != ROOT {
                known.remove(&number);
            }
        }
    }

    /// Notes that the kernel may have pages of a node from now on.
    pub fn opened(&self, number: u64) {
        if let Some(known) = self.lock().get_mut(&number) {
            known.opened = true;
        }
    }

    /// All numbers of nodes that show a disk and of which the kernel may have pages, or a size that it must not believe.
    /// Of the guest's files there may be millions that were only looked at.
    pub fn files(&self) -> Vec<u64> {
        let is_file = |known: &Known| match &known.told.node {
            Node::File { .. } => true,
            Node::Inside { what: Inside::Guest { .. }, .. } => known.opened,
            Node::Inside { .. } | Node::LvmTable | Node::LvmGroup(_) => known.told.node.is_of_an_instant(),
            _ => false,
        };
        let known = self.lock();
        known.iter().filter(|(_, known)| is_file(known)).map(|(number, _)| *number).collect()
    }
}

/// Numbers must be the same in every version of pullfs, so no library decides on them.
fn hash(machine: &str, node: &Node) -> u64 {
    let word;
    let (kind, checkpoint, disk) = match node {
        Node::Root => ("root", "", ""),
        Node::Status => ("status", "", ""),
        Node::Control => ("control", "", ""),
        Node::Current => ("current", "", ""),
        Node::Disk(disk) => ("disk", "", &**disk),
        Node::Checkpoints => ("checkpoints", "", ""),
        Node::Checkpoint(checkpoint) => ("checkpoint", &**checkpoint, ""),
        Node::CheckpointDisk { checkpoint, disk } => ("checkpoint-disk", &**checkpoint, &**disk),
        Node::File { disk, checkpoint, content } => (content.name(), checkpoint.as_deref().unwrap_or(""), &**disk),
        Node::Inside { medium, what } => {
            word = what.word(medium);
            (&*word, "", if let Medium::Disk(disk) = medium { &**disk } else { "" })
        }
        Node::Lvm => ("lvm", "", ""),
        Node::LvmTable => ("lvm-table", "", ""),
        Node::LvmGroup(group) => ("lvm-group", "", &**group),
    };
    let parts = [machine, checkpoint, disk, kind];
    // No part has a NUL, so it keeps them apart.
    fnv(parts.iter().flat_map(|part| part.bytes().chain([0])))
}

/// FNV-1a, 64 bits.
pub(crate) fn fnv(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Content;

    fn raw(disk: &str) -> Node {
        Node::File { disk: disk.into(), checkpoint: None, content: Content::DiskRaw }
    }

    #[test]
    fn numbers_are_the_same_in_every_mount() {
        let (one, two) = (Inodes::new("qmp:/vm"), Inodes::new("qmp:/vm"));
        let number = one.tell(&raw("vda"), Generation { lease: 3, identity: 0 }, 0);
        assert_eq!(number, two.number(&raw("vda")));
        assert_eq!(number, 0x49c7_618b_4664_1807, "changing the hash changes what backup tools take for the same file");
        assert_ne!(number, one.number(&raw("vdb")));
        assert_ne!(number, Inodes::new("qmp:/other").number(&raw("vda")));
    }

    #[test]
    fn a_node_lives_as_long_as_the_kernel_holds_it() {
        let inodes = Inodes::new("m");
        let generation = |lease| Generation { lease, identity: 9 };
        let number = inodes.tell(&raw("vda"), generation(1), 5);
        assert_eq!(inodes.tell(&raw("vda"), generation(2), 6), number);
        inodes.tell_size(number, 7);
        assert_eq!(inodes.get(number), Some(Told { node: raw("vda"), generation: generation(2), size: 7 }));
        inodes.forget(number, 1);
        assert!(inodes.get(number).is_some());
        inodes.forget(number, 1);
        assert_eq!(inodes.get(number), None);
        inodes.forget(ROOT, 99);
        assert!(inodes.get(ROOT).is_some());
    }
}
