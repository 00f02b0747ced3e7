//! Tells the binary what it is built from, for `--version` and `zenlayer_exporter_build_info`.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=ZENLAYER_EXPORTER_REVISION");
    // A file that is missing, as outside a checkout, would have this run at every build.
    for file in [".git/HEAD", ".git/logs/HEAD"].into_iter().filter(|file| Path::new(file).exists()) {
        println!("cargo:rerun-if-changed={file}");
    }
    // An image is built without the repository; its build says what it is built from.
    let revision = env::var("ZENLAYER_EXPORTER_REVISION")
        .ok()
        .filter(|revision| !revision.is_empty())
        .or_else(|| first_line("git", &["rev-parse", "--short=12", "HEAD"]));
    let rustc = env::var("RUSTC").expect("cargo names the compiler");
    let rust_version = first_line(&rustc, &["--version"]).and_then(|line| Some(line.split(' ').nth(1)?.to_owned()));
    for (name, value) in [("REVISION", revision), ("RUST_VERSION", rust_version), ("TARGET", env::var("TARGET").ok())] {
        println!("cargo:rustc-env=ZENLAYER_EXPORTER_BUILD_{name}={}", value.as_deref().unwrap_or("unknown"));
    }
}

fn first_line(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.lines().next()?.to_owned())
}
