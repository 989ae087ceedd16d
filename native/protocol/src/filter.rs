//! Which calls a process may be asked for. Restrictions only grow.

use std::collections::BTreeSet;

use crate::message::Filter;

/// What is allowed: everything, or these names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CallFilter {
    allowed: Option<BTreeSet<String>>,
    denied: BTreeSet<String>,
}

impl CallFilter {
    pub fn allows(&self, name: &str) -> bool {
        !self.denied.contains(name)
            && self
                .allowed
                .as_ref()
                .is_none_or(|allowed| allowed.contains(name))
    }

    pub fn narrow(&mut self, filter: &Filter) {
        match filter {
            Filter::Unchanged => {}
            Filter::Deny(names) => self.denied.extend(names.iter().cloned()),
            Filter::Allow(names) => {
                let names: BTreeSet<_> = names.iter().cloned().collect();
                self.allowed = Some(match self.allowed.take() {
                    Some(allowed) => allowed.intersection(&names).cloned().collect(),
                    None => names,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn restrictions_only_grow() {
        let mut filter = CallFilter::default();
        assert!(filter.allows("fork"));
        filter.narrow(&Filter::Allow(names(&["fork", "exit", "close"])));
        assert!(filter.allows("fork") && !filter.allows("chdir"));
        filter.narrow(&Filter::Deny(names(&["close"])));
        assert!(filter.allows("exit") && !filter.allows("close"));
        filter.narrow(&Filter::Allow(names(&["close", "exit", "chdir"])));
        assert!(filter.allows("exit"));
        assert!(!filter.allows("close") && !filter.allows("chdir") && !filter.allows("fork"));
        filter.narrow(&Filter::Unchanged);
        assert!(filter.allows("exit"));
    }
}
