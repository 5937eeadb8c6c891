//! Finding nodes: by name, and by number alone.

use std::ffi::OsStr;
use std::sync::Arc;

use tokio::task::yield_now;

use super::{Entry, Fs, Lasts};
use crate::error::{Error, Kind, Result};
use crate::tree::Node;
use crate::tree::inode::{Generation, Told};
use crate::tree::partitions::{Inside, TABLE};
use crate::vm::Inventory;

pub(super) fn no_node(number: u64) -> Error {
    Error::new(Kind::NotFound, format!("no node has inode number {number}"))
}

impl Fs {
    /// Finds a name in a directory. The kernel holds a reference afterwards, until [`Fs::forget`].
    ///
    /// "." is the node itself, whatever it is and also if the kernel has forgotten it, and ".." what it stands in: so the
    /// kernel finds what somebody has a handle of (`open_by_handle_at(2)`, NFS).
    ///
    /// # Errors
    /// [`Kind::NotFound`]; when the machine does not answer.
    pub async fn lookup(&self, parent: u64, name: &OsStr) -> Result<Entry> {
        if name == "." || name == ".." {
            let (node, inventory) = self.by_number(parent).await?;
            // What the inventory tells of needs no more than that.
            match &node {
                Node::Inside { what: Inside::Partitions | Inside::Table, .. } => {}
                Node::Inside { medium, what } => {
                    return self.again_inside(&self.told(parent)?, medium, *what, name == "..").await;
                }
                Node::LvmGroup(_) if name == "." => return self.tell_group(&self.instant(&self.told(parent)?)?, &node),
                _ => {}
            }
            let node = if name == "." { node } else { node.parent() };
            return self.tell(&node, &inventory).await;
        }
        let told = self.told(parent)?;
        match &told.node {
            Node::Inside { medium, what } => return self.lookup_inside(&told, medium, *what, name).await,
            Node::Lvm if name != TABLE => return self.lookup_group(name).await,
            Node::LvmGroup(group) => return self.lookup_volume(&told, group, name).await,
            _ => {}
        }
        let Told { node: parent, .. } = told;
        let inventory = self.inventory_for(&parent).await?;
        let node = parent
            .child(name, &inventory, self.formats())
            .ok_or_else(|| Error::new(Kind::NotFound, format!("there is no {}", name.display())))?;
        self.tell(&node, &inventory).await
    }

    /// The node of a number, and the inventory that it is in.
    async fn by_number(&self, number: u64) -> Result<(Node, Arc<Inventory>)> {
        if let Some(told) = self.inodes.get(number) {
            let inventory = self.inventory_for(&told.node.parent()).await?;
            return told.node.exists(&inventory).then_some((told.node, inventory)).ok_or_else(|| no_node(number));
        }
        let search = |inventory: &Inventory| self.inodes.search(number, inventory, self.formats());
        // What is always there must not fail with the machine.
        let always = Arc::<Inventory>::default();
        if let Some(node) = search(&always) {
            return Ok((node, always));
        }
        let inventory = self.inventory().await?;
        // Many checkpoints take a while, which is not to be that of the thread that takes the kernel's requests.
        yield_now().await;
        let found = search(&inventory);
        found.map(|node| (node, inventory)).ok_or_else(|| no_node(number))
    }

    pub(super) async fn tell(&self, node: &Node, inventory: &Inventory) -> Result<Entry> {
        // One look for both: a size that was estimated must not be told of a node whose size is exact.
        let view = self.points.view();
        let generation = Generation::of(node, &view, inventory);
        let attr = self.attr(node, inventory, view.held).await?;
        self.inodes.tell(node, generation, attr.size);
        let lasts = if node.is_of_an_instant() { Lasts::Not } else { Lasts::Briefly };
        Ok(Entry { attr, generation: self.epoch.told(node, generation), lasts })
    }
}
