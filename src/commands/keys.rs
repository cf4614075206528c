//! `lrts keys`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use humantime::format_rfc3339_seconds;
use lrts_core::clock::wall_clock;
use lrts_core::command_line::{CommandError, exit_code};
use lrts_core::ids::UserName;
use lrts_core::keys::{
    Identity, IssuedKey, KeyFile, KeysDirectory, KeysError, ROLES, Rotation, key_file_name, keys_home,
    login_name, role_word,
};
use serde::Serialize;

use super::table::{print_json, print_table};
use crate::cli::{ExportKeyArgs, KeysCommand, KeysPlace, RevokeKeysArgs, RotateKeysArgs, ShowKeysArgs};

/// Why `lrts keys` failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeysCommandError {
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error("{} exists already: give --force to overwrite it", .0.display())]
    Exists(PathBuf),
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("there is no key {0}: `lrts keys show` lists them")]
    Unknown(String),
    #[error("{0} has no key: `lrts keys show` lists them")]
    Nobody(UserName),
    #[error("can't print")]
    Io(#[from] io::Error),
}

impl CommandError for KeysCommandError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Keys(_) => exit_code::REFUSED,
            Self::Exists(_) | Self::Write { .. } | Self::Unknown(_) | Self::Nobody(_) | Self::Io(_) => {
                exit_code::FAILED
            }
        }
    }
}

/// Shows, makes, renews or revokes keys.
pub(crate) fn keys(command: KeysCommand) -> Result<(), KeysCommandError> {
    match command {
        KeysCommand::Show(args) => match show(args) {
            // Whoever reads has seen enough. Of a key that was made that isn't so.
            Err(KeysCommandError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            shown => shown,
        },
        KeysCommand::Export(args) => export(args),
        KeysCommand::Rotate(args) => rotate(args),
        KeysCommand::Revoke(args) => revoke(args),
    }
}

fn path_of(place: KeysPlace) -> Result<PathBuf, KeysError> {
    place.keys.map_or_else(|| keys_home(|name| std::env::var_os(name)), Ok)
}

/// A key as it is shown. Of keys that were made elsewhere, only what stands in their files is known.
#[derive(Serialize)]
struct Row {
    key: String,
    role: &'static str,
    user: String,
    made: Option<String>,
    expires: Option<String>,
    state: Option<&'static str>,
    authority: Option<String>,
    file: Option<String>,
}

fn show(args: ShowKeysArgs) -> Result<(), KeysCommandError> {
    let path = path_of(args.place)?;
    let rows = match KeysDirectory::open(&path) {
        Ok(directory) => issued_rows(&directory, &key_files(&path)?),
        Err(error @ KeysError::NoAuthority { .. }) => {
            let rows: Vec<Row> = key_files(&path)?.into_iter().map(copied_row).collect();
            if rows.is_empty() {
                return Err(error.into());
            }
            rows
        }
        Err(error) => return Err(error.into()),
    };
    if args.json {
        rows.iter().try_for_each(print_json)?;
    } else {
        let headings = ["key", "role", "user", "made", "expires", "state", "authority", "where"];
        print_table(&headings, &rows.into_iter().map(cells).collect::<Vec<_>>())?;
    }
    Ok(())
}

/// The key files of a directory, or the one that is named, and whose they are.
fn key_files(path: &Path) -> Result<Vec<(PathBuf, Identity)>, KeysError> {
    let named = [path.to_owned()].into_iter().filter(|path| !path.is_dir());
    let mut files = Vec::new();
    for file in named.chain(ROLES.map(|role| path.join(key_file_name(role)))) {
        match KeyFile::read(&file) {
            Ok(key) => files.extend(key.identity().map(|identity| (file, identity))),
            Err(KeysError::Io { source, .. })
                if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(files)
}

/// The oldest first.
fn issued_rows(directory: &KeysDirectory, files: &[(PathBuf, Identity)]) -> Vec<Row> {
    let mut keys: Vec<&IssuedKey> = directory.issued().collect();
    keys.sort_by_key(|key| (key.made, key.role));
    let row = |key: &IssuedKey| Row {
        key: key.key.to_string(),
        role: role_word(key.role),
        user: key.user.to_string(),
        made: Some(timestamp(key.made)),
        expires: Some(timestamp(key.expires)),
        state: Some(if key.revoked.is_some() {
            "revoked"
        } else if key.expires < wall_clock() {
            "expired"
        } else if key.authority == directory.authority() {
            "current"
        } else {
            "older"
        }),
        authority: Some(key.authority.to_string()),
        file: files
            .iter()
            .find(|(_, holder)| holder.key == key.key)
            .map(|(file, _)| file.display().to_string()),
    };
    keys.into_iter().map(row).collect()
}

fn copied_row((file, holder): (PathBuf, Identity)) -> Row {
    Row {
        key: holder.key.to_string(),
        role: role_word(holder.role),
        user: holder.user.to_string(),
        made: None,
        expires: None,
        state: None,
        authority: None,
        file: Some(file.display().to_string()),
    }
}

fn cells(row: Row) -> Vec<String> {
    let known = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    vec![
        row.key,
        row.role.to_owned(),
        row.user,
        known(row.made),
        known(row.expires),
        known(row.state.map(str::to_owned)),
        known(row.authority),
        known(row.file),
    ]
}

fn timestamp(since_1970: Duration) -> String {
    format_rfc3339_seconds(UNIX_EPOCH + since_1970).to_string()
}

fn export(args: ExportKeyArgs) -> Result<(), KeysCommandError> {
    let mut directory = KeysDirectory::open(&path_of(args.place)?)?;
    let user = args.user.unwrap_or_else(login_name);
    let make = || directory.issue(args.role, user, args.valid).map(|key| key.to_text());
    if args.file.as_os_str() == "-" {
        return Ok(io::stdout().write_all(make()?.as_bytes())?);
    }
    // Before the key is made, which would stay on record for nothing. An older file goes once the new one is whole.
    let new = if args.force { with_new(&args.file) } else { args.file.clone() };
    let mut file = create(&new, args.force)?;
    let failed = |source| KeysCommandError::Write { path: args.file.clone(), source };
    let written = make().map_err(KeysCommandError::Keys).and_then(|text| {
        let mut write = || {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            if args.force { fs::rename(&new, &args.file) } else { Ok(()) }
        };
        write().map_err(failed)
    });
    if written.is_err() {
        // Nobody must take it for a key file. If it can't be removed, reading it says what it isn't.
        let _ = fs::remove_file(&new);
        return written;
    }
    let (file, role) = (args.file.display(), args.role);
    writeln!(
        io::stderr(),
        "{file} is all that a {role} needs, and whoever has it can be one: move it to where that runs, and name it there by --keys or LRTS_KEYS"
    )?;
    Ok(())
}

/// Where a file is written before it takes its place.
fn with_new(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

/// Makes a file that nobody else can read.
fn create(path: &Path, force: bool) -> Result<File, KeysCommandError> {
    let failed = |source: io::Error| {
        if source.kind() == io::ErrorKind::AlreadyExists {
            KeysCommandError::Exists(path.to_owned())
        } else {
            KeysCommandError::Write { path: path.to_owned(), source }
        }
    };
    if force {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    File::options().write(true).create_new(true).mode(0o600).open(path).map_err(failed)
}

fn rotate(args: RotateKeysArgs) -> Result<(), KeysCommandError> {
    let mut directory = KeysDirectory::open(&path_of(args.place)?)?;
    if args.drop_old {
        let old = directory.previous();
        directory.drop_old()?;
        match old {
            Some(old) => writeln!(io::stdout(), "{old}  dropped")?,
            None => writeln!(io::stderr(), "no older keys were accepted")?,
        }
        return Ok(());
    }
    if directory.rotate()? == Rotation::Completed {
        writeln!(
            io::stderr(),
            "this has completed a rotation that was interrupted: run `lrts keys rotate` again to begin another one"
        )?;
    }
    let mut out = io::stdout().lock();
    writeln!(out, "{}  current", directory.authority())?;
    if let Some(old) = directory.previous() {
        writeln!(out, "{old}  older")?;
    }
    writeln!(
        io::stderr(),
        "older keys on other machines still work: export new ones for them, then run `lrts keys rotate --drop-old`"
    )?;
    Ok(())
}

/// Fails if one of them is unknown, after it has revoked the others.
fn revoke(args: RevokeKeysArgs) -> Result<(), KeysCommandError> {
    let mut directory = KeysDirectory::open(&path_of(args.place)?)?;
    let (known, unknown) = match args.user {
        None => args.ids.iter().partition(|&&key| directory.issued_key(key).is_some()),
        Some(user) => {
            let keys = directory.keys_of(&user);
            if keys.is_empty() {
                return Err(KeysCommandError::Nobody(user));
            }
            (keys, Vec::new())
        }
    };
    let renewed = directory.revoke(&known)?;
    known.iter().try_for_each(|key| writeln!(io::stdout(), "{key}  revoked"))?;
    if !known.is_empty() {
        writeln!(
            io::stderr(),
            "servers that use this directory follow within a second or two; those elsewhere once they have a new file by `lrts keys \
             export`"
        )?;
    }
    for role in renewed {
        writeln!(io::stderr(), "{} has a new key", key_file_name(role))?;
    }
    if unknown.is_empty() {
        return Ok(());
    }
    Err(KeysCommandError::Unknown(unknown.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")))
}
