//! Creating and deleting.

use std::{
    pin::pin,
    sync::atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use futures_util::{
    future::{join_all, try_join},
    poll,
};

use super::{Shelf, some_bytes};
use crate::{
    ArtifactStore, ArtifactStoreExt, ErrorKind, MAX_OBJECT_BYTES,
    conformance::case::{CaseResult, Stop, equal, fail, refused, same_bytes, yield_now},
};

pub(super) async fn created_objects_are_seen(shelf: &Shelf<'_>) -> CaseResult {
    for (i, size) in [1, 1_000, 100_000].into_iter().enumerate() {
        let name = format!("new/{i}");
        let key = shelf.put(&name, some_bytes(i as u64, size)).await?;
        equal("the size read", &shelf.get(&key).await?.len(), &size)?;
        let head = shelf.store.head(&key).await?;
        equal("the key of head", &head.key, &key)?;
        equal("the size of head", &head.size, &(size as u64))?;
        let listed = shelf.store.list_all(&shelf.prefix("new/")).await?;
        equal("the count of listed objects", &listed.len(), &(i + 1))?;
        ensure!(
            listed.iter().any(|meta| meta.key == key && meta.size == size as u64),
            "the object {key} of {size} bytes is not in the listing {listed:?}"
        );
    }
    Ok(())
}

pub(super) async fn any_bytes_come_back(shelf: &Shelf<'_>) -> CaseResult {
    let every_byte: Bytes = (0..=255).collect();
    let contents =
        [every_byte, Bytes::from_static(b"\0"), "line\r\nline\n".into(), some_bytes(1, 4097), some_bytes(2, 3 << 20)];
    for (i, bytes) in contents.into_iter().enumerate() {
        let key = shelf.put(&format!("{i}"), bytes.clone()).await?;
        same_bytes(&format!("the object of {} bytes", bytes.len()), &shelf.get(&key).await?, &bytes)?;
    }
    Ok(())
}

pub(super) async fn an_object_may_be_empty(shelf: &Shelf<'_>) -> CaseResult {
    let key = shelf.put("empty", Bytes::new()).await?;
    equal("the bytes", &shelf.get(&key).await?, &Bytes::new())?;
    equal("the size", &shelf.store.head(&key).await?.size, &0)?;
    equal("the listing", &shelf.names("", None).await?, &vec!["empty".to_owned()])?;
    refused("creating it again", ErrorKind::AlreadyExists, shelf.store.create(&key, "full".into()).await)
}

pub(super) async fn a_key_may_be_anything_legal(shelf: &Shelf<'_>) -> CaseResult {
    // As long as a key may be: parts of 200 bytes, 512 in all.
    let room = 512 - shelf.prefix("").len();
    let mut longest = "x".repeat(200) + "/";
    while room - longest.len() > 200 {
        longest += &("y".repeat(99) + "/");
    }
    longest += &"z".repeat(room - longest.len());
    equal("the length of the longest key", &shelf.key(&longest)?.as_str().len(), &512)?;
    let names = [
        "-",
        "_",
        "..a",
        "a..",
        "a...b",
        ".hidden",
        "0",
        "tmp",
        ".tmp",
        "con",
        "a-b",
        "a_b",
        "a.b",
        "ab",
        "d/e/f/g/h/i",
        &longest,
    ];
    let names = names.map(str::to_owned);
    shelf.put_all(&names).await?;
    for name in &names {
        let found = shelf.get(&shelf.key(name)?).await?;
        ensure!(found == name.as_bytes(), "the object {name:?} holds {found:?} instead of its own name");
    }
    let mut expected = names.to_vec();
    expected.sort();
    equal("the listing", &shelf.names("", None).await?, &expected)
}

pub(super) async fn create_keeps_the_first_bytes(shelf: &Shelf<'_>) -> CaseResult {
    let first = some_bytes(1, 1_000);
    let key = shelf.put("kept", first.clone()).await?;
    let others = [
        ("other bytes", some_bytes(2, 1_000)),
        ("fewer bytes", Bytes::new()),
        ("more bytes", some_bytes(3, 5_000)),
        ("the same bytes", first.clone()),
    ];
    for (what, bytes) in others {
        refused(
            &format!("creating the key again with {what}"),
            ErrorKind::AlreadyExists,
            shelf.store.create(&key, bytes).await,
        )?;
        same_bytes(&format!("the object after a second create with {what}"), &shelf.get(&key).await?, &first)?;
        equal("its size", &shelf.store.head(&key).await?.size, &1_000)?;
    }
    equal("the listing", &shelf.names("", None).await?, &vec!["kept".to_owned()])
}

pub(super) async fn one_of_many_creators_wins(shelf: &Shelf<'_>) -> CaseResult {
    for round in 0..4 {
        let key = shelf.key(&format!("race/{round}"))?;
        let bytes = |racer: usize| some_bytes(racer as u64, 100_000 + racer);
        let outcomes = join_all((0..16).map(|racer| shelf.store.create(&key, bytes(racer)))).await;
        let mut winners = Vec::new();
        for (racer, outcome) in outcomes.into_iter().enumerate() {
            match outcome {
                Ok(()) => winners.push(racer),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return fail(format!("a creator that lost got {error:?} instead of AlreadyExists")),
            }
        }
        let [winner] = winners[..] else {
            return fail(format!("of 16 concurrent creators {} got Ok: {winners:?}", winners.len()));
        };
        same_bytes(&format!("the object that creator {winner} won"), &shelf.get(&key).await?, &bytes(winner))?;
    }
    Ok(())
}

pub(super) async fn create_is_atomic(shelf: &Shelf<'_>) -> CaseResult {
    const SIZE: usize = 4 << 20;
    let (key, bytes) = (shelf.key("big")?, some_bytes(1, SIZE));
    let created = AtomicBool::new(false);
    let create = async {
        let outcome = shelf.store.create(&key, bytes.clone()).await;
        created.store(true, Ordering::Release);
        CaseResult::Ok(outcome?)
    };
    // Looks again and again while the create is under way, and once more when it has returned.
    let looks = async {
        loop {
            let last = created.load(Ordering::Acquire);
            match shelf.store.get(&key).await {
                Ok(found) => same_bytes("an object under way", &found, &bytes)?,
                Err(error) if error.kind() == ErrorKind::NotFound && !last => {}
                Err(error) => return Err(Stop::from(error)),
            }
            for meta in shelf.store.list_all(&shelf.prefix("")).await? {
                ensure!(meta.key == key && meta.size == SIZE as u64, "a listing of an object under way shows {meta:?}");
            }
            if last {
                return Ok(());
            }
            yield_now().await;
        }
    };
    try_join(create, looks).await.map(drop)
}

pub(super) async fn a_dropped_create_is_whole_or_nothing(shelf: &Shelf<'_>) -> CaseResult {
    for polls in 0..4 {
        let (key, bytes) = (shelf.key(&format!("dropped/{polls}"))?, some_bytes(polls, 1 << 20));
        {
            let mut create = pin!(shelf.store.create(&key, bytes.clone()));
            for _ in 0..polls {
                if poll!(&mut create).is_ready() {
                    break;
                }
            }
        }
        match shelf.store.create(&key, bytes.clone()).await {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return fail(format!("creating again after a dropped create: {error:?}")),
        }
        same_bytes("the object after a dropped create", &shelf.get(&key).await?, &bytes)?;
    }
    let dropped: Vec<_> = (0..4).map(|polls| format!("dropped/{polls}")).collect();
    equal("the listing", &shelf.names("", None).await?, &dropped)
}

pub(super) async fn the_largest_object_is_stored(shelf: &Shelf<'_>) -> CaseResult {
    let bytes = some_bytes(1, MAX_OBJECT_BYTES);
    let key = shelf.put("largest", bytes.clone()).await?;
    equal("its size", &shelf.store.head(&key).await?.size, &(MAX_OBJECT_BYTES as u64))?;
    same_bytes("the object", &shelf.get(&key).await?, &bytes)
}

pub(super) async fn a_larger_object_is_refused(shelf: &Shelf<'_>) -> CaseResult {
    let key = shelf.key("too-large")?;
    let bytes = Bytes::from(vec![0; MAX_OBJECT_BYTES + 1]);
    refused("creating one byte too many", ErrorKind::TooLarge, shelf.store.create(&key, bytes).await)?;
    refused("reading what was refused", ErrorKind::NotFound, shelf.store.get(&key).await)?;
    equal("the listing", &shelf.names("", None).await?, &Vec::new())?;
    // The refusal has not taken the key.
    shelf.put("too-large", "small").await.map(drop)
}

pub(super) async fn delete_removes_one_object(shelf: &Shelf<'_>) -> CaseResult {
    let names = ["d", "d-1", "d.1", "d0", "e/d"].map(str::to_owned);
    shelf.put_all(&names).await?;
    let key = shelf.key("d")?;
    shelf.store.delete(&key).await?;
    refused("reading a deleted object", ErrorKind::NotFound, shelf.store.get(&key).await)?;
    refused("the head of a deleted object", ErrorKind::NotFound, shelf.store.head(&key).await)?;
    equal("the listing", &shelf.names("", None).await?, &names[1..].to_vec())?;
    let folder = shelf.key("e")?;
    shelf.store.delete(&folder).await?;
    equal(
        "the listing after deleting a key that others have as a folder",
        &shelf.names("", None).await?,
        &names[1..].to_vec(),
    )
}

pub(super) async fn delete_of_nothing_is_ok(shelf: &Shelf<'_>) -> CaseResult {
    let never = shelf.key("never/was")?;
    shelf.store.delete(&never).await?;
    let key = shelf.put("once", "bytes").await?;
    shelf.store.delete(&key).await?;
    shelf.store.delete(&key).await?;
    equal("the listing", &shelf.names("", None).await?, &Vec::new())
}
