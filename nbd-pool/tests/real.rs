//! Real servers, judged by tools that are not ours.

mod servers;
mod tls;

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::time::Duration;

use bytes::BytesMut;
use nbd_pool::{Config, ErrorKind, Extent, Pool, context};
use servers::{Place, Server, assert_same, merged, nbdinfo_map, run, within};

const MIB: u64 = 1 << 20;

fn config() -> Config {
    Config { request_timeout: Duration::from_secs(60), ..Config::default() }
}

async fn connect(server: &Server, export: &str, contexts: &[&str]) -> Pool {
    let contexts: Vec<String> = contexts.iter().map(ToString::to_string).collect();
    Pool::connect(server.address(), export, &contexts, config()).await.expect("connected")
}

async fn map(pool: &Pool, context: &str, range: Range<u64>) -> Vec<Extent> {
    let mut extents = Vec::new();
    let mut at = range.start;
    pool.block_status(context, range.clone(), |extent| {
        assert_eq!(extent.offset, at, "no gap and no overlap");
        at = extent.end();
        extents.push(extent);
        ControlFlow::Continue(())
    })
    .await
    .expect("block status");
    assert_eq!(at, range.end, "the whole range");
    merged(extents)
}

fn length(size: u64) -> usize {
    usize::try_from(size).expect("it fits in memory")
}

async fn read(pool: &Pool, offset: u64, size: u64) -> BytesMut {
    // What the buffer held before must not shine through.
    let buf = BytesMut::from(&vec![0xa5; length(size)][..]);
    pool.read(offset, buf).await.expect("read")
}

/// Copies the whole export into a file, in reads of `step` bytes with `depth` of them under way.
async fn copy(pool: &Pool, file: &Path, step: u64, depth: usize) {
    let mut file = File::create(file).expect("a file");
    let size = pool.info().size;
    let mut under_way = std::collections::VecDeque::new();
    let mut at = 0;
    loop {
        while at < size && under_way.len() < depth {
            let (pool, here, size) = (pool.clone(), at, step.min(size - at));
            under_way.push_back(tokio::spawn(async move { read(&pool, here, size).await }));
            at += step;
        }
        let Some(next) = under_way.pop_front() else {
            break;
        };
        file.write_all(&next.await.expect("no panic")).expect("written");
    }
}

/// Asserts that content and map are what `nbdcopy` and `nbdinfo` see.
///
/// The content is read in steps of an odd length, or in `step`s.
async fn agrees_with_the_tools(place: &Place, server: &Server, export: &str, pool: &Pool, step: Option<u64>) {
    let uri = server.uri(export);
    run("nbdcopy", &[uri.as_str(), &place.arg("theirs")]);
    copy(pool, &place.path("ours"), step.unwrap_or(1_000_003), 6).await;
    assert_same(&place.path("ours"), &place.path("theirs"));
    for context in &pool.info().contexts {
        let theirs = nbdinfo_map(&uri, context);
        assert_eq!(map(pool, context, 0..pool.info().size).await, theirs, "{context}");
        let part = pool.info().size / 3 + 1..pool.info().size / 2 + 12345;
        assert_eq!(map(pool, context, part.clone()).await, within(&theirs, &part), "{context}");
    }
}

/// A raw image of some MiB: runs of data, with holes between them, and an odd size.
fn sparse_image(path: &Path, size: u64) {
    let mut file = File::create(path).expect("an image");
    file.set_len(size).expect("sized");
    for (run, offset) in (0..size).step_by(length(3 * MIB / 2)).enumerate() {
        let bytes = (0..600_001_u32).map(|at| u8::try_from(at / 3 % 255).expect("a byte"));
        let bytes: Vec<u8> = bytes.map(|byte| byte ^ u8::try_from(run).expect("few runs")).collect();
        file.seek(SeekFrom::Start(offset)).expect("sought");
        let room = length((size - offset).min(600_001));
        file.write_all(&bytes[..room]).expect("written");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_nbd_raw() {
    let place = Place::new();
    sparse_image(&place.path("disk"), 24 * MIB + 512);
    let disk = place.arg("disk");
    let server = Server::qemu_nbd(&place, &["--shared=8", "-f", "raw", "-x", "vda", &disk]);
    let pool = connect(&server, "vda", &[context::BASE_ALLOCATION]).await;
    let info = pool.info();
    assert_eq!(info.size, 24 * MIB + 512);
    assert!(info.read_only && info.multi_conn && info.extended_headers);
    agrees_with_the_tools(&place, &server, "vda", &pool, None).await;
    assert_same(&place.path("ours"), &place.path("disk"));
    assert!(map(&pool, context::BASE_ALLOCATION, 0..info.size).await.len() > 10, "it has holes");

    let whole = read(&pool, 0, info.size).await;
    assert!(whole[..] == std::fs::read(place.path("disk")).expect("read")[..]);
    assert!(pool.stats().connections > 1, "a busy pool grows");
    assert_eq!((pool.stats().faults, pool.stats().reconnects), (0, 0));
    pool.close().await;

    let error = Pool::connect(server.address(), "vdb", &[], config()).await;
    assert_eq!(error.expect_err("no such export").kind(), ErrorKind::Refused);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storage_daemon_with_dirty_bitmaps() {
    let place = Place::new();
    let disk = place.arg("disk.qcow2");
    run("qemu-img", &["create", "-q", "-f", "qcow2", &disk, "64M"]);
    let write = |what: &str| run("qemu-io", &["-f", "qcow2", "-c", what, &disk]);
    // What is written, what is dirty in one bitmap and what in the other all differ.
    write("write -P 1 0 8M");
    run("qemu-img", &["bitmap", "--add", &disk, "monday"]);
    write("write -P 2 4M 1M");
    write("write -z 20M 1M");
    run("qemu-img", &["bitmap", "--add", "-g", "512k", &disk, "tuesday"]);
    write("write -P 3 33M 192k");
    write("discard 6M 1M");
    for bitmap in ["monday", "tuesday"] {
        // QEMU exports no recording bitmap on a read-only export.
        run("qemu-img", &["bitmap", "--disable", &disk, bitmap]);
    }
    let file = format!("driver=file,node-name=file,filename={disk},read-only=on");
    let export = "type=nbd,id=e,node-name=disk,name=disk,bitmaps.0=monday,bitmaps.1=tuesday";
    let arguments =
        ["--blockdev", &file, "--blockdev", "driver=qcow2,node-name=disk,file=file,read-only=on", "--export", export];
    let server = Server::storage_daemon(&place, "", &arguments);
    let bitmaps = [context::dirty_bitmap("monday"), context::dirty_bitmap("tuesday")];
    let wanted = [&bitmaps[1], "qemu:dirty-bitmap:none", context::BASE_ALLOCATION, &bitmaps[0]];
    let pool = connect(&server, "disk", &wanted).await;
    assert_eq!(pool.info().contexts, [wanted[0], wanted[2], wanted[3]], "as asked, without `none`");
    agrees_with_the_tools(&place, &server, "disk", &pool, None).await;
    let dirty = map(&pool, &bitmaps[1], 0..pool.info().size).await;
    assert!(dirty.contains(&Extent { offset: 33 * MIB, length: 512 << 10, flags: 1 }));

    run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", &disk, &place.arg("converted")]);
    assert_same(&place.path("ours"), &place.path("converted"));
    pool.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_few_slots_is_used_with_few_connections() {
    let place = Place::new();
    sparse_image(&place.path("disk"), 8 * MIB);
    let disk = place.arg("disk");
    let file = format!("driver=file,node-name=disk,filename={disk},read-only=on");
    let arguments = ["--blockdev", &file, "--export", "type=nbd,id=e,node-name=disk,name=disk"];
    let server = Server::storage_daemon(&place, ",max-connections=2", &arguments);
    let pool = connect(&server, "disk", &[]).await;
    assert!(pool.info().multi_conn, "the server promises more than it has");
    // The third connection is accepted and then ignored; nothing may wait for it.
    for _ in 0..8 {
        copy(&pool, &place.path("ours"), MIB, 8).await;
        assert_same(&place.path("ours"), &place.path("disk"));
    }
    let stats = pool.stats();
    assert_eq!((stats.connections, stats.reconnects, stats.faults), (2, 0, 0));
    pool.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdkit_sparse_random() {
    let place = Place::new();
    let server = Server::nbdkit(&place, &["sparse-random", "64M", "seed=7", "percent=30"]);
    let pool = connect(&server, "", &[context::BASE_ALLOCATION]).await;
    assert!(pool.info().multi_conn);
    // What this plugin makes up depends on the alignment of the request.
    agrees_with_the_tools(&place, &server, "", &pool, Some(MIB)).await;
    pool.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdkit_over_tcp_with_delays() {
    let place = Place::new();
    let data = "data=( ( 0x41 )*300000 @5000000 \"the end\" )*2";
    let server = Server::nbdkit_tcp(&["--filter=delay", "data", data, "delay-read=10ms"]);
    let pool = connect(&server, "", &[context::BASE_ALLOCATION]).await;
    agrees_with_the_tools(&place, &server, "", &pool, None).await;
    pool.close().await;
}

/// The content of nbdkit's `pattern` plugin: each 8 bytes are their own offset, big-endian.
fn pattern(offset: u64, size: u64) -> Vec<u8> {
    let from = offset / 8 * 8;
    let words = (from..offset + size).step_by(8).flat_map(u64::to_be_bytes);
    words.skip(length(offset - from)).take(length(size)).collect()
}

#[tokio::test]
async fn the_largest_export_there_is() {
    let place = Place::new();
    let size = i64::MAX.unsigned_abs() & !511;
    let server = Server::nbdkit(&place, &["pattern", &size.to_string()]);
    let pool = connect(&server, "", &[context::BASE_ALLOCATION]).await;
    assert_eq!(pool.info().size, size);
    for (offset, length) in [(0, 10), (1 << 62, 700_001), (size - 300_003, 300_003), (size - 1, 1)] {
        assert!(read(&pool, offset, length).await[..] == pattern(offset, length)[..], "at {offset}");
    }
    let error = pool.read(size - 1, BytesMut::zeroed(2)).await.expect_err("outside");
    assert_eq!(error.kind(), ErrorKind::OutOfRange);
    // Longer than one compact request can name, and the answers stop where the server likes.
    let range = size - (10 << 30) - 5..size;
    let expected = [Extent { offset: range.start, length: (10 << 30) + 5, flags: 0 }];
    assert_eq!(map(&pool, context::BASE_ALLOCATION, range).await, expected);
    pool.close().await;
}

#[tokio::test]
async fn block_sizes_that_a_server_insists_on() {
    let place = Place::new();
    let policy = [
        "blocksize-error-policy=error",
        "blocksize-minimum=4096",
        "blocksize-preferred=8192",
        "blocksize-maximum=65536",
    ];
    let arguments = [&["--filter=blocksize-policy", "pattern", "1M"][..], &policy].concat();
    let server = Server::nbdkit(&place, &arguments);
    let pool = connect(&server, "", &[context::BASE_ALLOCATION]).await;
    let sizes = pool.info().block_size;
    assert_eq!((sizes.minimum, sizes.preferred, sizes.maximum), (4096, 8192, 65536));
    for (offset, length) in [(0, MIB), (1, 1), (4095, 2), (4097, 200_000), (MIB - 7, 7)] {
        assert!(read(&pool, offset, length).await[..] == pattern(offset, length)[..], "at {offset}");
    }
    map(&pool, context::BASE_ALLOCATION, 5..500_000).await;
    pool.close().await;
}

#[tokio::test]
async fn errors_of_the_disk_are_answers() {
    let place = Place::new();
    let arguments = ["--filter=error", "pattern", "64M", "error-pread=EIO", "error-pread-rate=40%"];
    let server = Server::nbdkit(&place, &arguments);
    let pool = connect(&server, "", &[]).await;
    let (mut good, mut bad) = (0, 0);
    for round in 0..200 {
        let offset = round * 4096 + 3;
        match pool.read(offset, BytesMut::zeroed(100)).await {
            Ok(buf) => {
                good += 1;
                assert!(buf[..] == pattern(offset, 100)[..]);
            }
            Err(error) => {
                bad += 1;
                assert_eq!(error.kind(), ErrorKind::Server(5), "{error}");
            }
        }
    }
    assert!(good > 20 && bad > 20, "{good} good, {bad} bad");
    assert_eq!((pool.stats().reconnects, pool.stats().faults), (0, 0));
    pool.close().await;
}

#[tokio::test]
async fn servers_that_lack_something_are_refused() {
    for arguments in [&["--no-sr", "null"][..], &["--mask-handshake=0", "null"], &["-o", "null"]] {
        let place = Place::new();
        let server = Server::nbdkit(&place, arguments);
        let error = Pool::connect(server.address(), "", &[], config()).await.expect_err("unfit");
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{arguments:?}");
    }
    let place = Place::new();
    std::fs::write(place.path("keys"), "user:0123456789abcdef0123456789abcdef\n").expect("written");
    let psk = format!("--tls-psk={}", place.arg("keys"));
    let server = Server::nbdkit(&place, &["--tls=require", &psk, "null"]);
    let error = Pool::connect(server.address(), "", &[], config()).await.expect_err("no TLS");
    assert_eq!(error.kind(), ErrorKind::Refused);
    let source = std::error::Error::source(&error).expect("the server's answer").to_string();
    assert!(source.contains("TLS alone"), "{source}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_crashes_and_comes_back() {
    let place = Place::new();
    sparse_image(&place.path("disk"), 16 * MIB);
    let disk = place.arg("disk");
    let arguments = ["--shared=8", "-f", "raw", &disk];
    let mut server = Server::qemu_nbd(&place, &arguments);
    let pool = connect(&server, "", &[]).await;
    let copying = {
        let (pool, ours) = (pool.clone(), place.path("ours"));
        tokio::spawn(async move {
            for _ in 0..12 {
                copy(&pool, &ours, MIB, 8).await;
            }
        })
    };
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(40)).await;
        server.kill();
        tokio::time::sleep(Duration::from_millis(40)).await;
        server = tokio::task::block_in_place(|| Server::qemu_nbd(&place, &arguments));
    }
    copying.await.expect("every read was answered, however often it was asked");
    assert_same(&place.path("ours"), &place.path("disk"));
    assert!(pool.stats().reconnects > 0);
    assert_eq!(pool.stats().faults, 0);

    server.kill();
    sparse_image(&place.path("disk"), 17 * MIB);
    let _server = tokio::task::block_in_place(|| Server::qemu_nbd(&place, &arguments));
    let error = pool.read(0, BytesMut::zeroed(512)).await.expect_err("another disk");
    assert_eq!(error.kind(), ErrorKind::Changed);
}

#[tokio::test]
async fn what_is_trimmed_takes_no_space() {
    use std::os::unix::fs::MetadataExt;
    // Extended headers, and compact ones with simple replies to what carries nothing.
    for kind in ["qemu-storage-daemon", "nbdkit"] {
        let place = Place::new();
        let disk = place.arg("disk");
        std::fs::write(&disk, vec![7; length(8 * MIB)]).expect("an image");
        let (server, export) = if kind == "nbdkit" {
            (Server::nbdkit(&place, &["file", &disk]), "")
        } else {
            let blockdev = format!("driver=file,node-name=disk,filename={disk},discard=unmap");
            let arguments = ["--blockdev", &blockdev, "--export", "type=nbd,id=x,node-name=disk,name=disk,writable=on"];
            (Server::storage_daemon(&place, "", &arguments), "disk")
        };
        let pool = connect(&server, export, &[]).await;
        assert_eq!(pool.info().extended_headers, kind != "nbdkit", "{kind}");
        assert!(pool.info().can_trim);
        let used = || std::fs::metadata(&disk).expect("the image").blocks() * 512;
        let before = used();
        pool.trim(MIB..5 * MIB).await.expect("trimmed");
        assert!(used() + 3 * MIB < before, "{kind}: {} of {before} bytes are used", used());
        assert!(read(&pool, MIB, 4 * MIB).await.iter().all(|byte| *byte == 0));
        assert!(read(&pool, 5 * MIB, MIB).await.iter().all(|byte| *byte == 7));
        assert_eq!(pool.trim(8 * MIB..9 * MIB).await.expect_err("beyond the end").kind(), ErrorKind::OutOfRange);
        pool.close().await;
    }
    let place = Place::new();
    sparse_image(&place.path("disk"), MIB);
    let server = Server::qemu_nbd(&place, &["-f", "raw", "-x", "vda", &place.arg("disk")]);
    let pool = connect(&server, "vda", &[]).await;
    assert_eq!(pool.trim(0..MIB).await.expect_err("read-only").kind(), ErrorKind::Unsupported);
    pool.close().await;
}
