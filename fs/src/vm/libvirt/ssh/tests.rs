use std::path::PathBuf;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream as Stream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;

/// For everything that takes a moment.
const LIMIT: Duration = Duration::from_secs(30);

fn call(uri: &str) -> std::result::Result<Call, String> {
    Call::of(&Way::of(uri))
}

#[test]
fn ssh_is_told_what_the_uri_says() {
    let Call { program, arguments } = call("qemu+ssh://root@[::1]:2222/session?keyfile=/a/key&no_tty=1").unwrap();
    assert_eq!(program, "ssh");
    let said = arguments.join(" ");
    assert!(said.starts_with("-T -e none -o BatchMode=yes -o ") && said.contains(" -o ControlMaster=no "), "{said}");
    assert!(said.ends_with("-l root -p 2222 -i /a/key -- ::1 virt-ssh-helper 'qemu:///session'"), "{said}");
    let other = call("qemu+ssh://host/system?command=/opt/ssh").unwrap();
    assert_eq!(other.program, "/opt/ssh");
    assert_eq!(other.arguments[other.arguments.len() - 2..], ["host", "virt-ssh-helper 'qemu:///system'"]);
    // A host is never taken for an option.
    let odd = call("qemu+ssh://-oProxyCommand=x/system").unwrap().arguments;
    assert_eq!(odd[odd.len() - 3..odd.len() - 1], ["--", "-oProxyCommand=x"]);
}

#[test]
fn what_ssh_cannot_be_told_is_refused() {
    for (uri, word) in [
        ("qemu+ssh://host/embed?root=/a", "qemu+ssh://host/system"),
        ("qemu+ssh://host", "qemu+ssh://host/system"),
        ("qemu+ssh://host/system?socket=/run/x", "socket= is not understood"),
        ("qemu+ssh://host/system?no_verify", "no_verify= is not understood"),
        ("qemu+ssh://host/system?keyfile=/a%20b", "no %"),
        ("qemu+ssh://@host/system", "no empty value"),
        ("qemu+ssh:///system", "names no host"),
    ] {
        let why = call(uri).unwrap_err();
        assert!(why.contains(word), "{uri}: {why}");
    }
}

/// A relay whose ssh is a shell with a script.
struct Scene {
    dir: TempDir,
    daemon: Option<UnixStream>,
    relay: JoinHandle<std::io::Result<()>>,
}

impl Scene {
    async fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let script = format!("echo $$ >{}; {script}", dir.path().join("pid").display());
        let call = Call { program: "sh".to_owned(), arguments: vec!["-c".to_owned(), script] };
        let socket = dir.path().join(NAME);
        let relay = tokio::spawn(async move { process::serve(call, "host", &socket, theirs).await });
        let scene = Self { dir, daemon: Some(ours), relay };
        scene.until(|| scene.socket().exists()).await;
        scene
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join(NAME)
    }

    async fn connect(&self) -> Stream {
        Stream::connect(self.socket()).await.unwrap()
    }

    async fn until(&self, is: impl Fn() -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !is() {
            assert!(Instant::now() < deadline, "it takes too long");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The number of the process that was started last.
    async fn pid(&self) -> String {
        let read = || std::fs::read_to_string(self.dir.path().join("pid")).unwrap_or_default();
        self.until(|| read().ends_with('\n')).await;
        read().trim().to_owned()
    }

    async fn until_it_ended(&self, pid: &str) {
        self.until(|| crate::recovery::has_ended(pid.parse().unwrap())).await;
    }
}

#[tokio::test]
async fn each_connection_has_an_ssh_that_ends_with_it() {
    let scene = Scene::new("exec cat").await;
    let mut streams = [scene.connect().await, scene.connect().await];
    for (number, stream) in streams.iter_mut().enumerate() {
        let said = vec![u8::try_from(number).unwrap(); 300_000];
        let mut heard = vec![9; said.len()];
        let (mut from, mut to) = stream.split();
        let (written, read) = tokio::join!(to.write_all(&said), from.read_exact(&mut heard));
        written.and(read.map(drop)).unwrap();
        assert!(said == heard);
    }
    let pid = scene.pid().await;
    drop(streams);
    scene.until_it_ended(&pid).await;
    assert!(scene.socket().exists() && !scene.relay.is_finished(), "others may come");
}

#[tokio::test]
async fn the_end_of_ssh_is_the_end_of_the_connection() {
    let scene = Scene::new("echo no >&2; exit 255").await;
    let mut heard = Vec::new();
    let ended = timeout(LIMIT, async { scene.connect().await.read_to_end(&mut heard).await }).await.unwrap();
    assert!(ended.is_ok_and(|length| length == 0));
}

#[tokio::test]
async fn an_ssh_that_does_not_end_is_killed() {
    let scene = Scene::new("exec </dev/null; sleep 1000").await;
    let stream = scene.connect().await;
    let pid = scene.pid().await;
    drop(stream);
    scene.until_it_ended(&pid).await;
}

#[tokio::test]
async fn nothing_is_left_when_the_daemon_has_ended() {
    let mut scene = Scene::new("exec sleep 1000").await;
    let _stream = scene.connect().await;
    let pid = scene.pid().await;
    scene.daemon = None;
    timeout(LIMIT, &mut scene.relay).await.unwrap().unwrap().unwrap();
    scene.until_it_ended(&pid).await;
    assert!(!scene.socket().exists());
}
