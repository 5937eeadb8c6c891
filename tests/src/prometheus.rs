//! A scraper: asks for metrics as Prometheus does, and reads them as its text format says.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use crate::tools;

/// For an answer; the daemon's own limit for a machine that hangs is 2 s.
const LIMIT: Duration = Duration::from_secs(30);

/// The values of a scrape, by name and labels.
#[derive(Debug, Default)]
pub struct Metrics {
    /// As it came.
    pub text: String,
    /// What each family is, by name.
    pub kinds: BTreeMap<String, String>,
    /// Each sample: its name, its labels without those of the mount, its value.
    pub samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

impl Metrics {
    /// Reads a page; panics where it is none.
    #[track_caller]
    pub fn parse(text: &str) -> Self {
        let mut metrics = Self { text: text.to_owned(), ..Self::default() };
        for line in text.lines() {
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').expect("a name and a type");
                assert!(metrics.kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "twice: {line}");
            } else if !line.starts_with('#') {
                metrics.samples.push(sample(line).unwrap_or_else(|| panic!("no sample: {line}")));
            }
        }
        metrics
    }

    /// The value that has these labels among its own.
    #[track_caller]
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.find(name, labels).unwrap_or_else(|| panic!("no {name} with {labels:?} in\n{}", self.text))
    }

    /// The same of a value that counts something; 0 if there is none.
    #[track_caller]
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let value = self.find(name, labels).unwrap_or(0.0);
        value.to_string().parse().unwrap_or_else(|e| panic!("{name} with {labels:?} is {value}: {e}"))
    }

    /// The value that has these labels among its own, if there is one.
    pub fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let fits = |of: &BTreeMap<String, String>| {
            labels.iter().all(|(label, value)| of.get(*label).is_some_and(|is| is == value))
        };
        self.samples.iter().find(|(of, with, _)| of == name && fits(with)).map(|(_, _, value)| *value)
    }
}

fn sample(line: &str) -> Option<(String, BTreeMap<String, String>, f64)> {
    let (name, mut rest) = line.split_once('{')?;
    let mut labels = BTreeMap::new();
    while let Some((label, more)) = rest.split_once("=\"") {
        let mut value = String::new();
        let mut characters = more.char_indices();
        let end = loop {
            match characters.next()? {
                (at, '"') => break at,
                (_, '\\') => value.push(match characters.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, other) => value.push(other),
            }
        };
        labels.insert(label.trim_start_matches(',').to_owned(), value);
        rest = &more[end + 1..];
        if rest.starts_with('}') {
            break;
        }
    }
    Some((name.to_owned(), labels, rest.strip_prefix("} ")?.parse().ok()?))
}

/// Asks once; what came, head and all.
///
/// # Errors
/// When there is no answer.
pub fn request(port: u16, line: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)))?;
    stream.set_read_timeout(Some(LIMIT))?;
    write!(stream, "{line} HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// What a mount tells on a port.
#[track_caller]
pub fn scrape(port: u16) -> Metrics {
    let answer = request(port, "GET /metrics").expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.to_lowercase().contains("content-type: text/plain; version=0.0.4"), "{head}");
    Metrics::parse(body)
}

/// Panics unless promtool finds no fault, not even with names.
#[track_caller]
pub fn approved(text: &str) {
    let mut command = tools::promtool();
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("a page");
    let output = child.wait_with_output().expect("its verdict");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
}
