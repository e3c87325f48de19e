//! What a cluster's log is applied to here: the instance that the doors share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, BufMut, Bytes};

use crate::cluster::entry::CHANGE_BYTES_MAX;
use crate::cluster::{Audit, Host, Restored};
use crate::disk::{Beside, Header, Identity, decode_change, encode_change};
use crate::doors::{Failure, InForce, Instance};
use crate::engine::key::Seed;
use crate::engine::quota::Kind;
use crate::engine::session::Sessions;
use crate::engine::table::Table;
use crate::engine::time::Now;
use crate::node::keeper::limit_names;
use crate::policy::{self, ByHand, Identities, Numbered, Numbers, Policy, Source};

/// A change of the policy; what comes behind is the texts.
pub(super) const CHANGE_POLICY: u8 = 1;

/// A change by hand; what comes behind is `disk`'s.
pub(super) const CHANGE_BY_HAND: u8 = 2;

/// The instance as the log changes it.
pub(super) struct InstanceHost {
    instance: Arc<Instance>,
    identity: Identity,
    seed: Seed,
    keys_max: u64,
    /// Texts of the policy in force, once the log has brought one.
    sources: Mutex<Option<Sources>>,
    is_seeded: AtomicBool,
    audit: Option<Arc<dyn Audit>>,
}

/// A policy as it was applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sources {
    /// Where it comes from, for people.
    pub(super) origin: String,
    /// Names and texts.
    pub(super) texts: Vec<(String, String)>,
}

impl InstanceHost {
    pub(super) fn new(
        instance: Arc<Instance>,
        identity: Identity,
        seed: Seed,
        keys_max: u64,
    ) -> Self {
        let (sources, is_seeded) = (Mutex::new(None), AtomicBool::new(false));
        Self { instance, identity, seed, keys_max, sources, is_seeded, audit: None }
    }

    /// Tells somebody what comes of each group.
    pub(super) fn audited(self, audit: Arc<dyn Audit>) -> Self {
        Self { audit: Some(audit), ..self }
    }

    /// Which cluster this is, and its seed.
    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    /// Whether the log has brought a policy.
    pub(super) fn is_seeded(&self) -> bool {
        self.is_seeded.load(Ordering::Acquire)
    }

    fn compile(&self, sources: &Sources) -> Result<Policy, String> {
        let texts: Vec<Source<'_>> =
            sources.texts.iter().map(|(name, text)| Source { name, text }).collect();
        Policy::compile(&texts, &self.seed).map_err(|errors| errors.to_string())
    }

    fn take_policy(&self, sources: Sources, now: Now, numbers: Numbers) -> Result<String, String> {
        let policy = self.compile(&sources)?;
        let version = policy.version();
        let origin = sources.origin.clone();
        let replaced = self.instance.replace(policy, origin, now.utc, numbers);
        replaced.map_err(|error| error.to_string())?;
        *self.sources.lock().unwrap_or_else(PoisonError::into_inner) = Some(sources);
        self.is_seeded.store(true, Ordering::Release);
        Ok(format!("{version:016x}"))
    }
}

impl Sources {
    /// The change that puts them in force.
    ///
    /// # Errors
    /// They are longer than an entry of the log may be; in words.
    pub(super) fn to_change(&self) -> Result<Bytes, String> {
        let mut out = vec![CHANGE_POLICY];
        self.encode(&mut out);
        let found = out.len();
        if found > CHANGE_BYTES_MAX {
            let max = CHANGE_BYTES_MAX;
            return Err(format!("the policy has {found} bytes, a cluster's may have {max}"));
        }
        Ok(out.into())
    }

    fn encode(&self, out: &mut Vec<u8>) {
        put_text(out, &self.origin);
        out.put_u32_le(self.texts.len() as u32);
        for (name, text) in &self.texts {
            put_text(out, name);
            put_text(out, text);
        }
    }

    fn decode(bytes: &mut Bytes) -> Option<Self> {
        let origin = text(bytes)?;
        let count = bytes.try_get_u32_le().ok()?;
        let mut texts = Vec::new();
        for _ in 0..count {
            texts.push((text(bytes)?, text(bytes)?));
        }
        Some(Self { origin, texts })
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.put_u32_le(text.len() as u32);
    out.put_slice(text.as_bytes());
}

fn text(bytes: &mut Bytes) -> Option<String> {
    let length = bytes.try_get_u32_le().ok()? as usize;
    if length > bytes.len() {
        return None;
    }
    String::from_utf8(bytes.split_to(length).to_vec()).ok()
}

fn put_numbers(out: &mut Vec<u8>, numbers: &Numbers) {
    let all = numbers.all();
    out.put_u32_le(all.len() as u32);
    for numbered in all {
        match numbered {
            Numbered::Limit(names, number, kind) => {
                out.put_u8(1);
                names.iter().for_each(|name| put_text(out, name));
                out.put_u8(kind as u8);
                out.put_u32_le(number.into());
            }
            Numbered::Api(name, number) => {
                out.put_u8(2);
                put_text(out, &name);
                out.put_u32_le(number.into());
            }
            Numbered::Handle(api, class, number) => {
                out.put_u8(if class.is_some() { 3 } else { 4 });
                put_text(out, &api);
                put_text(out, class.as_deref().unwrap_or_default());
                out.put_u32_le(number);
            }
        }
    }
}

fn numbers(bytes: &mut Bytes) -> Option<Numbers> {
    let count = bytes.try_get_u32_le().ok()?;
    let mut all = Vec::new();
    for _ in 0..count {
        let name = |bytes: &mut Bytes| text(bytes).map(String::into_boxed_str);
        let numbered = match bytes.try_get_u8().ok()? {
            1 => {
                let names = [name(bytes)?, name(bytes)?, name(bytes)?];
                let kind = Kind::of_code(bytes.try_get_u8().ok()?)?;
                Numbered::Limit(names, bytes.try_get_u32_le().ok()?.try_into().ok()?, kind)
            }
            2 => Numbered::Api(name(bytes)?, bytes.try_get_u32_le().ok()?.try_into().ok()?),
            kind @ (3 | 4) => {
                let (api, class) = (name(bytes)?, name(bytes)?);
                let class = (kind == 3).then_some(class);
                Numbered::Handle(api, class, bytes.try_get_u32_le().ok()?)
            }
            _ => return None,
        };
        all.push(numbered);
    }
    Some(Numbers::of(all))
}

impl Host for InstanceHost {
    fn table(&self) -> Arc<Table> {
        self.instance.table.load_full()
    }

    fn sessions(&self) -> &Mutex<Sessions> {
        &self.instance.sessions
    }

    fn policy_version(&self) -> u64 {
        // Before the log has brought a policy nothing is resolved by the one in force.
        if self.is_seeded() { self.instance.policy.load().policy.version() } else { 0 }
    }

    fn follow(&self, now: Now) {
        self.instance.clock.follow(now);
    }

    fn change(&self, change: &[u8], now: Now) -> Result<String, String> {
        let mut bytes = Bytes::copy_from_slice(change);
        match bytes.try_get_u8() {
            Ok(CHANGE_POLICY) => {
                let sources = Sources::decode(&mut bytes).ok_or("the change is cut off")?;
                // The first one's numbers are its own, whatever each node was started with.
                let numbers =
                    if self.is_seeded() { self.instance.numbers() } else { Numbers::default() };
                self.take_policy(sources, now, numbers)
            }
            Ok(CHANGE_BY_HAND) => {
                let change = decode_change(&bytes).map_err(str::to_owned)?;
                let made = crate::doors::admin::make(&self.instance, change);
                // The log is on disk already.
                made.map(|(value, _)| value.to_string()).map_err(|failure| match failure {
                    Failure::Wrong(why) | Failure::TooMany(why) => why,
                })
            }
            Ok(kind) => Err(format!("a change of kind {kind} is unknown")),
            Err(_) => Err("the change is empty".to_owned()),
        }
    }

    fn beside(&self, header: Header) -> (Beside, Vec<u8>) {
        let loaded = self.instance.policy.load();
        let (sessions_opened, sessions) =
            self.instance.sessions.lock().unwrap_or_else(PoisonError::into_inner).saved();
        let header = Header { policy: loaded.policy.version(), sessions_opened, ..header };
        let limits = limit_names(&self.instance.numbers());
        let mut opaque = Vec::new();
        let sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner).clone();
        opaque.put_u8(u8::from(sources.is_some()));
        if let Some(sources) = sources {
            sources.encode(&mut opaque);
            put_numbers(&mut opaque, &self.instance.numbers());
            let InForce { overrides, identities, .. } = self.instance.in_force();
            let overrides = overrides.into_iter().map(ByHand::SetOverride);
            let identities = identities.iter().cloned().map(ByHand::PutIdentity);
            for change in overrides.chain(identities) {
                let bytes = encode_change(&change);
                opaque.put_u32_le(bytes.len() as u32);
                opaque.put_slice(&bytes);
            }
        }
        (Beside { header, limits, sessions, cluster: Vec::new() }, opaque)
    }

    fn restore(&self, restored: Restored) -> Result<(), String> {
        let Restored { table, sessions: (opened, saved), mut opaque, now } = restored;
        let broken = || "what the snapshot keeps of the policy is cut off".to_owned();
        self.instance.table.store(Arc::new(table));
        let mut sessions = Sessions::new(&self.seed);
        sessions.restore(opened, saved);
        *self.instance.sessions.lock().unwrap_or_else(PoisonError::into_inner) = sessions;
        if opaque.try_get_u8().map_err(|_| broken())? == 1 {
            let sources = Sources::decode(&mut opaque).ok_or_else(broken)?;
            let numbers = numbers(&mut opaque).ok_or_else(broken)?;
            self.take_policy(sources, now, numbers)?;
            let (mut overrides, mut identities) = (Vec::new(), Identities::default());
            while let Ok(length) = opaque.try_get_u32_le() {
                if opaque.len() < length as usize {
                    return Err(broken());
                }
                let change = decode_change(&opaque.split_to(length as usize));
                match change.map_err(str::to_owned)? {
                    ByHand::SetOverride(record) => overrides.push(record),
                    ByHand::PutIdentity(policy::Identity { api, attribute, value, account }) => {
                        // As many fit as there were.
                        let _ = identities.put(&api, &attribute, &value, account);
                    }
                    _ => return Err(broken()),
                }
            }
            self.instance.take_over(overrides, identities);
        }
        Ok(())
    }

    fn empty_table(&self) -> Table {
        let table = Table::new(self.keys_max, &self.seed);
        table.keep_caps_elsewhere();
        crate::doors::cap_inline(&table);
        table
    }

    fn audit(&self) -> Option<&dyn Audit> {
        self.audit.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node whose first policy was longer than an entry of the log asked for it again for ever, and
    /// said nothing.
    #[test]
    fn a_policy_too_long_for_the_log_is_refused_in_words() {
        let sources = |bytes: usize| {
            let texts = vec![("p.toml".to_owned(), "#".repeat(bytes))];
            Sources { origin: "a test".to_owned(), texts }.to_change()
        };
        assert!(sources(CHANGE_BYTES_MAX - 100).is_ok());
        let why = sources(CHANGE_BYTES_MAX).unwrap_err();
        assert!(why.ends_with("a cluster's may have 819200"), "{why}");
    }
}
