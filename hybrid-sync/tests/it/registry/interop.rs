//! Signatures that the reference tool (`model-signing` on PyPI) verifies, and the other way round.
//!
//! Runs where `HYBRID_MODEL_SIGNING` names the Python of an environment that has `model-signing` installed.

use std::{path::Path, process::Command};

use hybrid_core::ErrorKind;
use hybrid_sync::registry::{PublicKey, sign_folder, verify_folder};

use super::site::{Site, noise};

fn python(script: &str, arguments: &[&Path]) -> Option<bool> {
    let Some(python) = std::env::var_os("HYBRID_MODEL_SIGNING") else {
        eprintln!("skipped: HYBRID_MODEL_SIGNING is not set to the Python of an environment with model-signing");
        return None;
    };
    let script = format!("import sys, model_signing\nfolder, bundle, key = sys.argv[1:]\n{script}");
    let output = Command::new(python).arg("-c").arg(script).args(arguments).output().unwrap();
    eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    Some(output.status.success())
}

const VERIFY: &str =
    "model_signing.verifying.Config().use_elliptic_key_verifier(public_key=key).verify(folder, bundle)";
const SIGN: &str = "model_signing.signing.Config().use_elliptic_key_signer(private_key=key).sign(folder, bundle)";

#[tokio::test]
async fn the_reference_tool_verifies_a_fetched_version() {
    let site = Site::new();
    let files = [("model.bin", noise(9 << 20, 1)), ("sub/config.json", b"{}".to_vec()), ("Z.txt", b"z".to_vec())];
    let manifest = site.publish(site.draft(1, &files)).await.unwrap().manifest;
    let folder = site.fetch(manifest, "cache").await.unwrap().folder;
    let (bundle, key) = (folder.join("model.sig"), site.cache("builder.pub"));
    std::fs::write(&key, site.builder.public_key().pem()).unwrap();
    let Some(verified) = python(VERIFY, &[&folder, &bundle, &key]) else { return };
    assert!(verified);
    std::fs::write(folder.join("Z.txt"), "y").unwrap();
    assert_eq!(python(VERIFY, &[&folder, &bundle, &key]), Some(false));
}

#[tokio::test]
async fn what_the_reference_tool_signs_verifies_here_and_what_is_signed_here_verifies_there() {
    let site = Site::new();
    let (folder, bundle) = (site.cache("theirs"), site.cache("theirs.sig"));
    std::fs::create_dir_all(folder.join("sub")).unwrap();
    std::fs::write(folder.join("b.txt"), "b").unwrap();
    std::fs::write(folder.join("sub/a.bin"), noise(100_000, 2)).unwrap();
    std::fs::write(folder.join(".gitignore"), "left out").unwrap();
    let Some(signed) = python(SIGN, &[&folder, &bundle, &site.cache("builder.pem")]) else { return };
    assert!(signed);
    let keys: [PublicKey; 1] = [site.builder.public_key().clone()];
    let verified = verify_folder(&folder, &bundle, &keys).await.unwrap();
    assert_eq!(verified.files.len(), 2);
    let error = verify_folder(&folder, &bundle, &[site.release.public_key().clone()]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Untrusted);

    let (ours, key) = (folder.join("model.sig"), site.cache("builder.pub"));
    sign_folder(&folder, &ours, &site.builder).await.unwrap();
    std::fs::write(&key, site.builder.public_key().pem()).unwrap();
    assert_eq!(python(VERIFY, &[&folder, &ours, &key]), Some(true));
    verify_folder(&folder, &ours, &keys).await.unwrap();

    std::fs::write(folder.join("b.txt"), "c").unwrap();
    let error = verify_folder(&folder, &bundle, &keys).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.context("path").is_some_and(|path| path.ends_with("b.txt")), "{error}");
}
