//! The way to a tenant's files.

use std::{ops::Range, time::Duration};

use axum::body::Bytes;
use hybrid_core::{
    Error, FileId, FilePage, FilePart, FileQuery, FileUpload, Files, NewFile, PartLink, Result, StoredFile,
};
use serde_json::json;

use super::{
    Admitted,
    call::{Call, Purpose},
    sending::Sending,
};
use crate::storefront::error::ApiError;

impl Admitted {
    fn files(&self) -> Result<&Files, ApiError> {
        self.front.ports.files.as_ref().ok_or_else(ApiError::not_found)
    }

    /// Begins a file of the caller's tenant.
    pub(crate) async fn upload_file(&self) -> Result<Uploading, ApiError> {
        let files = self.files()?;
        let mut call = self.moving("files", None).await?;
        self.leave_room(files, &mut call).await?;
        let upload = files.upload(&self.principal.tenant, FileId::next(self.front.ids()));
        Ok(Uploading { call, upload: Some(upload) })
    }

    /// Links that upload the parts of a file of the caller's tenant, and the file's id.
    pub(crate) async fn link_upload(
        &self,
        parts: &[FilePart],
        holds: Duration,
    ) -> Result<(FileId, Vec<PartLink>), ApiError> {
        let (files, id) = (self.files()?, FileId::next(self.front.ids()));
        let mut call = Call::begin(self, Purpose::without_model("files.link", None)).await?;
        self.leave_room(files, &mut call).await?;
        let links = files.upload_links(&self.principal.tenant, id, parts, holds);
        Ok((id, self.end(call, "link file", links).await?))
    }

    /// Makes a file of the caller's tenant of parts that were uploaded by links.
    pub(crate) async fn adopt_file(
        &self,
        id: FileId,
        parts: Vec<FilePart>,
        new: NewFile,
    ) -> Result<StoredFile, ApiError> {
        let files = self.files()?;
        let mut call = Call::begin(self, Purpose::without_model("files", None)).await?;
        self.leave_room(files, &mut call).await?;
        self.end(call, "make file", files.adopt(&self.principal.tenant, id, parts, new)).await
    }

    /// Links that download a file of the caller's tenant.
    pub(crate) async fn link_download(&self, id: FileId, holds: Duration) -> Result<Option<Vec<PartLink>>, ApiError> {
        let (files, tenant) = (self.files()?, &self.principal.tenant);
        let links = async {
            match files.get(tenant, id).await? {
                Some(file) => files.download_links(tenant, &file, holds).await.map(Some),
                None => Ok(None),
            }
        };
        let asked = self.told(|| json!({ "id": id }));
        self.brief("files.link", asked, "link file", links).await
    }

    /// Checks that the caller's tenant may have one more file.
    async fn leave_room(&self, files: &Files, call: &mut Call) -> Result<(), ApiError> {
        let limit = self.front.limits().files;
        match call.cx.run("count files", files.count(&self.principal.tenant)).await {
            Ok(count) if count < limit => Ok(()),
            Ok(_) => {
                call.fail(&Error::too_large("store file", "the tenant has too many files"), false).await;
                Err(ApiError::too_many_files(limit))
            }
            Err(error) => {
                call.fail(&error, false).await;
                Err(error.into())
            }
        }
    }

    /// A file of the caller's tenant.
    pub(crate) async fn file(&self, id: FileId) -> Result<Option<StoredFile>, ApiError> {
        let files = self.files()?;
        let asked = self.told(|| json!({ "id": id }));
        self.brief("files.read", asked, "read file", files.get(&self.principal.tenant, id)).await
    }

    /// Some of the files of the caller's tenant.
    pub(crate) async fn list_files(&self, query: FileQuery) -> Result<FilePage, ApiError> {
        let files = self.files()?;
        self.brief("files.list", None, "list files", files.list(&self.principal.tenant, query)).await
    }

    /// Removes a file of the caller's tenant; answers whether there was one.
    pub(crate) async fn erase_file(&self, id: FileId) -> Result<bool, ApiError> {
        let files = self.files()?;
        let asked = self.told(|| json!({ "id": id }));
        self.brief("files.delete", asked, "erase file", files.erase(&self.principal.tenant, id)).await
    }

    /// Begins to read a file of the caller's tenant, or of it what is chosen.
    pub(crate) async fn read_file(
        &self,
        id: FileId,
        choose: impl FnOnce(&StoredFile) -> Result<Range<u64>, ApiError>,
    ) -> Result<Option<Reading>, ApiError> {
        let files = self.files()?;
        let mut call = self.moving("files.content", self.told(|| json!({ "id": id }))).await?;
        match call.cx.run("read file", files.get(&self.principal.tenant, id)).await {
            Ok(Some(file)) => {
                let range = match choose(&file) {
                    Ok(range) => range,
                    Err(refused) => {
                        call.done(None, None).await?;
                        return Err(refused);
                    }
                };
                call.begun().await?;
                let parts = files.read_range(&self.principal.tenant, &file, range);
                Ok(Some(Reading { file, sending: Sending::new(call, "read file", parts) }))
            }
            Ok(None) => {
                call.done(None, None).await?;
                Ok(None)
            }
            Err(error) => {
                call.fail(&error, false).await;
                Err(error.into())
            }
        }
    }
}

/// A file that is being received. Dropping it, as happens when the client disconnects, removes what came of it, unless it is being named already.
#[derive(Debug)]
pub(crate) struct Uploading {
    call: Call,
    upload: Option<FileUpload>,
}

impl Uploading {
    /// Adds `bytes`.
    pub(crate) async fn write(&mut self, bytes: Bytes) -> Result<(), ApiError> {
        let upload = self.upload.as_mut().ok_or_else(over)?;
        Ok(self.call.cx.run("store file", upload.write(bytes)).await?)
    }

    /// Makes the file of what came.
    pub(crate) async fn finish(&mut self, new: NewFile) -> Result<StoredFile, ApiError> {
        let upload = self.upload.as_mut().ok_or_else(over)?;
        let file = self.call.cx.run("store file", upload.finish(new)).await?;
        self.upload = None;
        self.call.done(None, None).await?;
        Ok(file)
    }

    /// Removes what came, before its sender hears why.
    pub(crate) async fn give_up(&mut self, refused: &ApiError) {
        match refused.detail() {
            Some(error) => self.call.fail(error, false).await,
            None => self.call.fail(&Error::invalid("store file", "the upload was refused"), false).await,
        }
        if let Some(upload) = self.upload.take() {
            abandon(upload).await;
        }
    }
}

impl Drop for Uploading {
    fn drop(&mut self) {
        if let (Some(upload), Ok(runtime)) = (self.upload.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(abandon(upload));
        }
    }
}

async fn abandon(upload: FileUpload) {
    let id = upload.id();
    if let Err(error) = upload.abandon().await {
        tracing::warn!(%error, file = %id, "what came of an upload that broke off is left to the next sweep");
    }
}

fn over() -> Error {
    Error::internal("store file", "the upload has ended")
}

/// A file that is being sent.
pub(crate) struct Reading {
    file: StoredFile,
    sending: Sending,
}

impl Reading {
    pub(crate) fn file(&self) -> &StoredFile {
        &self.file
    }

    pub(crate) fn into_sending(self) -> Sending {
        self.sending
    }
}
