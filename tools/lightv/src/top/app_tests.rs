//! See `app`.

use ratatui::crossterm::event::KeyEvent;

use super::*;
use crate::stats::{Details, Moved, Taken};
use crate::top::sampler::Rates;

/// A microVM that has been looked at.
pub(in crate::top) fn row(id: &str, pid: u32, cpu_percent: f64) -> Row {
    let rate = f64::from(pid) * 1024.0;
    Row {
        vm: VmRecord {
            id: id.to_owned(),
            pid,
            api_socket: Some(format!("/run/lightv/{id}.sock").into()),
            source: Some(format!("/srv/{id}.lv").into()),
            log: Some(format!("/run/lightv/{id}.log").into()),
            started_unix_s: 1_000_000 - u64::from(pid) * 60,
            version: "0.1.0".to_owned(),
            ..VmRecord::default()
        },
        state: State::Known(InstanceState::Running),
        cpu_percent: Some(cpu_percent),
        taken: Some(Taken {
            resident_kib: u64::from(pid) * 100,
            threads: 2,
            details: Some(Details {
                own_kib: u64::from(pid),
                guest_kib: u64::from(pid) * 90,
                guest_private_kib: u64::from(pid) * 9,
                open_files: 20,
            }),
            moved: Some(Moved::default()),
        }),
        rates: Some(Rates {
            read: rate,
            written: rate * 2.0,
            received: rate * 3.0,
            sent: rate * 4.0,
            exits: f64::from(pid),
        }),
    }
}

pub(in crate::top) fn found(rows: Vec<Row>) -> Found {
    Found {
        rows,
        now: 1_000_000,
    }
}

pub(in crate::top) fn press(app: &mut App, keys: &[KeyCode]) -> Action {
    let mut last = Action::None;
    for key in keys {
        last = app.press(KeyEvent::from(*key));
    }
    last
}

fn app() -> App {
    let mut app = App::new(Theme::with_colour(true));
    let mut silent = row("silent", 12, 0.0);
    silent.state = State::Silent;
    silent.rates = None;
    app.take(found(vec![
        row("web", 10, 1.0),
        row("db", 11, 50.0),
        silent,
        row("web-2", 13, 3.0),
    ]));
    app
}

fn ids(app: &App) -> Vec<&str> {
    app.rows().iter().map(|row| row.vm.id.as_str()).collect()
}

fn selected(app: &App) -> &str {
    &app.selected().expect("one").vm.id
}

#[test]
fn rows_are_sorted_by_each_column_both_ways() {
    let mut app = app();
    assert_eq!(ids(&app), ["db", "web-2", "web", "silent"]);
    for _ in Column::ALL {
        let downwards: Vec<String> = ids(&app).into_iter().map(str::to_owned).collect();
        press(&mut app, &[KeyCode::Char('r')]);
        let mut upwards = ids(&app);
        if app.sort != Column::State {
            upwards.reverse();
            assert_eq!(upwards, downwards, "{:?}", app.sort);
        }
        press(&mut app, &[KeyCode::Char('r'), KeyCode::Right]);
    }
    press(&mut app, &[KeyCode::Right, KeyCode::Right, KeyCode::Right]);
    assert_eq!(app.sort, Column::Guest);
    assert_eq!(ids(&app), ["web-2", "silent", "db", "web"]);
    press(&mut app, &[KeyCode::Right, KeyCode::Right]);
    // Rates of one that does not answer are not known, and last.
    assert_eq!((app.sort, ids(&app)[3]), (Column::Written, "silent"));
    app.sort = Column::Id;
    assert_eq!(ids(&app), ["db", "silent", "web", "web-2"]);
}

#[test]
fn a_selection_stays_with_its_microvm_and_goes_on_to_the_next_when_that_has_ended() {
    let mut app = app();
    assert_eq!(selected(&app), "db");
    press(&mut app, &[KeyCode::Down]);
    assert_eq!(selected(&app), "web-2");
    app.take(found(vec![row("web", 10, 90.0), row("web-2", 13, 3.0)]));
    assert_eq!(selected(&app), "web-2");
    press(&mut app, &[KeyCode::Down, KeyCode::Down]);
    assert_eq!(selected(&app), "web-2", "the last is the last");
    press(&mut app, &[KeyCode::Home, KeyCode::Up]);
    assert_eq!(selected(&app), "web");
    app.take(found(vec![row("web-2", 13, 3.0)]));
    assert_eq!(selected(&app), "web-2");
    app.take(found(Vec::new()));
    assert_eq!(app.selected().map(|row| row.vm.pid), None);
    assert_eq!(
        press(&mut app, &[KeyCode::Enter, KeyCode::Char('k')]),
        Action::None
    );
    assert_eq!(
        app.mode,
        Mode::Table,
        "there is nothing to be shown or killed"
    );
}

#[test]
fn a_filter_is_typed_and_taken_away() {
    let mut app = app();
    let typed = ['/', 'W', 'e', 'b', 'x'].map(KeyCode::Char);
    press(&mut app, &typed);
    assert!(ids(&app).is_empty());
    press(&mut app, &[KeyCode::Backspace]);
    assert_eq!(ids(&app), ["web-2", "web"]);
    press(&mut app, &[KeyCode::Enter, KeyCode::Down]);
    assert_eq!((selected(&app), &app.filter[..]), ("web", "Web"));
    press(&mut app, &[KeyCode::Esc]);
    assert_eq!(ids(&app).len(), 4);
    // `q` is a letter here.
    press(&mut app, &[KeyCode::Char('/'), KeyCode::Char('q')]);
    assert_eq!((&app.mode, &app.filter[..]), (&Mode::Filter, "q"));
    press(&mut app, &[KeyCode::Char('x'); 100]);
    assert_eq!(app.filter.len(), FILTER_MAX);
    press(
        &mut app,
        &[
            KeyCode::Esc,
            KeyCode::Char('/'),
            KeyCode::Char('1'),
            KeyCode::Char('1'),
        ],
    );
    assert_eq!(ids(&app), ["db"], "a process id");
}

#[test]
fn nothing_is_stopped_without_a_yes() {
    let mut app = app();
    for (key, is_kill) in [('s', false), ('k', true)] {
        press(&mut app, &[KeyCode::Char(key)]);
        let Mode::Ask(question) = &app.mode else {
            panic!("{:?}", app.mode)
        };
        assert_eq!(question.text().starts_with("Kill db (process 11)"), is_kill);
        for other in [KeyCode::Enter, KeyCode::Char('k'), KeyCode::Down] {
            assert_eq!(press(&mut app, &[other]), Action::None);
            assert!(matches!(app.mode, Mode::Ask(_)));
        }
        assert_eq!(press(&mut app, &[KeyCode::Char('n')]), Action::None);
        assert_eq!(app.mode, Mode::Table);
        let action = press(
            &mut app,
            &[KeyCode::Enter, KeyCode::Char(key), KeyCode::Char('y')],
        );
        let Action::Stop { vm, patience } = action else {
            panic!("{action:?}")
        };
        assert_eq!((vm.pid, patience.is_none()), (11, is_kill));
        assert_eq!(app.mode, Mode::Details);
        press(&mut app, &[KeyCode::Esc]);
    }
}

#[test]
fn details_end_with_their_microvm() {
    let mut app = app();
    assert_eq!(app.focus(), None);
    press(&mut app, &[KeyCode::Enter]);
    assert_eq!((&app.mode, app.focus()), (&Mode::Details, Some(11)));
    app.take(found(vec![row("web", 10, 1.0)]));
    assert_eq!((&app.mode, app.focus()), (&Mode::Table, None));
    assert!(app.message.is_some());
    press(&mut app, &[KeyCode::Down]);
    assert_eq!(app.message, None);
}

#[test]
fn control_keys_end_and_suspend_in_every_mode() {
    for keys in [
        &[][..],
        &[KeyCode::Char('/')],
        &[KeyCode::Enter],
        &[KeyCode::Char('k')],
    ] {
        for (key, expected) in [('c', Action::Quit), ('z', Action::Suspend)] {
            let mut app = app();
            press(&mut app, keys);
            let mode = app.mode.clone();
            let key = KeyEvent::new(KeyCode::Char(key), KeyModifiers::CONTROL);
            assert_eq!(app.press(key), expected);
            assert_eq!(app.mode, mode);
        }
    }
    assert_eq!(press(&mut app(), &[KeyCode::Char('q')]), Action::Quit);
}
