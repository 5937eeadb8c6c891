//! TLS against servers that are not ours, and every way in which it must fail.

use std::error::Error as _;
use std::path::PathBuf;

use nbd_pool::testing::pki::{Authority, LOOPBACK};
use nbd_pool::tls::Client;
use nbd_pool::{Address, Config, Error, ErrorKind, Pool, context};

use crate::servers::{Place, Server, assert_same};
use crate::{MIB, config, copy, sparse_image};

/// A disk, and certificates of a CA: a server's in `server`, a client's in `client`, a client's without a pair in `plain`.
struct Scene {
    place: Place,
    ca: Authority,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { place: Place::new(), ca: Authority::new("CA") };
        sparse_image(&scene.place.path("disk"), 4 * MIB);
        scene.ca.server(&scene.dir("server"), &LOOPBACK).expect("written");
        scene.ca.client(&scene.dir("client")).expect("written");
        scene.ca.fill(&scene.dir("plain")).expect("written");
        scene
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.place.path(name)
    }

    /// The arguments of `qemu-nbd` with these credentials. They may be worse than QEMU itself would let pass.
    fn credentials(&self, verify: bool) -> String {
        let verify = if verify { "yes" } else { "no" };
        let dir = self.place.arg("server");
        format!("tls-creds-x509,id=tls0,endpoint=server,dir={dir},verify-peer={verify},sanity-check=no")
    }

    fn qemu_nbd(&self, verify: bool) -> Server {
        let (object, disk) = (self.credentials(verify), self.place.arg("disk"));
        Server::qemu_nbd_tcp(&["--object", &object, "--tls-creds", "tls0", "--shared=8", "-f", "raw", &disk])
    }

    fn plain_qemu_nbd(&self) -> Server {
        Server::qemu_nbd_tcp(&["--shared=8", "-f", "raw", &self.place.arg("disk")])
    }

    /// Connects with the credentials in `dir`.
    async fn connect(&self, address: Address, dir: &str) -> Result<Pool, Error> {
        let tls = Client::load(&self.dir(dir)).expect("credentials");
        let config = Config { tls: Some(tls), ..config() };
        Pool::connect(address, "", &[context::BASE_ALLOCATION.to_owned()], config).await
    }

    /// Connecting must fail, for a reason that is told in these words.
    async fn refused(&self, server: &Server, dir: &str, kind: ErrorKind, words: &[&str]) {
        let error = self.connect(server.address(), dir).await.expect_err("refused");
        let text = chain(&error);
        assert_eq!(error.kind(), kind, "{text}");
        assert!(words.iter().all(|word| text.contains(word)), "{words:?} in {text}");
    }
}

fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_over_tcp() {
    let scene = Scene::new();
    for (verify, dir) in [(true, "client"), (false, "plain"), (false, "client")] {
        let server = scene.qemu_nbd(verify);
        let pool = scene.connect(server.address(), dir).await.expect("connected");
        assert!(pool.info().extended_headers);
        copy(&pool, &scene.dir("ours"), 1_000_003, 6).await;
        assert_same(&scene.dir("ours"), &scene.dir("disk"));
        assert_eq!((pool.stats().reconnects, pool.stats().faults), (0, 0));
        pool.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_by_address_and_over_a_unix_socket() {
    let scene = Scene::new();
    let server = scene.qemu_nbd(true);
    let Address::Tcp { port, .. } = server.address() else { unreachable!("it is on TCP") };
    let address = Address::Tcp { host: "127.0.0.1".to_owned(), port };
    scene.connect(address, "client").await.expect("its address is in the certificate").close().await;

    let (object, disk) = (scene.credentials(true), scene.place.arg("disk"));
    let arguments = ["--object", &object, "--tls-creds", "tls0", "--shared=8", "-f", "raw", &disk];
    let server = Server::qemu_nbd(&scene.place, &arguments);
    let pool = scene.connect(server.address(), "client").await.expect("connected");
    copy(&pool, &scene.dir("ours"), MIB, 6).await;
    assert_same(&scene.dir("ours"), &scene.dir("disk"));
    pool.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdkit_over_tcp() {
    let scene = Scene::new();
    let (certificates, disk) = (format!("--tls-certificates={}", scene.place.arg("server")), scene.place.arg("disk"));
    let server = Server::nbdkit_tcp(&["--tls=require", &certificates, "--tls-verify-peer", "file", &disk]);
    let pool = scene.connect(server.address(), "client").await.expect("connected");
    copy(&pool, &scene.dir("ours"), 1_000_003, 6).await;
    assert_same(&scene.dir("ours"), &scene.dir("disk"));
    pool.close().await;
    scene.refused(&server, "plain", ErrorKind::Disconnected, &["client certificate"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_the_one() {
    let scene = Scene::new();
    Authority::new("another CA").client(&scene.dir("strict")).expect("written");
    scene.ca.client(&scene.dir("revoked")).expect("written");
    scene.ca.revoke(&scene.dir("revoked"), true).expect("written");
    scene.ca.client(&scene.dir("listed")).expect("written");
    scene.ca.revoke(&scene.dir("listed"), false).expect("written");
    let server = scene.qemu_nbd(false);
    scene.refused(&server, "strict", ErrorKind::Untrusted, &["is not signed by", "strict/ca-cert.pem"]).await;
    scene.refused(&server, "revoked", ErrorKind::Untrusted, &["is revoked by", "ca-crl.pem"]).await;
    scene.connect(server.address(), "listed").await.expect("not on the list").close().await;

    scene.ca.server(&scene.dir("server"), &["other.example", "127.0.0.2"]).expect("written");
    let server = scene.qemu_nbd(false);
    scene.refused(&server, "client", ErrorKind::Untrusted, &["is not for localhost", "other.example"]).await;

    scene.ca.server_until(&scene.dir("server"), &LOOPBACK, 2020).expect("written");
    let server = scene.qemu_nbd(false);
    scene.refused(&server, "client", ErrorKind::Untrusted, &["has expired"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_not_wanted() {
    let scene = Scene::new();
    scene.ca.fill(&scene.dir("stranger")).expect("written");
    Authority::new("another CA").certify(&scene.dir("stranger")).expect("written");
    let server = scene.qemu_nbd(true);
    scene.refused(&server, "plain", ErrorKind::Disconnected, &["wants a client certificate", "plain"]).await;
    scene.refused(&server, "stranger", ErrorKind::Disconnected, &["does not accept the client certificate"]).await;
    scene.connect(server.address(), "client").await.expect("connected").close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_side_alone_with_tls() {
    let scene = Scene::new();
    let server = scene.plain_qemu_nbd();
    scene.refused(&server, "client", ErrorKind::Unsupported, &["offers no TLS"]).await;
    let server = scene.qemu_nbd(false);
    let error = Pool::connect(server.address(), "", &[], config()).await.expect_err("plain text");
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(chain(&error).contains("TLS alone"), "{}", chain(&error));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_is_protected_again() {
    let scene = Scene::new();
    let mut server = scene.qemu_nbd(true);
    let pool = scene.connect(server.address(), "client").await.expect("connected");
    server.kill();
    // What comes back at this port has no TLS, and gets nothing of the client.
    let Address::Tcp { port, .. } = server.address() else { unreachable!("it is on TCP") };
    let (number, disk) = (port.to_string(), scene.place.arg("disk"));
    let arguments = ["--persistent", "--read-only", "-b", "127.0.0.1", "-p", &number, "-f", "raw", &disk];
    let _plain = tokio::task::block_in_place(|| Server::start("qemu-nbd", &arguments, server.address()));
    let error = pool.read(0, bytes::BytesMut::zeroed(512)).await.expect_err("no TLS");
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{}", chain(&error));
    pool.close().await;
}
