use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;

use crate::{
    BackendProfile, BoxStream, CallContext, Error, ErrorKind, Event, InferenceBackend, Limits, Locality, Reply,
    ReplyMeta, Result, ServedModel, Task, Usage, inference::stream_reply,
};

/// An [`InferenceBackend`] that answers from a script, one line a call, and records what it was asked.
///
/// It keeps the port's whole contract: it validates, it obeys the data policy, and its streams fold to what it would have answered.
#[derive(Debug)]
pub struct ScriptedBackend<T: Task> {
    profile: Arc<BackendProfile>,
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T: Task> {
    script: VecDeque<Result<T::Response>>,
    asked: Vec<T::Request>,
}

impl<T: Task> ScriptedBackend<T> {
    /// A backend on this device that answers with `script`, in order, and then with [`Unavailable`](ErrorKind::Unavailable).
    pub fn new(name: impl Into<String>, script: impl IntoIterator<Item = Result<T::Response>>) -> Self {
        let name = name.into();
        Self::with_profile(
            BackendProfile {
                model: ServedModel::named(name.clone()),
                name,
                locality: Locality::Device,
                limits: Limits::default(),
                price: None,
            },
            script,
        )
    }

    /// The same with a profile of the caller's.
    pub fn with_profile(profile: BackendProfile, script: impl IntoIterator<Item = Result<T::Response>>) -> Self {
        let state = State { script: script.into_iter().collect(), asked: Vec::new() };
        Self { profile: Arc::new(profile), state: Mutex::new(state) }
    }

    /// The requests so far, in order; those that were refused before any work are not among them.
    pub fn asked(&self) -> Vec<T::Request> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).asked.clone()
    }
}

#[async_trait]
impl<T: Task> InferenceBackend<T> for ScriptedBackend<T> {
    fn profile(&self) -> Arc<BackendProfile> {
        Arc::clone(&self.profile)
    }

    async fn infer(&self, cx: &CallContext, request: T::Request) -> Result<Reply<T>> {
        T::validate(&request)?;
        cx.admit("infer", &self.profile.locality)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.asked.push(request);
        let end = || {
            Err(Error::new(ErrorKind::Unavailable, "infer", "the script has ended").with("backend", &self.profile.name))
        };
        let response = state.script.pop_front().unwrap_or_else(end)?;
        Ok(Reply { response, meta: ReplyMeta::of(&self.profile, Duration::ZERO, Usage::default())? })
    }

    async fn stream(&self, cx: &CallContext, request: T::Request) -> Result<BoxStream<'static, Result<Event<T>>>> {
        Ok(stream_reply(self.infer(cx, request).await?))
    }
}
