//! Models as customers see them.

use std::{collections::BTreeSet, sync::Arc};

use hybrid_core::{
    BackendProfile, InferenceBackend, Task, TenantId,
    task::{Chat, Classify, Embed, GenerateImage, Transcribe},
};

use crate::storefront::quota::Estimated;

/// The name under which customers ask for a model, and which of them may.
///
/// ```
/// use hybrid_cloud::storefront::Offer;
/// use hybrid_core::TenantId;
///
/// let everyone: Offer = "messages".into();
/// let one = Offer::new("messages-tuned").only_for([TenantId::new("bakery")?]);
/// # drop((everyone, one));
/// # Ok::<(), hybrid_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    pub(crate) name: String,
    /// `None` for everyone.
    pub(crate) tenants: Option<BTreeSet<TenantId>>,
}

impl Offer {
    /// An offer to everyone under `name`: 1 to 128 visible ASCII characters.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), tenants: None }
    }

    /// The same to `tenants` alone. To everyone else the model does not exist, and another one may be offered to them under its name.
    #[must_use]
    pub fn only_for(mut self, tenants: impl IntoIterator<Item = TenantId>) -> Self {
        self.tenants = Some(tenants.into_iter().collect());
        self
    }

    pub(super) fn is_for(&self, tenant: &TenantId) -> bool {
        self.tenants.as_ref().is_none_or(|tenants| tenants.contains(tenant))
    }

    /// Whether somebody would see both under one name.
    pub(crate) fn collides_with(&self, other: &Self) -> bool {
        let overlap = match (&self.tenants, &other.tenants) {
            (Some(ours), Some(theirs)) => !ours.is_disjoint(theirs),
            _ => true,
        };
        self.name == other.name && overlap
    }
}

impl<N: Into<String>> From<N> for Offer {
    fn from(name: N) -> Self {
        Self::new(name)
    }
}

/// A model on offer. Its backend is reached through [`Admitted`](super::Admitted) alone.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) offer: Offer,
    pub(super) backend: Backend,
}

impl Model {
    pub(crate) fn new<T: Served>(offer: Offer, backend: Arc<dyn InferenceBackend<T>>) -> Self {
        Self { offer, backend: T::wrap(backend) }
    }

    pub(crate) fn id(&self) -> &str {
        &self.offer.name
    }

    pub(crate) fn backend(&self) -> &Backend {
        &self.backend
    }
}

/// A backend of any task that storefronts serve.
#[derive(Debug)]
pub(crate) enum Backend {
    Chat(Arc<dyn InferenceBackend<Chat>>),
    Classify(Arc<dyn InferenceBackend<Classify>>),
    Embed(Arc<dyn InferenceBackend<Embed>>),
    GenerateImage(Arc<dyn InferenceBackend<GenerateImage>>),
    Transcribe(Arc<dyn InferenceBackend<Transcribe>>),
}

/// A task that storefronts serve.
pub(crate) trait Served: Estimated {
    fn wrap(backend: Arc<dyn InferenceBackend<Self>>) -> Backend;
    fn unwrap(backend: &Backend) -> Option<&Arc<dyn InferenceBackend<Self>>>;
}

macro_rules! served {
    ($($task:ident),*) => {
        $(impl Served for $task {
            fn wrap(backend: Arc<dyn InferenceBackend<Self>>) -> Backend {
                Backend::$task(backend)
            }

            fn unwrap(backend: &Backend) -> Option<&Arc<dyn InferenceBackend<Self>>> {
                if let Backend::$task(backend) = backend { Some(backend) } else { None }
            }
        })*

        impl Model {
            /// The name of the task that the model does.
            pub(crate) fn task(&self) -> &'static str {
                match &self.backend {
                    $(Backend::$task(_) => $task::NAME,)*
                }
            }

            /// What the backend is now.
            pub(crate) fn profile(&self) -> Arc<BackendProfile> {
                match &self.backend {
                    $(Backend::$task(backend) => backend.profile(),)*
                }
            }
        }
    };
}
served!(Chat, Classify, Embed, GenerateImage, Transcribe);
