//! A disk that is really full: a small one in memory, where the system lets this user mount it.

use std::time::Duration;

use hybrid_core::ErrorKind;
use hybrid_sync::live::Refresh;

use super::{
    live::{Storefront, label},
    site::chunks,
};
use crate::small_disk::SmallDisk;

#[tokio::test]
async fn a_version_that_does_not_fit_on_the_disk_leaves_the_old_one_in_service_and_comes_once_there_is_space() {
    let front = Storefront::new();
    let cache = front.site.cache("cache");
    let Some(disk) = SmallDisk::mount(&cache, 1) else { return };
    let live = front.live().await;
    let one = front.site.release(1, None).await;
    live.refresh().await.unwrap();

    let files = [("label.txt", b"label-2".to_vec()), ("model.safetensors", chunks(15, 2))];
    let two = front.site.publish(front.site.draft(2, &files)).await.unwrap();
    front.site.append(two.manifest, Some(one)).await.unwrap();
    for attempt in 0..3 {
        let error = live.refresh().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
        assert!(error.context("path").unwrap().starts_with(cache.to_str().unwrap()), "{error}");
        assert!(live.status().last_error.unwrap().contains(cache.to_str().unwrap()));
        assert!(!cache.join(two.manifest.to_string()).exists());
        assert_eq!(label(&live).await, "label-1", "attempt {attempt}");
        front.clock.advance(Duration::from_secs(3600));
    }
    // A restart on the full disk serves on.
    drop(live);
    let live = front.live().await;
    assert_eq!(label(&live).await, "label-1");

    disk.grow(8);
    let refreshed = live.refresh().await.unwrap();
    let Refresh::Swapped { manifest, bytes_moved, .. } = refreshed else { panic!("{refreshed:?}") };
    assert_eq!(manifest, two.manifest);
    assert!(bytes_moved < two.bytes_total, "what was written before is not read again: {bytes_moved}");
    assert_eq!(label(&live).await, "label-2");
    assert_eq!(live.status().last_error, None);
}
