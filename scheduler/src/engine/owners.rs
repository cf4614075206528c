//! Whose an application is. Its owner is the user of the key that it was first attached with; nobody else may come back to it.

use lrts_core::ids::UserName;

/// It belongs to somebody else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Foreign;

/// Who owns an application from now on, given who did and who attaches.
///
/// Without keys nobody is told apart: everybody may, and it stays whose it was. An application from before there were keys
/// belongs to the first who comes.
pub(super) fn owner_after(
    owner: Option<&UserName>,
    user: Option<&UserName>,
) -> Result<Option<UserName>, Foreign> {
    match (owner, user) {
        (owner, None) => Ok(owner.cloned()),
        (None, Some(user)) => Ok(Some(user.clone())),
        (Some(owner), Some(user)) if owner == user => Ok(Some(owner.clone())),
        (Some(_), Some(_)) => Err(Foreign),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_owner_comes_back() {
        let name = |name: &str| Some(name.parse::<UserName>().unwrap());
        let (nobody, ann, bob) = (None, name("ann"), name("bob"));
        let table = [
            (&nobody, &nobody, Ok(nobody.clone())),
            (&nobody, &ann, Ok(ann.clone())),
            (&ann, &nobody, Ok(ann.clone())),
            (&ann, &ann, Ok(ann.clone())),
            (&ann, &bob, Err(Foreign)),
            (&bob, &ann, Err(Foreign)),
        ];
        for (owner, user, after) in table {
            assert_eq!(owner_after(owner.as_ref(), user.as_ref()), after, "{owner:?} {user:?}");
        }
    }
}
