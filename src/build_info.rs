//! The version of the binary, and the commit, compiler and target it was built with.

/// The version in `Cargo.toml`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit it was built from.
pub const REVISION: &str = env!("ZENLAYER_EXPORTER_BUILD_REVISION");
/// The compiler it was built with.
pub const RUST_VERSION: &str = env!("ZENLAYER_EXPORTER_BUILD_RUST_VERSION");
/// All of it, for `--version`.
pub(crate) const LONG_VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (revision ",
    env!("ZENLAYER_EXPORTER_BUILD_REVISION"),
    ", rustc ",
    env!("ZENLAYER_EXPORTER_BUILD_RUST_VERSION"),
    ", ",
    env!("ZENLAYER_EXPORTER_BUILD_TARGET"),
    ")"
);
