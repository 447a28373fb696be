//! What the operations do, and what they refuse.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{
    MissingField,
    filter::{self, Context},
};

/// A refusal as it goes over the wire.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) code: &'static str,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn validation(message: impl Into<String>) -> Self {
        Self { status: 400, code: "ValidationException", message: message.into() }
    }

    fn not_found(what: &str) -> Self {
        let message = format!("The specified {what} could not be found");
        Self { status: 404, code: "NotFoundException", message }
    }

    fn conflict(what: &str) -> Self {
        Self { status: 409, code: "ConflictException", message: format!("The {what} already exists") }
    }
}

type Answer<T = Value> = Result<T, Refusal>;

pub(super) struct Service {
    missing: MissingField,
    buckets: BTreeMap<String, BTreeMap<String, Index>>,
}

struct Index {
    dimension: usize,
    is_cosine: bool,
    stored: Vec<String>,
    vectors: BTreeMap<String, Vector>,
}

#[derive(Clone)]
struct Vector {
    data: Vec<f32>,
    metadata: Map<String, Value>,
}

impl Service {
    pub(super) fn new(missing: MissingField) -> Self {
        Self { missing, buckets: BTreeMap::new() }
    }

    pub(super) fn call(&mut self, operation: &str, body: &Value) -> Answer {
        match operation {
            "CreateVectorBucket" => self.create_bucket(body),
            "CreateIndex" => self.create_index(body),
            "GetIndex" => self.get_index(body),
            "DeleteIndex" => {
                let (bucket, name) = names(body)?;
                let indexes = self.buckets.get_mut(bucket).ok_or_else(|| Refusal::not_found("vector bucket"))?;
                indexes.remove(name).map(|_| json!({})).ok_or_else(|| Refusal::not_found("index"))
            }
            "PutVectors" => put_vectors(self.index(body)?, body),
            "GetVectors" => get_vectors(self.index(body)?, body),
            "ListVectors" => list_vectors(self.index(body)?, body),
            "DeleteVectors" => {
                let keys = keys(body, 500)?;
                let index = self.index(body)?;
                keys.iter().for_each(|key| drop(index.vectors.remove(*key)));
                Ok(json!({}))
            }
            "QueryVectors" => {
                let missing = self.missing;
                query_vectors(self.index(body)?, body, missing)
            }
            _ => Err(Refusal::validation(format!("no such operation: {operation}"))),
        }
    }

    fn create_bucket(&mut self, body: &Value) -> Answer {
        let name = text(body, "vectorBucketName", 3..=63)?;
        if self.buckets.contains_key(name) {
            return Err(Refusal::conflict("vector bucket"));
        }
        self.buckets.insert(name.to_owned(), BTreeMap::new());
        Ok(json!({ "vectorBucketArn": bucket_arn(name) }))
    }

    fn create_index(&mut self, body: &Value) -> Answer {
        let (bucket, name) = names(body)?;
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
        let outer = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if !name.bytes().all(inner) || !outer(name.bytes().next()) || !outer(name.bytes().last()) {
            return Err(Refusal::validation("indexName has characters that are not allowed"));
        }
        if body["dataType"] != "float32" {
            return Err(Refusal::validation("dataType is not float32"));
        }
        let dimension = body["dimension"].as_u64().filter(|dimension| (1..=4096).contains(dimension));
        let dimension = dimension.ok_or_else(|| Refusal::validation("dimension is not between 1 and 4096"))?;
        let is_cosine = match body["distanceMetric"].as_str() {
            Some("cosine") => true,
            Some("euclidean") => false,
            _ => return Err(Refusal::validation("distanceMetric is not cosine or euclidean")),
        };
        let stored = &body["metadataConfiguration"]["nonFilterableMetadataKeys"];
        let stored: Vec<String> =
            stored.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
        if stored.len() > 10 || stored.iter().any(|key| !(1..=63).contains(&key.len())) {
            return Err(Refusal::validation("nonFilterableMetadataKeys are too many or too long"));
        }
        let indexes = self.buckets.get_mut(bucket).ok_or_else(|| Refusal::not_found("vector bucket"))?;
        if indexes.contains_key(name) {
            return Err(Refusal::conflict("index"));
        }
        let index = Index { dimension: dimension as usize, is_cosine, stored, vectors: BTreeMap::new() };
        indexes.insert(name.to_owned(), index);
        Ok(json!({ "indexArn": format!("{}/index/{name}", bucket_arn(bucket)) }))
    }

    fn get_index(&mut self, body: &Value) -> Answer {
        let (bucket, name) = names(body)?;
        let Index { dimension, is_cosine, stored, .. } = self.index(body)?;
        let mut index = json!({
            "vectorBucketName": bucket,
            "indexName": name,
            "indexArn": format!("{}/index/{name}", bucket_arn(bucket)),
            "creationTime": 1_772_323_200.0,
            "dataType": "float32",
            "dimension": dimension,
            "distanceMetric": if *is_cosine { "cosine" } else { "euclidean" },
        });
        if !stored.is_empty() {
            index["metadataConfiguration"] = json!({ "nonFilterableMetadataKeys": stored });
        }
        Ok(json!({ "index": index }))
    }

    fn index(&mut self, body: &Value) -> Answer<&mut Index> {
        let (bucket, name) = names(body)?;
        let indexes = self.buckets.get_mut(bucket).ok_or_else(|| Refusal::not_found("vector bucket"))?;
        indexes.get_mut(name).ok_or_else(|| Refusal::not_found("index"))
    }
}

fn put_vectors(index: &mut Index, body: &Value) -> Answer {
    let vectors = body["vectors"].as_array().filter(|vectors| (1..=500).contains(&vectors.len()));
    let vectors = vectors.ok_or_else(|| Refusal::validation("vectors are not between 1 and 500"))?;
    let mut put = Vec::with_capacity(vectors.len());
    for vector in vectors {
        let key = text(vector, "key", 1..=1024)?;
        let data = index.vector(&vector["data"])?;
        let metadata = match &vector["metadata"] {
            Value::Null => Map::new(),
            Value::Object(metadata) => metadata.clone(),
            _ => return Err(Refusal::validation("metadata is not an object")),
        };
        index.check_metadata(&metadata)?;
        if put.iter().any(|(other, _): &(String, Vector)| other == key) {
            return Err(Refusal::validation("a key comes twice"));
        }
        put.push((key.to_owned(), Vector { data, metadata }));
    }
    index.vectors.extend(put);
    Ok(json!({}))
}

fn get_vectors(index: &Index, body: &Value) -> Answer {
    let found = keys(body, 100)?.into_iter().filter_map(|key| index.vectors.get_key_value(key));
    Ok(json!({ "vectors": found.map(|(key, vector)| output(key, vector, body)).collect::<Vec<_>>() }))
}

fn list_vectors(index: &Index, body: &Value) -> Answer {
    let max = body["maxResults"].as_u64().unwrap_or(500);
    if !(1..=1000).contains(&max) {
        return Err(Refusal::validation("maxResults is not between 1 and 1000"));
    }
    let after = body["nextToken"].as_str().map(|token| token.trim_start_matches("after:"));
    // Hidden from each client how it goes on, but for the order of keys.
    let rest: Vec<_> = index.vectors.iter().filter(|(key, _)| after.is_none_or(|after| key.as_str() > after)).collect();
    let page: Vec<_> = rest.iter().take(max as usize).map(|(key, vector)| output(key, vector, body)).collect();
    let mut answer = json!({ "vectors": page });
    if rest.len() > max as usize {
        answer["nextToken"] = json!(format!("after:{}", rest[max as usize - 1].0));
    }
    Ok(answer)
}

fn query_vectors(index: &Index, body: &Value, missing: MissingField) -> Answer {
    let k = body["topK"].as_u64().filter(|k| (1..=100).contains(k));
    let k = k.ok_or_else(|| Refusal::validation("topK is not between 1 and 100"))? as usize;
    let wanted = index.vector(&body["queryVector"])?;
    let context = Context { stored: &index.stored, missing };
    let mut found = Vec::new();
    if body["filter"] != Value::Null {
        // Also where there is nothing to match.
        filter::matches(&body["filter"], &Map::new(), &context)?;
    }
    for (key, vector) in &index.vectors {
        if body["filter"] == Value::Null || filter::matches(&body["filter"], &vector.metadata, &context)? {
            found.push((index.distance(&wanted, &vector.data), key, vector));
        }
    }
    found.sort_by(|a, b| a.0.total_cmp(&b.0));
    let neighbor = |(distance, key, vector): &(f32, &String, &Vector)| {
        let mut neighbor = json!({ "key": key });
        if body["returnDistance"] == true {
            neighbor["distance"] = json!(distance);
        }
        if body["returnMetadata"] == true {
            neighbor["metadata"] = json!(vector.metadata);
        }
        neighbor
    };
    // Two pages where there is enough for them, since the service may page too.
    let offset: usize = body["nextToken"].as_str().and_then(|token| token.parse().ok()).unwrap_or(0);
    found.truncate(k);
    let size = if k > 10 { k.div_ceil(2) } else { k };
    let page: Vec<_> = found.iter().skip(offset).take(size).map(neighbor).collect();
    let metric = if index.is_cosine { "cosine" } else { "euclidean" };
    let mut answer = json!({ "vectors": page, "distanceMetric": metric });
    if offset + size < found.len() {
        answer["nextToken"] = json!((offset + size).to_string());
    }
    Ok(answer)
}

impl Index {
    fn vector(&self, data: &Value) -> Answer<Vec<f32>> {
        let data = data["float32"].as_array().ok_or_else(|| Refusal::validation("no vector of float32"))?;
        if data.len() != self.dimension {
            let message = format!("the vector has {} components, the index {}", data.len(), self.dimension);
            return Err(Refusal::validation(message));
        }
        let component = |value: &Value| value.as_f64().map(|value| value as f32).filter(|value| value.is_finite());
        let data: Option<Vec<f32>> = data.iter().map(component).collect();
        let data = data.ok_or_else(|| Refusal::validation("a component is no finite number"))?;
        if self.is_cosine && data.iter().all(|value| *value == 0.0) {
            return Err(Refusal::validation("a vector of zeros has no cosine distance"));
        }
        Ok(data)
    }

    fn check_metadata(&self, metadata: &Map<String, Value>) -> Answer<()> {
        let primitive = |value: &Value| value.is_string() || value.is_number() || value.is_boolean();
        let legal = |value: &Value| match value {
            Value::Array(elements) => elements.iter().all(primitive),
            value => primitive(value),
        };
        if metadata.len() > 50 || !metadata.values().all(legal) {
            return Err(Refusal::validation("metadata has too many keys, or values that are not allowed"));
        }
        let mut filterable = metadata.clone();
        filterable.retain(|key, _| !self.stored.contains(key));
        let size = |metadata: Map<String, Value>| Value::Object(metadata).to_string().len();
        if size(metadata.clone()) > 40 * 1024 || size(filterable) > 2 * 1024 {
            return Err(Refusal::validation("metadata is over 40 KB, or over 2 KB to filter by"));
        }
        Ok(())
    }

    fn distance(&self, a: &[f32], b: &[f32]) -> f32 {
        let pairs = || a.iter().zip(b).map(|(a, b)| (f64::from(*a), f64::from(*b)));
        if !self.is_cosine {
            return pairs().map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt() as f32;
        }
        let (dot, aa, bb) =
            pairs().fold((0.0, 0.0, 0.0), |(dot, aa, bb), (a, b)| (dot + a * b, aa + a * a, bb + b * b));
        (1.0 - dot / (aa.sqrt() * bb.sqrt())) as f32
    }
}

fn output(key: &str, vector: &Vector, body: &Value) -> Value {
    let mut output = json!({ "key": key });
    if body["returnData"] == true {
        output["data"] = json!({ "float32": vector.data });
    }
    if body["returnMetadata"] == true {
        output["metadata"] = json!(vector.metadata);
    }
    output
}

fn names(body: &Value) -> Answer<(&str, &str)> {
    Ok((text(body, "vectorBucketName", 3..=63)?, text(body, "indexName", 3..=63)?))
}

fn keys(body: &Value, max: usize) -> Answer<Vec<&str>> {
    let keys = body["keys"].as_array().filter(|keys| (1..=max).contains(&keys.len()));
    let keys = keys.ok_or_else(|| Refusal::validation(format!("keys are not between 1 and {max}")))?;
    let legal = |key: &&str| (1..=1024).contains(&key.chars().count());
    let keys: Option<Vec<_>> = keys.iter().map(|key| key.as_str().filter(legal)).collect();
    keys.ok_or_else(|| Refusal::validation("a key is not 1 to 1024 characters"))
}

fn text<'a>(body: &'a Value, name: &str, length: std::ops::RangeInclusive<usize>) -> Answer<&'a str> {
    let text = body[name].as_str().filter(|text| length.contains(&text.chars().count()));
    text.ok_or_else(|| Refusal::validation(format!("{name} is not {} to {} characters", length.start(), length.end())))
}

fn bucket_arn(bucket: &str) -> String {
    format!("arn:aws:s3vectors:us-east-1:000000000000:bucket/{bucket}")
}
