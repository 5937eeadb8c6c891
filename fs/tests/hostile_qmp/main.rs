//! A QMP server that lies, stalls, cuts off and talks nonsense, at every place of a session that was real once: each
//! time pullfs says in one line what went wrong, in time, and keeps its head.

mod nonsense;
mod record;
mod session;

use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nonsense::{KINDS, STALLING};
use pullfs_fs::block::throttle::{Limits, Throttle};
use pullfs_fs::error::{Result, chain};
use pullfs_fs::options::Fleece;
use pullfs_fs::vm::qmp::ids::MountId;
use pullfs_fs::vm::qmp::monitor::Monitor;
use pullfs_fs::vm::qmp::{QmpVm, Settings};
use pullfs_fs::vm::{Vm, Wanted};
use session::{Act, Server, Session};
use tokio::time::Instant;

/// Longest line of an error, in characters: a cut text of QEMU's, and our own words around it.
const MAX_LINE: usize = 2000;

/// A server that does not answer costs the time limit of a command (30 s), and 5 s for each step that is then undone in
/// vain: eight of them at most (the guest is let go first, in one burst that is waited for once), when the point in time
/// fails, when that is given up, and at the end of the mount. The longest that these sessions take is 120 s.
const STALLED: Duration = Duration::from_secs(30 + 3 * 8 * 5);

/// Sessions are played by so many threads: waiting for each other is most of what both sides do.
const THREADS: usize = 2;

fn settings(server: &Server, mount: &MountId) -> Settings {
    Settings {
        source: "qmp:hostile".to_owned(),
        monitor: Monitor::unix(&server.path("qmp")),
        mount: mount.clone(),
        runtime_dir: server.path("run"),
        scratch_dir: server.path("scratch"),
        scratch_limit: None,
        read_once: false,
        throttle: Throttle::new(Limits::default(), 1 << 18),
        disks: None,
        fleece: Fleece::Auto,
        server: None,
        quiesce: None,
        nbd: nbd_pool::Config::default(),
    }
}

/// The recorded life of a mount; how many of its stages were reached.
async fn live(settings: Settings, reached: &AtomicUsize) -> Result<()> {
    let stage = || reached.fetch_add(1, Ordering::Relaxed);
    let vm = QmpVm::connect(settings, None).await?;
    stage();
    let outcome = async {
        let wanted = Wanted { checkpoint: Some(Arc::from("monday")), ..Wanted::default() };
        let number = vm.take(1, &wanted).await?.number;
        stage();
        vm.confirm(number).await?;
        vm.release().await?;
        stage();
        vm.inventory().await?;
        vm.delete_checkpoint("monday", false).await?;
        stage();
        Ok(())
    }
    .await;
    if outcome.is_err() {
        // As the end of the mount does; what cannot be undone is an error again.
        vm.release().await.ok();
    }
    vm.disconnect().await;
    outcome
}

/// What became of one session.
struct Played {
    stages: usize,
    /// The line of error.
    error: Option<String>,
}

/// Plays `session` to a mount of its own on a thread of its own clock.
fn play(session: fn(&str) -> Session, act: impl Fn(usize, &str) -> Act) -> Played {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (mount, reached) = (MountId::random(), AtomicUsize::new(0));
    let server = runtime.block_on(async { Server::new() });
    let session = session(&mount.to_string());
    let outcome = runtime.block_on(async {
        let began = Instant::now();
        let mount = live(settings(&server, &mount), &reached);
        tokio::pin!(mount);
        let outcome = tokio::select! {
            outcome = &mut mount => outcome,
            () = server.play(&session, act) => mount.await,
        };
        assert!(began.elapsed() < STALLED, "after {:?}: {outcome:?}", began.elapsed());
        outcome
    });
    // What was spawned ends with the runtime.
    drop(runtime);
    let left = server.path("scratch").read_dir().expect("the scratch directory").count();
    assert_eq!(left, 0, "a scratch file was left");
    let error = outcome.err().map(|error| chain(&error));
    if let Some(line) = &error {
        assert!(!line.contains(char::is_control) && line.chars().count() < MAX_LINE, "not one line: {line}");
        assert!(line.chars().count() > 20, "it says nothing: {line}");
    }
    Played { stages: reached.into_inner(), error }
}

/// Runs `each` for all of `0..count`, on several threads; panics in tasks count as well.
fn all(count: usize, each: impl Fn(usize) + Sync) {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            before(info);
        }));
    });
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        return;
                    }
                    each(index);
                }
            });
        }
    });
    assert_eq!(PANICS.load(Ordering::SeqCst), 0, "something panicked");
}

const SESSIONS: [fn(&str) -> Session; 2] = [Session::qemu_10, Session::qemu_7_2];

fn say(line: &str) -> Vec<u8> {
    format!("{line}\r\n").into_bytes()
}

/// Records a session; see the head of session.rs.
#[test]
#[ignore = "it makes the sessions that the others play, with a QEMU that is named to it"]
fn record_a_session() {
    let variable = |name| std::env::var_os(name).unwrap_or_else(|| panic!("{name} is not set"));
    let (qemu, to) = (variable("PULLFS_RECORD_FROM"), variable("PULLFS_RECORD_TO"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (mount, reached) = (MountId::random(), AtomicUsize::new(0));
    let server = runtime.block_on(async { Server::new() });
    std::fs::remove_file(server.path("qmp")).expect("the place of the go-between");
    let said = record::between(&server.path("qmp"), qemu.as_ref()).expect("a go-between");
    runtime.block_on(live(settings(&server, &mount), &reached)).expect("QEMU does it all");
    assert_eq!(reached.into_inner(), 4);
    let session = session::recorded(&said.lock().expect("nobody panics with it"), &mount.to_string());
    std::fs::write(to, session).expect("the recording is written");
}

#[test]
fn the_recorded_sessions_play_to_their_end() {
    for session in SESSIONS {
        let played = play(session, |_, line| Act::Say(say(line)));
        assert_eq!((played.stages, played.error), (4, None));
    }
}

/// Cuts each line that QEMU sends at the places that `cuts` gives for its length.
fn cut_at<I: Iterator<Item = usize>>(cuts: fn(usize) -> I) {
    for session in SESSIONS {
        let whole = session("pullfs-000000");
        let places: Vec<(usize, usize)> =
            whole.said().enumerate().flat_map(|(number, line)| cuts(line.len()).map(move |at| (number, at))).collect();
        all(places.len(), |index| {
            let (cut, at) = places[index];
            let played = play(session, |number, line| {
                let mut bytes = say(line);
                if number < cut {
                    return Act::Say(bytes);
                }
                bytes.truncate(at);
                Act::Cut(bytes)
            });
            let error = played.error.unwrap_or_else(|| panic!("cut at {cut}, {at}, and nothing was wrong"));
            assert!(error.contains("QMP"), "{error}");
        });
        println!("{} bytes, cut at {} places", whole.bytes(), places.len());
    }
}

#[test]
fn a_connection_that_is_cut_in_any_line_is_an_error_that_says_so() {
    cut_at(|length| [0, 1, length / 2, length - 1, length].into_iter());
}

/// The same at every byte: 46,000 sessions.
#[test]
#[ignore = "it takes an hour; what is between the ends of a line is alike"]
fn a_connection_that_is_cut_at_any_byte_is_an_error_that_says_so() {
    cut_at(|length| 0..=length);
}

#[test]
fn a_server_that_stops_answering_is_waited_for_no_longer_than_agreed() {
    let count = STALLING.len();
    for session in SESSIONS {
        let lines = session("pullfs-000000").said().count();
        all(lines * count, |index| {
            let (at, kind) = (index / count, &STALLING[index % count]);
            let played =
                play(session, |number, line| if number == at { (kind.instead)(line) } else { Act::Say(say(line)) });
            let error = played.error.unwrap_or_else(|| panic!("{} at {at}, and nothing was wrong", kind.name));
            // What comes in place of the greeting may be no greeting.
            assert!(error.contains("within") || at == 0, "{error}");
        });
    }
}

#[test]
fn nonsense_in_place_of_any_line_is_an_error_or_does_no_harm() {
    let count = KINDS.len();
    for session in SESSIONS {
        let said: Vec<String> = session("pullfs-000000").said().map(str::to_owned).collect();
        all(said.len() * count, |index| {
            let (at, kind) = (index / count, &KINDS[index % count]);
            if matches!((kind.instead)(&said[at]), Act::Say(bytes) if bytes == say(&said[at])) {
                // An event has no answer that could be another.
                return;
            }
            let played =
                play(session, |number, line| if number == at { (kind.instead)(line) } else { Act::Say(say(line)) });
            assert!(played.error.is_some() || played.stages == 4);
            assert!(played.error.is_some() || !kind.fatal, "{} in place of line {at} was believed", kind.name);
        });
        println!("{} lines, each replaced in {count} ways", said.len());
    }
}
