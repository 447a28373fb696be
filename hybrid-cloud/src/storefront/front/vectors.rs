//! The way to a tenant's documents.

use hybrid_core::{
    Error, Neighbor, Reply, VectorIndex, VectorKey, VectorProfile, VectorQuery, VectorRecord,
    task::{Embed, EmbedRequest},
};
use serde_json::json;

use super::{
    Admitted,
    admitted::ModelFor,
    call::{Call, Purpose},
};
use crate::storefront::error::ApiError;

impl Admitted {
    fn index(&self) -> Result<&dyn VectorIndex, ApiError> {
        self.front.ports.vectors.as_ref().map(|(index, _)| &**index).ok_or_else(ApiError::not_found)
    }

    /// What the index is, and the model that embeds texts for it, where the caller may use one.
    pub(crate) fn vectors(&self) -> Result<(&VectorProfile, Option<ModelFor<'_, Embed>>), ApiError> {
        let (index, model) = self.front.ports.vectors.as_ref().ok_or_else(ApiError::not_found)?;
        let model = model.as_deref().and_then(|model| self.model::<Embed>(Some(model)).ok());
        Ok((index.profile(), model))
    }

    /// Begins to write documents of the caller's tenant. What is refused is refused here, before their texts are embedded and paid for.
    pub(crate) async fn write_vectors(&self, records: &[VectorRecord]) -> Result<Writing, ApiError> {
        let told = |record: &VectorRecord| json!({ "id": record.key, "metadata": record.metadata });
        let asked = self.told(|| records.iter().map(told).collect());
        Call::begin(self, Purpose::without_model("vectors.write", asked)).await.map(Writing)
    }

    /// Writes documents, as was begun.
    pub(crate) async fn upsert_vectors(
        &self,
        Writing(call): Writing,
        records: Vec<VectorRecord>,
    ) -> Result<(), ApiError> {
        let index = self.index()?;
        self.end(call, "upsert vectors", index.upsert(&self.principal.tenant, records)).await
    }

    /// The documents of the caller's tenant that are nearest to a vector.
    pub(crate) async fn query_vectors(&self, query: VectorQuery) -> Result<Vec<Neighbor>, ApiError> {
        let index = self.index()?;
        let asked = self.told(|| json!({ "k": query.k, "filter": query.filter.as_ref().map(|f| format!("{f:?}")) }));
        self.brief("vectors.query", asked, "query vectors", index.query(&self.principal.tenant, query)).await
    }

    /// Documents of the caller's tenant.
    pub(crate) async fn get_vectors(&self, keys: &[VectorKey]) -> Result<Vec<Option<VectorRecord>>, ApiError> {
        let index = self.index()?;
        let asked = self.told(|| json!({ "ids": keys }));
        self.brief("vectors.read", asked, "read vectors", index.get(&self.principal.tenant, keys)).await
    }

    /// Removes documents of the caller's tenant.
    pub(crate) async fn delete_vectors(&self, keys: &[VectorKey]) -> Result<(), ApiError> {
        let index = self.index()?;
        let asked = self.told(|| json!({ "ids": keys }));
        self.brief("vectors.delete", asked, "delete vectors", index.delete(&self.principal.tenant, keys)).await
    }

    /// Removes all documents of the caller's tenant.
    pub(crate) async fn drop_vectors(&self) -> Result<(), ApiError> {
        let index = self.index()?;
        self.brief("vectors.erase", None, "erase vectors", index.drop_tenant(&self.principal.tenant)).await
    }
}

/// A write of documents that was let in.
pub(crate) struct Writing(Call);

impl Writing {
    /// Embeds texts of the documents, as a call of its own.
    pub(crate) async fn embed(
        &self,
        admitted: &Admitted,
        model: &ModelFor<'_, Embed>,
        request: EmbedRequest,
    ) -> Result<Reply<Embed>, ApiError> {
        admitted.infer_within(&self.0, model, request).await
    }

    /// Ends it without anything written.
    pub(crate) async fn give_up(mut self, refused: &ApiError) {
        match refused.detail() {
            Some(error) => self.0.fail(error, false).await,
            None => self.0.fail(&Error::invalid("embed documents", "the texts were refused"), false).await,
        }
    }
}
