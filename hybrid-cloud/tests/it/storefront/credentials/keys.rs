//! API keys.

use super::*;

#[tokio::test]
async fn a_key_is_known_by_its_hash_alone() {
    let shop = key("shop");
    let written = String::from_utf8(list([shop.record().clone()])).unwrap();
    let secret = shop.reveal().rsplit('_').next().unwrap();
    assert!(!written.contains(secret), "{written}");
    let keys = ApiKeys::open(Source::of(&written), clock(&noon())).await.unwrap();
    let principal = who(&keys, shop.reveal()).await;
    assert_eq!((principal.tenant.as_str(), principal.subject.as_str()), ("bakery", "shop"));
    assert_eq!(principal.credential.as_deref(), Some(shop.record().id.as_str()));
    // Taking away and removing all that a tenant has is for a key that names it.
    let usual = BTreeSet::from(Scope::USUAL);
    assert_eq!(principal.scopes, usual);

    // The same id with another secret, another id with the same secret, and less or more of the key.
    let other = key("shop");
    let mixed = format!("hk_{}_{}", shop.record().id, other.reveal().rsplit('_').next().unwrap());
    let swapped = format!("hk_{}_{secret}", other.record().id);
    let (short, long) = (&shop.reveal()[..shop.reveal().len() - 1], format!("{}a", shop.reveal()));
    for wrong in [
        other.reveal(),
        &mixed,
        &swapped,
        short,
        &long,
        "hk_",
        "hk_ä",
        &shop.reveal().to_uppercase().replace("HK_", "hk_"),
    ] {
        assert_eq!(refusal(&keys, wrong).await, "this API key is not known", "{wrong}");
    }
    assert!(keys.authenticate("sk-something").await.unwrap().is_none());
}

#[tokio::test]
async fn a_key_is_exchanged_without_a_moment_in_which_none_holds() {
    let time = noon();
    let (old, new) = (key("shop"), key("shop"));
    let source = Source::of(list([old.record().clone()]));
    let keys = ApiKeys::open(source.clone(), clock(&time)).await.unwrap();
    let expires = Some(time.now().plus(Duration::from_secs(60)));
    source.set(Some(&list([KeyRecord { expires, ..old.record().clone() }, new.record().clone()])));
    keys.reload().await.unwrap();
    assert_eq!(who(&keys, old.reveal()).await.subject, who(&keys, new.reveal()).await.subject);
    time.advance(Duration::from_secs(60));
    assert_eq!(refusal(&keys, old.reveal()).await, "this API key has expired");
    who(&keys, new.reveal()).await;

    let revoked = Some(time.now());
    source.set(Some(&list([KeyRecord { revoked, ..new.record().clone() }])));
    keys.reload().await.unwrap();
    assert_eq!(refusal(&keys, new.reveal()).await, "this API key is revoked");
    assert_eq!(refusal(&keys, old.reveal()).await, "this API key is not known");
}

#[tokio::test]
async fn a_source_that_fails_leaves_the_keys_in_force() {
    let shop = key("shop");
    let source = Source::of(list([shop.record().clone()]));
    let keys = ApiKeys::open(source.clone(), clock(&noon())).await.unwrap();
    let twice = list([shop.record().clone(), shop.record().clone()]);
    let odd = list([KeyRecord { id: "../../etc/passwd".to_owned(), ..shop.record().clone() }]);
    for bad in [None, Some(&b"{"[..]), Some(b"{\"format\":\"hybrid.api-keys/2\"}"), Some(&twice), Some(&odd)] {
        source.set(bad);
        assert!(keys.reload().await.is_err(), "{bad:?}");
        who(&keys, shop.reveal()).await;
    }
}

#[tokio::test]
async fn a_file_of_keys_is_read_again_while_the_storefront_runs() {
    let (folder, time, shop) = (tempfile::tempdir().unwrap(), noon(), key("shop"));
    let path = folder.path().join("keys.json");
    assert_eq!(
        ApiKeys::open(Arc::new(CredentialFile::new(&path)), clock(&time)).await.unwrap_err().kind(),
        ErrorKind::NotFound
    );
    fs::write(&path, list([])).unwrap();
    let keys = Arc::new(ApiKeys::open(Arc::new(CredentialFile::new(&path)), clock(&time)).await.unwrap());
    let router = builder(&time).authenticator(keys.clone()).classify("m", orders()).build().unwrap().router();
    let stop = Cancellation::new();
    let reloading = tokio::spawn({
        let (keys, stop) = (Arc::clone(&keys), stop.clone());
        async move { keys.reload_every(Duration::from_secs(30), stop).await }
    });
    assert_eq!(call(&router, from(shop.reveal(), get("/v1/models"))).await.status, 401);

    asleep(&time, 1).await;
    fs::write(folder.path().join("new"), list([shop.record().clone()])).unwrap();
    fs::rename(folder.path().join("new"), &path).unwrap();
    time.advance(Duration::from_secs(30));
    // Asleep again: it has read the file.
    asleep(&time, 1).await;
    assert_eq!(call(&router, from(shop.reveal(), get("/v1/models"))).await.status, 200);
    stop.cancel();
    soon(reloading).await.unwrap();
}
