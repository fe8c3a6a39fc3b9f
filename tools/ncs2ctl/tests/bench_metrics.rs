//! `bench --metrics-listen`: a page that Prometheus reads, and names that the docs list.

mod tool;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use tool::{fails, model};

/// A bench that runs until it is told to stop, and where its metrics are.
struct Bench {
    child: Child,
    address: String,
}

impl Bench {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ncs2ctl"))
            .args(["--sim", "2", "bench", "--duration", "10m", "--metrics-listen", "127.0.0.1:0"])
            .arg(model("tiny_u8_s1.blob"))
            .env("XDG_CONFIG_HOME", env!("CARGO_TARGET_TMPDIR"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut said = BufReader::new(child.stderr.take().expect("piped")).lines();
        let address = said.find_map(|line| {
            let line = line.expect("UTF-8");
            Some(line.split_once("http://")?.1.split('/').next()?.to_owned())
        });
        // Nobody reads on; that must not stop it.
        std::thread::spawn(move || said.count());
        Bench { address: address.expect("it says where"), child }
    }

    fn ask(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("it listens");
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        answer
    }

    /// The body of the page.
    fn page(&self) -> String {
        let answer = self.ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert!(
            head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("text/plain; version=0.0.4"),
            "{head}"
        );
        body.to_owned()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Name, labels and value of every sample; panics where the format is broken.
fn samples(page: &str) -> Vec<(String, String, f64)> {
    let mut typed = BTreeSet::new();
    let mut samples = Vec::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a kind");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(typed.insert(name.to_owned()), "{name} twice");
            continue;
        }
        if line.starts_with("# HELP ") {
            continue;
        }
        let (name, rest) = line.split_once('{').unwrap_or_else(|| panic!("{line}"));
        let (labels, value) = rest.rsplit_once("} ").unwrap_or_else(|| panic!("{line}"));
        let family =
            ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        assert!(typed.contains(name) || typed.contains(family), "{name} has no type");
        samples.push((
            name.to_owned(),
            labels.to_owned(),
            value.parse().unwrap_or_else(|_| panic!("{line}")),
        ));
    }
    samples
}

#[test]
fn the_page_is_what_prometheus_reads_and_the_docs_list() {
    let bench = Bench::start();
    let value = |page: &str, name: &str, labels: &str| {
        let found = samples(page).into_iter().find(|(n, l, _)| n == name && l.contains(labels));
        found.unwrap_or_else(|| panic!("{name}{{{labels}}} in\n{page}")).2
    };
    // It counts while it runs; a run that never answers ends with the test's own time limit.
    let mut page = bench.page();
    while value(&page, "ncs2_completed_total", "") < 10.0 {
        std::thread::yield_now();
        page = bench.page();
    }
    let all = samples(&page);
    assert!(all.iter().all(|(_, labels, _)| labels.contains("simulated=\"true\"")), "{page}");
    for stick in ["stick=\"sim0\"", "stick=\"sim1\""] {
        assert_eq!(value(&page, "ncs2_stick_ready", stick), 1.0);
        // Buckets are cumulative and end with all.
        let buckets: Vec<f64> = all
            .iter()
            .filter(|(n, l, _)| n == "ncs2_latency_seconds_bucket" && l.contains(stick))
            .map(|(.., v)| *v)
            .collect();
        assert!(buckets.windows(2).all(|w| w[0] <= w[1]), "{buckets:?}");
        assert_eq!(buckets.last(), Some(&value(&page, "ncs2_latency_seconds_count", stick)));
    }
    let served: BTreeSet<String> = page
        .lines()
        .filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next().map(str::to_owned))
        .collect();
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
    let docs = std::fs::read_to_string(docs).expect("committed");
    let listed: BTreeSet<String> = docs
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next().map(str::to_owned))
        .collect();
    assert_eq!(served, listed, "docs/metrics.md lists what is served");

    assert!(bench.ask("GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404"));
    assert!(bench.ask("POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405"));
    let head = bench.ask("HEAD /metrics HTTP/1.1\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
    // Too long a head, and a client that leaves: neither takes the page down.
    let mut endless = TcpStream::connect(&bench.address).expect("it listens");
    let _ = endless.write_all(&vec![b'a'; 20_000]);
    drop((endless, TcpStream::connect(&bench.address).expect("it listens")));
    assert!(bench.page().contains("ncs2_info"));
}

#[test]
fn an_address_that_will_not_do_is_refused() {
    let held = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = held.local_addr().expect("bound").to_string();
    let blob = model("tiny_u8_s1.blob");
    let blob = blob.to_str().expect("UTF-8");
    let args = |address: &str| {
        ["--sim", "1", "bench", blob, "--metrics-listen", address].map(str::to_owned).to_vec()
    };
    let refuse = |address: &str, code, kind: &str, words: &[&str]| {
        let args = args(address);
        fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), "bench", code, kind, words);
    };
    refuse(&taken, 2, "InUse", &[&taken, "another port"]);
    drop(held);
    refuse("0.0.0.0:0", 64, "Usage", &["0.0.0.0:0", "--metrics-public"]);
    refuse("9484", 64, "Usage", &["--metrics-listen"]);
}
