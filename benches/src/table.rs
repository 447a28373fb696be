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
    /// The comparison: round by round, and of the medians.
    pub ratio: String,
    /// What it has to be, where there is a goal.
    pub goal: String,
    /// Whether it is.
    pub met: Option<bool>,
}

impl Figure {
    /// A figure in which more is better. The goal is met if both hold: the median of the rounds' ratios of ours to the peer's, which a machine that grows slower from
    /// round to round does not move, and the ratio of the two medians, which is what the row itself says.
    ///
    /// `rounds` holds our rate and the peer's, in `unit`, round by round.
    pub fn rate(name: &str, unit: &str, peer: &str, rounds: &[(f64, f64)], goal: Option<f64>) -> Self {
        let (ours, theirs) = medians(rounds.iter().copied());
        let ratios = [median(rounds.iter().map(|(ours, peer)| ours / peer)), ours / theirs];
        Self {
            name: name.to_owned(),
            ours: rate(ours, unit),
            peer: format!("{} ({peer})", rate(theirs, unit)),
            ratio: both(ratios.map(|ratio| format!("{ratio:.2}×"))),
            goal: goal.map(|goal| format!("≥ {goal}×")).unwrap_or_default(),
            met: goal.map(|goal| ratios.iter().all(|ratio| *ratio >= goal)),
        }
    }

    /// A figure in which less is better: the median of what we add to the peer's time in each round, and what our median adds to the peer's, both below `goal`.
    pub fn added(name: &str, peer: &str, rounds: &[(Duration, Duration)], goal: Option<Duration>) -> Self {
        let seconds = rounds.iter().map(|(ours, peer)| (ours.as_secs_f64(), peer.as_secs_f64()));
        let (ours, theirs) = medians(seconds.clone());
        let added = [median(seconds.map(|(ours, peer)| ours - peer)), ours - theirs];
        let signed = |added: f64| {
            let sign = if added < 0.0 { "−" } else { "+" };
            format!("{sign}{}", time(Duration::from_secs_f64(added.abs())))
        };
        Self {
            name: name.to_owned(),
            ours: time(Duration::from_secs_f64(ours)),
            peer: format!("{} ({peer})", time(Duration::from_secs_f64(theirs))),
            ratio: both(added.map(signed)),
            goal: goal.map(|goal| format!("< {}", time(goal))).unwrap_or_default(),
            met: goal.map(|goal| added.iter().all(|added| *added < goal.as_secs_f64())),
        }
    }

    /// A figure that is only told.
    pub fn told(name: &str, ours: String, peer: String) -> Self {
        Self { name: name.to_owned(), ours, peer, ratio: String::new(), goal: String::new(), met: None }
    }
}

/// Our median and the peer's.
fn medians(rounds: impl Iterator<Item = (f64, f64)> + Clone) -> (f64, f64) {
    (median(rounds.clone().map(|(ours, _)| ours)), median(rounds.map(|(_, peer)| peer)))
}

/// Round by round, and of the medians.
fn both([by_round, of_medians]: [String; 2]) -> String {
    format!("{by_round} / {of_medians}")
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
    fn a_ratio_is_told_round_by_round_and_of_the_medians() {
        let figure = Figure::rate("f", "/s", "p", &[(20.0, 10.0), (9.0, 3.0), (1.0, 10.0)], Some(0.9));
        assert_eq!((&*figure.ratio, figure.met), ("2.00× / 0.90×", Some(true)));
        assert_eq!((&*figure.ours, &*figure.peer), ("9.00 /s", "10.0 /s (p)"));
    }

    #[test]
    fn a_goal_that_the_rows_own_figures_miss_is_not_met() {
        let rates = [(20.0, 10.0), (9.0, 3.0), (1.0, 10.0)];
        assert_eq!(
            Figure::rate("f", "/s", "p", &rates, Some(1.0)).met,
            Some(false),
            "2.00× by round, 0.90× of the medians"
        );
        let rates = rates.map(|(ours, peer)| (peer, ours));
        assert_eq!(
            Figure::rate("f", "/s", "p", &rates, Some(1.0)).met,
            Some(false),
            "0.50× by round, 1.11× of the medians"
        );
        let times = [(1, 2), (4, 5), (9, 1)].map(|(ours, peer)| (Duration::from_secs(ours), Duration::from_secs(peer)));
        let figure = Figure::added("f", "p", &times, Some(Duration::from_secs(1)));
        assert_eq!((&*figure.ratio, figure.met), ("−1.00 s / +2.00 s", Some(false)));
    }

    #[test]
    fn what_is_added_may_be_less_than_nothing() {
        let rounds = [(Duration::from_micros(3), Duration::from_micros(5))];
        let figure = Figure::added("f", "p", &rounds, Some(Duration::from_millis(1)));
        assert_eq!((&*figure.ratio, &*figure.goal, figure.met), ("−2.00 µs / −2.00 µs", "< 1.00 ms", Some(true)));
        let table = markdown(&[figure]);
        assert!(table.ends_with("| f | 3.00 µs | 5.00 µs (p) | −2.00 µs / −2.00 µs | < 1.00 ms | yes |\n"), "{table}");
    }
}
