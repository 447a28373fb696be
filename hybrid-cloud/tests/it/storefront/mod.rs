mod classify;
mod edge;
mod judgments;
mod operations;
mod refusals;
mod rig;
mod shutdown;
mod sockets;
