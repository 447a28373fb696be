//! Driving a manual clock.

use std::time::Duration;

use hybrid_core::ManualClock;

/// Lets every task run until all wait: on a runtime of one thread each yield gives all others a turn, and no chain of wake-ups here is this long.
pub(crate) async fn settle() {
    for _ in 0..64 {
        tokio::task::yield_now().await;
    }
}

/// Moves time in steps, letting every task act at each.
pub(crate) async fn advance(clock: &ManualClock, total: Duration, step: Duration) {
    let mut moved = Duration::ZERO;
    settle().await;
    while moved < total {
        let step = step.min(total - moved);
        clock.advance(step);
        moved += step;
        settle().await;
    }
}
