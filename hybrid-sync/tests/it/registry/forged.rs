//! Promises 6 to 9: what an attacker with the bucket, or the cache folder, may not achieve.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use hybrid_core::{ArtifactStore, ArtifactStoreExt, Digest, Error, ErrorKind, Key, Result, Signer};
use hybrid_sync::registry::{ChannelReader, FetchOptions, FileSigner, MemoryFloor, Trust};
use serde_json::{Value, json};
use std::{fs, sync::Arc};

use super::site::{Site, chunks, model, noise, now};

/// What a storefront does: look at the channel, fetch what it names.
async fn pick_up(site: &Site, trust: &Trust, cache: &str) -> Result<()> {
    let clock = Arc::new(hybrid_core::ManualClock::at(now()));
    let mut reader = ChannelReader::open(site.channel(), trust, Arc::new(MemoryFloor::default()), clock).await?;
    let manifest = reader.look().await?.floor.manifest;
    site.registry.fetch(manifest, trust, &site.cache(cache), FetchOptions::default()).await.map(|_| ())
}

fn nothing_is_visible(site: &Site, cache: &str) -> bool {
    let Ok(entries) = fs::read_dir(site.cache(cache)) else { return true };
    entries.flatten().all(|entry| entry.file_name().to_str().unwrap().parse::<Digest>().is_err())
}

async fn sign_dsse(payload: &Value, signer: &FileSigner) -> Value {
    let payload = serde_json::to_vec(payload).unwrap();
    let mut message = format!("DSSEv1 28 application/vnd.in-toto+json {} ", payload.len()).into_bytes();
    message.extend(&payload);
    json!({
        "payload": STANDARD.encode(&payload),
        "payloadType": "application/vnd.in-toto+json",
        "signatures": [{"sig": STANDARD.encode(signer.sign(&message).await.unwrap()), "keyid": ""}],
    })
}

/// Publishes hand-made manifest bytes with a genuine signature of the builder over the names that the manifest gives.
async fn plant_manifest(site: &Site, manifest: &Value, names: &[(&str, Digest)]) -> Digest {
    let bytes = Bytes::from(serde_json::to_vec(manifest).unwrap());
    let digest = Digest::of(&bytes);
    let mut resources = vec![json!({"name": "manifest.json", "algorithm": "sha256", "digest": digest})];
    resources.extend(names.iter().map(|(name, digest)| json!({"name": name, "algorithm": "sha256", "digest": digest})));
    let root: Vec<u8> = std::iter::once(digest)
        .chain(names.iter().map(|(_, digest)| *digest))
        .flat_map(|digest| digest.as_bytes().to_vec())
        .collect();
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "bakery", "digest": {"sha256": Digest::of(&root)}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": false, "ignore_paths": ["model.sig"]},
            "resources": resources,
        },
    });
    let bundle = json!({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": site.builder.public_key().fingerprint()}, "tlogEntries": []},
        "dsseEnvelope": sign_dsse(&statement, &site.builder).await,
    });
    site.store
        .create(
            &format!("manifests/{digest}.sigstore.json").parse().unwrap(),
            serde_json::to_vec(&bundle).unwrap().into(),
        )
        .await
        .unwrap();
    site.store.create(&format!("manifests/{digest}").parse().unwrap(), bytes).await.unwrap();
    digest
}

/// A published version's manifest as JSON, with the digest of its only file.
async fn genuine(site: &Site) -> (Value, Digest) {
    let published = site.publish(site.draft(1, &[("model.bin", noise(5000, 1))])).await.unwrap();
    let bytes = site.store.get(&format!("manifests/{}", published.manifest).parse().unwrap()).await.unwrap();
    (serde_json::from_slice(&bytes).unwrap(), Digest::of(&noise(5000, 1)))
}

fn untrusted(error: &Error) {
    assert!(matches!(error.kind(), ErrorKind::Untrusted | ErrorKind::Corrupt), "{error:?}");
}

#[tokio::test]
async fn promise_6_a_key_that_trust_does_not_name_verifies_nothing() {
    let site = Site::new();
    site.release(1, None).await;
    let good = site.trust();
    pick_up(&site, &good, "good").await.unwrap();
    let swapped = Trust { builders: good.releases.clone(), releases: good.builders.clone() };
    let no_builder = Trust { builders: Vec::new(), ..good.clone() };
    let release_as_builder = Trust { builders: good.releases.clone(), ..good.clone() };
    let builder_as_release = Trust { releases: good.builders.clone(), ..good.clone() };
    for (i, trust) in [swapped, no_builder, release_as_builder, builder_as_release, Trust::default()].iter().enumerate()
    {
        let cache = format!("bad-{i}");
        assert_eq!(pick_up(&site, trust, &cache).await.unwrap_err().kind(), ErrorKind::Untrusted);
        assert!(nothing_is_visible(&site, &cache));
    }
    // A trusted key beside an unknown one still counts.
    let both = Trust { builders: good.releases.iter().chain(&good.builders).cloned().collect(), ..good };
    pick_up(&site, &both, "both").await.unwrap();
}

#[tokio::test]
async fn promise_7_a_flipped_byte_in_any_object_fails_before_a_loader_sees_it() {
    let site = Site::new();
    let files = [("config.json", b"{}".to_vec()), ("model.safetensors", chunks(3, 7))];
    let manifest = site.publish(site.draft(1, &files)).await.unwrap().manifest;
    site.append(manifest, None).await.unwrap();
    let keys = site.keys().await;
    assert!(keys.len() >= 6, "{keys:?}");
    for key in keys {
        let sound = site.store.get(&key).await.unwrap();
        let is_json = sound.starts_with(b"{\"");
        let mut damaged: Vec<Vec<u8>> = Vec::new();
        for at in [0, sound.len() / 3, sound.len() / 2, sound.len() - 1] {
            let mut bytes = sound.to_vec();
            bytes[at] ^= 1;
            damaged.push(bytes);
        }
        damaged.push(sound[..sound.len() - 1].to_vec());
        damaged.push(Vec::new());
        damaged.push([&sound[..], b"x"].concat());
        for (i, bytes) in damaged.into_iter().enumerate() {
            site.store.corrupt(&key, bytes.into());
            let cache = format!("{}-{i}", key.as_str().replace('/', "_"));
            let result = pick_up(&site, &site.trust(), &cache).await;
            // In an envelope some bytes are not signed: field names of no meaning, the key's hint. They change nothing that is loaded.
            match result {
                Err(error) => untrusted(&error),
                Ok(()) => assert!(
                    is_json && key.as_str().ends_with(".sigstore.json") || key.as_str().starts_with("channels/"),
                    "{key} {i}"
                ),
            }
            assert!(result_is_sound(&site, &cache, manifest), "{key} {i}");
        }
        site.store.corrupt(&key, sound);
    }
    pick_up(&site, &site.trust(), "sound").await.unwrap();
}

/// Nothing is visible, or exactly what was published.
fn result_is_sound(site: &Site, cache: &str, manifest: Digest) -> bool {
    nothing_is_visible(site, cache)
        || fs::read(site.cache(cache).join(manifest.to_string()).join("model.safetensors")).unwrap() == chunks(3, 7)
}

#[tokio::test]
async fn promise_7_a_chunk_swapped_for_another_sound_one_fails() {
    let site = Site::new();
    let manifest =
        site.publish(site.draft(1, &[("a.bin", noise(1000, 1)), ("b.bin", noise(1000, 2))])).await.unwrap().manifest;
    let blobs = site.store.list_all("blobs/").await.unwrap();
    let other = site.store.get(&blobs[1].key).await.unwrap();
    site.store.corrupt(&blobs[0].key, other);
    let error = site.fetch(manifest, "cache").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(error.context("key"), Some(blobs[0].key.as_str()));
}

#[tokio::test]
async fn promise_7_a_manifest_or_signature_swapped_for_another_versions_fails() {
    let site = Site::new();
    let one = site.release(1, None).await;
    let two = site.publish(site.draft(2, &[("label.txt", b"two".to_vec())])).await.unwrap().manifest;
    let key = |text: String| text.parse::<Key>().unwrap();
    for suffix in ["", ".sigstore.json"] {
        let target = key(format!("manifests/{one}{suffix}"));
        let sound = site.store.get(&target).await.unwrap();
        site.store.corrupt(&target, site.store.get(&key(format!("manifests/{two}{suffix}"))).await.unwrap());
        untrusted(&pick_up(&site, &site.trust(), "cache").await.unwrap_err());
        site.store.corrupt(&target, sound);
    }
    assert!(nothing_is_visible(&site, "cache"));
}

#[tokio::test]
async fn promise_8_a_signed_name_that_leaves_its_folder_writes_nothing() {
    let site = Site::new();
    let (manifest, file) = genuine(&site).await;
    let names = [
        "../evil.bin",
        "/tmp/evil.bin",
        "",
        "a//b",
        "a\\..\\evil",
        "nul\0",
        "sub/../../evil.bin",
        ".",
        "manifest.json",
        "MODEL.SIG",
        "manifest.json/x",
    ];
    for name in names {
        let mut evil = manifest.clone();
        evil["files"][0]["name"] = json!(name);
        let digest = plant_manifest(&site, &evil, &[(name, file)]).await;
        untrusted(&site.fetch(digest, "cache").await.unwrap_err());
    }
    // Two names that one file system cannot tell apart, and one that is the other's folder.
    for (one, two) in [("Model.bin", "model.bin"), ("a", "a/b"), ("a", "a")] {
        let mut evil = manifest.clone();
        evil["files"] = json!([evil["files"][0], evil["files"][0]]);
        evil["files"][0]["name"] = json!(one);
        evil["files"][1]["name"] = json!(two);
        let digest = plant_manifest(&site, &evil, &[(one, file), (two, file)]).await;
        untrusted(&site.fetch(digest, "cache").await.unwrap_err());
    }
    assert!(nothing_is_visible(&site, "cache"));
    assert!(!site.folder.path().join("evil.bin").exists());
    let entries: Vec<_> = fs::read_dir(site.cache("cache")).unwrap().flatten().map(|entry| entry.file_name()).collect();
    let is_lock = |name: &str| name.ends_with(".lock") || name.ends_with(".use");
    assert!(entries.iter().all(|name| is_lock(name.to_str().unwrap())), "{entries:?}");
}

#[cfg(unix)]
#[tokio::test]
async fn promise_8_a_symlink_in_the_cache_leads_nowhere() {
    use std::os::unix::fs::symlink;
    let site = Site::new();
    let digest = site.publish(site.draft(1, &[("sub/model.bin", noise(5000, 1))])).await.unwrap().manifest;
    let outside = site.cache("outside");
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("kept"), "kept").unwrap();
    let untouched = || {
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        assert_eq!(fs::read(outside.join("kept")).unwrap(), b"kept");
    };
    for (i, place) in
        [digest.to_string(), format!("{digest}.partial"), format!("{digest}.lock")].into_iter().enumerate()
    {
        let cache = site.cache(&format!("linked-{i}"));
        fs::create_dir_all(&cache).unwrap();
        symlink(&outside, cache.join(&place)).unwrap();
        let error = site.fetch(digest, &format!("linked-{i}")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Untrusted);
        assert_eq!(error.context("path"), Some(cache.join(place).to_str().unwrap()));
        untouched();
    }
    // Below the folder in progress a symlink is only a leftover: it goes, and what it points to stays.
    let partial = site.cache("below").join(format!("{digest}.partial"));
    fs::create_dir_all(&partial).unwrap();
    symlink(&outside, partial.join("sub")).unwrap();
    symlink(outside.join("kept"), partial.join("manifest.json")).unwrap();
    fs::hard_link(outside.join("kept"), partial.join("model.sig")).unwrap();
    let folder = site.fetch(digest, "below").await.unwrap().folder;
    untouched();
    assert_eq!(fs::read(folder.join("sub/model.bin")).unwrap(), noise(5000, 1));
    // In an activated version it is damage.
    fs::remove_file(folder.join("sub/model.bin")).unwrap();
    symlink(outside.join("kept"), folder.join("sub/model.bin")).unwrap();
    site.fetch(digest, "below").await.unwrap();
    untouched();
    assert!(fs::symlink_metadata(folder.join("sub/model.bin")).unwrap().is_file());
}

#[tokio::test]
async fn promise_9_what_is_no_digest_never_becomes_a_path() {
    let site = Site::new();
    let one = site.release(1, None).await;
    for bad in ["../../../etc/passwd", "", &one.to_string().to_uppercase(), &one.to_string()[1..]] {
        let statement = json!({
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": "bakery/stable", "digest": {"sha256": bad}}],
            "predicateType": "https://github.com/hybrid-rs/hybrid/channel/v1",
            "predicate": {
                "model": model(), "channel": "stable", "seq": 1, "prev": null, "manifest": bad, "incumbent": null,
                "issued": now(), "expires": now().plus(super::site::DAY), "nonce": "n", "why": "w",
            },
        });
        let mut object = sign_dsse(&statement, &site.release).await;
        object["format"] = json!("hybrid.channel/1");
        site.store.corrupt(
            &"channels/bakery/stable/00000000000000000001".parse().unwrap(),
            serde_json::to_vec(&object).unwrap().into(),
        );
        assert_eq!(pick_up(&site, &site.trust(), "cache").await.unwrap_err().kind(), ErrorKind::Untrusted);
    }
    assert!(nothing_is_visible(&site, "cache"));
    let (manifest, file) = genuine(&site).await;
    let mut evil = manifest;
    evil["files"][0]["chunks"][0]["digest"] = json!("../../x");
    let digest = plant_manifest(&site, &evil, &[("model.bin", file)]).await;
    untrusted(&site.fetch(digest, "cache").await.unwrap_err());
}

#[tokio::test]
async fn a_version_without_base_dataset_plan_or_verdict_does_not_load() {
    let site = Site::new();
    let (manifest, file) = genuine(&site).await;
    let cases: [fn(&mut Value); 7] = [
        |m| m["verdict"] = Value::Null,
        |m| m["lineage"]["dataset"] = json!(Digest::of(b"another")),
        |m| drop(m["lineage"].as_object_mut().unwrap().remove("plan")),
        |m| drop(m.as_object_mut().unwrap().remove("lineage")),
        |m| m["lineage"]["plan"]["model"] = json!("another"),
        |m| m["format"] = json!("hybrid.manifest/2"),
        |m| m["files"][0]["size"] = json!(4999),
    ];
    for (i, change) in cases.into_iter().enumerate() {
        let mut evil = manifest.clone();
        change(&mut evil);
        let digest = plant_manifest(&site, &evil, &[("model.bin", file)]).await;
        let error = site.fetch(digest, "cache").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Untrusted, "{i}: {error}");
    }
    // A genuine manifest whose signature lists other files.
    let mut evil = manifest;
    evil["metadata"] = json!({"x": "y"});
    let digest = plant_manifest(&site, &evil, &[("model.bin", file), ("hook.py", file)]).await;
    assert_eq!(site.fetch(digest, "cache").await.unwrap_err().kind(), ErrorKind::Untrusted);
    assert!(nothing_is_visible(&site, "cache"));
}

#[tokio::test]
async fn a_chunk_outside_the_registry_is_refused() {
    let site = Site::new();
    let (mut evil, file) = genuine(&site).await;
    evil["files"][0]["chunks"][0]["blob"] = json!("t/other/blobs/x");
    let digest = plant_manifest(&site, &evil, &[("model.bin", file)]).await;
    assert_eq!(site.fetch(digest, "cache").await.unwrap_err().kind(), ErrorKind::Untrusted);
}
