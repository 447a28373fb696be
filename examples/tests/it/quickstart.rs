//! The quickstart tells the story that the README promises.

use crate::app;

#[test]
fn the_loop_closes_and_a_second_run_goes_on_from_the_version_in_service() {
    let folder = tempfile::tempdir().unwrap();
    let first = app::summary(&app::quickstart(folder.path()).output().unwrap());
    let verdicts: Vec<_> = first.versions.iter().map(|row| (row.version, row.verdict.as_str())).collect();
    assert_eq!(verdicts, [(1, "promote"), (2, "promote"), (3, "refuse")]);
    assert_eq!(first.serving, Some(2));
    assert_eq!(first.requests.failed, 0);
    assert!(first.requests.served > 100, "{:?}", first.requests);
    let [one, two, _] = &first.versions[..] else { panic!("{:?}", first.versions) };
    assert!(two.accuracy > one.accuracy && two.p.unwrap() < 0.05 && two.fixes > two.regressions, "{two:?}");
    assert!(one.swap_ms.is_some() && two.swap_ms.is_some() && one.p.is_none());

    let second = app::summary(&app::quickstart(folder.path()).output().unwrap());
    let verdicts: Vec<_> = second.versions.iter().map(|row| (row.version, row.verdict.as_str())).collect();
    assert_eq!(verdicts, [(4, "hold"), (5, "hold"), (6, "refuse")], "{second:?}");
    assert_eq!((second.serving, second.requests.failed), (Some(2), 0));
    // The customer is served from the first moment on: version 2 came out of the cache.
    assert!(second.requests.served > 100, "{:?}", second.requests);
}
