//! Where a user's keys are.

use std::ffi::OsString;
use std::path::PathBuf;

use super::KeysError;

/// The keys directory or key file of a user who names none: `$LRTS_KEYS`, else `$XDG_CONFIG_HOME/lrts/keys`, else
/// `~/.config/lrts/keys`.
///
/// # Errors
///
/// [`KeysError::NoHome`] if `LRTS_KEYS` isn't set and neither of the others names an absolute path.
pub fn keys_home(variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, KeysError> {
    let set = |name| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let absolute = |name| set(name).filter(|path| path.is_absolute());
    set("LRTS_KEYS")
        .or_else(|| absolute("XDG_CONFIG_HOME").map(|config| config.join("lrts/keys")))
        .or_else(|| absolute("HOME").map(|home| home.join(".config/lrts/keys")))
        .ok_or(KeysError::NoHome)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn keys_are_where_the_environment_says() {
        let with = |set: &'static [(&str, &str)]| {
            keys_home(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
        };
        let all = &[("LRTS_KEYS", "k.pem"), ("XDG_CONFIG_HOME", "/c"), ("HOME", "/h")];
        assert_eq!(with(all).unwrap(), Path::new("k.pem"));
        let config = &[("LRTS_KEYS", ""), ("XDG_CONFIG_HOME", "/c"), ("HOME", "/h")];
        assert_eq!(with(config).unwrap(), Path::new("/c/lrts/keys"));
        let home = &[("XDG_CONFIG_HOME", "relative"), ("HOME", "/h")];
        assert_eq!(with(home).unwrap(), Path::new("/h/.config/lrts/keys"));
        assert!(matches!(with(&[("HOME", "relative")]), Err(KeysError::NoHome)));
    }
}
