//! Both ends of a files store, over real connections.

mod follow;
mod hostile;
mod pair;
mod seed;
