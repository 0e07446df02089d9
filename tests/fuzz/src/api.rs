//! Requests of the REST API, as text, and the state machine behind them. An input is lines `METHOD PATH BODY`.

use lightv_api::offer;
use lightv_api::request::{Call, Method, Request};
use lightv_api_server::controller::{Controller, Setup};

use crate::fake_machine::{FakeMachine, without_files};

/// Requests of one input.
const REQUESTS_MAX: usize = 16;

/// One line as a call.
fn call(line: &[u8]) -> Option<Call<'_>> {
    let mut words = line.splitn(3, |byte| *byte == b' ');
    let method = Method::of(str::from_utf8(words.next()?).ok()?)?;
    let path = str::from_utf8(words.next()?).ok()?;
    let body = words.next().unwrap_or_default();
    Some(Call { method, path, body })
}

/// The first byte says what this version of LightV lacks; the rest are requests.
pub fn run(input: &[u8]) {
    let Some((kind, lines)) = input.split_first() else {
        return;
    };
    let mut setup = Setup::new("fuzz");
    setup.lacking = if kind & 1 == 0 {
        offer::NOT_OFFERED
    } else {
        &[]
    };
    let mut controller = Controller::new(FakeMachine::default(), setup);
    for line in lines.split(|byte| *byte == b'\n').take(REQUESTS_MAX) {
        let Some(parsed) = call(line).and_then(|call| Request::parse(call).ok()) else {
            continue;
        };
        let before = shown(&mut controller);
        if controller.handle(without_files(parsed.request)).is_err() {
            assert_eq!(before, shown(&mut controller), "a refusal changes nothing");
        }
    }
}

/// All that clients see of the machine.
fn shown(controller: &mut Controller<FakeMachine>) -> Vec<String> {
    let all = [
        Request::GetInfo,
        Request::GetFullConfig,
        Request::GetMachine,
        Request::GetMmds,
    ];
    let answers = all.into_iter().map(|request| controller.handle(request));
    answers.map(|answer| format!("{answer:?}")).collect()
}
