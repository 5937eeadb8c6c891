//! What tests with scripted servers share: one disk, one offer, short waits.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use nbd_pool::testing::{Disk, Framing, Offer};
use nbd_pool::{Address, Config, Pool};

pub(crate) const SIZE: usize = 1 << 20;
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn disk() -> Arc<Disk> {
    Arc::new(Disk {
        content: (0..SIZE).map(|at| u8::try_from(at / 7 % 256).expect("a byte")).collect(),
        status: vec![("base:allocation".to_owned(), vec![(4096, 0), (8192, 3), (4096, 1)])],
    })
}

pub(crate) fn offer() -> Offer {
    Offer {
        size: u64::try_from(SIZE).expect("small"),
        contexts: vec![(1, "base:allocation".to_owned())],
        framing: Framing::Extended,
        ..Offer::default()
    }
}

pub(crate) fn config() -> Config {
    Config {
        request_size: 64 << 10,
        backoff_min: Duration::from_millis(1),
        backoff_max: Duration::from_millis(20),
        request_timeout: PATIENCE,
        ..Config::default()
    }
}

pub(crate) async fn connect(address: Address, config: Config) -> Pool {
    let contexts = ["base:allocation".to_owned()];
    Pool::connect(address, "disk", &contexts, config).await.expect("connected")
}

pub(crate) async fn in_time<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, test).await.expect("the test is stuck")
}
