use std::thread;
use std::time::Instant;

use super::*;

/// Ids and names of the events that `subscription` gets now, and whether the feed is over.
fn take_all(subscription: &mut Subscription) -> (Vec<String>, bool) {
    let mut found = Vec::new();
    loop {
        let text = match subscription.take() {
            Taken::Events(text) => String::from_utf8(text.to_vec()).unwrap(),
            Taken::Nothing => return (found, false),
            Taken::Over => return (found, true),
        };
        for event in text.split_terminator("\n\n") {
            let line = |name| {
                let mut values = event.lines().filter_map(|line| line.strip_prefix(name));
                values.next().unwrap_or("-").to_owned()
            };
            let data: VmEvent = serde_json::from_str(&line("data: ")).unwrap();
            assert!(data.time_unix_us > 0);
            assert_eq!(line("event: "), data.what.name());
            let count = match data.what {
                Happening::Missed { count } => format!(" {count}"),
                _ => String::new(),
            };
            found.push(format!("{} {}{count}", line("id: "), line("event: ")));
        }
    }
}

fn ended() -> Happening {
    Happening::Ended {
        status: 0,
        reason: String::new(),
    }
}

fn list(events: &[&str]) -> Vec<String> {
    events.iter().map(ToString::to_string).collect()
}

#[test]
fn a_late_reader_gets_what_has_happened_and_one_that_comes_back_gets_the_rest() {
    let feed = Feed::default();
    feed.publish(Happening::Started);
    feed.publish(Happening::Paused);
    let mut late = feed.subscribe(0);
    assert_eq!(
        take_all(&mut late),
        (list(&["1 started", "2 paused"]), false)
    );
    feed.publish(Happening::Resumed);
    assert_eq!(take_all(&mut late), (list(&["3 resumed"]), false));
    let mut back = feed.subscribe(1);
    feed.publish(ended());
    let rest = list(&["2 paused", "3 resumed", "4 ended"]);
    assert_eq!(take_all(&mut back), (rest, true));
    assert_eq!(take_all(&mut late), (list(&["4 ended"]), true));
}

#[test]
fn an_id_of_another_process_is_none() {
    let feed = Feed::default();
    feed.publish(Happening::Started);
    let all = (list(&["1 started"]), false);
    assert_eq!(take_all(&mut feed.subscribe(2)), all);
    assert_eq!(take_all(&mut feed.subscribe(u64::MAX)), all);
    assert_eq!(take_all(&mut feed.subscribe(1)), (vec![], false));
}

#[test]
fn who_is_too_slow_is_told_what_it_missed_and_how_it_began() {
    let feed = Feed::default();
    let mut slow = feed.subscribe(0);
    feed.publish(Happening::Started);
    let mut slower = feed.subscribe(1);
    let kept = limits::EVENTS_KEPT as u64;
    for _ in 0..kept + 10 {
        feed.publish(Happening::Paused);
    }
    let last = kept + 11;
    assert_eq!(feed.lock().recent.len(), limits::EVENTS_KEPT);
    let (found, _) = take_all(&mut slow);
    assert_eq!(found[..3], ["1 started", "- missed 10", "12 paused"]);
    assert_eq!(found.last(), Some(&format!("{last} paused")));
    assert_eq!(found.len(), limits::EVENTS_KEPT + 2);
    let (found, _) = take_all(&mut slower);
    assert_eq!(found[..2], ["- missed 10", "12 paused"]);
}

#[test]
fn nothing_is_missed_as_long_as_all_is_kept() {
    let feed = Feed::default();
    for _ in 0..limits::EVENTS_KEPT {
        feed.publish(Happening::Paused);
    }
    let (found, _) = take_all(&mut feed.subscribe(0));
    assert_eq!(found.len(), limits::EVENTS_KEPT);
    feed.publish(Happening::Paused);
    let (found, _) = take_all(&mut feed.subscribe(0));
    assert_eq!(found.len(), limits::EVENTS_KEPT + 1, "the first too");
    assert_eq!(found[..2], ["1 paused", "2 paused"]);
}

/// The end of `feed` waits for `awaited`, but not for ever.
fn check_end_waits(feed: &Feed, awaited: Awaited) {
    let count = awaited.count;
    let began = Instant::now();
    feed.end(Duration::from_millis(50));
    assert!(began.elapsed() >= Duration::from_millis(50));
    let leaver = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        drop(awaited);
    });
    feed.end(Duration::from_secs(60));
    assert_eq!(*count(&mut feed.lock()), 0);
    leaver.join().unwrap();
}

#[test]
fn the_end_waits_for_readers_but_not_for_ever() {
    let feed = Feed::default();
    feed.end(Duration::from_secs(60));
    let reader = feed.enter(1).unwrap();
    assert!(feed.enter(1).is_none());
    check_end_waits(&feed, reader);
    feed.publish(Happening::Started);
    assert_eq!(take_all(&mut feed.subscribe(0)), (vec![], true));
}

#[test]
fn the_end_waits_for_answers_that_are_owed() {
    let feed = Feed::default();
    check_end_waits(&feed, feed.owe());
}
