//! boto3 reads what we write, and we read what boto3 writes.

use hybrid_cloud::{
    s3::{Checksum, S3Location, S3Options, S3Store},
    testkit::{Python, Seaweed},
};
use hybrid_core::{ArtifactStore, ArtifactStoreExt, Digest, ErrorKind};

use super::{BOTH, Server, key, noise};

const SCRIPT: &str = r#"
import boto3, hashlib, sys
endpoint, access, secret, bucket = sys.argv[1:]
s3 = boto3.client("s3", endpoint_url=endpoint, aws_access_key_id=access, aws_secret_access_key=secret, region_name="us-east-1")
for key in ("ours/crc64nvme", "ours/sha256"):
    answer = s3.get_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    print(hashlib.sha256(answer["Body"].read()).hexdigest(), "hybrid-nonce" in answer["Metadata"], answer.get("ChecksumSHA256"))
s3.put_object(Bucket=bucket, Key="theirs/plain", Body=b"from Python")
s3.put_object(Bucket=bucket, Key="theirs/sha256", Body=b"x" * 1000000, ChecksumAlgorithm="SHA256", IfNoneMatch="*")
try:
    s3.put_object(Bucket=bucket, Key="ours/sha256", Body=b"again", IfNoneMatch="*")
    print("overwritten")
except s3.exceptions.ClientError as error:
    print(error.response["Error"]["Code"])
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn boto3_and_we_read_each_other() {
    for server in BOTH {
        let bucket = server.bucket().await;
        let config = server.config().await;
        let store = |checksum| {
            let options = S3Options { checksum, ..S3Options::default() };
            S3Store::new(&config, S3Location::new(&bucket, "").unwrap(), options).unwrap()
        };
        let bytes = noise(300_000, 9);
        store(Checksum::Crc64Nvme).create(&key("ours/crc64nvme"), bytes.clone()).await.unwrap();
        store(Checksum::Sha256).create(&key("ours/sha256"), bytes.clone()).await.unwrap();
        let (access, secret) = match server {
            Server::Seaweed => (Seaweed::ACCESS_KEY, Seaweed::SECRET_KEY),
            Server::Ministack => ("test", "test"),
        };
        let said = Python::servers().unwrap().run(SCRIPT, &[server.endpoint(), access, secret, &bucket]).unwrap();
        let lines: Vec<&str> = said.lines().collect();
        let digest = Digest::of(&bytes).to_string();
        assert!(lines[0].starts_with(&format!("{digest} True")), "{server:?}: {said}");
        assert!(lines[1].starts_with(&format!("{digest} True")) && !lines[1].ends_with("None"), "{server:?}: {said}");
        assert_eq!(lines[2], "PreconditionFailed", "{server:?}");
        let store = store(Checksum::default());
        assert_eq!(store.get(&key("theirs/plain")).await.unwrap(), "from Python");
        assert_eq!(store.get(&key("theirs/sha256")).await.unwrap(), vec![b'x'; 1_000_000]);
        let taken = store.create(&key("theirs/plain"), "from Python".into()).await.unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::AlreadyExists, "{taken}");
        assert_eq!(store.list_all("theirs/").await.unwrap().len(), 2);
    }
}
