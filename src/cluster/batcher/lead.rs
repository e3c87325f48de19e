//! What a leader has taken in, and the entries that it makes of it.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Buf;

use crate::clock::Stamper;
use crate::cluster::counts::Counts;
use crate::cluster::entry::{
    COMMANDS_PER_ENTRY, ENTRY_BYTES_MAX, GROUPS_MAX, Tag, Tagged, What, decode_group,
};
use crate::cluster::host::Host;
use crate::cluster::types::{LeaderId, NodeId};
use crate::engine::command::Charge;
use crate::engine::decision::Refusal;
use crate::engine::group::{Command, Group};
use crate::engine::kinds::Form;
use crate::engine::table::Table;

use super::UNAPPLIED_MAX;
use super::handed_over::Item;

/// A leader's state.
pub(super) struct Lead {
    pub(super) leader: LeaderId,
    pub(super) stamper: Stamper,
    pub(super) open: VecDeque<Item>,
    /// Of each other node: its run, and the highest sequence that was taken.
    pub(super) taken: HashMap<NodeId, (u64, u64)>,
    pub(super) unapplied: Arc<AtomicUsize>,
    /// Items of entries that surely were not appended, to be proposed again.
    pub(super) returned: Arc<Mutex<Vec<Item>>>,
    /// Whether its first entry was proposed.
    pub(super) fenced: bool,
}

impl Lead {
    /// Puts what surely was not appended where it was.
    pub(super) fn take_returned(&mut self) {
        let returned =
            core::mem::take(&mut *self.returned.lock().unwrap_or_else(PoisonError::into_inner));
        for item in returned.into_iter().rev() {
            self.open.push_front(item);
        }
    }

    /// Takes in what another node handed over, unless it was before.
    pub(super) fn take(&mut self, item: Item) {
        let Tag { origin, incarnation, sequence } = *item.tag();
        let taken = self.taken.entry(origin).or_insert((incarnation, 0));
        if taken.0 != incarnation {
            *taken = (incarnation, 0);
        }
        if sequence > taken.1 {
            taken.1 = sequence;
            self.open.push_back(item);
        }
    }

    /// What the next entry applies.
    pub(super) fn next(&mut self, host: &dyn Host, counts: &Counts) -> Option<What> {
        if counts.checksum_is_due() {
            return Some(What::Checksum);
        }
        if let Some(Item::Change(..)) = self.open.front() {
            let Some(Item::Change(tag, change)) = self.open.pop_front() else { return None };
            return Some(What::Change { tag, change });
        }
        let table = host.table();
        let (mut groups, mut bytes, mut commands) = (Vec::new(), 0, 0);
        while let Some(Item::Group(_)) = self.open.front() {
            let Some(Item::Group(mut group)) = self.open.pop_front() else { break };
            let count = group.body.get(..4).map_or(0, |mut count| count.get_u32_le() as usize);
            let over = bytes + group.bytes() > ENTRY_BYTES_MAX
                || commands + count > COMMANDS_PER_ENTRY
                || groups.len() >= GROUPS_MAX;
            if over && !groups.is_empty() {
                self.open.push_front(Item::Group(group));
                break;
            }
            bytes += group.bytes();
            commands += count;
            refuse_for_room(&table, &mut group);
            groups.push(group);
        }
        (!groups.is_empty()).then_some(What::Groups(groups))
    }
}

/// The counters that may be on their way into a table that no check of room has counted yet: all
/// of the entries that are not applied.
const HEADROOM: u64 = (UNAPPLIED_MAX * COMMANDS_PER_ENTRY) as u64;

/// Refuses commands that would bring a new counter, where there may be no room for it. Only the
/// leader does, before it proposes: applying never refuses, so nodes cannot differ.
fn refuse_for_room(table: &Table, tagged: &mut Tagged) {
    if table.is_roomy(HEADROOM) {
        return;
    }
    let mut group = Group::default();
    if decode_group(tagged.body.clone(), &mut group).is_err() {
        return;
    }
    let pinned = table.pin();
    let mut at = 0;
    for (place, command) in group.commands.iter().enumerate() {
        let charges = &group.charges[at..at + command.charges()];
        at += command.charges();
        // A check that takes nothing of a limit brings no counter, nor does a limit that keeps none.
        let changes = matches!(command, Command::Amend { .. });
        let counted =
            |charge: &&Charge| (changes || charge.cost > 0) && charge.quota.form() != Form::None;
        let refusal = charges.iter().filter(counted).find_map(|charge| {
            let room = table.room_for(charge.limit, 1).err()?;
            (!pinned.has(charge.key)).then_some(room)
        });
        if let Some(refusal @ Refusal::TableFull { .. }) = refusal {
            tagged.refused.push((place as u32, refusal));
        }
    }
}
