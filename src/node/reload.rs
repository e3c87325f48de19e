//! Reading the policy again: on SIGHUP, and when its files say something else than they did.
//!
//! Files are compared by what they say, once a second, so it does not matter how they came to say
//! it: an editor that writes in place, a file moved over another, a directory behind a symbolic
//! link that now leads elsewhere. A text that is seen for the first time may still be half written;
//! it counts once it is the same a second later.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::time::MissedTickBehavior;

use crate::clock;
use crate::doors::Instance;
use crate::doors::report::version_text;
use crate::engine::key::Seed;
use crate::policy::{Fate, Policy, Source};

/// How often files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Names and texts of the files, or why they cannot be read.
type Texts = Result<Vec<(String, String)>, String>;

/// Reloads whenever it is time, until it is aborted.
pub(super) async fn run(
    path: Option<PathBuf>,
    seed: Seed,
    instance: Arc<Instance>,
    mut hang_up: Signal,
) {
    let Some(path) = path else {
        while hang_up.recv().await.is_some() {
            tracing::info!("SIGHUP: the policy is built in; there is nothing to read again");
        }
        return;
    };
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut tried, mut seen) = (read(&path), None);
    // What was started with may have changed since it was read.
    if version(&tried) != Some(instance.policy.load().policy.version()) {
        tried = Ok(Vec::new());
    }
    loop {
        let is_told = tokio::select! {
            signalled = hang_up.recv() => signalled.is_some(),
            _ = looks.tick() => false,
        };
        let (reader, path_read) = (path.clone(), path.clone());
        let Ok(texts) = tokio::task::spawn_blocking(move || read(&reader)).await else { continue };
        if !is_told {
            if texts == tried {
                seen = None;
                continue;
            }
            if seen.as_ref() != Some(&texts) {
                seen = Some(texts);
                continue;
            }
        }
        tried.clone_from(&texts);
        seen = None;
        let (seed, instance) = (seed, Arc::clone(&instance));
        // Compiling takes its time, and this thread sweeps and answers metrics.
        let work = move || reload(&path_read, texts, &seed, &instance);
        let _ = tokio::task::spawn_blocking(work).await;
    }
}

fn read(path: &Path) -> Texts {
    super::read_policy(path)
        .map_err(|error| format!("cannot read policy {}: {error}", path.display()))
}

fn version(texts: &Texts) -> Option<u64> {
    let texts = texts.as_ref().ok()?;
    Some(Policy::version_of(texts.iter().map(|(_, text)| text.as_str())))
}

/// Puts what the files say in force, or says why not.
fn reload(path: &Path, texts: Texts, seed: &Seed, instance: &Instance) {
    let now = clock::wall_now();
    let failed = |why: String| instance.control.reloads.note_failure(why, now);
    let texts = match texts {
        Ok(texts) => texts,
        Err(error) => {
            tracing::error!("the policy in force stays: {error}");
            return failed(error);
        }
    };
    let sources: Vec<Source<'_>> = texts.iter().map(|(name, text)| Source { name, text }).collect();
    let policy = match Policy::compile(&sources, seed) {
        Ok(policy) => policy,
        Err(errors) => {
            for error in errors.iter() {
                let help = error.help.as_ref().map_or(String::new(), |help| format!("; {help}"));
                tracing::error!(
                    code = error.code.name(),
                    "the policy in force stays: {error}{help}"
                );
            }
            let first = errors.iter().next().map_or_else(String::new, ToString::to_string);
            return failed(match errors.iter().count() {
                0 | 1 => first,
                more => format!("{first} (and {} more)", more - 1),
            });
        }
    };
    let version = version_text(policy.version());
    let changes = match instance.reload(policy, path.display().to_string(), now) {
        Ok(changes) => changes,
        Err(error) => {
            tracing::error!("the policy in force stays: {error}");
            return failed(error.to_string());
        }
    };
    for change in &changes {
        if !matches!(&change.fate, Fate::Survive { changed } if changed.is_empty()) {
            tracing::info!("{change}");
        }
    }
    tracing::info!(version, limits = changes.len(), "policy reloaded");
    for standing in instance.overrides() {
        if let Some(problem) = standing.problem {
            let (api, limit) = (&standing.record.api, &standing.record.limit);
            let whom = standing.record.whom();
            tracing::warn!("override of {api}.{limit} for {whom} is not in force: {problem}");
        }
    }
}
