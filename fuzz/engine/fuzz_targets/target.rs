//! libFuzzer's side of a target; which one, says `make fuzz TARGET=`.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use pullfs_fuzz::Target;

fuzz_target!(|input: &[u8]| {
    static TARGET: OnceLock<&Target> = OnceLock::new();
    let target = TARGET.get_or_init(|| {
        let name = std::env::var("PULLFS_FUZZ_TARGET").expect("PULLFS_FUZZ_TARGET names a target");
        pullfs_fuzz::find(&name).unwrap_or_else(|| panic!("there is no target {name}"))
    });
    (target.run)(input);
});
