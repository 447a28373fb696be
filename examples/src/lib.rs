//! Reference apps, assembled from the public API of the hybrid crates alone: a storefront, a kitchen, and a quickstart that runs both through the
//! whole loop on one machine.
//!
//! Read them in this order: [`locations`] and [`site`] (where things lie), [`storefront`], [`kitchen`], [`train_job`] (train, judge, publish, release),
//! [`label_job`] (work that customers order), [`dead`] (what is done about jobs that keep failing) and [`quickstart`].

pub mod aside;
pub mod data;
pub mod dead;
#[cfg(feature = "lambda")]
pub mod function;
pub mod kitchen;
pub mod label_job;
pub mod locations;
pub mod log;
pub mod order;
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
