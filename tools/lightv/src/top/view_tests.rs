//! Frames as they should be, in `golden/`. `LIGHTV_UPDATE_GOLDEN=1` writes them anew.

use std::env;
use std::fs;
use std::path::Path;

use lightv_api::contract::instance::InstanceState;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::KeyCode;
use ratatui::style::Color;

use super::*;
use crate::top::app::tests::{found, press, row};
use crate::top::theme::Theme;
use crate::vms::State;

fn app(has_colour: bool) -> App {
    let mut app = App::new(Theme::with_colour(has_colour));
    for look in 0..20 {
        let wave = f64::from(look % 7) * 13.0;
        let mut paused = row("db", 4211, 0.0);
        paused.state = State::Known(InstanceState::Paused);
        let mut silent = row("stuck", 4212, 0.0);
        silent.state = State::Silent;
        (silent.rates, silent.taken) = (None, None);
        let mut first = row("worker-with-a-long-name", 4213, wave);
        first.rates.as_mut().expect("rates").read = wave * 1e5;
        app.take(found(vec![row("web", 4210, 12.34), paused, silent, first]));
    }
    app
}

fn frame_of(app: &mut App, (width, height): (u16, u16)) -> ratatui::buffer::Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a backend");
    terminal.draw(|frame| draw(frame, app)).expect("a frame");
    terminal.backend().buffer().clone()
}

fn text_of(buffer: &ratatui::buffer::Buffer) -> String {
    let width = usize::from(buffer.area.width);
    let symbols: Vec<&str> = buffer.content.iter().map(|cell| cell.symbol()).collect();
    let lines = symbols
        .chunks(width)
        .map(|line| line.concat().trim_end().to_owned() + "\n");
    lines.collect()
}

fn check(name: &str, app: &mut App, size: (u16, u16)) {
    let found = text_of(&frame_of(app, size));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("golden/top-{name}.txt"));
    if env::var_os("LIGHTV_UPDATE_GOLDEN").is_some() {
        fs::write(&path, &found).expect("a golden frame");
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(found, expected, "{name}");
}

#[test]
fn frames_are_as_they_were() {
    let keys = |keys: &[KeyCode]| {
        let mut app = app(true);
        press(&mut app, keys);
        app
    };
    let text = |text: &str| text.chars().map(KeyCode::Char).collect::<Vec<_>>();
    let wide = (170, 9);
    check("wide", &mut keys(&[]), wide);
    check(
        "narrow",
        &mut keys(&[KeyCode::Left, KeyCode::Left]),
        (60, 8),
    );
    check("sorted-by-guest", &mut keys(&[KeyCode::Right; 3]), (80, 8));
    check("filter", &mut keys(&text("/we")), (80, 8));
    check("filtered-out", &mut keys(&text("/nobody")), (80, 8));
    check("question", &mut keys(&text("k")), (80, 8));
    check("details", &mut keys(&[KeyCode::Enter]), (100, 16));
    check("details-low", &mut keys(&[KeyCode::Enter]), (60, 8));
    check(
        "details-question",
        &mut keys(&[KeyCode::Enter, KeyCode::Char('s')]),
        (100, 12),
    );
    let mut empty = App::new(Theme::with_colour(true));
    check("looking", &mut empty, (80, 8));
    empty.take(found(Vec::new()));
    check("none", &mut empty, (80, 8));
    let mut message = app(true);
    message.say("web (process 4210) has ended\u{7}".to_owned());
    check("message", &mut message, (80, 8));
}

#[test]
fn every_size_can_be_drawn() {
    for keys in [
        &[][..],
        &[KeyCode::Enter],
        &[KeyCode::Char('k')],
        &[KeyCode::Char('/')],
    ] {
        let mut app = app(true);
        press(&mut app, keys);
        for width in [1, 2, 10, 23, 24, 25, 40, 80, 200] {
            for height in [1, 3, 4, 5, 8, 11, 12, 13, 24] {
                let text = text_of(&frame_of(&mut app, (width, height)));
                assert_eq!(text.lines().count(), usize::from(height));
            }
        }
    }
}

#[test]
fn a_table_that_is_longer_than_the_screen_follows_the_selection() {
    let mut app = App::new(Theme::with_colour(true));
    let rows = (0..100).map(|number| row(&format!("vm-{number:03}"), 1000 + number, 0.0));
    app.take(found(rows.collect()));
    press(&mut app, &[KeyCode::End]);
    assert!(text_of(&frame_of(&mut app, (80, 10))).contains("vm-099"));
    press(&mut app, &[KeyCode::PageUp]);
    let text = text_of(&frame_of(&mut app, (80, 10)));
    assert!(text.contains("vm-092"), "{text}");
    press(&mut app, &[KeyCode::Home]);
    assert!(text_of(&frame_of(&mut app, (80, 10))).contains("vm-000"));
}

#[test]
fn without_colours_nothing_is_coloured_and_the_selection_is_still_seen() {
    let is_coloured = |has_colour| {
        let buffer = frame_of(&mut app(has_colour), (120, 9));
        let mut cells = buffer.content.iter();
        cells.any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
    };
    assert!(is_coloured(true) && !is_coloured(false));
    let buffer = frame_of(&mut app(false), (120, 9));
    let mut cells = buffer.content.iter();
    assert!(cells.any(|cell| cell.modifier.contains(ratatui::style::Modifier::REVERSED)));
}
