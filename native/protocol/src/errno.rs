//! errno numbers to the lower-case names that Elixir users know (`:enoent`).

use nix::errno::Errno;

/// `2` → `"enoent"`. A number that the system's headers do not define is `"unknown"`.
pub fn name(errno: i32) -> String {
    match Errno::from_raw(errno) {
        Errno::UnknownErrno => "unknown".to_owned(),
        known => format!("{known:?}").to_lowercase(),
    }
}

/// `"enoent"` → `2`. No system has reached number 256.
pub fn number(candidate: &str) -> Option<i32> {
    if !candidate.starts_with('e') {
        return None;
    }
    (1..256).find(|errno| name(*errno) == candidate)
}

/// Whether [`name`] can give it.
pub fn is_name(candidate: &str) -> bool {
    number(candidate).is_some()
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_are_lower_case_errno_symbols() {
        assert_eq!(super::name(libc::ENOENT), "enoent");
        assert_eq!(super::name(libc::EAGAIN), "eagain");
        assert_eq!(super::name(libc::E2BIG), "e2big");
        assert_eq!(super::name(99_999), "unknown");
    }
}
