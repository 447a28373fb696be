//! Which lessons are learnt together, in which order.

use super::{lessons::Lesson, settings::TrainSettings};
use crate::random::Random;

/// Lessons by their numbers: for each step its batches.
pub(super) type Steps = Vec<Vec<Vec<usize>>>;

/// The steps of all epochs; each epoch has an order of its own.
pub(super) fn steps(lessons: &[Lesson], members: &[usize], settings: &TrainSettings) -> Steps {
    let mut steps = Steps::new();
    for epoch in 0..settings.epochs {
        let mut order = members.to_vec();
        Random::of(settings.seed, "order", [epoch as u64, 0]).shuffle(&mut order);
        let batches =
            if settings.packing { packed(lessons, &order, settings) } else { chunks(&order, settings.batch_size) };
        steps.extend(batches.chunks(settings.accumulate).map(<[_]>::to_vec));
        if settings.max_steps > 0 && steps.len() >= settings.max_steps {
            steps.truncate(settings.max_steps);
            break;
        }
    }
    steps
}

pub(super) fn chunks(order: &[usize], size: usize) -> Vec<Vec<usize>> {
    order.chunks(size).map(<[_]>::to_vec).collect()
}

/// Fills batches up to as many tokens as `batch_size` of the longest texts would have: each lesson goes where it first fits.
fn packed(lessons: &[Lesson], order: &[usize], settings: &TrainSettings) -> Vec<Vec<usize>> {
    let room = settings.batch_size * settings.max_tokens;
    // Only the last few are looked at, so that a large dataset takes no quadratic time.
    const OPEN: usize = 32;
    let mut batches: Vec<(usize, Vec<usize>)> = Vec::new();
    for &lesson in order {
        let tokens = lessons[lesson].tokens();
        let first = batches.len().saturating_sub(OPEN);
        match batches[first..].iter_mut().find(|(filled, _)| filled + tokens <= room) {
            Some((filled, batch)) => {
                *filled += tokens;
                batch.push(lesson);
            }
            None => batches.push((tokens, vec![lesson])),
        }
    }
    batches.into_iter().map(|(_, batch)| batch).collect()
}

/// Deals the lessons into those that are learnt and those that are held out, at least one of each if there are two.
pub(super) fn split(count: usize, settings: &TrainSettings) -> (Vec<usize>, Vec<usize>) {
    let mut order: Vec<usize> = (0..count).collect();
    if settings.hold_out == 0.0 || count < 2 {
        return (order, Vec::new());
    }
    Random::of(settings.seed, "hold out", [0, 0]).shuffle(&mut order);
    let held = ((count as f64 * settings.hold_out).round() as usize).clamp(1, count - 1);
    let mut learnt = order.split_off(held);
    learnt.sort_unstable();
    order.sort_unstable();
    (learnt, order)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::lessons::Sequence, super::settings::tests::settings, *};

    fn lessons(lengths: &[usize]) -> Vec<Lesson> {
        let sequence = |length: &usize| Sequence { tokens: vec![1; *length], learnt: vec![true; *length] };
        lengths.iter().map(|length| Lesson { sequences: vec![sequence(length)] }).collect()
    }

    #[test]
    fn every_epoch_has_every_lesson_once_in_an_order_of_its_own() {
        let lessons = lessons(&(1..=23).map(|i| i % 9 + 1).collect::<Vec<_>>());
        let members: Vec<_> = (0..23).collect();
        for values in [
            json!({"epochs": 2, "batch_size": 3, "accumulate": 2}),
            json!({"epochs": 2, "batch_size": 2, "packing": true, "max_tokens": 10}),
        ] {
            let settings = settings("decoder-lora", &values).unwrap();
            let steps = steps(&lessons, &members, &settings);
            let flat: Vec<usize> = steps.concat().concat();
            assert_eq!(flat.len(), 46);
            for epoch in flat.chunks(23) {
                let mut sorted = epoch.to_vec();
                sorted.sort_unstable();
                assert_eq!(sorted, members);
            }
            assert_ne!(flat[..23], flat[23..]);
            if settings.packing {
                let full = |batch: &Vec<usize>| batch.iter().map(|lesson| lessons[*lesson].tokens()).sum::<usize>();
                let sizes: Vec<_> = steps.concat().iter().map(full).collect();
                assert!(sizes.iter().all(|tokens| *tokens <= 20) && sizes.len() <= 16, "{sizes:?}");
            }
        }
        let few = settings("decoder-lora", &json!({"epochs": 3, "batch_size": 4, "max_steps": 7})).unwrap();
        assert_eq!(steps(&lessons, &members, &few).len(), 7);
    }

    #[test]
    fn some_lessons_are_held_out_where_that_is_asked_for() {
        let split = |count, share: f64| split(count, &settings("decoder-lora", &json!({ "hold_out": share })).unwrap());
        let (learnt, held) = split(20, 0.1);
        assert_eq!((learnt.len(), held.len()), (18, 2));
        assert!(held.iter().all(|lesson| !learnt.contains(lesson)));
        assert_eq!(split(20, 0.0).1.len(), 0);
        assert_eq!((split(2, 0.1).1.len(), split(2, 0.5).1.len(), split(1, 0.5).1.len()), (1, 1, 0));
    }
}
