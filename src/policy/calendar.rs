//! Where a calendar limit's windows lie: a zone and an anchor, fixed or said by the request.

use crate::engine::kinds::{Boundaries, Period};
use crate::engine::quota::Quota;
use crate::engine::time::{SECOND, UtcTime};

use super::facts::Facts;
use super::fingerprint::Fingerprint;
use super::moment::{self, Anchor, Zone};
use super::short::is_same;

/// The windows of a calendar limit.
#[derive(Clone, Debug)]
pub(super) struct CalendarWindow {
    /// Tells this period, zone and anchor from others. Where a request says the zone or the anchor,
    /// it tells in which attribute, so that equal specs in one handle read equal slots.
    pub(super) spec: u64,
    pub(super) period: Period,
    pub(super) zone: Said<Zone>,
    pub(super) anchor: Said<Anchor>,
}

/// A value that the policy fixes, or one that a request says in the attribute of this slot.
#[derive(Clone, Debug)]
pub(super) enum Said<T> {
    Fixed(T),
    Slot(u16),
}

impl<T> Said<T> {
    /// The slot that it is said in.
    pub(super) fn slot(&self) -> Option<u16> {
        match self {
            Self::Fixed(_) => None,
            Self::Slot(slot) => Some(*slot),
        }
    }
}

impl<T> Said<T> {
    fn move_slot(&mut self, slot_of: impl Fn(u16) -> Option<u16>) {
        if let Self::Slot(slot) = self {
            *slot = slot_of(*slot).unwrap_or(u16::MAX);
        }
    }
}

/// Windows that one thread found last, so that a check inside the same window does no calendar
/// arithmetic. Each has one place, by a hash; of two that share it the later one is kept.
#[derive(Clone, Debug, Default)]
pub(super) struct CalendarCache {
    /// Empty, or [`PLACES`] of them.
    found: Vec<Option<Found>>,
}

/// Windows that a cache has place for: those of some zones and all days of a month.
const PLACES: usize = 256;

#[derive(Clone, Debug)]
struct Found {
    spec: u64,
    zone: Vec<u8>,
    anchor: Vec<u8>,
    at: Boundaries,
}

impl CalendarCache {
    fn place(spec: u64, zone: &[u8], anchor: &[u8]) -> usize {
        if zone.is_empty() && anchor.is_empty() {
            // The policy fixes both, and the spec is a hash already.
            return spec as usize % PLACES;
        }
        let mut hash = Fingerprint::new();
        hash.part(&spec.to_le_bytes()).part(zone).part(anchor);
        hash.finish() as usize % PLACES
    }

    /// The window that was found last with these values.
    fn known(&self, place: usize, spec: u64, zone: &[u8], anchor: &[u8]) -> Option<Boundaries> {
        let found = self.found.get(place)?.as_ref()?;
        let same = found.spec == spec && is_same(&found.zone, zone);
        (same && is_same(&found.anchor, anchor)).then_some(found.at)
    }

    fn keep(&mut self, place: usize, found: Found) {
        if self.found.is_empty() {
            self.found.resize_with(PLACES, || None);
        }
        if let Some(known) = self.found.get_mut(place) {
            *known = Some(found);
        }
    }
}

/// Why a request has no calendar window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoWindow {
    /// The slot has no value.
    Missing(u16),
    /// The slot's value is no zone or no anchor.
    Unfit(u16),
    /// The moment lies past the calendar.
    Past,
}

impl CalendarWindow {
    /// The same with attributes in other slots.
    pub(super) fn move_slots(&mut self, slot_of: impl Fn(u16) -> Option<u16>) {
        self.zone.move_slot(&slot_of);
        self.anchor.move_slot(&slot_of);
    }

    /// The window that is open at `now`.
    pub(super) fn at(
        &self,
        facts: &Facts<'_>,
        now: UtcTime,
        cache: &mut CalendarCache,
    ) -> Result<Boundaries, NoWindow> {
        let said = |slot: Option<u16>| match slot {
            None => Ok(&[][..]),
            Some(slot) => facts.value(slot).ok_or(NoWindow::Missing(slot)),
        };
        let (zone, anchor) = (said(self.zone.slot())?, said(self.anchor.slot())?);
        let place = CalendarCache::place(self.spec, zone, anchor);
        if let Some(at) = cache.known(place, self.spec, zone, anchor) {
            let begins = |secs: u32| UtcTime::from_nanos(u64::from(secs) * SECOND);
            if begins(at.opens_at) <= now && now < begins(at.ends_at) {
                return Ok(at);
            }
        }
        let at = self.find(zone, anchor, now)?;
        let (zone, anchor) = (zone.to_vec(), anchor.to_vec());
        cache.keep(place, Found { spec: self.spec, zone, anchor, at });
        Ok(at)
    }

    #[cold]
    fn find(&self, zone: &[u8], anchor: &[u8], now: UtcTime) -> Result<Boundaries, NoWindow> {
        let text = |bytes| core::str::from_utf8(bytes).ok();
        let at_zone = match &self.zone {
            Said::Fixed(zone) => zone.clone(),
            Said::Slot(slot) => text(zone).and_then(Zone::named).ok_or(NoWindow::Unfit(*slot))?,
        };
        let at_anchor = match &self.anchor {
            Said::Fixed(anchor) => *anchor,
            Said::Slot(slot) => text(anchor)
                .and_then(|text| Anchor::parse(self.period, text))
                .ok_or(NoWindow::Unfit(*slot))?,
        };
        let at = moment::boundaries(&at_zone, self.period, at_anchor, now).ok_or(NoWindow::Past)?;
        // Boundaries that no quota takes are those of no window.
        Quota::calendar(1, self.period, at).map(|_| at).map_err(|_| NoWindow::Past)
    }
}
