//! A policy changes for all nodes at one entry: no group is performed by another one than that in
//! force at its moment.

use std::collections::BTreeMap;

use crate::engine::time::Now;

use super::super::limits::FIRST_POLICY;

#[derive(Default)]
pub(in super::super) struct Policies {
    /// When each came into force, in cluster time.
    since: BTreeMap<u64, u64>,
    performed: Vec<(u64, u64)>,
}

impl Policies {
    pub(in super::super) fn switched(&mut self, version: u64, now: Now) -> Result<(), String> {
        let time = now.time.as_nanos();
        let known = *self.since.entry(version).or_insert(time);
        if known != time {
            return Err(format!("policy {version} came into force at {known} and at {time}"));
        }
        Ok(())
    }

    /// A group that was resolved by a policy was performed.
    pub(in super::super) fn performed(&mut self, policy: u64, now: Now) {
        self.performed.push((policy, now.time.as_nanos()));
    }

    pub(in super::super) fn switches(&self) -> usize {
        self.since.len()
    }

    pub(in super::super) fn check(&self) -> Result<(), String> {
        for &(policy, at) in &self.performed {
            let begins = if policy == FIRST_POLICY { Some(&0) } else { self.since.get(&policy) };
            let ends = self.since.range(policy + 1..).map(|(_, at)| *at).min();
            if begins.is_none_or(|begins| *begins > at) || ends.is_some_and(|ends| ends <= at) {
                return Err(format!(
                    "a group of policy {policy} was performed at {at}; it was in force from \
                     {begins:?} to {ends:?}"
                ));
            }
        }
        Ok(())
    }
}
