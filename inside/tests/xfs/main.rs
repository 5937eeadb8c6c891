//! XFS as mkfs.xfs and the kernel make it, as our reader sees it: needs root, for loop mounts.

mod clean;
mod damaged;
mod dirty;
mod fill;
mod oracle;
mod torn;
mod tree;
