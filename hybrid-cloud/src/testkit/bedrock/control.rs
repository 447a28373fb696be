//! Bedrock's control plane as far as models of one's own need it: customization jobs, import jobs and deployments, which go the way that a test tells.

use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};

use super::{Reply, Request, lock};

/// A control plane with jobs of its own. Clones are one.
///
/// Names and request tokens count as they do at AWS: the same token is the same job, another token under a name that is taken is a conflict.
///
/// ```
/// use hybrid_cloud::testkit::bedrock::{BedrockServer, ControlPlane};
///
/// # fn main() -> hybrid_core::Result<()> {
/// let (server, control) = (BedrockServer::start()?, ControlPlane::default());
/// server.otherwise({ let control = control.clone(); move |request| control.answer(request) });
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct ControlPlane(Arc<Mutex<State>>);

/// What becomes of jobs, and of deployments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Course {
    /// How many looks find a job under way before it has ended.
    pub looks: u32,
    /// Why it fails in the end; it completes otherwise.
    pub failure: Option<String>,
    /// Whether what has ended is forgotten once somebody has seen it.
    pub forgets: bool,
}

impl Default for Course {
    /// Two looks, then completed, for good.
    fn default() -> Self {
        Self { looks: 2, failure: None, forgets: false }
    }
}

#[derive(Debug, Default)]
struct State {
    course: Course,
    things: Vec<Thing>,
    made: usize,
    stops: usize,
    /// Models that were imported and are no more.
    deleted: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Customization,
    Import,
    Deployment,
}

/// A job or a deployment.
#[derive(Clone, Debug)]
struct Thing {
    kind: Kind,
    name: String,
    token: String,
    arn: String,
    order: Value,
    looks: u32,
    is_stopped: bool,
}

const ACCOUNT: &str = "arn:aws:bedrock:us-east-1:123456789012";
const TIME: &str = "2026-11-21T09:00:00Z";
const END: &str = "2026-11-21T09:30:00Z";

impl ControlPlane {
    /// Says what becomes of jobs from now on, those under way too.
    pub fn set_course(&self, course: Course) {
        self.lock().course = course;
    }

    /// How many jobs and deployments have been made.
    pub fn made(&self) -> usize {
        self.lock().made
    }

    /// How many running jobs have been stopped.
    pub fn stops(&self) -> usize {
        self.lock().stops
    }

    /// Deletes all models that were imported so far. Their jobs stay, as they do at AWS.
    pub fn delete_imported_models(&self) {
        let mut state = self.lock();
        let state = &mut *state;
        let imports = state.things.iter().filter(|thing| thing.kind == Kind::Import);
        state.deleted.extend(imports.map(Thing::model));
    }

    /// Answers a request of the control plane.
    pub fn answer(&self, request: &Request) -> Reply {
        let path: Vec<_> = request.path.trim_start_matches('/').splitn(3, '/').collect();
        match (request.method.as_str(), path.as_slice()) {
            ("POST", ["model-customization-jobs"]) => self.create(Kind::Customization, &request.body),
            ("POST", ["model-import-jobs"]) => self.create(Kind::Import, &request.body),
            ("POST", ["model-customization", "custom-model-deployments"]) => {
                self.create(Kind::Deployment, &request.body)
            }
            ("POST", ["model-customization-jobs", name, "stop"]) => self.stop(name),
            ("GET", ["model-customization-jobs", ..]) => self.look(Kind::Customization, below(request, 1)),
            ("GET", ["model-import-jobs", ..]) => self.look(Kind::Import, below(request, 1)),
            ("GET", ["model-customization", "custom-model-deployments", ..]) => {
                self.look(Kind::Deployment, below(request, 2))
            }
            ("GET", ["imported-models", ..]) => self.imported(below(request, 1)),
            _ => Reply::error(404, "UnknownOperationException", &request.path),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    fn create(&self, kind: Kind, order: &Value) -> Reply {
        if let Some(missing) = kind.required().iter().find(|field| order.pointer(field).is_none_or(|v| v == "")) {
            return Reply::error(400, "ValidationException", &format!("{missing} is missing"));
        }
        let text = |field: &str| order.pointer(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (name, token) = (text(kind.required()[0]), text("/clientRequestToken"));
        let mut state = self.lock();
        let same = state.things.iter().find(|thing| thing.kind == kind && thing.name == name);
        let arn = match same {
            Some(same) if same.token == token => same.arn.clone(),
            Some(_) => return Reply::error(400, "ConflictException", &format!("the name {name} is in use")),
            None => {
                state.made += 1;
                let arn = format!("{ACCOUNT}:{}/{:012}", kind.resource(), state.made);
                let thing =
                    Thing { kind, name, token, arn: arn.clone(), order: order.clone(), looks: 0, is_stopped: false };
                state.things.push(thing);
                arn
            }
        };
        match kind {
            Kind::Deployment => Reply::json_as(202, json!({"customModelDeploymentArn": arn})),
            _ => Reply::json_as(201, json!({"jobArn": arn})),
        }
    }

    fn look(&self, kind: Kind, identifier: &str) -> Reply {
        let mut state = self.lock();
        let course = state.course.clone();
        let Some(at) = state.things.iter().position(|thing| thing.is(kind, identifier)) else {
            return Reply::error(404, "ResourceNotFoundException", &format!("there is no {identifier}"));
        };
        let thing = &mut state.things[at];
        let status = thing.status(&course);
        let body = thing.describe(status, &course);
        thing.looks += 1;
        if course.forgets && !matches!(status, "InProgress" | "Creating") {
            state.things.remove(at);
        }
        Reply::json(body)
    }

    fn stop(&self, identifier: &str) -> Reply {
        let mut state = self.lock();
        let course = state.course.clone();
        let found = state.things.iter_mut().find(|thing| thing.is(Kind::Customization, identifier));
        let Some(thing) = found else {
            return Reply::error(404, "ResourceNotFoundException", &format!("there is no {identifier}"));
        };
        if thing.status(&course) != "InProgress" {
            return Reply::error(400, "ConflictException", "the job has ended");
        }
        thing.is_stopped = true;
        state.stops += 1;
        if course.forgets {
            state.things.retain(|thing| !thing.is_stopped);
        }
        Reply::json(json!({}))
    }

    fn imported(&self, identifier: &str) -> Reply {
        let state = self.lock();
        let is_it = |thing: &&Thing| thing.kind == Kind::Import && thing.model() == identifier;
        let is_there = !state.deleted.iter().any(|deleted| deleted == identifier);
        let Some(job) = state.things.iter().find(is_it).filter(|_| is_there) else {
            return Reply::error(404, "ResourceNotFoundException", &format!("there is no {identifier}"));
        };
        Reply::json(json!({
            "modelArn": job.model(),
            "modelName": job.order["importedModelName"],
            "jobName": job.name,
            "jobArn": job.arn,
            "modelDataSource": job.order["modelDataSource"],
            "creationTime": TIME,
            "modelArchitecture": "qwen2",
            "instructSupported": false,
            "customModelUnits": {"customModelUnitsPerModelCopy": 1, "customModelUnitsVersion": "v1.0"},
        }))
    }
}

/// What follows the first `parts` of the path: a name, or an ARN with slashes of its own.
fn below(request: &Request, parts: usize) -> &str {
    request.path.trim_start_matches('/').splitn(parts + 1, '/').nth(parts).unwrap_or_default()
}

impl Kind {
    /// JSON pointers of what an order has to have, the name first.
    fn required(self) -> &'static [&'static str] {
        match self {
            Self::Customization => &[
                "/jobName",
                "/customModelName",
                "/roleArn",
                "/baseModelIdentifier",
                "/trainingDataConfig/s3Uri",
                "/outputDataConfig/s3Uri",
            ],
            Self::Import => &["/jobName", "/importedModelName", "/roleArn", "/modelDataSource/s3DataSource/s3Uri"],
            Self::Deployment => &["/modelDeploymentName", "/modelArn"],
        }
    }

    fn resource(self) -> &'static str {
        match self {
            Self::Customization => "model-customization-job/amazon.nova-micro-v1:0:128k",
            Self::Import => "model-import-job",
            Self::Deployment => "custom-model-deployment",
        }
    }
}

impl Thing {
    fn is(&self, kind: Kind, identifier: &str) -> bool {
        self.kind == kind && (self.name == identifier || self.arn == identifier)
    }

    fn id(&self) -> &str {
        self.arn.rsplit('/').next().unwrap_or_default()
    }

    /// The model that the job makes.
    fn model(&self) -> String {
        match self.kind {
            Kind::Import => format!("{ACCOUNT}:imported-model/{}", self.id()),
            _ => format!("{ACCOUNT}:custom-model/amazon.nova-micro-v1:0:128k/{}", self.id()),
        }
    }

    fn status(&self, course: &Course) -> &'static str {
        let deploys = self.kind == Kind::Deployment;
        match (self.is_stopped, self.looks >= course.looks, &course.failure) {
            (true, ..) => "Stopped",
            (_, false, _) if deploys => "Creating",
            (_, false, _) => "InProgress",
            (_, _, Some(_)) => "Failed",
            _ if deploys => "Active",
            _ => "Completed",
        }
    }

    fn describe(&self, status: &str, course: &Course) -> Value {
        let order = |field: &str| self.order.get(field).cloned();
        let mut body = match self.kind {
            Kind::Deployment => json!({
                "customModelDeploymentArn": self.arn,
                "modelDeploymentName": self.name,
                "modelArn": self.order["modelArn"],
                "createdAt": TIME,
                "status": status,
            }),
            Kind::Import => json!({
                "jobArn": self.arn,
                "jobName": self.name,
                "importedModelName": self.order["importedModelName"],
                "roleArn": self.order["roleArn"],
                "modelDataSource": self.order["modelDataSource"],
                "status": status,
                "creationTime": TIME,
            }),
            Kind::Customization => json!({
                "jobArn": self.arn,
                "jobName": self.name,
                "outputModelName": self.order["customModelName"],
                "clientRequestToken": self.token,
                "roleArn": self.order["roleArn"],
                "status": status,
                "statusDetails": self.phases(course),
                "creationTime": TIME,
                "baseModelArn": "arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-micro-v1:0:128k",
                "hyperParameters": order("hyperParameters").unwrap_or_else(|| json!({})),
                "trainingDataConfig": self.order["trainingDataConfig"],
                "validationDataConfig": order("validationDataConfig").unwrap_or_else(|| json!({"validators": []})),
                "outputDataConfig": self.order["outputDataConfig"],
                "customizationType": "FINE_TUNING",
            }),
        };
        match (status, self.kind) {
            ("Failed", _) => body["failureMessage"] = course.failure.clone().into(),
            ("Completed", Kind::Import) => body["importedModelArn"] = self.model().into(),
            ("Completed", Kind::Customization) => {
                body["outputModelArn"] = self.model().into();
                body["trainingMetrics"] = json!({"trainingLoss": 0.5});
                body["endTime"] = END.into();
            }
            _ => {}
        }
        body
    }

    /// A third of the looks for each of the phases.
    fn phases(&self, course: &Course) -> Value {
        let names = ["validationDetails", "dataProcessingDetails", "trainingDetails"];
        let all = u64::from(course.looks);
        let phase = |(i, name): (u64, &str)| {
            let status = match u64::from(self.looks) * 3 {
                now if now >= all * (i + 1) => "Completed",
                now if now >= all * i => "InProgress",
                _ => "NotStarted",
            };
            (name.to_owned(), json!({"status": status, "creationTime": TIME, "lastModifiedTime": TIME}))
        };
        (0..).zip(names).map(phase).collect()
    }
}
