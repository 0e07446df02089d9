//! `metadata STEP…`: asks the metadata service, one step after the other, and echoes TCP on port 7 meanwhile.
//!
//! `token=SECONDS` gets a token and keeps it; `wrong-token` spoils it, `no-token` forgets it. `json`, `text`: what is
//! accepted. `get=PATH` prints status and body, lines as blanks; `put=PATH` the same. `wait=MS` waits; `again` begins anew, after
//! `loop` if there is one.

use alloc::string::String;
use core::fmt::Write as _;
use core::net::Ipv4Addr;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::State;

use super::echo::echo_tcp;
use super::{Refusal, STATUS_OK, network};
use crate::machine::{Epoch, Machine};
use crate::network::Network;
use crate::println;
use crate::time;

/// The service's address, unless the command line has `mmds=`.
const SERVICE: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Our own address in its network.
const OWN: (Ipv4Addr, u8) = (Ipv4Addr::new(169, 254, 1, 1), 16);
const HTTP_PORT: u16 = 80;
const ECHO_PORT: u16 = 7;
const BUFFER_BYTES: usize = 16 * 1024;
const NS_PER_MS: u64 = 1_000_000;
/// How long an answer may take.
const ANSWER_MS: u64 = 60_000;

pub fn run(machine: &mut Machine) -> Result<u8, Refusal> {
    let mut network = network(machine)?;
    let echo = network.add_tcp(BUFFER_BYTES, BUFFER_BYTES);
    let http = network.add_tcp(BUFFER_BYTES, BUFFER_BYTES);
    let epoch = Epoch::now();
    machine.ready();
    let service = match machine.cmdline.value("mmds") {
        None => SERVICE,
        Some(text) => text
            .parse()
            .map_err(|_| Refusal::Usage("mmds=IPV4-ADDRESS"))?,
    };
    let mut client = Client {
        machine,
        network,
        epoch,
        echo,
        http,
        service,
        port: 49_152,
        token: None,
        is_json: false,
    };
    client.start()?;
    let mut first = 0;
    loop {
        let mut is_again = false;
        for step in machine.args().skip(first) {
            is_again = step == "again";
            client.take(step)?;
        }
        if !is_again {
            return Ok(STATUS_OK);
        }
        first = machine.args().position(|step| step == "loop").unwrap_or(0);
    }
}

struct Client<'a> {
    machine: &'a Machine,
    network: Network,
    epoch: Epoch,
    echo: SocketHandle,
    http: SocketHandle,
    service: Ipv4Addr,
    port: u16,
    token: Option<String>,
    is_json: bool,
}

struct Answer {
    status: String,
    body: String,
}

impl Client<'_> {
    fn start(&mut self) -> Result<(), Refusal> {
        self.network.start(self.machine.ipv4()?);
        self.network.add_address(OWN.0, OWN.1);
        Ok(())
    }

    fn take(&mut self, step: &str) -> Result<(), Refusal> {
        let (name, value) = step.split_once('=').unwrap_or((step, ""));
        match name {
            "token" => {
                let mut headers = String::new();
                // A String takes every byte.
                let _ = write!(headers, "X-metadata-token-ttl-seconds: {value}\r\n");
                let answer = self.ask("PUT", "/latest/api/token", &headers)?;
                println!("token {} of {} letters", answer.status, answer.body.len());
                self.token = Some(answer.body);
            }
            "wrong-token" => {
                if let Some(token) = &mut self.token {
                    let last = token.pop();
                    token.push(if last == Some('A') { 'B' } else { 'A' });
                }
            }
            "no-token" => self.token = None,
            "json" => self.is_json = true,
            "text" => self.is_json = false,
            "get" | "put" => {
                let method = if name == "get" { "GET" } else { "PUT" };
                let answer = self.ask(method, value, "")?;
                let body = answer.body.replace('\n', " ");
                println!("{} {value} {body}", answer.status);
            }
            "wait" => {
                let ms = value.parse().map_err(|_| Refusal::Usage("wait=MS"))?;
                self.turn_until(ms, |_, _| false)?;
            }
            "loop" | "again" => {}
            _ => return Err(Refusal::Usage("token=SECONDS, get=PATH, put=PATH, …")),
        }
        Ok(())
    }

    /// Moves frames until `is_done`, or for `ms`. True if it is done.
    fn turn_until(
        &mut self,
        ms: u64,
        mut is_done: impl FnMut(&mut Network, SocketHandle) -> bool,
    ) -> Result<bool, Refusal> {
        let mut until = time::now_ns() + ms * NS_PER_MS;
        while time::now_ns() < until {
            if self.epoch.changed() {
                self.start()?;
                until = time::now_ns() + ms * NS_PER_MS;
            }
            self.network.poll();
            let _ = echo_tcp(&mut self.network, self.echo, ECHO_PORT);
            if is_done(&mut self.network, self.http) {
                self.network.poll();
                return Ok(true);
            }
            core::hint::spin_loop();
        }
        Ok(false)
    }

    /// A request on a connection of its own, and its answer: of one that was broken off, no status.
    fn ask(&mut self, method: &str, path: &str, headers: &str) -> Result<Answer, Refusal> {
        let mut request = String::new();
        let accept = if self.is_json {
            "application/json"
        } else {
            "*/*"
        };
        // A String takes every byte.
        let _ = write!(
            request,
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nAccept: {accept}\r\nConnection: close\r\n{headers}",
            self.service
        );
        if let Some(token) = &self.token {
            let _ = write!(request, "X-metadata-token: {token}\r\n");
        }
        request.push_str("\r\n");
        self.port = self.port.checked_add(1).unwrap_or(49_152);
        self.network.tcp(self.http).abort();
        self.network
            .connect(self.http, (self.service, HTTP_PORT), self.port);
        let mut answer = String::new();
        let mut sent = 0;
        self.turn_until(ANSWER_MS, |network, http| {
            let socket = network.tcp(http);
            if socket.can_send() && sent < request.len() {
                sent += socket.send_slice(&request.as_bytes()[sent..]).unwrap_or(0);
            }
            while socket.can_recv() {
                let _ = socket.recv(|bytes| {
                    answer.push_str(core::str::from_utf8(bytes).unwrap_or("?"));
                    (bytes.len(), ())
                });
            }
            matches!(socket.state(), State::CloseWait | State::Closed)
        })?;
        self.network.tcp(self.http).close();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        Ok(Answer {
            status: head.split(' ').nth(1).unwrap_or("none").into(),
            body: body.into(),
        })
    }
}
