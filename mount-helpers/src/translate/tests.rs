//! Command lines of mount(8), by hand and by chance; what comes of them is read by the parser of `pullfs` itself.

use std::path::PathBuf;

use proptest::prelude::*;
use pullfs_fs::options::Options;

use super::*;

fn call(line: &[&str]) -> Result<Request, String> {
    translate(line.iter().map(OsString::from))
}

fn mount(line: &[&str]) -> Vec<String> {
    match call(line).unwrap() {
        Request::Mount(arguments) => arguments.into_iter().map(|part| part.into_string().unwrap()).collect(),
        Request::Nothing => panic!("something was asked for"),
    }
}

#[test]
fn what_fstab_says_for_others_is_left_out() {
    let options = "rw,noauto,_netdev,x-systemd.automount,x-systemd.idle-timeout=60,disks=a+b,scratch=/a\\,b,nofail,\
                   user,defaults,comment=nightly,X-mount.mkdir,uhelper=udisks2";
    let call = mount(&["qmp:/run/vm.qmp", "/mnt", "-o", options]);
    assert_eq!(call, ["mount", "-o", "rw,disks=a+b,scratch=/a\\,b", "--", "qmp:/run/vm.qmp", "/mnt"]);
    assert_eq!(mount(&["qmp:x", "/m", "-o", "defaults"]), ["mount", "--", "qmp:x", "/m"]);
}

#[test]
fn quotes_are_those_of_libmount() {
    let call = mount(&["qmp:x", "/m", "-o", "x-a=\"b,ro\",scratch=\"/a,b\",backing=c\\\"d"]);
    assert_eq!(call, ["mount", "-o", "scratch=/a\\,b,backing=c\"d", "--", "qmp:x", "/m"]);
}

#[test]
fn flags_may_stand_together() {
    assert_eq!(mount(&["-sv", "qmp:x", "/m", "-n", "-t", "pullfs"]), ["mount", "-v", "--", "qmp:x", "/m"]);
    assert_eq!(call(&["qmp:x", "/m", "-f"]).unwrap(), Request::Nothing);
}

#[test]
fn wrong_usage_is_refused() {
    let wrong = [
        &["qmp:x"][..],
        &["qmp:x", "/m", "-o"],
        &["qmp:x", "/m", "-q"],
        &["a", "b", "c"],
        &["qmp:x", "/m", "-N", "/proc/1/ns/mnt"],
        &["qmp:x", "/m", "-o", "rw,remount"],
        &["qmp:x", "/m", "-o", "scratch=\"/a"],
    ];
    for line in wrong {
        assert!(call(line).is_err(), "{line:?}");
    }
}

/// How a value with commas and quotes is written.
#[derive(Debug, Clone, Copy)]
enum Style {
    Backslashes,
    Quotes,
}

fn written(value: &str, style: Style) -> String {
    let value = value.replace('"', "\\\"");
    match style {
        Style::Backslashes => value.replace(',', "\\,"),
        Style::Quotes => format!("\"{value}\""),
    }
}

/// A value that can be written: a backslash before a comma, a quote or the end has no form of its own.
fn value() -> impl Strategy<Value = String> {
    proptest::string::string_regex(r#"([a-z0-9 ,"='+é]|\\[a-z]){1,12}"#).unwrap()
}

fn style() -> impl Strategy<Value = Style> {
    prop_oneof![Just(Style::Backslashes), Just(Style::Quotes)]
}

/// Options that pullfs is not to see, with values that look like options of its own.
fn of_others() -> impl Strategy<Value = String> {
    let named = ("(x-[a-z.]{1,8}|X-[a-z.]{1,8}|comment|helper)", value(), style());
    let flag = proptest::sample::select(&NOT_OURS[..]).prop_map(str::to_owned);
    prop_oneof![flag, named.prop_map(|(name, value, style)| format!("{name}={}", written(&value, style)))]
}

proptest! {
    #[test]
    fn any_command_line_is_a_request_or_an_error(
        line in proptest::collection::vec(prop_oneof![r"-{0,2}[a-zN]{0,3}", r#"[a-z=,"\\ ]{0,9}"#, any::<String>()], 0..8)
    ) {
        let flags: Vec<&String> = line.iter().filter(|word| word.starts_with('-') && word.len() > 1).collect();
        match translate(line.iter().map(OsString::from)) {
            Err(message) => prop_assert!(!message.is_empty()),
            Ok(Request::Nothing) => prop_assert!(flags.iter().any(|flag| flag.contains('f'))),
            Ok(Request::Mount(call)) => {
                let end = call.len() - 3;
                prop_assert_eq!((&call[0], &call[end]), (&OsString::from("mount"), &OsString::from("--")));
                // `pullfs` is given places as they were, in their order, and no flag of others.
                let mut places = line.iter().map(OsString::from).skip_while(|word| *word != call[end + 1]);
                prop_assert!(places.next().is_some() && places.any(|word| word == call[end + 2]));
                let more = call[1..end].strip_prefix(&[OsString::from("-v")]).unwrap_or(&call[1..end]);
                prop_assert!(more.is_empty() || (more.len() == 2 && more[0] == "-o" && !more[1].is_empty()));
            }
        }
    }

    #[test]
    fn pullfs_reads_the_values_that_were_written(
        scratch in value(), backing in value(), others in proptest::collection::vec(of_others(), 3),
        styles in (style(), style()), several in any::<bool>()
    ) {
        let scratch = format!("/{scratch}");
        let ours = [
            format!("scratch={}", written(&scratch, styles.0)),
            format!("backing={}", written(&backing, styles.1)),
            "umask=027".to_owned(),
        ];
        let mixed: Vec<&str> = others.iter().zip(&ours).flat_map(|(other, ours)| [other.as_str(), ours]).collect();
        let mut line = vec!["qmp:x".to_owned(), "/m".to_owned()];
        // In one word or in several.
        for words in mixed.chunks(if several { 1 } else { mixed.len() }) {
            line.extend(["-o".to_owned(), words.join(",")]);
        }
        let Request::Mount(call) = translate(line.into_iter().map(OsString::from)).unwrap() else {
            panic!("something was asked for");
        };
        let read = Options::parse(call[2].to_str().unwrap()).unwrap();
        let expected = Options { scratch: PathBuf::from(scratch), backing, umask: 0o027, ..Options::default() };
        prop_assert_eq!(read, expected);
    }
}
