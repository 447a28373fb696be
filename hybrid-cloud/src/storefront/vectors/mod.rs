//! `/v1/vectors`: documents in, nearest out, deletes that delete.

use std::collections::BTreeMap;

use axum::{Json, extract::FromRequest};
use hybrid_core::{
    Error, Neighbor, Task, VectorKey, VectorQuery, VectorRecord,
    task::{Embed, EmbedKind, EmbedRequest},
    vector::{FieldKind, Metadata, Metric, check_keys},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    body::JsonText,
    error::ApiError,
    front::{Admitted, Writing},
};
use crate::wire::embed::EmbeddingUsage;

mod filter;

/// How many neighbours a query has that does not say.
const K: usize = 10;
/// The field in which a document's text is kept, where the index declares it.
const TEXT: &str = "text";

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "VectorUpsertRequest")]
pub(super) struct Upsert {
    documents: Vec<Document>,
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "VectorDocument")]
struct Document {
    /// 1 to 1024 bytes; a document with the same id is replaced whole.
    id: String,
    /// Is embedded where no embedding is given, and kept in the field `text` where the index has it.
    text: Option<String>,
    embedding: Option<Vec<f32>>,
    /// Values of the index's fields.
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "VectorQueryRequest")]
pub(super) struct Query {
    /// Is embedded; send it or `embedding`.
    text: Option<String>,
    embedding: Option<Vec<f32>>,
    /// How many neighbours at most; 10 where left out.
    k: Option<usize>,
    /// Which documents count, such as `{"language": "en", "year": {"$gte": 2020}}`: a value, or `$eq`, `$ne`, `$gt`, `$gte`, `$lt`, `$lte`, `$in`, `$nin`,
    /// `$exists` of a field; `$and`, `$or` and `$not` of filters.
    filter: Option<Value>,
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "VectorIds")]
pub(super) struct Ids {
    ids: Vec<String>,
}

/// What a caller may know of the index.
#[derive(Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "VectorIndex")]
pub(super) struct Index {
    /// `vector.index`.
    object: &'static str,
    dimension: usize,
    /// `cosine` or `euclidean`.
    #[schemars(with = "String")]
    metric: Metric,
    /// Each field's kind: `text`, `number` or `boolean`, which filters may name, or `stored`.
    #[schemars(with = "BTreeMap<String, String>")]
    fields: BTreeMap<String, FieldKind>,
    /// The most neighbours of one query.
    max_k: usize,
    /// The model that embeds texts; null where documents come with their embeddings.
    model: Option<String>,
}

#[derive(Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "VectorUpserted")]
pub(super) struct Upserted {
    /// `list`.
    object: &'static str,
    data: Vec<Named>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<EmbeddingUsage>,
}

#[derive(Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "VectorName")]
struct Named {
    /// `vector.document`.
    object: &'static str,
    id: String,
}

#[derive(Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "VectorNeighbors")]
pub(super) struct Neighbors {
    /// `list`.
    object: &'static str,
    /// The nearest first.
    data: Vec<Near>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<EmbeddingUsage>,
}

#[derive(Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "VectorNeighbor")]
struct Near {
    /// `vector.neighbor`.
    object: &'static str,
    id: String,
    /// By the index's metric.
    distance: f32,
    metadata: Metadata,
}

#[derive(Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "VectorDocuments")]
pub(super) struct Found {
    /// `list`.
    object: &'static str,
    /// In the order asked; null where there is none.
    data: Vec<Option<Kept>>,
}

#[derive(Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "VectorKept")]
struct Kept {
    /// `vector.document`.
    object: &'static str,
    id: String,
    embedding: Vec<f32>,
    metadata: Metadata,
}

#[derive(Debug, Serialize, schemars::JsonSchema)]
#[schemars(rename = "VectorsDeleted")]
pub(super) struct Deleted {
    /// `vector.index`.
    object: &'static str,
    deleted: bool,
}

pub(super) async fn describe(admitted: Admitted) -> Result<Json<Index>, ApiError> {
    let (profile, model) = admitted.vectors()?;
    Ok(Json(Index {
        object: "vector.index",
        dimension: profile.schema.dimension(),
        metric: profile.schema.metric(),
        fields: profile.schema.fields().clone(),
        max_k: profile.max_k,
        model: model.map(|model| model.id().to_owned()),
    }))
}

pub(super) async fn upsert(admitted: Admitted, json: JsonText) -> Result<Json<Upserted>, ApiError> {
    let Upsert { documents } = json.parse()?;
    count(&admitted, "documents", documents.len())?;
    let profile = admitted.vectors()?.0;
    let keeps_text = profile.schema.fields().contains_key(TEXT);
    let mut texts = Vec::new();
    let mut records = Vec::with_capacity(documents.len());
    for (i, Document { id, text, embedding, mut metadata }) in documents.into_iter().enumerate() {
        let at = |field: &str| format!("documents[{i}]{field}");
        let refuse = |field: &str, message: &str| refuse(at(field), message);
        let key = VectorKey::new(id).map_err(|error| refuse(".id", error.message()))?;
        if let (Some(text), true) = (&text, keeps_text)
            && metadata.insert(TEXT.to_owned(), text.clone().into()).is_some()
        {
            return Err(refuse(".metadata.text", "is the document's text; send one of the two"));
        }
        // What is to be embedded is checked before it costs anything, and so stands here with any vector for the time being.
        let vector = match (embedding, text) {
            (Some(vector), _) => vector,
            (None, Some(text)) if text.trim().is_empty() => return Err(refuse(".text", "must not be blank")),
            (None, Some(text)) => {
                texts.push((i, text));
                vec![1.0; profile.schema.dimension()]
            }
            (None, None) => return Err(refuse("", "needs a text or an embedding")),
        };
        let record = VectorRecord { key, vector, metadata };
        profile.schema.check_record(&record).map_err(|error| ApiError::from(error).param(at("")))?;
        records.push(record);
    }
    check_keys(&records)?;
    let (places, texts): (Vec<_>, Vec<_>) = texts.into_iter().unzip();
    let writing = admitted.write_vectors(&records).await?;
    let mut usage = None;
    if !texts.is_empty() {
        match embed(&admitted, Some(&writing), texts, EmbedKind::Document).await {
            Ok((vectors, used)) => {
                for (place, vector) in places.into_iter().zip(vectors) {
                    records[place].vector = vector;
                }
                usage = Some(used);
            }
            Err(refused) => {
                writing.give_up(&refused).await;
                return Err(refused);
            }
        }
    }
    let data = records.iter().map(|record| Named::new(&record.key)).collect();
    admitted.upsert_vectors(writing, records).await?;
    Ok(Json(Upserted { object: "list", data, usage }))
}

pub(super) async fn query(admitted: Admitted, json: JsonText) -> Result<Json<Neighbors>, ApiError> {
    let Query { text, embedding, k, filter } = json.parse()?;
    let profile = admitted.vectors()?.0;
    let filter = filter.as_ref().map(filter::read).transpose()?;
    let k = k.unwrap_or_else(|| K.min(profile.max_k));
    let mut query = VectorQuery { vector: vec![1.0; profile.schema.dimension()], k, filter };
    let mut usage = None;
    match (text, embedding) {
        (None, Some(vector)) => query.vector = vector,
        (Some(text), None) if text.trim().is_empty() => return Err(refuse(TEXT, "must not be blank")),
        (Some(text), None) => {
            profile.check_query(&query)?;
            let (mut vectors, used) = embed(&admitted, None, vec![text], EmbedKind::Query).await?;
            query.vector = vectors.pop().unwrap_or_default();
            usage = Some(used);
        }
        _ => return Err(refuse("text", "or embedding must be sent, and one of them alone")),
    }
    profile.check_query(&query)?;
    let neighbors = admitted.query_vectors(query).await?;
    let data = neighbors.into_iter().map(Near::from).collect();
    Ok(Json(Neighbors { object: "list", data, usage }))
}

pub(super) async fn get(admitted: Admitted, Keys(keys): Keys) -> Result<Json<Found>, ApiError> {
    let found = admitted.get_vectors(&keys).await?;
    let data = found.into_iter().map(|record| {
        let VectorRecord { key, vector, metadata } = record?;
        Some(Kept { object: "vector.document", id: key.to_string(), embedding: vector, metadata })
    });
    Ok(Json(Found { object: "list", data: data.collect() }))
}

/// The same for an id that is there and for one that is not: it is gone.
pub(super) async fn delete(admitted: Admitted, Keys(keys): Keys) -> Result<Json<Upserted>, ApiError> {
    admitted.delete_vectors(&keys).await?;
    Ok(Json(Upserted { object: "list", data: keys.iter().map(Named::new).collect(), usage: None }))
}

pub(super) async fn delete_all(admitted: Admitted) -> Result<Json<Deleted>, ApiError> {
    admitted.drop_vectors().await?;
    Ok(Json(Deleted { object: "vector.index", deleted: true }))
}

/// The vectors of texts by the index's own model, in a call of their own, which costs what such a call costs.
async fn embed(
    admitted: &Admitted,
    writing: Option<&Writing>,
    texts: Vec<String>,
    kind: EmbedKind,
) -> Result<(Vec<Vec<f32>>, EmbeddingUsage), ApiError> {
    let (profile, model) = admitted.vectors()?;
    let (dimension, asked) = (profile.schema.dimension(), texts.len());
    let Some(model) = model else {
        return Err(ApiError::invalid("unsupported", "texts are not embedded here; send embeddings").param(TEXT));
    };
    let request = EmbedRequest { kind: Some(kind), ..EmbedRequest::many(texts) };
    Embed::validate(&request).map_err(|error| refuse(TEXT, error.message()))?;
    let reply = match writing {
        Some(writing) => writing.embed(admitted, &model, request).await?,
        None => admitted.infer(&model, request).await?,
    };
    let vectors = reply.response.embeddings;
    if vectors.len() != asked || vectors.iter().any(|vector| vector.len() != dimension) {
        let message = "the model's vectors are not those of the index; give the index a model of its dimension";
        let found = vectors.first().map_or(0, Vec::len);
        return Err(Error::corrupt("embed documents", message)
            .with("backend", &reply.meta.backend)
            .with("dimension", dimension)
            .with("found", found)
            .into());
    }
    let prompt_tokens = reply.meta.usage.total_input_tokens();
    Ok((vectors, EmbeddingUsage { prompt_tokens, total_tokens: prompt_tokens }))
}

/// The keys that a body names.
pub(super) struct Keys(Vec<VectorKey>);

impl FromRequest<std::sync::Arc<super::front::Front>> for Keys {
    type Rejection = ApiError;

    async fn from_request(
        request: axum::extract::Request,
        front: &std::sync::Arc<super::front::Front>,
    ) -> Result<Self, ApiError> {
        let Ids { ids } = JsonText::from_request(request, front).await?.parse()?;
        let limit = front.limits().inputs;
        if ids.len() > limit {
            return Err(ApiError::too_many("ids", limit, ids.len()));
        }
        let key = |(i, id)| VectorKey::new(id).map_err(|error: Error| refuse(format!("ids[{i}]"), error.message()));
        ids.into_iter().enumerate().map(key).collect::<Result<_, _>>().map(Self)
    }
}

fn count(admitted: &Admitted, field: &'static str, found: usize) -> Result<(), ApiError> {
    let limit = admitted.front().limits().inputs;
    match found {
        0 => Err(refuse(field, "must hold at least one")),
        found if found > limit => Err(ApiError::too_many(field, limit, found)),
        _ => Ok(()),
    }
}

/// A request that names `field` as what is wrong with it.
fn refuse(field: impl Into<String>, message: &str) -> ApiError {
    let field = field.into();
    ApiError::invalid("invalid_request", format!("{field} {message}")).param(field)
}

impl Named {
    fn new(key: &VectorKey) -> Self {
        Self { object: "vector.document", id: key.to_string() }
    }
}

impl From<Neighbor> for Near {
    fn from(Neighbor { key, distance, metadata }: Neighbor) -> Self {
        Self { object: "vector.neighbor", id: key.to_string(), distance, metadata }
    }
}
