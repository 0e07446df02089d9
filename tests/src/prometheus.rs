//! A strict reader of Prometheus' text (OpenMetrics 1.0, and the rules of `promtool check metrics`).

use std::collections::{BTreeMap, BTreeSet};

/// Labels of a series.
pub type Labels = BTreeMap<String, String>;

/// What was scraped.
#[derive(Debug, Default)]
pub struct Scrape {
    /// Kinds by family.
    kinds: BTreeMap<String, String>,
    samples: BTreeMap<(String, Labels), f64>,
}

impl Scrape {
    /// The value of a series.
    ///
    /// # Panics
    /// When it is not there.
    #[must_use]
    #[track_caller]
    pub fn value(&self, name: &str, labels: &Labels) -> f64 {
        let found = self.samples.get(&(name.to_owned(), labels.clone()));
        found.copied().unwrap_or(0.0)
    }

    /// Whether a sample may be called `name`, by the families that were told, or a family is.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.family_of(name).is_some()
    }

    /// Names of all families that have samples.
    pub fn families(&self) -> impl Iterator<Item = String> {
        let families: BTreeSet<String> = self
            .samples
            .keys()
            .filter_map(|(name, _)| self.family_of(name))
            .collect();
        families.into_iter()
    }

    fn family_of(&self, sample: &str) -> Option<String> {
        let suffixes = ["", "_total", "_sum", "_count", "_bucket"];
        let mut families = suffixes
            .iter()
            .filter_map(|suffix| sample.strip_suffix(suffix));
        families
            .find(|family| self.kinds.contains_key(*family))
            .map(str::to_owned)
    }
}

/// Reads `text`.
///
/// # Panics
/// When it breaks a rule.
#[must_use]
pub fn parse(text: &str) -> Scrape {
    let mut scrape = Scrape::default();
    let mut helped = BTreeSet::new();
    let body = text.strip_suffix("# EOF\n").expect("it ends with # EOF");
    for line in body.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').expect("a help text");
            assert!(is_name(name) && !help.is_empty(), "{line}");
            assert!(helped.insert(name.to_owned()), "helped twice: {line}");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("a type");
            assert!(helped.contains(name), "type before help: {line}");
            assert!(matches!(kind, "counter" | "gauge" | "histogram"), "{line}");
            let known = scrape.kinds.insert(name.to_owned(), kind.to_owned());
            assert!(known.is_none(), "typed twice: {line}");
        } else if let Some(unit) = line.strip_prefix("# UNIT ") {
            let (name, unit) = unit.split_once(' ').expect("a unit");
            assert!(name.ends_with(&format!("_{unit}")), "{line}");
        } else {
            let (name, labels, value) = sample(line);
            let family = scrape
                .family_of(&name)
                .unwrap_or_else(|| panic!("no type: {line}"));
            check_name(&name, &scrape.kinds[&family], &family, line);
            let known = scrape.samples.insert((name, labels), value);
            assert!(known.is_none(), "a series twice: {line}");
        }
    }
    check_histograms(&scrape);
    scrape
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    let first = bytes.next();
    first.is_some_and(|b| b.is_ascii_lowercase() || b == b'_')
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

fn check_name(name: &str, kind: &str, family: &str, line: &str) {
    let suffix = &name[family.len()..];
    let fits = match kind {
        "counter" => suffix == "_total",
        "gauge" => suffix.is_empty(),
        _ => matches!(suffix, "_bucket" | "_sum" | "_count"),
    };
    assert!(fits && is_name(name), "{kind}: {line}");
}

/// `name{label="value",…} number`.
fn sample(line: &str) -> (String, Labels, f64) {
    let (head, value) = line.rsplit_once(' ').expect("a value");
    let value: f64 = value
        .parse()
        .unwrap_or_else(|_| panic!("no number: {line}"));
    let Some((name, labels)) = head.split_once('{') else {
        return (head.to_owned(), Labels::new(), value);
    };
    let labels = labels
        .strip_suffix('}')
        .unwrap_or_else(|| panic!("no brace: {line}"));
    let mut found = Labels::new();
    for pair in labels.split("\",").filter(|pair| !pair.is_empty()) {
        let (label, value) = pair
            .split_once("=\"")
            .unwrap_or_else(|| panic!("no label: {line}"));
        assert!(is_name(label), "{line}");
        let value = value.strip_suffix('"').unwrap_or(value);
        assert!(
            found.insert(label.to_owned(), value.to_owned()).is_none(),
            "{line}"
        );
    }
    (name.to_owned(), found, value)
}

/// Buckets are cumulative, and the last one is the count.
fn check_histograms(scrape: &Scrape) {
    let mut series: BTreeMap<(String, Labels), Vec<(f64, f64)>> = BTreeMap::new();
    for ((name, labels), value) in &scrape.samples {
        let Some(family) = name.strip_suffix("_bucket") else {
            continue;
        };
        let mut labels = labels.clone();
        let bound = labels.remove("le").expect("a bound");
        let bound = if bound == "+Inf" {
            f64::INFINITY
        } else {
            bound.parse().expect("a bound")
        };
        series
            .entry((family.to_owned(), labels))
            .or_default()
            .push((bound, *value));
    }
    for ((family, labels), mut buckets) in series {
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(
            buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1),
            "{family} {labels:?}: {buckets:?}"
        );
        let (bound, all) = *buckets.last().expect("buckets");
        assert!(bound.is_infinite(), "{family}: no +Inf");
        let count = scrape.value(&format!("{family}_count"), &labels);
        assert!(
            (count - all).abs() < 0.5,
            "{family} {labels:?}: {count} and {all}"
        );
    }
}
