use proptest::prelude::*;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn reads_what_it_documents() {
    let options = Options::parse("ro,disks=vda+vdb,scratch=/a\\,b,start=manual,umask=027,formats=raw,uid=5").unwrap();
    assert_eq!(options.disks.unwrap().into_iter().collect::<Vec<_>>(), ["vda", "vdb"]);
    assert_eq!(options.scratch, PathBuf::from("/a,b"));
    assert_eq!((options.start, options.umask, options.uid), (Start::Manual, 0o027, Some(5)));
    assert_eq!(options.formats, Formats { raw: true, qcow2: false, map: false, partitions: false });
    assert_eq!(Options::parse("").unwrap(), Options::default());
    let options = Options::parse("scratch_limit=10G,hold_limit=2h,idle_timeout=90").unwrap();
    assert_eq!(options.scratch_limit, Some(10 << 30));
    assert_eq!((options.hold_limit, options.idle_timeout), (Some(2 * HOUR), Some(HOUR / 40)));
    let options = Options::parse("cache=64M,readahead=0").unwrap();
    assert_eq!((options.cache, options.readahead), (64 << 20, 0));
    let options = Options::parse("max_rate=20M,max_inflight=4,polite").unwrap();
    assert_eq!((options.max_rate, options.max_inflight, options.polite), (Some(20 << 20), Some(4), true));
}

#[test]
fn says_what_an_option_takes() {
    for (text, word) in [
        ("start=now", "read or manual"),
        ("scratch=tmp", "absolute path"),
        ("scratch=pool:", "pool:NAME"),
        ("umask=999", "octal"),
        ("connections=0", "from 1 to 16"),
        ("speed=11", "no mount option speed"),
        ("disks=", "names of disks"),
        ("nbd=tcp:1", "unix:PATH"),
        ("nbd=vm:0,insecure", "HOST:PORT"),
        ("nbd=vm:10809", "tls=DIR"),
        ("tls=pki", "absolute path"),
        ("formats=vmdk", "joined by +"),
        ("cluster_size=3K", "power of two"),
        ("fleece=sheep", "job, backing or filter"),
        ("scratch_limit=0", "number of bytes"),
        ("scratch_limit=99999999T", "number of bytes"),
        ("hold_limit=soon", "a time"),
        ("idle_timeout=0", "a time"),
        ("cache=0", "number of bytes"),
        ("readahead=far", "number of bytes"),
        ("max_rate=1K", "at least 64K"),
        ("max_rate=fast", "bytes a second"),
        ("max_inflight=0", "from 1 to 1024"),
        ("sandbox=no", "auto or off"),
        ("metrics=here", ":PORT for this host alone"),
    ] {
        let error = Options::parse(text).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn tcp_is_with_tls_or_meant_to_be_without() {
    let nbd = |text: &str| Options::parse(text).unwrap().nbd.unwrap().to_string();
    assert_eq!(nbd("nbd=vm:10809,tls=/etc/pki/vm"), "vm:10809");
    assert_eq!(nbd("insecure,nbd=tcp:127.0.0.1:10809"), "127.0.0.1:10809");
    assert_eq!(nbd("nbd=[::1]:10809,insecure"), "[::1]:10809");
    assert_eq!(nbd("nbd=unix:/run/nbd"), "unix:/run/nbd");
}

proptest! {
    #[test]
    fn any_text_is_options_or_an_error(text in "[a-z=+,\\\\0-9/]{0,40}") {
        let _ = Options::parse(&text);
    }

    #[test]
    fn a_value_with_commas_survives(path in "/[a-z,]{0,20}") {
        let text = format!("ro,scratch={},allow_other", path.replace(',', "\\,"));
        prop_assert_eq!(Options::parse(&text).unwrap().scratch, PathBuf::from(path));
    }
}
