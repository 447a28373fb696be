//! OpenSSF Model Signing v1.0 bundles: a signature over a folder's files that the reference tool (`model-signing`) verifies, and vice versa.
//!
//! A bundle is a Sigstore bundle v0.3 around a DSSE envelope around an in-toto statement that lists each file with its digest. The statement's
//! root digest (over the files' digests in listed order) is checked and never used as an identity: tools sort differently.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use bytes::Bytes;
use hybrid_core::{Digest, Error, FileName, Hasher, Manifest, Result, Signer};
use serde::{Deserialize, Serialize};

use super::{
    MANIFEST_FILE, PublicKey, SIGNATURE_FILE,
    dsse::{Envelope, InToto, Subject, SubjectDigest},
    files::{blocking, digest_file, in_the_way, read_small, replace, walk},
};

const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";
/// The reference tool leaves these out of every folder.
pub(super) const GIT_PATHS: [&str; 4] = [".git", ".gitattributes", ".github", ".gitignore"];
/// No bundle of a version that fits its manifest's limit is larger.
pub(super) const MAX_BUNDLE: u64 = 16 * 1024 * 1024;
const VERIFY: &str = "verify model signature";

/// What a verified bundle says of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedFolder {
    /// The model's name as its signer spelled it.
    pub name: String,
    /// Each signed file with its digest.
    pub files: BTreeMap<FileName, Digest>,
}

/// Signs all files of `folder` and writes the bundle to `bundle`, as the reference tool's `sign` does. Symlinks are refused.
///
/// A bundle that lies in the folder is left out of what is signed.
///
/// # Errors
/// Those of the file system and the signer; [`InvalidInput`](hybrid_core::ErrorKind::InvalidInput) for a file name that some system cannot have.
pub async fn sign_folder(folder: &Path, bundle: &Path, signer: &dyn Signer) -> Result<()> {
    let (root, target) = (folder.to_owned(), bundle.to_owned());
    let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or("model").to_owned();
    let own = bundle.strip_prefix(folder).ok().and_then(Path::to_str).map(|path| path.replace('\\', "/"));
    let mut ignored: Vec<String> = GIT_PATHS.map(str::to_owned).to_vec();
    ignored.extend(own);
    let listed = ignored.clone();
    let files = blocking(move || digest_folder(&root, &listed)).await?;
    let bytes = encode(&name, &files, ignored, signer).await?;
    blocking(move || replace(&target, &bytes)).await
}

/// Verifies `folder` against `bundle`: the signature by one of `keys`, then that the folder holds exactly the signed files with the signed bytes.
///
/// # Errors
/// [`Untrusted`](hybrid_core::ErrorKind::Untrusted) if the signature does not hold or the sets of files differ,
/// [`Corrupt`](hybrid_core::ErrorKind::Corrupt) that names the file whose bytes differ; those of the file system.
pub async fn verify_folder(folder: &Path, bundle: &Path, keys: &[PublicKey]) -> Result<VerifiedFolder> {
    let (folder, bundle, keys) = (folder.to_owned(), bundle.to_owned(), keys.to_vec());
    blocking(move || {
        let (verified, ignored) = decode(&read_small(&bundle, MAX_BUNDLE)?, &keys)?;
        let found = digest_folder(&folder, &ignored)?;
        for (name, digest) in &verified.files {
            match found.get(name) {
                Some(found) if found == digest => {}
                Some(found) => {
                    return Err(Error::corrupt(VERIFY, "a file's bytes are not those signed")
                        .with("path", folder.join(name.as_str()).display())
                        .with("expected", digest)
                        .with("found", found));
                }
                None => {
                    return Err(Error::untrusted(VERIFY, "a signed file is missing")
                        .with("path", folder.join(name.as_str()).display()));
                }
            }
        }
        match found.keys().find(|name| !verified.files.contains_key(*name)) {
            Some(extra) => {
                Err(Error::untrusted(VERIFY, "a file is not signed")
                    .with("path", folder.join(extra.as_str()).display()))
            }
            None => Ok(verified),
        }
    })
    .await
}

/// The bundle of a version: its files and its manifest's exact bytes.
pub(super) async fn sign_version(manifest: &Manifest, digest: Digest, signer: &dyn Signer) -> Result<Bytes> {
    let name = format!("{}-{}", manifest.model, manifest.version);
    encode(&name, &version_files(manifest, digest)?, vec![SIGNATURE_FILE.to_owned()], signer).await
}

/// Checks that `bundle` is a trusted signature of exactly this version.
pub(super) fn verify_version(bundle: &[u8], manifest: &Manifest, digest: Digest, keys: &[PublicKey]) -> Result<()> {
    let (signed, _) = decode(bundle, keys)?;
    let expected = version_files(manifest, digest)?;
    if signed.files == expected {
        return Ok(());
    }
    let differs = expected.iter().find(|(name, digest)| signed.files.get(*name) != Some(digest)).map(|(name, _)| name);
    let extra = || signed.files.keys().find(|name| !expected.contains_key(*name));
    Err(Error::untrusted(VERIFY, "the signature is of other files than the manifest's")
        .with("manifest", digest)
        .with("file", differs.or_else(extra).map_or("", FileName::as_str)))
}

fn version_files(manifest: &Manifest, digest: Digest) -> Result<BTreeMap<FileName, Digest>> {
    let mut files: BTreeMap<_, _> = manifest.files.iter().map(|file| (file.name.clone(), file.digest)).collect();
    files.insert(FileName::new(MANIFEST_FILE)?, digest);
    Ok(files)
}

async fn encode(
    name: &str,
    files: &BTreeMap<FileName, Digest>,
    mut ignored: Vec<String>,
    signer: &dyn Signer,
) -> Result<Bytes> {
    ignored.sort_unstable();
    let resources: Vec<_> = files
        .iter()
        .map(|(name, digest)| Resource { name: name.to_string(), algorithm: "sha256".to_owned(), digest: *digest })
        .collect();
    let subject = Subject { name: name.to_owned(), digest: SubjectDigest { sha256: root(&resources) } };
    let serialization = Serialization {
        method: "files".to_owned(),
        hash_type: "sha256".to_owned(),
        allow_symlinks: false,
        ignore_paths: ignored,
    };
    let payload = InToto::new(subject, PREDICATE_TYPE, Predicate { serialization, resources }).encode()?;
    let public = PublicKey::from_pem(signer.public_key_pem())?;
    let bundle = Bundle {
        media_type: MEDIA_TYPE.to_owned(),
        verification_material: Material {
            public_key: Hint { hint: Some(public.fingerprint().to_string()) },
            tlog_entries: Vec::new(),
        },
        dsse_envelope: Envelope::sign(&payload, signer).await?,
    };
    let bytes = serde_json::to_vec(&bundle)
        .map_err(|error| Error::internal("encode bundle", "the bundle cannot be written as JSON").with_source(error))?;
    Ok(bytes.into())
}

/// Verifies a bundle's signature and reads what it signs, with the paths to leave out.
fn decode(bytes: &[u8], keys: &[PublicKey]) -> Result<(VerifiedFolder, Vec<String>)> {
    let untrusted = |message: &'static str| Error::untrusted(VERIFY, message);
    let bundle: Bundle = serde_json::from_slice(bytes)
        .map_err(|error| untrusted("not a signature bundle with a public key").with_source(error))?;
    if bundle.media_type != MEDIA_TYPE {
        return Err(untrusted("another kind of bundle").with("expected", MEDIA_TYPE).with("found", bundle.media_type));
    }
    // The hint chooses among trusted keys and proves nothing.
    let hint = bundle.verification_material.public_key.hint;
    let chosen: Vec<_> = keys
        .iter()
        .filter(|key| hint.as_ref().is_none_or(|hint| *hint == key.fingerprint().to_string()))
        .cloned()
        .collect();
    if chosen.is_empty() {
        return Err(untrusted("the key that signed the model is not trusted")
            .with("key", hint.unwrap_or_default())
            .with("trusted keys", keys.len()));
    }
    let payload = bundle.dsse_envelope.verify(VERIFY, &chosen)?;
    let mut statement = InToto::<Predicate>::decode(VERIFY, &payload, PREDICATE_TYPE)?;
    let Predicate { serialization, resources } = statement.predicate;
    if serialization.method != "files" || serialization.hash_type != "sha256" {
        return Err(Error::unsupported(VERIFY, "only whole files under sha256 are read; sign again with these")
            .with("method", serialization.method)
            .with("hash_type", serialization.hash_type));
    }
    let subject = statement.subject.remove(0);
    if root(&resources) != subject.digest.sha256 {
        return Err(untrusted("the root digest is not that of the files listed").with("model", subject.name));
    }
    let mut files = BTreeMap::new();
    for Resource { name, algorithm, digest } in resources {
        if algorithm != "sha256" {
            return Err(Error::unsupported(VERIFY, "only sha256 is read").with("file", name).with("found", algorithm));
        }
        let name =
            FileName::new(name).map_err(|error| untrusted("a signed name leaves its folder").with_source(error))?;
        if let Some(_twice) = files.insert(name.clone(), digest) {
            return Err(untrusted("a file is listed twice").with("file", name));
        }
    }
    FileName::check_together(files.keys())
        .map_err(|error| untrusted("the signed names cannot lie in one folder").with_source(error))?;
    Ok((VerifiedFolder { name: subject.name, files }, serialization.ignore_paths))
}

/// SHA-256 over the raw digests, joined in listed order.
fn root(resources: &[Resource]) -> Digest {
    let mut hasher = Hasher::new();
    resources.iter().for_each(|resource| hasher.update(resource.digest.as_bytes()));
    hasher.finish()
}

fn digest_folder(folder: &Path, ignored: &[String]) -> Result<BTreeMap<FileName, Digest>> {
    let ignored: BTreeSet<&str> = ignored.iter().map(String::as_str).chain(GIT_PATHS).collect();
    let is_ignored =
        |path: &str| ignored.contains(path) || path.match_indices('/').any(|(at, _)| ignored.contains(&path[..at]));
    walk(folder, &mut |path| Err(in_the_way(path)))?
        .into_iter()
        .filter(|path| !is_ignored(path))
        .map(|path| {
            let name = FileName::new(path)?;
            let (digest, _) = digest_file(&folder.join(name.as_str()))?;
            Ok((name, digest))
        })
        .collect()
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    media_type: String,
    verification_material: Material,
    dsse_envelope: Envelope,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Material {
    public_key: Hint,
    #[serde(default)]
    tlog_entries: Vec<serde_json::Value>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Hint {
    #[serde(default)]
    hint: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Predicate {
    serialization: Serialization,
    resources: Vec<Resource>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Serialization {
    method: String,
    hash_type: String,
    #[serde(default)]
    allow_symlinks: bool,
    #[serde(default)]
    ignore_paths: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Resource {
    name: String,
    algorithm: String,
    digest: Digest,
}
