//! The model of the settings that both sides share.
