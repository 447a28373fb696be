#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use super::*;
use crate::{IdSource, ManualClock, SeededIds, memory::MemoryStore};

struct Shelf {
    store: MemoryStore,
    clock: ManualClock,
    files: Files,
    ids: Box<dyn IdSource>,
}

fn shelf() -> Shelf {
    let clock = ManualClock::at("2026-03-01T12:00:00Z".parse().unwrap());
    let store = MemoryStore::new(Arc::new(clock.clone()));
    let files = Files::new(Arc::new(store.clone()), Arc::new(clock.clone()));
    Shelf { store, clock, files, ids: Box::new(SeededIds::default()) }
}

impl Shelf {
    async fn put(&self, tenant: &TenantId, content: &[u8], new: NewFile) -> StoredFile {
        let mut upload = self.files.upload(tenant, FileId::next(&*self.ids));
        for piece in content.chunks(1_000_003) {
            upload.write(Bytes::copy_from_slice(piece)).await.unwrap();
        }
        upload.finish(new).await.unwrap()
    }

    async fn content(&self, tenant: &TenantId, file: &StoredFile) -> Result<Vec<u8>> {
        let parts: Vec<_> = self.files.read(tenant, file).try_collect().await?;
        Ok(parts.concat())
    }

    async fn objects(&self) -> usize {
        self.store.list_all("").await.unwrap().len()
    }
}

fn named(name: &str) -> NewFile {
    NewFile::new(name, "batch")
}

fn other() -> TenantId {
    TenantId::new("other").unwrap()
}

#[tokio::test]
async fn what_was_written_comes_back_to_the_byte_whatever_its_size() {
    let (shelf, tenant) = (shelf(), TenantId::single());
    for size in [0, 1, FILE_PART_BYTES - 1, FILE_PART_BYTES, FILE_PART_BYTES + 1, 3 * FILE_PART_BYTES] {
        let content: Vec<u8> = (0..size).map(|i| (i / 7 % 251) as u8).collect();
        let file = shelf.put(&tenant, &content, named("a")).await;
        assert_eq!((file.bytes, file.parts.len()), (size as u64, size.div_ceil(FILE_PART_BYTES)));
        assert_eq!(shelf.files.get(&tenant, file.id).await.unwrap().as_ref(), Some(&file));
        assert_eq!(shelf.content(&tenant, &file).await.unwrap(), content, "{size}");
    }
}

#[tokio::test]
async fn a_file_is_its_tenants_alone() {
    let (shelf, tenant) = (shelf(), TenantId::single());
    let file = shelf.put(&tenant, b"bread", named("a")).await;
    assert_eq!(shelf.files.get(&other(), file.id).await.unwrap(), None);
    assert!(!shelf.files.erase(&other(), file.id).await.unwrap());
    assert_eq!(shelf.files.list(&other(), FileQuery::default()).await.unwrap().files, []);
    assert_eq!(shelf.content(&other(), &file).await.unwrap_err().kind(), ErrorKind::NotFound);
    shelf.files.erase_tenant(&other()).await.unwrap();
    assert_eq!(shelf.content(&tenant, &file).await.unwrap(), b"bread");
}

#[tokio::test]
async fn an_erased_file_leaves_nothing_and_others_stay() {
    let (shelf, tenant) = (shelf(), TenantId::single());
    let kept = shelf.put(&tenant, b"bread", named("kept")).await;
    let before = shelf.objects().await;
    let gone = shelf.put(&tenant, &vec![7; FILE_PART_BYTES + 1], named("gone")).await;
    assert!(shelf.files.erase(&tenant, gone.id).await.unwrap());
    assert_eq!(shelf.objects().await, before);
    assert!(!shelf.files.erase(&tenant, gone.id).await.unwrap());
    assert_eq!(shelf.content(&tenant, &kept).await.unwrap(), b"bread");
    shelf.files.erase_tenant(&tenant).await.unwrap();
    assert_eq!(shelf.objects().await, 0);
}

#[tokio::test]
async fn an_erasure_that_broke_off_can_be_repeated() {
    let (shelf, tenant) = (shelf(), TenantId::single());
    let file = shelf.put(&tenant, b"bread", named("a")).await;
    // It came as far as the part.
    shelf.store.delete(&part_key(&tenant, file.id, file.nonce, &file.parts[0].digest).unwrap()).await.unwrap();
    assert!(shelf.files.get(&tenant, file.id).await.unwrap().is_some());
    assert!(shelf.files.erase(&tenant, file.id).await.unwrap());
    assert_eq!(shelf.objects().await, 0);
}

#[tokio::test]
async fn an_expired_file_is_in_no_answer_and_swept() {
    let (shelf, tenant) = (shelf(), TenantId::single());
    let expires = Some(shelf.clock.now().plus(Duration::from_secs(3600)));
    let file = shelf.put(&tenant, b"bread", NewFile { expires, ..named("a") }).await;
    let kept = shelf.put(&tenant, b"rolls", named("b")).await;
    shelf.clock.advance(Duration::from_secs(3599));
    assert_eq!((shelf.files.sweep(&tenant).await.unwrap(), shelf.files.count(&tenant).await.unwrap()), (0, 2));
    shelf.clock.advance(Duration::from_secs(1));
    assert_eq!(shelf.files.get(&tenant, file.id).await.unwrap(), None);
    assert_eq!(shelf.files.list(&tenant, FileQuery::default()).await.unwrap().files, [kept]);
    assert_eq!(shelf.files.sweep(&tenant).await.unwrap(), 1);
    assert_eq!(shelf.objects().await, 2);
}

#[tokio::test]
async fn half_an_upload_is_no_file_and_its_parts_are_swept_a_day_later() {
    let (shelf, tenant) = (shelf(), TenantId::single());
    for abandoned in [true, false] {
        let mut upload = shelf.files.upload(&tenant, FileId::next(&*shelf.ids));
        upload.write(vec![1; FILE_PART_BYTES + 1].into()).await.unwrap();
        assert_eq!(shelf.objects().await, 1);
        assert_eq!(shelf.files.get(&tenant, upload.id()).await.unwrap(), None);
        if abandoned {
            upload.abandon().await.unwrap();
            assert_eq!(shelf.objects().await, 0);
        }
    }
    shelf.clock.advance(ABANDONED);
    assert_eq!((shelf.files.sweep(&tenant).await.unwrap(), shelf.objects().await), (0, 1));
    shelf.clock.advance(Duration::from_secs(1));
    assert_eq!((shelf.files.sweep(&tenant).await.unwrap(), shelf.objects().await), (1, 0));
}

#[tokio::test]
async fn pages_hold_every_file_once_in_the_order_asked() {
    let (shelf, tenant) = (shelf(), TenantId::single());
    let mut all = Vec::new();
    for i in 0..7 {
        let purpose = if i % 2 == 0 { "batch" } else { "vision" };
        all.push(shelf.put(&tenant, &[i], NewFile::new(format!("{i}"), purpose)).await);
    }
    let walk = async |query: FileQuery| {
        let (mut query, mut seen) = (query, Vec::new());
        loop {
            let page = shelf.files.list(&tenant, query.clone()).await.unwrap();
            assert!(page.files.len() <= query.limit && (!page.more || page.files.len() == query.limit));
            seen.extend(page.files);
            if !page.more {
                return seen;
            }
            query.after = seen.last().map(|file| file.id);
        }
    };
    let query = FileQuery { limit: 3, ..FileQuery::default() };
    let newest_first: Vec<_> = all.iter().rev().cloned().collect();
    assert_eq!(walk(query.clone()).await, newest_first);
    assert_eq!(walk(FileQuery { order: RecordOrder::Ascending, ..query.clone() }).await, all);
    let visions = walk(FileQuery { purpose: Some("vision".to_owned()), limit: 1, ..query }).await;
    assert_eq!(visions.iter().map(|file| &*file.name).collect::<Vec<_>>(), ["5", "3", "1"]);
}

#[tokio::test]
async fn a_changed_part_fails_before_a_byte_of_it_is_given_out() {
    let (shelf, tenant) = (shelf(), TenantId::single());
    let file = shelf.put(&tenant, b"bread", named("a")).await;
    shelf.store.corrupt(&part_key(&tenant, file.id, file.nonce, &file.parts[0].digest).unwrap(), "breed".into());
    assert_eq!(shelf.content(&tenant, &file).await.unwrap_err().kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn a_repeated_effect_is_the_file_that_the_first_attempt_made() {
    let (shelf, tenant) = (shelf(), TenantId::single());
    let id = FileId::next(&*shelf.ids);
    let attempt = async |content: &'static str| {
        let mut upload = shelf.files.upload(&tenant, id);
        upload.write(content.into()).await.unwrap();
        upload.finish(named("out")).await.unwrap()
    };
    let first = attempt("bread").await;
    shelf.clock.advance(Duration::from_secs(5));
    assert_eq!(attempt("rolls").await, first);
    assert_eq!(shelf.content(&tenant, &first).await.unwrap(), b"bread");
}

#[tokio::test]
async fn a_later_attempt_at_a_file_owes_nothing_to_the_age_of_an_earlier_one() {
    let (shelf, tenant) = (shelf(), TenantId::single());
    let id = FileId::next(&*shelf.ids);
    let content = vec![1; FILE_PART_BYTES + 1];
    let mut first = shelf.files.upload(&tenant, id);
    first.write(content.clone().into()).await.unwrap();
    shelf.clock.advance(ABANDONED + Duration::from_secs(1));
    let mut second = shelf.files.upload(&tenant, id);
    second.write(content.clone().into()).await.unwrap();
    assert_eq!((shelf.files.sweep(&tenant).await.unwrap(), shelf.objects().await), (1, 1));
    // Nor does one that gives up take the other's.
    first.abandon().await.unwrap();
    let file = second.finish(named("out")).await.unwrap();
    assert_eq!(shelf.content(&tenant, &file).await.unwrap(), content);
}

#[tokio::test]
async fn an_upload_that_takes_as_long_as_its_parts_are_kept_makes_no_file() {
    let (shelf, tenant) = (shelf(), TenantId::single());
    let mut slow = shelf.files.upload(&tenant, FileId::next(&*shelf.ids));
    slow.write(vec![1; FILE_PART_BYTES + 1].into()).await.unwrap();
    shelf.clock.advance(ABANDONED + Duration::from_secs(1));
    assert_eq!(shelf.files.sweep(&tenant).await.unwrap(), 1);
    let error = slow.finish(named("out")).await.unwrap_err();
    assert!(error.is_temporary(), "{error}");
    slow.abandon().await.unwrap();
    assert_eq!(shelf.objects().await, 0);
}

#[tokio::test]
async fn what_an_attempt_left_that_another_overtook_is_swept_and_the_file_stays() {
    let (shelf, tenant) = (shelf(), TenantId::single());
    let id = FileId::next(&*shelf.ids);
    let mut lost = shelf.files.upload(&tenant, id);
    lost.write(vec![1; FILE_PART_BYTES].into()).await.unwrap();
    let mut won = shelf.files.upload(&tenant, id);
    won.write("bread".into()).await.unwrap();
    let file = won.finish(named("out")).await.unwrap();
    assert_eq!((shelf.files.sweep(&tenant).await.unwrap(), shelf.objects().await), (0, 3));
    shelf.clock.advance(ABANDONED + Duration::from_secs(1));
    assert_eq!((shelf.files.sweep(&tenant).await.unwrap(), shelf.objects().await), (1, 2));
    assert_eq!(shelf.content(&tenant, &file).await.unwrap(), b"bread");
}

/// A store whose first write of a descriptor arrives only after its writer has gone.
#[derive(Clone, Debug)]
struct Late {
    inner: MemoryStore,
    under_way: Arc<std::sync::Mutex<Option<(Key, Bytes)>>>,
}

#[async_trait::async_trait]
impl ArtifactStore for Late {
    async fn create(&self, key: &Key, bytes: Bytes) -> Result<()> {
        if key.as_str().contains("/files/index/") {
            *self.under_way.lock().unwrap() = Some((key.clone(), bytes));
            return std::future::pending().await;
        }
        self.inner.create(key, bytes).await
    }

    async fn read(&self, key: &Key, options: ReadOptions) -> Result<Bytes> {
        self.inner.read(key, options).await
    }

    async fn head(&self, key: &Key) -> Result<crate::ObjectMeta> {
        self.inner.head(key).await
    }

    fn list(&self, prefix: &str, options: ListOptions) -> BoxStream<'static, Result<crate::ObjectMeta>> {
        self.inner.list(prefix, options)
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.inner.delete(key).await
    }
}

#[tokio::test]
async fn a_file_whose_name_arrives_after_its_writer_gave_up_is_whole() {
    let (shelf, tenant) = (shelf(), TenantId::single());
    let late = Late { inner: shelf.store.clone(), under_way: Arc::default() };
    let mut upload =
        Files::new(Arc::new(late.clone()), Arc::new(shelf.clock.clone())).upload(&tenant, FileId::next(&*shelf.ids));
    upload.write("bread".into()).await.unwrap();
    {
        let finish = std::pin::pin!(upload.finish(named("a")));
        assert!(futures_util::FutureExt::now_or_never(finish).is_none());
    }
    let id = upload.id();
    upload.abandon().await.unwrap();
    let (key, bytes) = late.under_way.lock().unwrap().take().unwrap();
    shelf.store.create(&key, bytes).await.unwrap();
    let file = shelf.files.get(&tenant, id).await.unwrap().unwrap();
    assert_eq!(shelf.content(&tenant, &file).await.unwrap(), b"bread");
}

#[tokio::test]
async fn files_from_before_uploads_had_a_nonce_are_read_and_kept() {
    let (shelf, tenant) = (shelf(), TenantId::single());
    let id = FileId::next(&*shelf.ids);
    let digest = Digest::of(b"bread");
    shelf.store.create(&part_key(&tenant, id, None, &digest).unwrap(), "bread".into()).await.unwrap();
    let text = format!(
        r#"{{"format":"hybrid.file/1","id":"{id}","name":"a","purpose":"batch","bytes":5,"created":"2026-03-01T12:00:00Z","parts":[{{"digest":"{digest}","bytes":5}}]}}"#
    );
    shelf.store.create(&file_key(&tenant, id).unwrap(), text.into()).await.unwrap();
    shelf.clock.advance(ABANDONED * 2);
    assert_eq!(shelf.files.sweep(&tenant).await.unwrap(), 0);
    let file = shelf.files.get(&tenant, id).await.unwrap().unwrap();
    assert_eq!(shelf.content(&tenant, &file).await.unwrap(), b"bread");
}

#[tokio::test]
async fn a_range_reads_no_part_that_has_none_of_it_and_verifies_those_that_have() {
    let (shelf, tenant) = (shelf(), TenantId::single());
    let content: Vec<u8> = (0..3 * FILE_PART_BYTES).map(|i| (i / 7 % 251) as u8).collect();
    let file = shelf.put(&tenant, &content, named("a")).await;
    let read = async |range: std::ops::Range<usize>| {
        let range = range.start as u64..range.end as u64;
        let parts: Result<Vec<_>> = shelf.files.read_range(&tenant, &file, range).try_collect().await;
        parts.map(|parts| parts.concat())
    };
    for range in [0..1, FILE_PART_BYTES - 1..FILE_PART_BYTES + 1, 5..content.len(), 7..7, 0..usize::MAX] {
        assert!(read(range.clone()).await.unwrap() == content[range.start..range.end.min(content.len())], "{range:?}");
    }
    let first = part_key(&tenant, file.id, file.nonce, &file.parts[0].digest).unwrap();
    shelf.store.corrupt(&first, vec![0; FILE_PART_BYTES].into());
    assert!(read(FILE_PART_BYTES..2 * FILE_PART_BYTES).await.is_ok(), "the damaged part is not needed");
    assert_eq!(read(3..4).await.unwrap_err().kind(), ErrorKind::Corrupt);
}
