//! A kitchen that is killed at any moment ends in the same place.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::app;

const KILLS: usize = 12;

/// The kitchen's process id, once it has written one that differs from `last`.
fn kitchen(site: &Path, last: Option<u32>) -> Option<u32> {
    let pid = fs::read_to_string(site.join("kitchen.lock")).ok()?.trim().parse().ok()?;
    (Some(pid) != last).then_some(pid)
}

#[test]
fn a_kitchen_killed_at_random_moments_ends_with_the_same_weights_verdicts_and_version() {
    let (calm, wild) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let expected = app::summary(&app::quickstart(calm.path()).output().unwrap());

    let mut run = app::quickstart(wild.path()).spawn().unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let (mut killed, mut last) = (0, None);
    while run.try_wait().unwrap().is_none() && killed < KILLS {
        // The moment is what is tested: anywhere from starting up to the middle of training, publishing or releasing.
        let moment = Instant::now() + Duration::from_millis(random.random_range(100..900));
        while Instant::now() < moment && run.try_wait().unwrap().is_none() {
            std::thread::yield_now();
            std::thread::park_timeout(Duration::from_millis(5));
        }
        if let Some(pid) = kitchen(wild.path(), last)
            && Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success()
        {
            (killed, last) = (killed + 1, Some(pid));
        }
    }
    let found = app::summary(&run.wait_with_output().unwrap());
    assert!(killed >= 10, "only {killed} kills before the run ended");
    assert_eq!(app::outcomes(wild.path()), app::outcomes(calm.path()));
    assert_eq!((found.serving, found.requests.failed), (expected.serving, 0));
    let rows = |summary: &hybrid_examples::quickstart::summary::Summary| {
        summary.versions.iter().map(|row| (row.version, row.verdict.clone(), row.accuracy, row.p)).collect::<Vec<_>>()
    };
    assert_eq!(rows(&found), rows(&expected));
}
