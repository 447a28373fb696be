//! What is sent piece by piece, such as a file's content.

use std::{io, panic::AssertUnwindSafe, pin::pin, sync::Arc};

use axum::body::Bytes;
use futures_util::{
    FutureExt, Stream,
    future::{Either, select},
    stream,
};
use tokio::sync::mpsc;
use tracing::Instrument;

use crate::storefront::{
    error::ApiError,
    front::{Admitted, Sending},
};

/// What is sent at once, in bytes: a client that does not take so much within the stall limit is given up.
const PIECE: usize = 256 * 1024;

/// Begins to send a file or an export, once its first part is there: until then a failure has a status of its own.
///
/// The parts are read by a task of its own, which holds the call until its end, the stall limit or the client's leave. A failure on the way
/// breaks the connection, so that nothing that is cut looks whole.
pub(in crate::storefront) async fn start(
    admitted: &Admitted,
    mut sending: Sending,
) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static, ApiError> {
    let first = sending.next().await?;
    let (clock, stall) = (Arc::clone(admitted.front().clock()), admitted.front().limits().stream_stall);
    let (out, pieces) = mpsc::channel::<io::Result<Bytes>>(1);
    let send = async move {
        let mut part = first;
        while let Some(mut rest) = part {
            while !rest.is_empty() {
                let piece = rest.split_to(PIECE.min(rest.len()));
                match select(pin!(out.send(Ok(piece))), clock.sleep(stall)).await {
                    Either::Left((Ok(()), _)) => {}
                    _ => return tracing::debug!("the client left the download or does not read it"),
                }
            }
            part = match sending.next().await {
                Ok(part) => part,
                Err(error) => {
                    tracing::error!(
                        code = error.code(),
                        detail = error.detail().map(tracing::field::display),
                        "download failed"
                    );
                    // A client that reads nothing more must not hold the call's place.
                    drop(sending);
                    let broken = Err(io::Error::other("what is sent cannot be read to its end"));
                    let _ = select(pin!(out.send(broken)), clock.sleep(stall)).await;
                    return;
                }
            };
        }
    };
    // A panic ends the answer before its announced length, which its reader sees.
    tokio::spawn(AssertUnwindSafe(send).catch_unwind().map(drop).in_current_span());
    Ok(stream::unfold(pieces, async |mut pieces| Some((pieces.recv().await?, pieces))))
}
