//! What pullfs promises, shown on real machines: one file a promise, and for each test every QEMU that can be had.

/// Makes a test of `fn $test(Flavor)` for each flavor.
macro_rules! on {
    ($test:ident: $($name:ident = $flavor:ident),+) => {
        mod $test {
            $(
                #[test]
                fn $name() {
                    let flavor = pullfs_tests::flavor::Flavor::$flavor;
                    if flavor.available() {
                        super::$test(flavor);
                    }
                }
            )+
        }
    };
}

mod automount;
mod bacula;
mod bytes;
mod chain;
mod checkpoints;
mod clean_root;
mod commands;
mod config;
mod confined;
mod cookbook;
mod dependencies;
mod doctor;
mod fstab;
mod guest_fills;
mod guest_first;
mod handles;
mod history;
mod hostile;
mod identity;
mod inside;
mod install;
mod journal;
mod killed;
mod lazy;
mod leaves_nothing;
mod libvirt;
mod list;
mod live_guest;
mod map;
mod maps;
mod matrix;
mod metrics;
mod nightly;
mod open_files;
mod overlap;
mod package;
mod people;
mod private;
mod qcow2;
mod quiesce;
mod read_once;
mod refusals;
mod reload;
mod schema;
mod shared;
mod soak;
mod sync;
mod systemd;
mod throttle;
mod tls;
mod trimmed;
mod updatedb;
mod xattrs;
