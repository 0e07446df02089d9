//! The host agent from outside: the web page, tokens, TLS, metrics and the dashboard made of them.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io::{BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use lightv_api::agent::pool::Pool;
use lightv_api::agent::stats::{AgentStats, SandboxUsage};
use lightv_tests::agent::{self, Agent};
use lightv_tests::host::has_kvm;
use lightv_tests::process::{DEADLINE, Process, run, tool, wait_for};
use lightv_tests::prometheus::{self, Labels};
use lightv_tests::scratch::Scratch;
use serde_json::{Value, json};

const TOKEN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef";

/// A file of the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// A file in `scratch` that nobody else can read.
fn write_secret(scratch: &Scratch, name: &str, text: &str) -> String {
    let path = scratch.write(name, text);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its permissions");
    scratch.text(name)
}

/// An agent that serves TCP with `args` too, and where its page is.
fn start(scratch: &Scratch, args: &[&str]) -> (Agent, String) {
    let tokens = write_secret(scratch, "tokens", &format!("# ours\n{TOKEN}\n"));
    let args = [&["--listen", "127.0.0.1:0", "--token-file", &tokens], args].concat();
    let agent = Agent::start(scratch, &args);
    let url = agent.process().wait_stderr(|said| {
        let (_, url) = said.split_once("lightv-agent: http")?;
        let (url, _) = url.split_once('\n')?;
        Some(format!("http{url}"))
    });
    (agent, url)
}

/// What is answered to `request`, all of it as text; the connection ends with it.
fn ask(url: &str, request: &str) -> String {
    let host = url.trim_start_matches("http://").trim_end_matches("/web/");
    let mut stream = TcpStream::connect(host).expect("a connection");
    stream.set_read_timeout(Some(DEADLINE)).expect("a deadline");
    let request = format!("{request}\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("a request");
    let mut answer = String::new();
    let read = BufReader::new(stream).read_to_string(&mut answer);
    read.expect("an answer");
    answer
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_default()
}

fn scrape(agent: &Agent) -> prometheus::Scrape {
    let mut stream = agent.api.connect().expect("a connection");
    let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.contains("application/openmetrics-text"), "{head}");
    prometheus::parse(body)
}

#[test]
fn only_the_page_is_for_those_without_a_token() {
    let scratch = Scratch::new();
    let (agent, url) = start(&scratch, &["--insecure-loopback"]);
    let page = ask(&url, "GET /web/ HTTP/1.1");
    assert_eq!(status(&page), "200", "{page}");
    let head = page.split_once("\r\n\r\n").expect("a head").0;
    assert!(
        head.contains("default-src 'none'; script-src 'self'"),
        "{head}"
    );
    assert!(head.contains("frame-ancestors 'none'"), "{head}");
    let led = ask(&url, "GET / HTTP/1.1\r\nAccept: text/html,*/*;q=0.8");
    assert!(status(&led) == "303" && led.contains("web/"), "{led}");
    let before = value(&scrape(&agent), "intruders_total");
    let (half, other) = (&TOKEN[1..], TOKEN.to_uppercase());
    let mut count = 0;
    for authorization in [
        String::new(),
        format!("\r\nAuthorization: Bearer {half}"),
        format!("\r\nAuthorization: Bearer {other}"),
        format!("\r\nAuthorization: Basic {TOKEN}"),
        format!("\r\nCookie: token={TOKEN}"),
        "\r\nAuthorization: Bearer # ours".to_owned(),
    ] {
        for line in [
            "GET /",
            "GET /metrics",
            "GET /stats",
            "DELETE /sandboxes/a",
            "GET /none",
            "OPTIONS /",
        ] {
            let answer = ask(&url, &format!("{line} HTTP/1.1{authorization}"));
            assert_eq!(status(&answer), "401", "{line}{authorization}: {answer}");
            let head = answer.to_lowercase();
            assert!(head.contains("www-authenticate: bearer"), "{answer}");
            assert!(answer.contains("--token-file"), "{answer}");
            count += 1;
        }
    }
    let after = value(&scrape(&agent), "intruders_total");
    assert!(
        (after - before - f64::from(count)).abs() < 0.5,
        "{before} {after} {count}"
    );
    let admitted = format!("\r\nAuthorization: Bearer {TOKEN}");
    let answer = ask(&url, &format!("GET / HTTP/1.1{admitted}"));
    assert!(answer.contains("lightv_version"), "{answer}");
    let answer = ask(&url, &format!("GET /none HTTP/1.1{admitted}"));
    assert_eq!(status(&answer), "404", "{answer}");
    agent.end();
}

/// Looks whether an agent with the arguments `line` is refused with `code` and `words`, and tells no secret.
#[track_caller]
fn check_refused(scratch: &Scratch, line: &str, code: u8, words: &[&str]) {
    let args: Vec<&str> = line.split_whitespace().collect();
    let finished = run(&mut agent::command(scratch, &args));
    assert_eq!(finished.code, i32::from(code), "{line}: {finished:?}");
    for word in words {
        let is_named = finished.stderr.contains(word);
        assert!(is_named, "{word} is not in {finished:?}");
    }
    let tells = finished.stderr.contains(TOKEN) || finished.stderr.contains("secret");
    assert!(!tells, "{finished:?}");
}

#[test]
fn tcp_without_tls_or_tokens_is_refused() {
    let scratch = Scratch::new();
    let tokens = write_secret(&scratch, "tokens", TOKEN);
    let check = |line: &str, code, words: &[&str]| check_refused(&scratch, line, code, words);
    let at = format!("--token-file {tokens} --listen");
    check("--listen 127.0.0.1:0", 153, &["--token-file"]);
    check(&format!("--token-file {tokens}"), 153, &["--listen"]);
    let words = ["--tls-cert", "--insecure-loopback"];
    check(&format!("{at} 127.0.0.1:0"), 153, &words);
    let words = ["0.0.0.0:0", "127.0.0.0/8"];
    check(&format!("{at} 0.0.0.0:0 --insecure-loopback"), 153, &words);
    let line = format!("{at} 127.0.0.1:0 --tls-cert {tokens}");
    check(&line, 153, &["--tls-key"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address").to_string();
    let line = format!("{at} {address} --insecure-loopback");
    check(&line, 158, &[&address]);
}

#[test]
fn bad_files_of_tokens_certificates_and_keys_are_refused_by_name() {
    let scratch = Scratch::new();
    let tokens = write_secret(&scratch, "tokens", TOKEN);
    let (cert, key) = certificate(&scratch, "one");
    let (_, other_key) = certificate(&scratch, "other");
    let text = |path: &str| fs::read_to_string(path).expect("a file");
    let readable = |name: &str, text: &str| {
        let path = write_secret(&scratch, name, text);
        let mode = fs::Permissions::from_mode(0o644);
        fs::set_permissions(&path, mode).expect("its permissions");
        path
    };
    let check = |line: &str, words: &[&str]| {
        let line = format!("--listen 127.0.0.1:0 {line}");
        check_refused(&scratch, &line, 152, words);
    };
    let with_tokens = |path: &str, words: &[&str]| {
        let line = format!("--insecure-loopback --token-file {path}");
        check(&line, &[&[path], words].concat());
    };
    with_tokens(&readable("open", TOKEN), &["644", "chmod 600"]);
    let short = write_secret(&scratch, "short", "secret");
    with_tokens(&short, &["line 1", "32"]);
    with_tokens("none", &["No such file"]);
    let with_tls = |cert: &str, key: &str, words: &[&str]| {
        let line = format!("--token-file {tokens} --tls-cert {cert} --tls-key {key}");
        check(&line, words);
    };
    with_tls(&key, &key, &["--tls-cert", &key, "no certificate"]);
    let no_key = write_secret(&scratch, "no.key", &text(&cert));
    with_tls(&cert, &no_key, &["--tls-key", &no_key, "no private key"]);
    let open_key = readable("open.key", &text(&key));
    with_tls(&cert, &open_key, &[&open_key, "644"]);
    with_tls(&cert, &other_key, &[&cert, &other_key]);
}

/// A certificate for 127.0.0.1, and its key.
fn certificate(scratch: &Scratch, name: &str) -> (String, String) {
    let (cert, key) = (
        scratch.text(&format!("{name}.pem")),
        scratch.text(&format!("{name}.key")),
    );
    tool(&format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=lightv \
         -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {cert}"
    ));
    (cert, key)
}

/// `node --test` of the page, as it is shown by the agent at `url`.
fn page_test(scratch: &Scratch) -> Command {
    let mut command = scratch.command("node", &["--test", "--test-reporter=tap"]);
    command.arg(repository("tests/browser/page_test.mjs"));
    command
}

#[test]
fn the_page_shows_and_stops_a_machine_over_tls() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (cert, key) = certificate(&scratch, "agent");
    let image = scratch.build("tick", &["--", "0", "20"]);
    let (agent, url) = start(&scratch, &["--tls-cert", &cert, "--tls-key", &key]);
    agent.put_image(&scratch, "tick", &image);
    let body = json!({"image": "tick", "name": "shown", "labels": {"team": "blue"}});
    let made = agent.create(&body);
    let finished = run(page_test(&scratch)
        .env("LIGHTV_PAGE_URL", url.trim_end_matches("web/"))
        .env("LIGHTV_PAGE_TOKEN", TOKEN)
        .env("LIGHTV_PAGE_MACHINE", "shown")
        .env("NODE_EXTRA_CA_CERTS", &cert));
    let finished = finished.with_code(0);
    assert!(finished.stdout.contains("# pass 11\n"), "{finished:?}");
    assert_eq!(agent.wait(&made.id).exit_code, Some(143));
    // A client that does not speak TLS is none, and harms nobody.
    let mut plain =
        TcpStream::connect(url.trim_start_matches("https://").trim_end_matches("/web/"))
            .expect("a connection");
    plain
        .write_all(b"GET / HTTP/1.1\r\n\r\n")
        .expect("a request");
    plain.set_read_timeout(Some(DEADLINE)).expect("a deadline");
    let mut answer = Vec::new();
    // Reset or ended, after TLS's own words.
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    agent.end();
}

/// The page in front of machines that come and go, in headless Chromium, which writes agent-page.png into the folder
/// LIGHTV_PICTURES, if that is set, after a minute.
#[test]
fn a_browser_shows_machines_that_come_and_go_and_stops_one() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let (agent, url) = start(&scratch, &["--insecure-loopback"]);
    let long = scratch.build("tick", &["--", "0", "20"]);
    let short = scratch.build("hello", &["--", "again"]);
    for (name, file) in [("web", &long), ("worker", &long), ("job", &short)] {
        agent.put_image(&scratch, name, file);
    }
    for (name, max) in [("job", 8), ("web", 4)] {
        let pool = json!({"min": 2, "max": max});
        let answer = agent.api.call("PUT", &format!("/pools/{name}"), &pool);
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    for (image, team) in [("web", "shop"), ("worker", "search"), ("web", "search")] {
        for number in 1..=3 {
            let name = format!("{team}-{image}-{number}");
            let labels = json!({"team": team, "number": number.to_string()});
            drop(agent.create(&json!({"image": image, "name": name, "labels": labels})));
        }
    }
    let program = env::var("LIGHTV_CHROMIUM").unwrap_or("chromium-headless-shell".to_owned());
    let mut command = scratch.command("node", &[]);
    command.arg(repository("tests/browser/use_page.mjs")).args([
        &program,
        &url,
        TOKEN,
        "shop-web-2",
    ]);
    if let Some(folder) = env::var_os("LIGHTV_PICTURES") {
        command.arg(Path::new(&folder).join("agent-page.png"));
    }
    let mut browser = Process::start(&mut command);
    let mut number = 0_u32;
    while browser.is_alive() {
        number += 1;
        let body = json!({"image": "job", "labels": {"build": number.to_string()}});
        let job = agent.create(&body);
        let _ = agent.wait(&job.id);
        // Some stay to be seen.
        if !number.is_multiple_of(4) {
            agent.delete(&job.id);
        }
        thread::sleep(Duration::from_millis(u64::from(50 + number * 37 % 400)));
    }
    let _ = browser.finish().with_code(0);
    let stopped = agent.list();
    let stopped = stopped
        .iter()
        .find(|sandbox| sandbox.name.as_deref() == Some("shop-web-2"));
    assert_eq!(stopped.and_then(|sandbox| sandbox.exit_code), Some(143));
    delete_all(&agent);
    agent.end();
}

/// Machines go on when their agent ends.
fn delete_all(agent: &Agent) {
    for sandbox in agent.list() {
        agent.delete(&sandbox.id);
    }
}

/// The value of a series, which is written `name label=value …`.
fn value(scrape: &prometheus::Scrape, series: &str) -> f64 {
    let mut words = series.split(' ');
    let name = format!("lightv_agent_{}", words.next().unwrap_or_default());
    let pairs = words.filter_map(|word| word.split_once('='));
    let labels: Labels = pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    scrape.value(&name, &labels)
}

#[test]
fn metrics_and_stats_count_what_has_happened() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("tick", &["--", "0", "20"]);
    let agent = Agent::start(&scratch, &[]);
    agent.put_image(&scratch, "tick", &image);
    let cold = |_| agent.create(&json!({"image": "tick", "warm": "never"}));
    let running = [0, 1].map(cold);
    let bounds = json!({"min": 1, "max": 2});
    let _ = agent.api.call("PUT", "/pools/tick", &bounds);
    let pool = || agent.ask::<Vec<Pool>>("GET", "/pools").remove(0);
    let is_ready = || (pool().ready > 0).then_some(());
    wait_for("a machine that is ready", is_ready);
    let ended = agent.create(&json!({"image": "tick", "warm": "require"}));
    let _: Value = agent.ask("POST", &format!("/sandboxes/{}/stop", ended.id));
    let missing = json!({"image": "none"});
    agent.refused(("POST", "/sandboxes"), &missing, (404, &["none"]));
    // Refused by its monitor alone: there is no such tap.
    let body = json!({"image": "tick", "net": ["eth0=lvnone0"]});
    let failed = agent.api.call("POST", "/sandboxes", &body);
    assert!(failed.status >= 400, "{failed:?}");

    let stats: AgentStats = agent.ask("GET", "/stats");
    assert_eq!((stats.counts.running, stats.counts.ended), (2, 1));
    assert_eq!((stats.starts.cold, stats.starts.warm), (2, 1));
    assert_eq!(stats.start_times.counts.iter().sum::<u64>(), 3);
    let ids: BTreeSet<&str> = stats.usage.iter().map(|it| it.id.as_str()).collect();
    assert_eq!(ids, running.iter().map(|it| it.id.as_str()).collect());
    let takes_memory = |it: &SandboxUsage| it.memory_bytes > 0;
    assert!(stats.usage.iter().all(takes_memory), "{stats:?}");

    let scrape = scrape(&agent);
    let ram = 2.0 * running[0].memory_mib as f64 * 1_048_576.0;
    for (series, expected) in [
        ("sandboxes state=running", 2.0),
        ("sandboxes state=ended", 1.0),
        ("starts_total way=cold", 2.0),
        ("starts_total way=warm", 1.0),
        ("start_duration_seconds_count way=cold", 2.0),
        ("start_failures_total", stats.starts.failed as f64),
        ("pool_served_total image=tick", 1.0),
        ("pool_vms image=tick kind=min", 1.0),
        ("images", 1.0),
        (
            "requests_total method=POST route=/sandboxes status=201",
            3.0,
        ),
        (
            "requests_total method=POST route=/sandboxes status=404",
            1.0,
        ),
        ("guest_memory_bytes", ram),
    ] {
        let found = value(&scrape, series);
        assert!((found - expected).abs() < 0.01, "{series}: {found}");
    }
    for series in ["sandbox_memory_bytes", "host_cpus", "open_files"] {
        assert!(value(&scrape, series) > 0.0, "{series}");
    }
    dashboard_names_what_there_is(&scrape);
    delete_all(&agent);
    agent.end();
}

/// Every metric that docs/grafana-lightv.json and docs/agent-web.md name is in what was scraped, and the other way round.
fn dashboard_names_what_there_is(scrape: &prometheus::Scrape) {
    for file in ["docs/grafana-lightv.json", "docs/agent-web.md"] {
        let text = fs::read_to_string(repository(file)).expect(file);
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let named: Vec<&str> = words
            .filter(|word| word.starts_with("lightv_agent_"))
            .collect();
        assert!(named.len() > 15, "{file}: {named:?}");
        for name in &named {
            assert!(scrape.has(name), "{file} names {name}, which there is not");
        }
        for family in scrape.families() {
            let is_named = named.iter().any(|name| name.starts_with(&family));
            assert!(is_named, "{file} does not name {family}");
        }
    }
}

#[test]
fn commands_reach_the_agent_that_lightv_serve_is() {
    if !has_kvm() {
        return;
    }
    let scratch = Scratch::new();
    let image = scratch.build("tick", &["--", "0", "20"]);
    let nobody = scratch.run(&["pool", "ls"]);
    nobody.assert_refused(1, &["agent.sock", "lightv serve"]);
    scratch
        .run(&["serve", "--max-sandboxes", "0"])
        .assert_refused(153, &["--max-sandboxes"]);
    let mut serve = scratch.lightv(&["serve", "--keep-memory", "64", "--state"]);
    let agent = Agent::start_as(&scratch, serve.arg(scratch.path("state")));
    let run = |args: &[&str]| scratch.run(args).with_code(0).stdout;
    // A path that is not absolute is the client's.
    let file = Path::new(&image).file_name().expect("a name");
    let file = file.to_str().expect("text");
    assert_eq!(run(&["images", "push", "tick", file]), "");
    let stored = run(&["images", "stored"]);
    assert!(
        stored.contains("tick") && stored.contains("sha256:"),
        "{stored}"
    );
    assert_eq!(
        run(&["pool", "set", "tick", "--min", "0", "--max", "2"]),
        ""
    );
    let pools: Vec<Pool> = serde_json::from_str(&run(&["pool", "ls", "--json"])).expect("pools");
    assert_eq!((pools[0].min, pools[0].max), (0, 2));
    let table = run(&["pool", "ls"]);
    assert!(
        table.contains("WANTED") && table.contains("tick"),
        "{table}"
    );
    let asked = run(&["api", "--agent", "GET", "/pools/tick"]);
    assert!(asked.contains("\"digest\""), "{asked}");
    let refused = scratch.run(&["pool", "set", "none"]);
    refused.assert_refused(1, &["none"]);
    let refused = scratch.run(&["pool", "set", "tick", "--min", "9", "--max", "2"]);
    refused.assert_refused(1, &["min", "9"]);
    assert_eq!(run(&["pool", "rm", "tick"]), "");
    assert_eq!(run(&["images", "rm", "tick"]), "");
    assert_eq!(agent.ask::<Value>("GET", "/images"), json!([]));
    agent.end();
}
