use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream as StdStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use lightv_api::agent::exec::ExecLine;
use lightv_contract::exec::{DATA_BYTES_MAX, Incoming, STDIN_WINDOW_BYTES, ToHost};

use super::*;

/// How long anything may take here.
const DEADLINE: Duration = Duration::from_secs(60);

/// A guest's end of a stream.
struct Fake {
    stream: StdStream,
    incoming: Incoming<ToGuest>,
}

impl Fake {
    fn say(&mut self, message: &ToHost) -> io::Result<()> {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        self.stream.write_all(&bytes)
    }

    /// What the host says next; `None` when it has ended the connection.
    fn hear(&mut self) -> Option<ToGuest> {
        loop {
            if let Some(message) = self.incoming.take().unwrap() {
                return Some(message);
            }
            let mut piece = [0; 4096];
            let length = self.stream.read(&mut piece).unwrap_or(0);
            if length == 0 {
                return None;
            }
            self.incoming.add(&piece[..length]);
        }
    }
}

/// What comes of a guest that lets us in, and then does what `play` does; it hangs up after that.
fn meet<T>(
    play: impl FnOnce(&mut Fake) + Send + 'static,
    work: impl AsyncFnOnce(Result<Guest, GuestError>) -> T,
) -> T {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v");
    let listener = UnixListener::bind(&path).unwrap();
    let guest = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut line = [0; 13];
        stream.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"CONNECT 1000\n");
        stream.write_all(b"OK 1073741824\n").unwrap();
        let incoming = Incoming::default();
        let mut fake = Fake { stream, incoming };
        assert_eq!(fake.hear(), Some(ToGuest::Start(b"{}".to_vec())));
        play(&mut fake);
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let done = runtime.block_on(async {
        let met = async {
            let mut guest = Guest::dial(&path).await?;
            guest.start(b"{}".to_vec()).await?;
            Ok(guest)
        };
        timeout(DEADLINE, work(met.await)).await.unwrap()
    });
    guest.join().unwrap();
    done
}

/// What becomes of a program, and the text that its client has got, which takes all.
async fn carry(met: Result<Guest, GuestError>, given: Given) -> (Outcome, String) {
    let (out, mut taken) = mpsc::channel(limits::PIECES_WAITING);
    let mut guest = met.unwrap();
    let carried = async {
        let mut lines = OutputLines::default();
        let outcome = guest.carry(given, &mut lines, &out).await;
        drop(out);
        outcome
    };
    let mut text = Vec::new();
    let took = async {
        while let Some(piece) = taken.recv().await {
            text.extend(piece);
        }
    };
    let (outcome, ()) = both(carried, took).await;
    (outcome, String::from_utf8(text).unwrap())
}

async fn both<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    let (mut a, mut b) = (std::pin::pin!(a), std::pin::pin!(b));
    match race(&mut a, &mut b).await {
        Raced::First(first) => (first, b.await),
        Raced::Second(second) => (a.await, second),
    }
}

#[test]
fn output_is_passed_on_and_no_more_input_sent_than_there_is_room_for() {
    let input: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    let expected = input.clone();
    let play = move |guest: &mut Fake| {
        guest.say(&ToHost::Started).unwrap();
        guest.say(&ToHost::Stderr(b"err".to_vec())).unwrap();
        let (mut found, mut under_way) = (Vec::new(), 0);
        loop {
            match guest.hear() {
                Some(ToGuest::Stdin(bytes)) => {
                    under_way += bytes.len();
                    found.extend(bytes);
                }
                Some(ToGuest::StdinEnd) => break,
                other => panic!("{other:?}"),
            }
            assert!(under_way <= STDIN_WINDOW_BYTES, "{under_way}");
            // Half of it, so that there is seldom room for a whole message.
            let taken = under_way.div_ceil(2);
            under_way -= taken;
            let taken = ToHost::StdinTaken(u32::try_from(taken).unwrap());
            guest.say(&taken).unwrap();
        }
        assert!(found == expected, "other bytes");
        guest.say(&ToHost::Stdout(b"out".to_vec())).unwrap();
        guest.say(&ToHost::Ended(3)).unwrap();
    };
    let stdin = Some(input);
    let time_max = None;
    let (outcome, text) = meet(play, async |met| {
        carry(met, Given { stdin, time_max }).await
    });
    assert!(
        matches!(
            outcome,
            Outcome::Ended {
                status: 3,
                timed_out: false
            }
        ),
        "{outcome:?}"
    );
    // What came with the end is the caller's to send; what came before it is sent already.
    let rest = text.strip_prefix("{\"stderr\":\"err\"}\n").expect(&text);
    assert!(["", "{\"stdout\":\"out\"}\n"].contains(&rest), "{text}");
}

#[test]
fn a_client_that_takes_nothing_holds_the_program_back_and_ends_it_by_leaving() {
    const COUNT: usize = 1024;
    let said = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&said);
    let play = move |guest: &mut Fake| {
        guest.say(&ToHost::Started).unwrap();
        let output = ToHost::Stdout(vec![b'y'; DATA_BYTES_MAX]);
        while guest.say(&output).is_ok() {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    };
    let outcome = meet(play, async |met| {
        let (out, taken) = mpsc::channel(limits::PIECES_WAITING);
        let (mut guest, mut lines) = (met.unwrap(), OutputLines::default());
        let carried = guest.carry(Given::default(), &mut lines, &out);
        let watched = async {
            let count = || said.load(Ordering::Relaxed);
            // There is some room on the way.
            while count() < 2 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
            assert!(count() < COUNT, "{} messages", count());
            drop(taken);
        };
        both(carried, watched).await.0
    });
    assert!(matches!(outcome, Outcome::Left), "{outcome:?}");
}

#[test]
fn a_client_that_leaves_a_silent_program_is_seen_to() {
    let play = |guest: &mut Fake| {
        guest.say(&ToHost::Started).unwrap();
        assert_eq!(guest.hear(), None);
    };
    let outcome = meet(play, async |met| {
        let (out, taken) = mpsc::channel(limits::PIECES_WAITING);
        drop(taken);
        let mut lines = OutputLines::default();
        met.unwrap().carry(Given::default(), &mut lines, &out).await
    });
    assert!(matches!(outcome, Outcome::Left), "{outcome:?}");
}

#[test]
fn when_the_time_is_over_the_program_is_killed_whoever_waits_for_whom() {
    let play = |guest: &mut Fake| {
        guest.say(&ToHost::Started).unwrap();
        // More than the client takes, and no input is taken.
        let mut output = guest.stream.try_clone().unwrap();
        let writer = thread::spawn(move || {
            let mut bytes = Vec::new();
            ToHost::Stdout(vec![b'y'; DATA_BYTES_MAX]).encode(&mut bytes);
            while output.write_all(&bytes).is_ok() {}
        });
        let mut bytes = 0;
        loop {
            match guest.hear() {
                Some(ToGuest::Stdin(piece)) => bytes += piece.len(),
                Some(ToGuest::Signal(9)) => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(bytes, STDIN_WINDOW_BYTES);
        guest.stream.shutdown(std::net::Shutdown::Both).unwrap();
        writer.join().unwrap();
    };
    let outcome = meet(play, async |met| {
        let (out, mut taken) = mpsc::channel(limits::PIECES_WAITING);
        let (mut guest, mut lines) = (met.unwrap(), OutputLines::default());
        let given = Given {
            stdin: Some(vec![0; 1 << 20]),
            time_max: Some(Duration::from_millis(300)),
        };
        let carried = guest.carry(given, &mut lines, &out);
        let took = async {
            // From then on it takes all.
            tokio::time::sleep(Duration::from_secs(1)).await;
            while taken.recv().await.is_some() {}
        };
        // It has hung up before the end of a message.
        match race(carried, took).await {
            Raced::First(outcome) => outcome,
            Raced::Second(()) => panic!("the sender is there"),
        }
    });
    assert!(
        matches!(outcome, Outcome::Failed(GuestError::Lost)),
        "{outcome:?}"
    );
}

#[test]
fn a_program_that_was_killed_says_so() {
    let play = |guest: &mut Fake| {
        guest.say(&ToHost::Started).unwrap();
        assert_eq!(guest.hear(), Some(ToGuest::Signal(9)));
        guest.say(&ToHost::Ended(137)).unwrap();
    };
    let given = Given {
        stdin: None,
        time_max: Some(Duration::from_millis(1)),
    };
    let (outcome, _) = meet(play, async |met| carry(met, given).await);
    assert!(
        matches!(
            outcome,
            Outcome::Ended {
                status: 137,
                timed_out: true
            }
        ),
        "{outcome:?}"
    );
}

#[test]
fn a_guest_that_breaks_off_or_the_rules_is_heard_no_further() {
    let hung_up = meet(
        |guest| guest.say(&ToHost::Started).unwrap(),
        async |met| carry(met, Given::default()).await,
    );
    assert!(
        matches!(hung_up.0, Outcome::Failed(GuestError::Lost)),
        "{hung_up:?}"
    );
    let rude = meet(
        |guest| {
            guest.say(&ToHost::Started).unwrap();
            guest.say(&ToHost::Stdout(b"x".to_vec())).unwrap();
            guest.stream.write_all(&[3, 255, 255, 255, 127]).unwrap();
            assert_eq!(guest.hear(), None);
        },
        async |met| carry(met, Given::default()).await,
    );
    let Outcome::Failed(GuestError::Hear(HearError::Message(_))) = rude.0 else {
        panic!("{rude:?}")
    };
    let untrue = meet(
        |guest| {
            guest.say(&ToHost::Started).unwrap();
            guest.say(&ToHost::StdinTaken(1)).unwrap();
            assert_eq!(guest.hear(), None);
        },
        async |met| carry(met, Given::default()).await,
    );
    let Outcome::Failed(GuestError::Hear(HearError::Order(_))) = untrue.0 else {
        panic!("{untrue:?}")
    };
}

#[test]
fn why_a_program_does_not_start_is_told() {
    let refused = meet(
        |guest| {
            let text = "ls: No such file\n".to_owned();
            guest.say(&ToHost::Refused { status: 127, text }).unwrap();
        },
        async |met| met.unwrap_err(),
    );
    assert_eq!(refused.to_string(), "In the guest: ls: No such file ");
    let early = meet(
        |guest| guest.say(&ToHost::Ended(0)).unwrap(),
        async |met| met.unwrap_err(),
    );
    assert!(
        matches!(early, GuestError::Hear(HearError::Order(_))),
        "{early:?}"
    );
    let lost = meet(|_| {}, async |met| met.unwrap_err());
    assert!(matches!(lost, GuestError::Lost), "{lost:?}");
}

#[test]
fn the_last_lines_are_a_clients_too() {
    let mut lines = OutputLines::default();
    lines.add_stdout(b"last");
    let text = lines.end(&ExecLine::Failed("gone".to_owned()));
    assert_eq!(text, b"{\"stdout\":\"last\"}\n{\"failed\":\"gone\"}\n");
}
