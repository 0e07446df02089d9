//! An axis: where a value lies on it, and which values are written at it.

/// Values that differ by more than this factor need a logarithmic axis.
const LINEAR_SPREAD: f64 = 8.0;
/// Values at an axis, at most about so many.
const TICKS: f64 = 5.0;

/// From the smallest to the largest value of an axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scale {
    low: f64,
    high: f64,
    is_log: bool,
    /// In ascending order, all within the axis.
    pub(super) ticks: Vec<f64>,
}

impl Scale {
    /// An axis with room for all of `values`. From 0 where they are near each other, else logarithmic.
    pub(super) fn of(values: impl Iterator<Item = f64>) -> Self {
        let (mut least, mut most, mut has_values) = (f64::INFINITY, 0.0_f64, false);
        for value in values.filter(|value| value.is_finite()) {
            has_values = true;
            most = most.max(value);
            // On a logarithmic axis there is no place for nothing: it is drawn at the edge.
            if value > 0.0 {
                least = least.min(value);
            }
        }
        if !has_values || most <= 0.0 {
            return Self::linear(1.0);
        }
        if most / least <= LINEAR_SPREAD {
            return Self::linear(most);
        }
        Self::logarithmic(least, most)
    }

    fn linear(most: f64) -> Self {
        let step = step_of(most / TICKS);
        let high = (most * 1.04 / step).ceil() * step;
        let ticks = multiples(step, high);
        Self {
            low: 0.0,
            high,
            is_log: false,
            ticks,
        }
    }

    fn logarithmic(least: f64, most: f64) -> Self {
        let (low, high) = (floor_of(least), ceiling_of(most));
        let decades = (high / low).log10();
        // 1, 2, 5 of each decade while there is room, then 1 alone, then each other one.
        let all: Vec<f64> = steps_from(low)
            .take_while(|value| *value <= high * 1.001)
            .collect();
        let is_power = |value: &f64| (value.log10() - value.log10().round()).abs() < 1e-6;
        let each = match decades {
            decades if decades <= 2.4 => return Self::log(low, high, all),
            decades if decades <= 6.0 => 1,
            _ => 2,
        };
        let powers = all.into_iter().filter(is_power).step_by(each).collect();
        Self::log(low, high, powers)
    }

    const fn log(low: f64, high: f64, ticks: Vec<f64>) -> Self {
        Self {
            low,
            high,
            is_log: true,
            ticks,
        }
    }

    /// Whether it is logarithmic.
    pub(super) const fn is_log(&self) -> bool {
        self.is_log
    }

    /// 0 at its beginning, 1 at its end. What is beyond lies at the edge.
    pub(super) fn place(&self, value: f64) -> f64 {
        let place = if self.is_log {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        place.clamp(0.0, 1.0)
    }
}

/// 1, 2 or 5 times a power of ten, no less than `value`.
fn step_of(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step >= value * 0.999)
        .unwrap_or(10.0 * power)
}

fn ceiling_of(value: f64) -> f64 {
    step_of(value * 1.02)
}

/// 1, 2 or 5 times a power of ten, no more than `value`.
fn floor_of(value: f64) -> f64 {
    let value = value / 1.02;
    let power = 10_f64.powf(value.log10().floor());
    [5.0, 2.0, 1.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|step| *step <= value * 1.001)
        .unwrap_or(power)
}

/// `start`, which is one, and all greater ones.
fn steps_from(start: f64) -> impl Iterator<Item = f64> {
    std::iter::successors(Some(start), |value| Some(step_of(value * 1.01)))
}

fn multiples(step: f64, high: f64) -> Vec<f64> {
    let mut ticks = vec![0.0];
    let mut count = 1.0;
    while count * step <= high * 1.001 {
        ticks.push(count * step);
        count += 1.0;
    }
    ticks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(values: &[f64], is_log: bool, ticks: &[f64]) {
        let scale = Scale::of(values.iter().copied());
        let written = |ticks: &[f64]| -> Vec<String> {
            ticks.iter().map(|tick| format!("{tick:.3}")).collect()
        };
        assert_eq!(scale.is_log(), is_log, "{values:?}");
        assert_eq!(written(&scale.ticks), written(ticks), "{values:?}");
        for value in values.iter().filter(|value| value.is_finite()) {
            let place = scale.place(*value);
            assert!((0.0..=1.0).contains(&place), "{value} of {values:?}");
        }
    }

    #[test]
    fn an_axis_has_room_for_all_and_few_round_values() {
        check(&[], false, &[0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2]);
        check(
            &[0.0, f64::NAN],
            false,
            &[0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2],
        );
        check(&[0.4, 1.7], false, &[0.0, 0.5, 1.0, 1.5, 2.0]);
        check(
            &[1.0, 90.0],
            true,
            &[0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0],
        );
        check(&[0.0, 3.0, 4000.0], true, &[10.0, 100.0, 1000.0]);
        check(&[0.02, 90_000.0], true, &[0.01, 1.0, 100.0, 10_000.0]);
    }

    #[test]
    fn order_is_kept_and_what_is_beyond_lies_at_the_edge() {
        for scale in [
            Scale::of([1.0, 2.0].into_iter()),
            Scale::of([1.0, 5000.0].into_iter()),
        ] {
            assert!(scale.place(1.0) < scale.place(1.5));
            assert_eq!([scale.place(-1.0), scale.place(1e9)], [0.0, 1.0]);
        }
    }
}
