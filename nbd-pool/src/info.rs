//! What the server says of an export and the pool of itself.

/// Size constraints of an export (spec "Size constraints"), in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSize {
    /// Alignment of every request: a power of two up to 65,536.
    pub minimum: u32,
    /// Alignment that the server serves best: a power of two, at least the minimum.
    pub preferred: u32,
    /// Longest payload, `u32::MAX` where there is no limit.
    pub maximum: u32,
}

impl Default for BlockSize {
    /// What the specification lays down for a server that does not say.
    fn default() -> Self {
        Self { minimum: 1, preferred: 4096, maximum: 32 << 20 }
    }
}

/// What the handshake told about the export.
#[expect(clippy::struct_excessive_bools, reason = "the server tells them so")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Size in bytes.
    pub size: u64,
    /// Whether writes would be refused (`NBD_FLAG_READ_ONLY`).
    pub read_only: bool,
    /// Whether it can be told what is not needed any more (`NBD_FLAG_SEND_TRIM`).
    pub can_trim: bool,
    /// Whether several connections see the same data (`NBD_FLAG_CAN_MULTI_CONN`).
    pub multi_conn: bool,
    /// Size constraints, or the specification's defaults.
    pub block_size: BlockSize,
    /// Whether the 64-bit headers of the extended-headers extension are in use.
    pub extended_headers: bool,
    /// The metadata contexts that the server granted, in the order they were asked for.
    pub contexts: Vec<String>,
}

/// Counters of a pool's [`Config::meter`](crate::Config::meter), since that was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests sent, re-issued ones included.
    pub requests: u64,
    /// Bytes read from the server and released.
    pub bytes: u64,
    /// Connections made to replace lost ones.
    pub reconnects: u64,
    /// Connections killed for breaking the protocol or a time limit.
    pub faults: u64,
    /// Connections open at this moment.
    pub connections: u64,
}
