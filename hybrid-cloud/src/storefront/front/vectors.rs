//! The way to a tenant's documents.

use hybrid_core::{Neighbor, VectorIndex, VectorKey, VectorProfile, VectorQuery, VectorRecord, task::Embed};
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

    /// Writes documents of the caller's tenant.
    pub(crate) async fn upsert_vectors(&self, records: Vec<VectorRecord>) -> Result<(), ApiError> {
        let index = self.index()?;
        let told = |record: &VectorRecord| json!({ "id": record.key, "metadata": record.metadata });
        let asked = self.front.keeps_content().then(|| records.iter().map(told).collect());
        let call = Call::begin(self, Purpose::without_model("vectors.write", asked)).await?;
        self.end(call, "upsert vectors", index.upsert(&self.principal.tenant, records)).await
    }

    /// The documents of the caller's tenant that are nearest to a vector.
    pub(crate) async fn query_vectors(&self, query: VectorQuery) -> Result<Vec<Neighbor>, ApiError> {
        let index = self.index()?;
        self.brief("vectors.query", "query vectors", index.query(&self.principal.tenant, query)).await
    }

    /// Documents of the caller's tenant.
    pub(crate) async fn get_vectors(&self, keys: &[VectorKey]) -> Result<Vec<Option<VectorRecord>>, ApiError> {
        let index = self.index()?;
        self.brief("vectors.read", "read vectors", index.get(&self.principal.tenant, keys)).await
    }

    /// Removes documents of the caller's tenant.
    pub(crate) async fn delete_vectors(&self, keys: &[VectorKey]) -> Result<(), ApiError> {
        let index = self.index()?;
        self.brief("vectors.delete", "delete vectors", index.delete(&self.principal.tenant, keys)).await
    }

    /// Removes all documents of the caller's tenant.
    pub(crate) async fn drop_vectors(&self) -> Result<(), ApiError> {
        let index = self.index()?;
        self.brief("vectors.erase", "erase vectors", index.drop_tenant(&self.principal.tenant)).await
    }
}
