//! `POST /v1/images/generations`.

use axum::Json;
use hybrid_core::{Error, Result, Task, task::GenerateImage};

use super::{body::JsonText, error::ApiError, front::Admitted};
use crate::wire::image::{ImageList, ImageRequest, caller_field, write_images};

pub(super) async fn generate(admitted: Admitted, json: JsonText) -> Result<Json<ImageList>, ApiError> {
    let mut wire: ImageRequest = json.parse()?;
    let model = wire.model.take();
    let request = wire.read()?;
    let model = admitted.model::<GenerateImage>(model.as_deref())?;
    GenerateImage::validate(&request).map_err(in_our_words)?;
    let limit = admitted.front().limits().inputs;
    let asked = request.n.unwrap_or(1);
    if usize::try_from(asked).is_ok_and(|asked| asked > limit) {
        return Err(ApiError::too_many("n", limit, usize::try_from(asked).unwrap_or(usize::MAX)));
    }
    let created = admitted.front().clock().now().unix_micros().div_euclid(1_000_000);
    let reply = admitted.infer(&model, request).await?;
    Ok(Json(write_images(created, reply.response, &reply.meta.usage)?))
}

fn in_our_words(error: Error) -> Error {
    let field = error.context("field").map(caller_field).unwrap_or_default().to_owned();
    Error::new(error.kind(), error.operation(), error.message().to_owned()).with("field", field)
}
