//! What the test kit promises to those who test with it.

mod proxy;
mod servers;
