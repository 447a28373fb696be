//! The table of figures, as Markdown.

use std::{fmt::Write, time::Duration};

use crate::statistics::median;

/// One figure: what we need, what the peer needs, and how they compare.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What is measured.
    pub name: String,
    /// Our value, with its unit.
    pub ours: String,
    /// The peer's or the bound's, with its name.
    pub peer: String,
    /// The comparison.
    pub ratio: String,
    /// What it has to be, where there is a goal.
    pub goal: String,
    /// Whether it is.
    pub met: Option<bool>,
}

impl Figure {
    /// A figure in which more is better: the median of the rounds' ratios of ours to the peer's, at least `goal`.
    ///
    /// `rounds` holds our rate and the peer's, in `unit`, round by round.
    pub fn rate(name: &str, unit: &str, peer: &str, rounds: &[(f64, f64)], goal: Option<f64>) -> Self {
        let ratio = median(rounds.iter().map(|(ours, peer)| ours / peer));
        Self {
            name: name.to_owned(),
            ours: rate(median(rounds.iter().map(|(ours, _)| *ours)), unit),
            peer: format!("{} ({peer})", rate(median(rounds.iter().map(|(_, peer)| *peer)), unit)),
            ratio: format!("{ratio:.2}×"),
            goal: goal.map(|goal| format!("≥ {goal}×")).unwrap_or_default(),
            met: goal.map(|goal| ratio >= goal),
        }
    }

    /// A figure in which less is better: the median of what we add to the peer's time, below `goal`.
    pub fn added(name: &str, peer: &str, rounds: &[(Duration, Duration)], goal: Option<Duration>) -> Self {
        let seconds = |time: &Duration| time.as_secs_f64();
        let added = median(rounds.iter().map(|(ours, peer)| seconds(ours) - seconds(peer)));
        let (sign, size) = (if added < 0.0 { "−" } else { "+" }, Duration::from_secs_f64(added.abs()));
        Self {
            name: name.to_owned(),
            ours: time(Duration::from_secs_f64(median(rounds.iter().map(|(ours, _)| seconds(ours))))),
            peer: format!(
                "{} ({peer})",
                time(Duration::from_secs_f64(median(rounds.iter().map(|(_, peer)| seconds(peer)))))
            ),
            ratio: format!("{sign}{}", time(size)),
            goal: goal.map(|goal| format!("< {}", time(goal))).unwrap_or_default(),
            met: goal.map(|goal| added < goal.as_secs_f64()),
        }
    }

    /// A figure that is only told.
    pub fn told(name: &str, ours: String, peer: String) -> Self {
        Self { name: name.to_owned(), ours, peer, ratio: String::new(), goal: String::new(), met: None }
    }
}

/// The table of `figures`.
pub fn markdown(figures: &[Figure]) -> String {
    let mut table = "| figure | ours | compared with | ratio | goal | met |\n|---|---|---|---|---|---|\n".to_owned();
    for Figure { name, ours, peer, ratio, goal, met } in figures {
        let met = met.map(|met| if met { "yes" } else { "no" }).unwrap_or_default();
        // Writing to text does not fail.
        let _ = writeln!(table, "| {name} | {ours} | {peer} | {ratio} | {goal} | {met} |");
    }
    table
}

/// A time with three digits and a fitting unit.
pub fn time(time: Duration) -> String {
    let nanos = time.as_secs_f64() * 1e9;
    let (value, unit) = match nanos {
        nanos if nanos < 1e3 => (nanos, "ns"),
        nanos if nanos < 1e6 => (nanos / 1e3, "µs"),
        nanos if nanos < 1e9 => (nanos / 1e6, "ms"),
        nanos => (nanos / 1e9, "s"),
    };
    format!("{} {unit}", three_digits(value))
}

fn rate(value: f64, unit: &str) -> String {
    format!("{} {unit}", three_digits(value))
}

fn three_digits(value: f64) -> String {
    let decimals = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_the_median_of_the_rounds_and_not_of_the_sides() {
        let figure = Figure::rate("f", "/s", "p", &[(20.0, 10.0), (9.0, 3.0), (1.0, 10.0)], Some(2.0));
        assert_eq!((&*figure.ratio, figure.met), ("2.00×", Some(true)));
        assert_eq!((&*figure.ours, &*figure.peer), ("9.00 /s", "10.0 /s (p)"));
    }

    #[test]
    fn what_is_added_may_be_less_than_nothing() {
        let rounds = [(Duration::from_micros(3), Duration::from_micros(5))];
        let figure = Figure::added("f", "p", &rounds, Some(Duration::from_millis(1)));
        assert_eq!((&*figure.ratio, &*figure.goal, figure.met), ("−2.00 µs", "< 1.00 ms", Some(true)));
        let table = markdown(&[figure]);
        assert!(table.ends_with("| f | 3.00 µs | 5.00 µs (p) | −2.00 µs | < 1.00 ms | yes |\n"), "{table}");
    }
}
