//! Reading whole objects and parts of them.

use std::ops::Range;

use super::{Shelf, some_bytes};
use crate::{
    ArtifactStore, Digest, ErrorKind, ReadOptions,
    conformance::case::{CaseResult, fail, refused, same_bytes, skip},
};

pub(super) async fn missing_keys_are_not_found(shelf: &Shelf<'_>) -> CaseResult {
    shelf.put("folder/there", "bytes").await?;
    for name in ["missing", "missing/below", "folder", "folder/ther", "folder/there-not", "folder/there.tmp"] {
        let key = shelf.key(name)?;
        let reads = [
            ("read", ReadOptions::default()),
            ("read of an empty range", ReadOptions::range(0..0)),
            ("read of a range", ReadOptions::range(0..1)),
            ("verified read", ReadOptions::verified(Digest::of(b""))),
        ];
        for (what, options) in reads {
            refused(&format!("{what} of {name:?}"), ErrorKind::NotFound, shelf.store.read(&key, options).await)?;
        }
        refused(&format!("head of {name:?}"), ErrorKind::NotFound, shelf.store.head(&key).await)?;
    }
    Ok(())
}

pub(super) async fn a_range_is_those_bytes(shelf: &Shelf<'_>) -> CaseResult {
    const SIZE: usize = 300_000;
    let bytes = some_bytes(1, SIZE);
    let key = shelf.put("ranged", bytes.clone()).await?;
    let size = SIZE as u64;
    let ranges =
        [0..size, 0..1, 0..1_000, 1..2, 1..size, 4_095..4_097, 65_536..131_072, size - 1..size, 0..0, 7..7, size..size];
    for range in ranges {
        let what = format!("the range {}..{} of {SIZE} bytes", range.start, range.end);
        match shelf.store.read(&key, ReadOptions::range(range.clone())).await {
            Ok(found) => same_bytes(&what, &found, &bytes[range.start as usize..range.end as usize])?,
            Err(error) => return fail(format!("{what}: {error:?}")),
        }
    }
    let empty = shelf.put("empty", "").await?;
    same_bytes("the range 0..0 of an empty object", &shelf.store.read(&empty, ReadOptions::range(0..0)).await?, b"")
}

pub(super) async fn a_range_outside_is_refused(shelf: &Shelf<'_>) -> CaseResult {
    let objects = [(shelf.put("ten", some_bytes(1, 10)).await?, 10), (shelf.put("empty", "").await?, 0)];
    for (key, size) in objects {
        #[allow(clippy::reversed_empty_ranges)]
        let backwards: Range<u64> = 5..3;
        let ranges = [
            0..size + 1,
            size..size + 1,
            size + 1..size + 1,
            size + 1..size + 2,
            0..u64::MAX,
            u64::MAX - 1..u64::MAX,
            backwards,
        ];
        for range in ranges {
            let what = format!("the range {}..{} of {size} bytes", range.start, range.end);
            let plain = shelf.store.read(&key, ReadOptions::range(range.clone())).await;
            refused(&what, ErrorKind::InvalidInput, plain)?;
            let verified = ReadOptions { range: Some(range), digest: Some(Digest::of(b"")) };
            refused(&format!("{what}, verified"), ErrorKind::InvalidInput, shelf.store.read(&key, verified).await)?;
        }
    }
    Ok(())
}

pub(super) async fn a_digest_is_checked(shelf: &Shelf<'_>) -> CaseResult {
    let bytes = some_bytes(1, 50_000);
    let key = shelf.put("digested", bytes.clone()).await?;
    let (whole, other) = (Digest::of(&bytes), Digest::of(b"other"));
    let read = |range: Option<Range<u64>>, digest| shelf.store.read(&key, ReadOptions { range, digest: Some(digest) });

    same_bytes("a read with its digest", &read(None, whole).await?, &bytes)?;
    same_bytes(
        "a range with the digest of its bytes",
        &read(Some(10..20), Digest::of(&bytes[10..20])).await?,
        &bytes[10..20],
    )?;
    same_bytes("an empty range with the digest of nothing", &read(Some(10..10), Digest::of(b"")).await?, b"")?;

    refused("a read with another digest", ErrorKind::Corrupt, read(None, other).await)?;
    refused("a range with the digest of the whole", ErrorKind::Corrupt, read(Some(10..20), whole).await)?;
    refused("an empty range with another digest", ErrorKind::Corrupt, read(Some(10..10), other).await)?;
    let empty = shelf.put("empty", "").await?;
    refused(
        "an empty object with another digest",
        ErrorKind::Corrupt,
        shelf.store.read(&empty, ReadOptions::verified(other)).await,
    )
}

pub(super) async fn changed_bytes_are_noticed(shelf: &Shelf<'_>) -> CaseResult {
    let bytes = some_bytes(1, 10_000);
    let key = shelf.put("rotten", bytes.clone()).await?;
    // Whatever an adapter remembers of a good read must not hide a bad one.
    shelf.store.read(&key, ReadOptions::verified(Digest::of(&bytes))).await?;
    if !shelf.harness.corrupt(&key).await {
        return skip("the harness cannot change bytes behind the port's back");
    }
    let verified = shelf.store.read(&key, ReadOptions::verified(Digest::of(&bytes))).await;
    refused("a verified read of a changed object", ErrorKind::Corrupt, verified)
}
