//! Reference apps, assembled from the public API of the hybrid crates alone: a storefront, a kitchen, and a quickstart that runs both through the
//! whole loop on one machine.
//!
//! Read them in this order: [`locations`] and [`site`] (where things lie), [`storefront`], [`kitchen`], [`train_job`] (train, judge, publish, release),
//! [`evaluate_job`] and `quantize_job` (the kitchen's own work), [`label_job`] and [`batch_jobs`] (work that customers order), [`order`] (ordering by hand),
//! [`dead`] (what is done about jobs that keep failing) and [`quickstart`].

pub mod aside;
pub mod batch_jobs;
#[cfg(feature = "aws")]
pub mod bedrock;
pub mod data;
pub mod dead;
pub mod evaluate_job;
#[cfg(feature = "lambda")]
pub mod function;
pub mod judging;
pub mod kitchen;
pub mod label_job;
pub mod locations;
pub mod log;
pub mod models;
pub mod order;
#[cfg(feature = "decoder")]
pub mod quantize_job;
pub mod quickstart;
pub mod renewal;
pub mod serving;
pub mod site;
pub mod storefront;
pub mod telemetry;
pub mod train_job;

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
