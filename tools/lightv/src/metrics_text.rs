//! A monitor's metrics (docs/metrics.md) as text, one sample a line: `name{label="value",…} number`.

/// A line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample<'a> {
    pub(crate) name: &'a str,
    labels: &'a str,
    pub(crate) value: f64,
}

impl<'a> Sample<'a> {
    /// The value of a counter.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a conversion that saturates is meant"
    )]
    pub(crate) fn whole(&self) -> u64 {
        self.value.round() as u64
    }

    /// The value of the label `name`. Ids of devices and names of threads have no quotation marks.
    pub(crate) fn label(&self, name: &str) -> Option<&'a str> {
        let mut labels = self.labels.split("\",");
        labels.find_map(|label| {
            let value = label.strip_prefix(name)?.strip_prefix("=\"")?;
            Some(value.trim_end_matches('"'))
        })
    }
}

/// All samples in `text`; other lines are passed over.
pub(crate) fn samples(text: &str) -> impl Iterator<Item = Sample<'_>> {
    text.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        Some(Sample {
            name,
            labels: labels.trim_end_matches('}'),
            value: value.parse().ok().filter(|_| !line.starts_with('#'))?,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_have_names_labels_and_values() {
        let text = "# TYPE a counter\n# HELP a of 1\na{b=\"1\",cd=\"x y\"} 2.5\nplain 3\nbroken\n";
        let found: Vec<_> = samples(text).collect();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].name, found[0].value), ("a", 2.5));
        let label = |name| found[0].label(name);
        assert_eq!(
            [label("b"), label("cd"), label("d"), label("c")],
            [Some("1"), Some("x y"), None, None]
        );
        assert_eq!((found[1].name, found[1].label("b")), ("plain", None));
    }
}
