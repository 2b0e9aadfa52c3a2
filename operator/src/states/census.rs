//! Pure: how many nodes have the same pools.

use super::known::KnownState;
use crate::entry::config_hash;
use std::collections::HashMap;

/// How many nodes have the same pools, by the hash of a spec that has these itself.
#[derive(Debug, Default)]
pub(super) struct Census(HashMap<String, usize>);

impl Census {
    pub(super) fn nodes_with(&self, config_hash: &str) -> usize {
        self.0.get(config_hash).copied().unwrap_or_default()
    }

    /// Takes in that one state came in the place of another.
    pub(super) fn change(&mut self, before: Option<&KnownState>, after: Option<&KnownState>) {
        if before.map(|state| &state.pools) == after.map(|state| &state.pools) && before.is_some() {
            return;
        }
        let hash = |state: &'_ KnownState| config_hash(&state.pools);
        let (before, after) = (before.map(hash), after.map(hash));
        if before == after {
            return;
        }
        if let Some(before) = before
            && let Some(nodes) = self.0.get_mut(&before)
        {
            *nodes -= 1;
            if *nodes == 0 {
                self.0.remove(&before);
            }
        }
        if let Some(after) = after {
            *self.0.entry(after).or_default() += 1;
        }
    }
}

impl<'s> FromIterator<&'s KnownState> for Census {
    fn from_iter<I: IntoIterator<Item = &'s KnownState>>(states: I) -> Self {
        let mut census = Self::default();
        for state in states {
            census.change(None, Some(state));
        }
        census
    }
}
