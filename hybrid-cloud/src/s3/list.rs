//! Listing, page by page.

use std::sync::Arc;

use aws_sdk_s3::types::Object;
use futures_util::{StreamExt, TryStreamExt, stream};
use hybrid_core::{BoxStream, Error, Key, ObjectMeta, Result};

use super::{
    Inner, Listing,
    read::{size, timestamp},
};

const OPERATION: &str = "list objects";

/// A page's objects, or those of all pages together.
type Page = Vec<Object>;

/// The objects below the store's prefix whose keys start with `prefix`, after `start_after`.
pub(super) fn objects(
    inner: Arc<Inner>,
    prefix: &str,
    start_after: Option<Key>,
) -> BoxStream<'static, Result<ObjectMeta>> {
    let prefix = inner.location.name(prefix);
    let start_after = start_after.map(|key| inner.name(&key));
    let root = inner.location.prefix().len();
    let meta = move |object: Object| {
        let (size, created) = (size(object.size()), timestamp(object.last_modified()));
        let mut name = object.key.filter(|name| name.is_char_boundary(root))?;
        name.drain(..root);
        Key::new(name).ok().map(|key| Ok(ObjectMeta { key, size, created }))
    };
    let pages = ordered(inner, prefix, start_after);
    pages.map_ok(move |page| stream::iter(page.into_iter().filter_map(meta))).try_flatten().boxed()
}

/// All objects whose names start with `prefix`, after `start_after`, as the server names them, in byte order.
pub(super) fn raw(
    inner: Arc<Inner>,
    prefix: String,
    start_after: Option<String>,
) -> BoxStream<'static, Result<Object>> {
    let pages = ordered(inner, prefix, start_after);
    pages.map_ok(|page| stream::iter(page.into_iter().map(Ok))).try_flatten().boxed()
}

fn ordered(inner: Arc<Inner>, prefix: String, start_after: Option<String>) -> BoxStream<'static, Result<Page>> {
    match inner.options.listing {
        Listing::ByteOrder => pages(inner, prefix, start_after)
            .scan(String::new(), |last, page| std::future::ready(Some(page.and_then(|page| in_order(last, page)))))
            .boxed(),
        Listing::Sorted => {
            let sorted = async move {
                // Such a server takes `start_after` in its own order, and would leave out what comes later in ours; and a prefix that ends
                // within a name, SeaweedFS takes for a folder's.
                let folder = prefix.rfind('/').map_or("", |slash| &prefix[..=slash]).to_owned();
                let mut all: Page = pages(inner, folder, None).try_concat().await?;
                all.retain(|object| object.key().is_some_and(|name| name.starts_with(&prefix)));
                all.sort_by(|one, other| one.key().cmp(&other.key()));
                let start_after = start_after.as_deref();
                all.retain(|object| start_after.is_none_or(|after| object.key().is_some_and(|name| name > after)));
                Result::Ok(all)
            };
            stream::once(sorted).boxed()
        }
    }
}

/// Checks that a page goes on after `last`, the last name before it.
fn in_order(last: &mut String, page: Page) -> Result<Page> {
    let mut before = last.as_str();
    for object in &page {
        let name = object.key().unwrap_or_default();
        if !before.is_empty() && before >= name {
            return Err(Error::unsupported(
                OPERATION,
                "the server does not list in byte order; choose Listing::Sorted for it",
            )
            .with("after", before)
            .with("found", name));
        }
        before = name;
    }
    *last = before.to_owned();
    Ok(page)
}

/// Where a listing is.
enum Place {
    Start { start_after: Option<String> },
    Page { token: String },
    End,
}

fn pages(inner: Arc<Inner>, prefix: String, start_after: Option<String>) -> BoxStream<'static, Result<Page>> {
    let state = (inner, prefix, Place::Start { start_after });
    stream::try_unfold(state, |(inner, prefix, place)| async move {
        let (start_after, token) = match place {
            Place::Start { start_after } => (start_after, None),
            Place::Page { token } => (None, Some(token)),
            Place::End => return Ok(None),
        };
        let page = inner
            .retried(|| async {
                let call = inner
                    .client
                    .list_objects_v2()
                    .bucket(inner.bucket())
                    .prefix(&prefix)
                    .set_start_after(start_after.clone())
                    .set_continuation_token(token.clone());
                inner.attempt(OPERATION, 0, call.send()).await
            })
            .await
            .map_err(|error| error.with("bucket", inner.bucket()).with("prefix", &prefix))?;
        let more = page.is_truncated() == Some(true);
        let place = match page.next_continuation_token {
            Some(token) if more => Place::Page { token },
            // A listing that ends early in silence would make a collector delete what is in use.
            None if more => {
                return Err(Error::corrupt(OPERATION, "the server says that there is more and not where")
                    .with("bucket", inner.bucket())
                    .with("prefix", &prefix));
            }
            _ => Place::End,
        };
        Ok(Some((page.contents.unwrap_or_default(), (inner, prefix, place))))
    })
    .boxed()
}
