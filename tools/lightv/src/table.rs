//! Tables of text, columns aligned.

use std::io::{self, Write};

use crate::text::{BOLD, styled};

/// How a column is aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

use Align::{Left, Right};

/// Rows under titles.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Titles that start with `>` stand over numbers, which are aligned to the right.
    pub(crate) fn new(titles: &[&'static str]) -> Self {
        let column = |title: &&'static str| match title.strip_prefix('>') {
            Some(title) => (title, Right),
            None => (*title, Left),
        };
        Self {
            columns: titles.iter().map(column).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row: one cell a column.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    /// Writes titles and rows.
    ///
    /// # Errors
    /// What `out` answers.
    pub(crate) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let titles: Vec<String> = self
            .columns
            .iter()
            .map(|(title, _)| (*title).to_owned())
            .collect();
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|column| {
                let cells = std::iter::once(&titles)
                    .chain(&self.rows)
                    .filter_map(|row| row.get(column));
                cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        writeln!(out, "{}", styled(BOLD, &self.line(&titles, &widths)))?;
        self.rows
            .iter()
            .try_for_each(|row| writeln!(out, "{}", self.line(row, &widths)))
    }

    fn line(&self, cells: &[String], widths: &[usize]) -> String {
        let padded =
            cells
                .iter()
                .zip(widths)
                .zip(&self.columns)
                .map(|((cell, &width), (_, align))| match align {
                    Left => format!("{cell:<width$}"),
                    Right => format!("{cell:>width$}"),
                });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["name", ">size"]);
        table.row(["a".into(), "12 KiB".into()]);
        table.row(["longer".into(), "✔".into()]);
        let mut out = Vec::new();
        table.write(&mut out).expect("a vector takes everything");
        let text = anstream::adapter::strip_bytes(&out).into_vec();
        let expected = "name      size\na       12 KiB\nlonger       ✔\n";
        assert_eq!(String::from_utf8(text).expect("text"), expected);
    }
}
