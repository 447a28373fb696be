//! Listing, page by page.

use std::{collections::VecDeque, sync::Arc};

use aws_sdk_s3::types::Object;
use futures_util::{StreamExt, TryStreamExt, stream};
use hybrid_core::{BoxStream, Error, Key, ObjectMeta, Result};

use super::{
    Inner, Listing,
    read::{size, timestamp},
};

const OPERATION: &str = "list objects";

/// The objects below the store's prefix whose keys start with `prefix`, after `start_after`.
pub(super) fn objects(
    inner: Arc<Inner>,
    prefix: &str,
    start_after: Option<Key>,
) -> BoxStream<'static, Result<ObjectMeta>> {
    let prefix = inner.location.name(prefix);
    let start_after = start_after.map(|key| inner.name(&key));
    let root = inner.location.prefix().len();
    raw(inner, prefix, start_after)
        .try_filter_map(move |object| async move {
            let key = object.key().and_then(|name| name.get(root..)).and_then(|name| Key::new(name).ok());
            Ok(key.map(|key| ObjectMeta { key, size: size(object.size()), created: timestamp(object.last_modified()) }))
        })
        .boxed()
}

/// All objects whose names start with `prefix`, after `start_after`, as the server names them, in byte order.
pub(super) fn raw(
    inner: Arc<Inner>,
    prefix: String,
    start_after: Option<String>,
) -> BoxStream<'static, Result<Object>> {
    match inner.options.listing {
        Listing::ByteOrder => pages(inner, prefix, start_after)
            .scan(String::new(), |last, found| {
                std::future::ready(Some(found.and_then(|object| in_order(last, object))))
            })
            .boxed(),
        Listing::Sorted => {
            let sorted = async move {
                // Such a server takes `start_after` in its own order, and would leave out what comes later in ours; and a prefix that ends
                // within a name, SeaweedFS takes for a folder's.
                let folder = prefix.rfind('/').map_or("", |slash| &prefix[..=slash]).to_owned();
                let mut all: Vec<Object> = pages(inner, folder, None).try_collect().await?;
                all.retain(|object| object.key().is_some_and(|name| name.starts_with(&prefix)));
                all.sort_by(|one, other| one.key().cmp(&other.key()));
                let start_after = start_after.as_deref();
                all.retain(|object| start_after.is_none_or(|after| object.key().is_some_and(|name| name > after)));
                Result::Ok(stream::iter(all.into_iter().map(Ok)))
            };
            stream::once(sorted).try_flatten().boxed()
        }
    }
}

fn in_order(last: &mut String, object: Object) -> Result<Object> {
    let name = object.key().unwrap_or_default();
    if !last.is_empty() && last.as_str() >= name {
        return Err(Error::unsupported(
            OPERATION,
            "the server does not list in byte order; choose Listing::Sorted for it",
        )
        .with("after", &*last)
        .with("found", name));
    }
    name.clone_into(last);
    Ok(object)
}

/// Where a listing is.
enum Place {
    Start { start_after: Option<String> },
    Page { token: String },
    End,
}

fn pages(inner: Arc<Inner>, prefix: String, start_after: Option<String>) -> BoxStream<'static, Result<Object>> {
    let state = (inner, prefix, Place::Start { start_after });
    let pages = stream::try_unfold(state, |(inner, prefix, place)| async move {
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
        let found: VecDeque<Result<Object>> = page.contents.unwrap_or_default().into_iter().map(Ok).collect();
        Ok(Some((stream::iter(found), (inner, prefix, place))))
    });
    pages.try_flatten().boxed()
}
