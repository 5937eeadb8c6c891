//! Images of disks for tests: foreign tools make them ([`run`]), foreign drivers mount them, and what those show decides
//! whether they are read rightly here ([`mod@compare`]); what is damaged on purpose has to be an error soon ([`mod@damage`]).
//!
//! All of it panics where something fails, and nothing outlives its value: mounts, loop devices, drivers, directories.

pub mod compare;
pub mod damage;
mod image;
mod mount;
mod tool;
pub mod xfs;

pub use image::Image;
pub use mount::{Driver, Loop, Mount};
pub use tool::{feed, ok, run};
