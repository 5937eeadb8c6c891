//! An OpenSSH server on a libvirtd's host, and what its clients need.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::libvirt::Libvirtd;
use crate::network::Network;
use crate::process::{Running, ok, run, wait_until, write_script};
use crate::tools::{tool, unpacked};

/// For the server to answer, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// A server, at the far end of a network, with a client's key that it knows and one that it does not.
pub struct Sshd {
    // Before its directory.
    _server: Running,
    host: String,
    dir: TempDir,
}

impl Sshd {
    /// Starts one in the namespaces of a libvirtd that was started behind that network.
    #[track_caller]
    pub fn start(libvirtd: &Libvirtd, network: &Network) -> Self {
        let dir = tempfile::Builder::new().prefix("pullfs-ssh-").tempdir().expect("a temporary directory");
        let path = |name: &str| dir.path().join(name);
        let write = |name: &str, text: String| fs::write(path(name), text).expect("a file");
        for key in ["host", "friend", "stranger"] {
            ok(tool("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path(key)));
        }
        let here = dir.path().display();
        let host = network.port(22).ip().to_string();
        write(
            "sshd_config",
            format!(
                "ListenAddress {host}\nHostKey {here}/host\nAuthorizedKeysFile {here}/friend.pub\nPidFile none\n\
                 StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n\
                 ClientAliveInterval 5\nClientAliveCountMax 3\n"
            ),
        );
        for (client, key) in [("ssh", "host"), ("fooled", "stranger")] {
            let key = fs::read_to_string(path(&format!("{key}.pub"))).expect("a key");
            write(&format!("{client}.hosts"), format!("{host} {key}"));
            let config =
                format!("UserKnownHostsFile {here}/{client}.hosts\nGlobalKnownHostsFile none\nIdentitiesOnly yes\n");
            write(&format!("{client}.config"), config);
            write_script(&path(client), &format!("#!/bin/sh\nexec ssh -F {here}/{client}.config \"$@\"\n"));
        }
        let asking = format!(
            "#!/bin/sh\ncase \"$*\" in *BatchMode=yes*) exec {here}/ssh \"$@\" ;; esac\necho nobody is here to ask >&2\nexit 255\n"
        );
        write_script(&path("asking"), &asking);
        let server = unpacked("openssh-server").join("usr/sbin/sshd");
        // In all of its namespaces, so that it ends with them.
        let mut command = tool("nsenter");
        command.args(["--mount", "--net", "--pid", "--target", &libvirtd.pid().to_string()]);
        command
            .args(["sh", "-euc", "mkdir -p /run/sshd; exec \"$0\" -D -e -f \"$1\""])
            .arg(server)
            .arg(path("sshd_config"));
        let server = Running::start(&command, &path("sshd.log"));
        let started = Self { _server: server, host, dir };
        wait_until("the ssh server's answer", LIMIT, || {
            let mut command = Command::new(started.path("ssh"));
            run(command.arg("-i").arg(started.path("friend")).args([&started.host, "true"])).code == Some(0)
        });
        started
    }

    /// The URI of the libvirt by this server. `client` is `ssh`, `asking`, which asks somebody unless it is told not to, or `fooled`,
    /// which knows another server by this one's name; `key` is
    /// that of a `friend` or of a `stranger`.
    pub fn uri(&self, client: &str, key: &str) -> String {
        let [command, key] = [client, key].map(|name| self.path(name));
        format!("qemu+ssh://root@{}/system?command={}&keyfile={}", self.host, command.display(), key.display())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}
