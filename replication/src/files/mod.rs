//! The model of a files store that both sides share.
