//! NBD connections that a network is in.

use nbd_pool::{Address, Config};

/// Bytes of a disk that are on their way at most, and those of one request. While QEMU drains the requests of its disks, which a
/// guest that resets has it do, it waits until its answers are sent; where the network is away that is when they are in the send
/// buffer, so they have to fit: Linux gives each connection some 46 KiB to begin with, and soon more.
const IN_FLIGHT: usize = 64 << 10;
const REQUEST: u32 = 32 << 10;

/// Bounds the connections to a server so that the guest never waits for a network, if there is one in between.
pub(super) fn bounded(address: &Address, config: Config) -> Config {
    match address {
        Address::Unix(_) => config,
        Address::Tcp { .. } => Config { request_size: REQUEST, max_in_flight_bytes: IN_FLIGHT, ..config },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_is_on_its_way_over_a_network_and_much_on_a_socket() {
        let of = |address: Address| {
            let config = bounded(&address, Config::default());
            (config.request_size, config.max_in_flight_bytes)
        };
        let (request, in_flight) = of(Address::Tcp { host: "host".to_owned(), port: 10809 });
        assert!(request <= 32 << 10 && in_flight <= 64 << 10);
        let usual = Config::default();
        assert_eq!(of(Address::Unix("/run/x".into())), (usual.request_size, usual.max_in_flight_bytes));
    }
}
