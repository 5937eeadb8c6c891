//! What each mount option is for, in the words of help, manual page and document.
//!
//! [`Options::parse`](super::Options::parse) knows no option that is not in here, so none can be left out.

/// A mount option as people see it.
#[derive(Debug, Clone, Copy)]
pub struct Described {
    /// Its name and what it takes: `start=read|manual`.
    pub usage: &'static str,
    /// What it does, and the default.
    pub text: &'static str,
    /// Whether it can be changed while mounted.
    pub live: bool,
}

impl Described {
    /// The name alone.
    pub fn name(&self) -> &'static str {
        self.usage.split('=').next().unwrap_or(self.usage)
    }

    /// What it takes; none for a flag.
    pub fn value(&self) -> Option<&'static str> {
        self.usage.split_once('=').map(|(_, value)| value)
    }
}

const fn option(usage: &'static str, text: &'static str) -> Described {
    Described { usage, text, live: false }
}

/// One that can be changed while mounted: what it says counts for what comes next, and is nowhere written down.
const fn live(usage: &'static str, text: &'static str) -> Described {
    Described { usage, text, live: true }
}

/// The names of those that can be changed while mounted, in their order.
pub fn live_names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().filter(|option| option.live).map(Described::name)
}

/// All mount options, in the order in which they are shown.
pub const TABLE: [Described; 33] = [
    option("formats=raw+qcow2+map+partitions", "which files appear (all)"),
    option("backing=NAME", "backing file of a delta.qcow2 ({disk}.{checkpoint}.qcow2)"),
    option("cluster_size=SIZE", "of the qcow2 files (64K)"),
    live("start=read|manual", "may reading take the point in time (read)"),
    option("scratch=DIR|pool:NAME", "where QEMU puts clusters that the guest overwrites (/var/tmp)"),
    live("scratch_limit=SIZE", "how much of it at most; the point in time ends before (as much as there is)"),
    option("fleece=auto|job|backing|filter", "how the point in time is kept (auto)"),
    option("read_once", "give scratch space back for what was read; reading it again fails"),
    live("idle_timeout=TIME", "end the point in time so long after the last close (never)"),
    live("hold_limit=TIME", "end the point in time after so long at the latest (never)"),
    option("disks=A+B", "only these disks (all)"),
    option("foreign=ro|rw", "may checkpoints that pullfs did not make be deleted (ro)"),
    option("nbd=unix:PATH|HOST:PORT", "use the machine's NBD server that already listens there"),
    option("tls=DIR", "certificates for TCP, and for the server of nbd= (docs/tls.md)"),
    option("insecure", "TCP without TLS is meant"),
    option("agent=PATH", "the guest agent's socket, for --quiesce"),
    option("uri=URI", "of `libvirt:DOMAIN`, which libvirt (qemu:///system)"),
    option("expire=TIME", "of `libvirt:`, unmount a domain that nobody used for so long (10m)"),
    option("connections=N", "NBD connections for each disk, at most (1)"),
    option("cache=SIZE", "memory for blocks of disks, read ahead or lately (32M)"),
    live("readahead=SIZE", "how far to read ahead of a reader that goes on; 0 not at all (4M)"),
    live("max_rate=SIZE", "read so many bytes a second of all disks together, at most (no limit)"),
    live("max_inflight=N", "have the machine so many requests at once, at most (no limit)"),
    live("polite", "read slowly while the guest keeps its disks busy (docs/guest.md)"),
    option(
        "metrics=HOST:PORT|FILE",
        "tell Prometheus by HTTP, or by a file FILE.prom for node_exporter (docs/metrics.md)",
    ),
    option("uid=N", "owner of the files (the mounting user)"),
    option("gid=N", "group of the files (the mounting user's)"),
    option("umask=N", "what is taken from the mode 0555, in octal (077)"),
    option("allow_other", "let other users in, as far as the modes allow"),
    option("sandbox=auto|off", "off: the daemon keeps its privileges and may touch any file (auto)"),
    option("core_dumps", "a crash may leave a core dump, with the guest's data in it"),
    option("ro", "accepted; nothing but mkdir, rmdir and control ever writes"),
    option("rw", "accepted, and means the same: mount(8) passes one of the two"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::Options;
    use super::TABLE;

    #[test]
    fn each_option_is_taken_as_it_is_described() {
        for option in TABLE {
            // Of alternatives the first.
            let value = option.value().and_then(|value| value.split('|').next());
            let value = value.map(|value| match value {
                "SIZE" => "64K",
                "TIME" => "2h",
                "DIR" | "PATH" => "/tmp",
                "URI" => "qemu:///system",
                "N" => "7",
                words => words,
            });
            let given = value.map_or(option.name().to_owned(), |value| format!("{}={value}", option.name()));
            // A list of addresses begins with one of these forms.
            let given = given.replace("unix:PATH", "unix:/run/nbd").replace("HOST:PORT", "localhost:9500");
            Options::parse(&given).unwrap();
            assert!(!option.text.is_empty() && option.text.len() <= 90, "{}", option.usage);
        }
        let names: BTreeSet<&str> = TABLE.iter().map(super::Described::name).collect();
        assert_eq!(names.len(), TABLE.len(), "each is described once");
    }
}
