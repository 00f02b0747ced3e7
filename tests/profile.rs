//! The vendor CLI's profiles: which one is chosen, what is said where there is none, and that it is read again.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod common;

use std::fs;
use std::path::Path;

use common::{Exporter, config_of, held};
use tempfile::TempDir;
use zenlayer_exporter::config::{Command, Config, CredentialSource, Environment, Target};
use zenlayer_exporter::model::Service;
use zenlayer_exporter::simulator::{KEY_ID, Knobs, PASSWORD, Simulator, TOKEN};

const CREDENTIALS: &str = r#"{
    "default": {"access_key_id": "id-of-default", "access_key_secret": "hush"},
    "prod": {"token": "hush"},
    "staging": {"token": "hush"}
}"#;

/// A home directory with those files of the CLI's.
fn home(credentials: Option<&str>, settings: Option<&str>) -> TempDir {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join(".zenlayer");
    fs::create_dir(&directory).unwrap();
    for (name, text) in [("credentials.json", credentials), ("config.json", settings)] {
        if let Some(text) = text {
            fs::write(directory.join(name), text).unwrap();
        }
    }
    home
}

fn check(home: &Path, flags: &[&str], variables: &[(&str, &str)]) -> Result<Config, String> {
    let home_variable = ("HOME", home.to_str().unwrap());
    let environment = variables.iter().copied().chain([home_variable]).collect();
    match Command::read(flags.iter().map(Into::into), &environment) {
        Ok(Command::Serve(config)) => Ok(config),
        Ok(other) => panic!("{other:?}"),
        Err(refusal) => Err(refusal.to_string().replace(home.to_str().unwrap(), "~")),
    }
}

/// The profile that is chosen; `None` where it is a key pair or token instead.
fn chosen(home: &TempDir, flags: &[&str], variables: &[(&str, &str)]) -> Option<String> {
    let Target::Account { credentials, .. } = check(home.path(), flags, variables).unwrap().target else {
        panic!("no account");
    };
    match credentials {
        CredentialSource::Profile { path, name } => {
            assert_eq!(path, home.path().join(".zenlayer/credentials.json"));
            Some(name)
        }
        _ => None,
    }
}

#[test]
fn the_flag_names_it_or_leaves_the_choice_to_the_cli() {
    let plain = home(Some(CREDENTIALS), None);
    let switched = home(Some(CREDENTIALS), Some(r#"{"current_profile": "staging"}"#));
    let by_variable = [("ZENLAYER_PROFILE", "prod")];
    assert_eq!(chosen(&plain, &["--zenlayer.profile=staging"], &by_variable).as_deref(), Some("staging"));
    assert_eq!(chosen(&plain, &["--zenlayer.profile"], &[]).as_deref(), Some("default"));
    assert_eq!(chosen(&switched, &["--zenlayer.profile"], &[]).as_deref(), Some("staging"));
    assert_eq!(chosen(&switched, &["--zenlayer.profile", "current"], &by_variable).as_deref(), Some("prod"));
}

#[test]
fn a_flag_comes_before_the_variables_and_a_key_among_those_before_a_profile() {
    let home = home(Some(CREDENTIALS), None);
    let key = [("ZENLAYER_ACCESS_KEY_ID", "id"), ("ZENLAYER_ACCESS_KEY_SECRET", "hush"), ("ZENLAYER_PROFILE", "prod")];
    let token = [("ZENLAYER_TOKEN", "hush"), ("ZENLAYER_PROFILE", "prod")];
    for variables in [&key[..], &token[..]] {
        assert_eq!(chosen(&home, &["--zenlayer.profile=default"], variables).as_deref(), Some("default"));
        assert_eq!(chosen(&home, &[], variables), None, "as the vendor's CLI does");
    }
    assert_eq!(chosen(&home, &[], &key[2..]).as_deref(), Some("prod"));
}

#[test]
fn a_home_directory_is_not_read_unasked() {
    let home = home(Some(CREDENTIALS), None);
    let said = check(home.path(), &[], &[]).unwrap_err();
    assert!(said.starts_with("no credentials: set one of\n"), "{said}");
    assert!(said.contains("\n  --zenlayer.profile, for a profile of zeno\n"), "{said}");
}

#[test]
fn a_profile_beside_a_key_or_a_token_is_a_mistake() {
    let home = home(Some(CREDENTIALS), None);
    let flags = ["--zenlayer.profile=prod", "--zenlayer.access-key-id=id", "--zenlayer.token-file=/token"];
    assert_eq!(
        check(home.path(), &flags, &[]).unwrap_err(),
        "--zenlayer.profile has a key or token already: leave out --zenlayer.access-key-id\n\
         --zenlayer.profile has a key or token already: leave out --zenlayer.token-file"
    );
}

#[test]
fn what_is_missing_is_named_with_what_there_is() {
    let with =
        |flags: &[&str], credentials, settings| check(home(credentials, settings).path(), flags, &[]).unwrap_err();
    assert_eq!(
        with(&["--zenlayer.profile=test"], Some(CREDENTIALS), None),
        "--zenlayer.profile cannot be used: ~/.zenlayer/credentials.json has no profile \"test\": it has \"default\", \"prod\", \
         \"staging\""
    );
    assert_eq!(
        with(&["--zenlayer.profile=prod"], None, None),
        "--zenlayer.profile cannot be used: ~/.zenlayer/credentials.json cannot be read: No such file or directory (os error 2): \
         `zeno configure` makes it"
    );
    assert_eq!(
        with(&["--zenlayer.profile"], Some(CREDENTIALS), Some("{current_profile: prod}")),
        "--zenlayer.profile cannot be used: ~/.zenlayer/config.json is not the JSON that zeno writes, at line 1, column 2: fix it, or \
         run `zeno configure`"
    );
    let home = home(Some(CREDENTIALS), None);
    assert_eq!(
        check(home.path(), &[], &[("ZENLAYER_PROFILE", "test")]).unwrap_err(),
        "ZENLAYER_PROFILE cannot be used: ~/.zenlayer/credentials.json has no profile \"test\": it has \"default\", \"prod\", \"staging\""
    );
    let without_home = Command::read(["--zenlayer.profile".into()], &Environment::default());
    assert_eq!(
        without_home.unwrap_err().to_string(),
        "--zenlayer.profile needs a home directory, and HOME is not set: set it, or use a key or token"
    );
}

#[tokio::test]
async fn it_is_read_again_at_every_poll() {
    let simulator = Simulator::start(Knobs::still(Service::Vm, 7)).await.unwrap();
    let write = |home: &TempDir, profile: &str| {
        let text = format!(r#"{{"prod": {profile}, "other": {{"token": "hush"}}}}"#);
        fs::write(home.path().join(".zenlayer/credentials.json"), text).unwrap();
    };
    let key = format!(r#"{{"access_key_id": "{KEY_ID}", "access_key_secret": "{PASSWORD}"}}"#);
    let home = home(None, Some(r#"{"current_profile": "prod"}"#));
    write(&home, &key);
    let endpoint = format!("--zenlayer.endpoint={}", simulator.endpoint());
    let config = config_of(&[&endpoint, "--zenlayer.profile"], &[("HOME", home.path().to_str().unwrap())]);
    let exporter = Exporter::ready(config).await;
    assert_eq!(exporter.metrics().await.instances(), held(&simulator));

    fs::write(home.path().join(".zenlayer/config.json"), r#"{"current_profile": "other"}"#).unwrap();
    let metrics = exporter.polls(2).await;
    assert_eq!(metrics.value("zenlayer_up", &[]), Some(1.0), "a switch of profiles is not meant for the exporter");

    write(&home, r#"{"access_key_id": "gone", "access_key_secret": "hush-hush"}"#);
    exporter.until(|metrics| metrics.value("zenlayer_up", &[]) == Some(0.0)).await;
    write(&home, &format!(r#"{{"token": "{TOKEN}"}}"#));
    exporter.until(|metrics| metrics.value("zenlayer_up", &[]) == Some(1.0)).await;

    write(&home, "\"hush-hush\"");
    let credentials = [("outcome", "credentials")];
    exporter.until(|metrics| metrics.value("zenlayer_exporter_polls_total", &credentials) >= Some(1.0)).await;
    let page = exporter.get("/").await;
    assert!(page.text().contains("profile &quot;prod&quot; of "), "{}", page.text());
    assert!(!page.text().contains("hush"), "{}", page.text());
}
