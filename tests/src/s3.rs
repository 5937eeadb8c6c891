//! An S3 server that keeps what it is given in memory, for clients on this computer.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::ports::free_port;
use crate::process::{Running, wait_until};
use crate::tools::workspace;

/// From its start to a server that answers, on a slow machine.
const START_LIMIT: Duration = Duration::from_secs(30);

/// It runs until it is dropped.
#[derive(Debug)]
pub struct S3 {
    port: u16,
    _server: Running,
}

impl S3 {
    /// Starts one; what it says goes to `log`.
    #[track_caller]
    pub fn start(log: &Path) -> Self {
        let dir = workspace().join("target/setup/s3-server");
        assert!(dir.join(".complete").is_file(), "there is no S3 server in {}: run `make setup`", dir.display());
        let port = free_port();
        let mut command = Command::new("python3");
        command.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()]).env("PYTHONPATH", dir);
        let mut server = Running::start(&command, log);
        wait_until("an S3 server that answers", START_LIMIT, || {
            server.check();
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Self { port, _server: server }
    }

    /// Makes it rclone's remote `S3`, and nothing else: what is configured on this computer is none of a test's business.
    pub fn rclone(&self, command: &mut Command) {
        command.env("RCLONE_CONFIG", "/dev/null").env_remove("AWS_CA_BUNDLE");
        command.env("RCLONE_CONFIG_S3_TYPE", "s3").env("RCLONE_CONFIG_S3_PROVIDER", "Other");
        command.env("RCLONE_CONFIG_S3_ENDPOINT", format!("http://127.0.0.1:{}", self.port));
        command.env("RCLONE_CONFIG_S3_ACCESS_KEY_ID", "test").env("RCLONE_CONFIG_S3_SECRET_ACCESS_KEY", "test");
    }
}
