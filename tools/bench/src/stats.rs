//! What is said of many measurements of one thing.

/// Measurements of one case, sorted. Never empty.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    sorted: Vec<f64>,
}

impl Sample {
    /// `None` when there is no value, or one that is no number.
    #[must_use]
    pub fn new(mut values: Vec<f64>) -> Option<Self> {
        if values.is_empty() || values.iter().any(|value| value.is_nan()) {
            return None;
        }
        values.sort_by(f64::total_cmp);
        Some(Self { sorted: values })
    }

    /// Number of values, at least 1.
    #[must_use]
    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    /// The smallest value.
    #[must_use]
    pub fn min(&self) -> f64 {
        self.at(0)
    }

    /// The largest value.
    #[must_use]
    pub fn max(&self) -> f64 {
        self.at(self.sorted.len() - 1)
    }

    /// The smallest value that at least `percent` of all values do not exceed (nearest rank): a value that was measured,
    /// never one in between. `percent` is 0–100.
    #[must_use]
    pub fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.sorted.len() * percent.min(100)).div_ceil(100);
        self.at(rank.saturating_sub(1))
    }

    fn at(&self, index: usize) -> f64 {
        self.sorted[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(values: &[f64]) -> Sample {
        Sample::new(values.to_vec()).expect("the values are numbers")
    }

    #[test]
    fn percentiles_are_measured_values() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let cases = [
            (0, 1.0),
            (1, 1.0),
            (50, 50.0),
            (99, 99.0),
            (100, 100.0),
            (101, 100.0),
        ];
        for (percent, expected) in cases {
            assert_eq!(
                sample(&hundred).percentile(percent).total_cmp(&expected),
                std::cmp::Ordering::Equal
            );
        }
        let three = sample(&[30.0, 10.0, 20.0]);
        assert_eq!(
            [50, 99].map(|percent| three.percentile(percent)),
            [20.0, 30.0]
        );
        assert_eq!([three.min(), three.max()], [10.0, 30.0]);
    }

    #[test]
    fn nothing_measured_is_no_sample() {
        assert_eq!(Sample::new(vec![]), None);
        assert_eq!(Sample::new(vec![1.0, f64::NAN]), None);
        assert_eq!(sample(&[7.0]).percentile(50).to_bits(), 7.0_f64.to_bits());
    }
}
