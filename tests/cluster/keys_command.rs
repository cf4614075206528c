//! `lrts keys`, without daemons.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Output;

use lrts_core::keys::{self, KeyFile};
use lrts_core::transport::Role;

use crate::support::{lrts, run_lrts, said};

/// A keys directory, as the first start of a scheduler makes it.
struct Keys {
    parent: tempfile::TempDir,
}

impl Keys {
    fn create() -> Self {
        let keys = Self { parent: tempfile::tempdir().unwrap() };
        assert!(keys::ensure(&keys.path()).unwrap());
        keys
    }

    fn path(&self) -> PathBuf {
        self.file("lrts/keys")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.parent.path().join(name)
    }

    /// Runs `lrts keys` with the directory where the environment says that it is.
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = lrts(&[&["keys"], arguments].concat());
        command.env_remove("LRTS_KEYS").env("XDG_CONFIG_HOME", self.parent.path());
        command.output().expect("the lrts command starts")
    }

    /// The same where it must work: what it prints.
    fn done(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn rows(&self) -> Vec<serde_json::Value> {
        self.done(&["show", "--json"]).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The row of this key.
    fn row(&self, key: &str) -> serde_json::Value {
        let row = self.rows().into_iter().find(|row| row["key"] == key);
        row.unwrap_or_else(|| panic!("no key {key}: {:?}", self.rows()))
    }

    /// The states of keys with this role, in the order of the alphabet.
    fn states(&self, role: &str) -> Vec<String> {
        let rows = self.rows();
        let rows = rows.iter().filter(|row| row["role"] == role);
        let mut states: Vec<_> = rows.map(|row| row["state"].as_str().unwrap().to_owned()).collect();
        states.sort();
        states
    }

    /// The id of the authority whose key this directory's worker has.
    fn authority(&self) -> String {
        let row = self.row(&key_of(&self.path().join("worker.pem")));
        row["authority"].as_str().unwrap().to_owned()
    }
}

fn key_of(file: &Path) -> String {
    KeyFile::read(file).unwrap().identity().unwrap().key.to_string()
}

#[test]
fn show_lists_the_keys_with_their_files() {
    let keys = Keys::create();
    let rows = keys.rows();
    let roles: Vec<_> = rows.iter().map(|row| row["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["scheduler", "progress-server", "worker", "client", "admin"]);
    for row in &rows {
        let file = keys.path().join(format!("{}.pem", row["role"].as_str().unwrap()));
        assert_eq!((row["file"].as_str(), row["key"].as_str()), (file.to_str(), Some(&*key_of(&file))));
        assert_eq!((&row["state"], &row["authority"]), (&"current".into(), &rows[0]["authority"]));
        assert!(row["made"].as_str() < row["expires"].as_str(), "{row}");
    }
    let table = keys.done(&["show"]);
    assert!(table.starts_with("key ") && table.lines().count() == 6, "{table}");
    assert!(table.contains(rows[3]["key"].as_str().unwrap()) && table.contains("client.pem"), "{table}");
}

#[test]
fn an_exported_key_is_one_file_that_nobody_else_can_read() {
    let keys = Keys::create();
    let file = keys.file("ann.pem");
    let name = file.to_str().unwrap();
    let export = ["export", "--role", "client", "--user", "ann", "--valid", "90d", name];
    let output = keys.run(&export);
    assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    assert!(said(&output).contains("LRTS_KEYS") && said(&output).lines().count() == 1, "{}", said(&output));
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    let key = KeyFile::read(&file).unwrap();
    let identity = key.identity().unwrap();
    assert_eq!((identity.role, identity.user.as_str()), (Role::Client, "ann"));
    let row = keys.row(&identity.key.to_string());
    assert_eq!((&row["role"], &row["user"], &row["file"]), (&"client".into(), &"ann".into(), &().into()));

    // It is complete by itself, and known for what it is.
    let shown = keys.done(&["show", "--json", "--keys", name]);
    let row: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&row["role"], &row["file"]), (&"client".into(), &name.into()));
    assert!(row["state"].is_null());

    let again = keys.run(&export);
    assert_eq!(again.status.code(), Some(1));
    assert!(said(&again).contains("--force"), "{}", said(&again));
    assert_eq!((KeyFile::read(&file).unwrap(), keys.rows().len()), (key, 6));
    keys.done(&[&export[..], &["--force"]].concat());
    assert_ne!(key_of(&file), identity.key.to_string());
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);

    let printed = keys.done(&["export", "--role", "worker", "-"]);
    assert_eq!(KeyFile::parse(printed.as_bytes()).unwrap().identity().unwrap().role, Role::Worker);
}

#[test]
fn an_export_that_cannot_be_written_leaves_no_key_on_record() {
    let keys = Keys::create();
    let nowhere = keys.file("no/such/directory/worker.pem");
    let output = keys.run(&["export", "--role", "worker", nowhere.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains(nowhere.to_str().unwrap()), "{}", said(&output));
    assert_eq!(keys.rows().len(), 5);
}

#[test]
fn rotation_keeps_older_keys_until_they_are_dropped() {
    let keys = Keys::create();
    let file = keys.file("worker.pem");
    keys.done(&["export", "--role", "worker", file.to_str().unwrap()]);
    let first = keys.authority();

    let rotated = keys.done(&["rotate"]);
    let second = keys.authority();
    assert_eq!(rotated, format!("{second}  current\n{first}  older\n"));
    assert_eq!(keys.states("worker"), ["current", "older", "older"]);

    assert_eq!(keys.done(&["rotate", "--drop-old"]), format!("{first}  dropped\n"));
    assert_eq!(keys.states("worker"), ["current"]);
    let again = keys.run(&["rotate", "--drop-old"]);
    assert!(again.status.success() && again.stdout.is_empty(), "{again:?}");
    assert_eq!(keys.authority(), second);
}

#[test]
fn revoking_is_idempotent_and_names_what_is_unknown() {
    let keys = Keys::create();
    let file = keys.file("worker.pem");
    keys.done(&["export", "--role", "worker", file.to_str().unwrap()]);
    let key = key_of(&file);
    for _ in 0..2 {
        let output = keys.run(&["revoke", &key]);
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{key}  revoked\n"));
        assert!(output.status.success() && said(&output).contains("within a second or two"), "{output:?}");
        assert_eq!(keys.states("worker"), ["current", "revoked"]);
    }

    let own = key_of(&keys.path().join("admin.pem"));
    let unknown = "00000000000000ff";
    let output = keys.run(&["revoke", unknown, &own]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains(unknown) && said(&output).contains("admin.pem has a new key"));
    assert_eq!(keys.states("admin"), ["current", "revoked"]);
    assert_ne!(key_of(&keys.path().join("admin.pem")), own);
}

#[test]
fn all_keys_of_a_user_are_revoked_at_once() {
    let keys = Keys::create();
    for role in ["client", "admin"] {
        let file = keys.file(role);
        keys.done(&["export", "--role", role, "--user", "ann", file.to_str().unwrap()]);
    }
    assert_eq!(keys.done(&["revoke", "--user", "ann"]).lines().count(), 2);
    assert_eq!(
        (keys.states("client"), keys.states("admin")),
        (vec!["current".to_owned(), "revoked".to_owned()], vec!["current".to_owned(), "revoked".to_owned()])
    );
    assert_eq!(keys.run(&["revoke", "--user", "nobody"]).status.code(), Some(1));
}

#[test]
fn keys_that_cannot_be_used_exit_with_4_and_say_what_mends_it() {
    let keys = Keys::create();
    let path = keys.path();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    for command in
        [&["show"][..], &["rotate"], &["revoke", "00000000000000ff"], &["export", "--role", "worker", "-"]]
    {
        let output = keys.run(command);
        assert_eq!(output.status.code(), Some(4), "{command:?}");
        assert!(said(&output).contains(&format!("chmod 700 {}", path.display())), "{}", said(&output));
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();

    // A copy, and a place with nothing in it.
    fs::remove_file(path.join("authority.pem")).unwrap();
    assert_eq!(keys.rows().len(), 5);
    for place in [path, keys.file("nothing")] {
        let output = keys.run(&["rotate", "--keys", place.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(4));
        assert!(said(&output).contains(place.to_str().unwrap()), "{}", said(&output));
    }
    assert_eq!(keys.run(&["show", "--keys", keys.file("nothing").to_str().unwrap()]).status.code(), Some(4));
}

#[test]
fn wrong_usage_exits_with_2() {
    for wrong in [&["keys"][..], &["keys", "export", "-"], &["keys", "revoke"], &["keys", "revoke", "worker"]]
    {
        assert_eq!(run_lrts(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn help_says_what_each_command_is_for() {
    let help = |arguments: &[&str]| {
        let output = run_lrts(arguments);
        assert_eq!(output.status.code(), Some(0));
        // However wide the terminal is.
        String::from_utf8(output.stdout).unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let expected = "Show, make, renew and revoke the keys by which all parts of a cluster know each other \
        Usage: lrts keys <COMMAND> \
        Commands: \
        show List the keys that were made here and are neither expired nor dropped \
        export Make a key for another machine or user: one file, to be copied there and named by --keys or LRTS_KEYS \
        rotate Give all roles on this machine new keys of a new authority; older keys are accepted until --drop-old or the \
        next rotation \
        revoke Stop accepting keys; those of this directory itself are replaced by new ones \
        help Print this message or the help of the given subcommand(s) \
        Options: -h, --help Print help -V, --version Print version";
    assert_eq!(help(&["keys", "--help"]), expected);
    let export = help(&["keys", "export", "--help"]);
    assert!(
        export.contains("[possible values: scheduler, progress-server, worker, client, admin]"),
        "{export}"
    );
    assert!(export.contains("[default: 3650d]"), "{export}");
}
