//! Signing keys: ECDSA on P-256.

use std::{
    fmt,
    fs::{self, OpenOptions},
    io::Write,
    path::Path,
};

use async_trait::async_trait;
use hybrid_core::{Digest, Error, ErrorKind, Result, Signer};
use p256::{
    SecretKey,
    ecdsa::{
        DerSignature, SigningKey, VerifyingKey,
        signature::{Signer as _, Verifier as _},
    },
    pkcs8::{DecodePublicKey as _, EncodePrivateKey as _, EncodePublicKey as _, LineEnding},
};

use super::files::{io_error, read_small, sync_folder};

/// No PEM file of one key is larger.
const MAX_KEY_FILE: u64 = 64 * 1024;

/// A public key of P-256 that verifies signatures.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    key: VerifyingKey,
    pem: String,
}

impl PublicKey {
    /// Reads a SubjectPublicKeyInfo in PEM (`-----BEGIN PUBLIC KEY-----`).
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) for anything else, another curve included.
    pub fn from_pem(pem: &str) -> Result<Self> {
        let invalid =
            |error| Error::invalid("read public key", "expected a P-256 public key in PEM").with_source(error);
        let key = VerifyingKey::from_public_key_pem(pem.trim()).map_err(invalid)?;
        let pem = key.to_public_key_pem(LineEnding::LF).map_err(invalid)?;
        Ok(Self { key, pem })
    }

    /// Reads a PEM file.
    ///
    /// # Errors
    /// As [`from_pem`](Self::from_pem), and those of reading the file.
    pub fn open(path: &Path) -> Result<Self> {
        let text = read_text(path)?;
        Self::from_pem(&text).map_err(|error| error.with("path", path.display()))
    }

    /// The key in PEM: LF line ends, a final newline.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The key's fingerprint: SHA-256 of the PEM text, which is also the hint in a signature bundle.
    pub fn fingerprint(&self) -> Digest {
        Digest::of(self.pem.as_bytes())
    }

    /// Whether `signature` (ASN.1 DER) is this key's signature of `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        DerSignature::try_from(signature).is_ok_and(|signature| self.key.verify(message, &signature).is_ok())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.fingerprint())
    }
}

/// A private key of P-256 in a PEM file, PKCS#8 or SEC1.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use hybrid_core::Signer;
/// use hybrid_sync::registry::FileSigner;
///
/// let folder = tempfile::tempdir().unwrap();
/// let signer = FileSigner::open_or_generate(&folder.path().join("builder.pem"))?;
/// let signature = signer.sign(b"message").await?;
/// assert!(signer.public_key().verifies(b"message", &signature));
/// # Ok::<(), hybrid_core::Error>(()) }).unwrap();
/// ```
pub struct FileSigner {
    key: SigningKey,
    public: PublicKey,
}

impl FileSigner {
    /// Reads a private key in PEM: PKCS#8 (`BEGIN PRIVATE KEY`) or SEC1 (`BEGIN EC PRIVATE KEY`, as OpenSSL writes it).
    ///
    /// # Errors
    /// [`InvalidInput`](ErrorKind::InvalidInput) for anything else; the message never holds key material.
    pub fn from_pem(pem: &str) -> Result<Self> {
        // OpenSSL may write the curve's parameters as a block of their own before a SEC1 key.
        let start =
            ["-----BEGIN EC PRIVATE KEY-----", "-----BEGIN PRIVATE KEY-----"].iter().find_map(|label| pem.find(label));
        let invalid =
            || Error::invalid("read private key", "expected an unencrypted P-256 private key in PEM, PKCS#8 or SEC1");
        let secret = start.and_then(|start| SecretKey::from_pem(pem[start..].trim()).ok()).ok_or_else(invalid)?;
        Self::new(SigningKey::from(secret))
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// As [`from_pem`](Self::from_pem), and those of reading the file.
    pub fn open(path: &Path) -> Result<Self> {
        let text = read_text(path)?;
        Self::from_pem(&text).map_err(|error| error.with("path", path.display()))
    }

    /// Makes a new key and writes it to `path` as PKCS#8, readable by its owner alone.
    ///
    /// The file appears whole or not at all; an existing one is never replaced.
    ///
    /// # Errors
    /// [`AlreadyExists`](ErrorKind::AlreadyExists) if there is a file; those of writing.
    pub fn generate(path: &Path) -> Result<Self> {
        let signer = Self::new(random_key()?)?;
        let pem = signer
            .key
            .to_pkcs8_pem(LineEnding::LF)
            .map_err(|error| Error::internal("generate key", "the key cannot be written as PEM").with_source(error))?;
        let mut suffix = [0; 8];
        fill(&mut suffix)?;
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{:016x}.new", u64::from_ne_bytes(suffix)));
        let new = path.with_file_name(name);
        let failed = |error| io_error("write key file", path, error);
        let written = write_private(&new, pem.as_bytes()).and_then(|()| fs::hard_link(&new, path));
        let removed = fs::remove_file(&new);
        written.and(removed).map_err(failed)?;
        sync_folder(path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
        Ok(signer)
    }

    /// Opens the key file, or generates it if there is none. Of several processes that do so at once, one generates and all open the same.
    ///
    /// # Errors
    /// As [`open`](Self::open) and [`generate`](Self::generate).
    pub fn open_or_generate(path: &Path) -> Result<Self> {
        match Self::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => match Self::generate(path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Self::open(path),
                other => other,
            },
            other => other,
        }
    }

    /// The public key.
    pub fn public_key(&self) -> &PublicKey {
        &self.public
    }

    fn new(key: SigningKey) -> Result<Self> {
        let pem = key.verifying_key().to_public_key_pem(LineEnding::LF).map_err(|error| {
            Error::internal("read private key", "its public key cannot be written as PEM").with_source(error)
        })?;
        Ok(Self { public: PublicKey { key: *key.verifying_key(), pem }, key })
    }
}

#[async_trait]
impl Signer for FileSigner {
    fn public_key_pem(&self) -> &str {
        self.public.pem()
    }

    async fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        let signature: DerSignature = self.key.sign(message);
        Ok(signature.as_bytes().to_vec())
    }
}

impl fmt::Debug for FileSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileSigner").field("public", &self.public).finish_non_exhaustive()
    }
}

fn read_text(path: &Path) -> Result<String> {
    let real = fs::canonicalize(path).map_err(|error| io_error("read key file", path, error))?;
    String::from_utf8(read_small(&real, MAX_KEY_FILE)?)
        .map_err(|_| Error::invalid("read key file", "expected PEM text").with("path", path.display()))
}

fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn random_key() -> Result<SigningKey> {
    let mut bytes = [0; 32];
    loop {
        fill(&mut bytes)?;
        // All but one in 2^32 candidates are below the group's order.
        if let Ok(key) = SigningKey::from_slice(&bytes) {
            return Ok(key);
        }
    }
}

fn fill(bytes: &mut [u8]) -> Result<()> {
    getrandom::fill(bytes).map_err(|error| {
        Error::internal("generate key", "the operating system gives no random numbers").with_source(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEC1: &str = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIKIUILa9V4R44a0LdsXyXsI1zf+8RIVu5ZAyFkJgoxqMoAoGCCqGSM49\nAwEHoUQDQgAEs6N9pR+xSBhDrk8901yxnG+I0OFqo/qR6HgwE20yzNYCgMyPvwVN\nFHtTczAbzSJQKZGZJrOzPxJn9WQVtcGvLg==\n-----END EC PRIVATE KEY-----\n";

    #[tokio::test]
    async fn a_key_is_read_as_sec1_and_as_pkcs8() {
        let sec1 = FileSigner::from_pem(SEC1).unwrap();
        let pkcs8 = FileSigner::from_pem(&sec1.key.to_pkcs8_pem(LineEnding::CRLF).unwrap()).unwrap();
        assert_eq!(sec1.public_key(), pkcs8.public_key());
        let signature = sec1.sign(b"m").await.unwrap();
        let public = PublicKey::from_pem(&pkcs8.public_key_pem().replace('\n', "\r\n")).unwrap();
        assert!(public.verifies(b"m", &signature));
        assert!(!public.verifies(b"n", &signature));
        assert!(public.pem().ends_with("-----END PUBLIC KEY-----\n") && !public.pem().contains('\r'));
        assert!(FileSigner::from_pem("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----").is_err());
    }

    #[test]
    fn a_generated_key_is_private_and_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k.pem");
        let made = FileSigner::generate(&path).unwrap();
        assert_eq!(FileSigner::generate(&path).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(FileSigner::open_or_generate(&path).unwrap().public_key(), made.public_key());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no half-written file is left");
        #[cfg(unix)]
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions()) & 0o777, 0o600);
        assert!(!format!("{made:?}").contains("PRIVATE"));
    }

    #[test]
    fn racing_processes_end_with_one_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k.pem");
        let keys: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|_| scope.spawn(|| FileSigner::open_or_generate(&path).unwrap().public.pem)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
    }
}
