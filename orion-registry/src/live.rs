//! A catalogue that follows its files.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use orion_core::{Catalog, ModelId, ModelSpec};
use serde::Serialize;

use crate::layers::Sources;
use crate::registry::Registry;
use crate::report::Report;

/// What a reload changed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Changes {
    /// The version in force now; the first one is 1.
    pub version: u64,
    /// Ids that are new.
    pub added: Vec<String>,
    /// Ids that are gone.
    pub removed: Vec<String>,
    /// Ids whose entry differs.
    pub changed: Vec<String>,
}

impl std::fmt::Display for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "version {}", self.version)?;
        for (what, ids) in [("added", &self.added), ("removed", &self.removed), ("changed", &self.changed)] {
            if !ids.is_empty() {
                write!(f, "; {what}: {}", ids.join(", "))?;
            }
        }
        Ok(())
    }
}

impl Changes {
    /// What differs between two versions.
    #[must_use]
    pub fn between(old: &Registry, new: &Registry) -> Self {
        let mut changes = Self::default();
        for model in new.models() {
            match old.model(model.id()).filter(|old| old.id() == model.id()) {
                None => changes.added.push(model.id().to_owned()),
                Some(old)
                    if old.entry != model.entry
                        || old.measured != model.measured
                        || old.spec != model.spec =>
                {
                    changes.changed.push(model.id().to_owned());
                }
                Some(_) => {}
            }
        }
        let gone = old
            .models()
            .iter()
            .map(|model| model.id())
            .filter(|id| new.model(id).is_none_or(|it| it.id() != *id));
        changes.removed = gone.map(str::to_owned).collect();
        changes
    }
}

/// How a reload went: what changed, or why the old version stays.
pub type Reload = Result<Changes, Report>;

type Listener = Box<dyn Fn(&Reload) + Send + Sync>;

/// A catalogue that is replaced as a whole when its files change. Readers take one version and keep it as long as they
/// like; a reload never changes what they hold. Files that are broken leave the version in force.
pub struct LiveRegistry {
    sources: Sources,
    current: RwLock<Arc<Registry>>,
    version: AtomicU64,
    /// Held while files are read, so that reloads do not overtake each other.
    reloading: Mutex<Vec<Stamp>>,
    listeners: Mutex<Vec<Listener>>,
}

/// What tells one content of a file from another without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    seen: Option<(u64, Option<SystemTime>, u64, i64)>,
}

impl Stamp {
    fn take(path: PathBuf) -> Self {
        let seen = std::fs::metadata(&path).ok().map(|metadata| {
            #[cfg(unix)]
            let (inode, changed) = {
                use std::os::unix::fs::MetadataExt;
                (
                    metadata.ino(),
                    metadata.ctime().wrapping_mul(1_000_000_000).wrapping_add(metadata.ctime_nsec()),
                )
            };
            #[cfg(not(unix))]
            let (inode, changed) = (0, 0);
            (metadata.len(), metadata.modified().ok(), inode, changed)
        });
        Self { path, seen }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LiveRegistry {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// A report of everything that is wrong.
    pub fn open(sources: Sources) -> Result<Arc<Self>, Report> {
        let stamps = stamps(&sources);
        let registry = Registry::load(&sources)?;
        Ok(Arc::new(Self {
            sources,
            current: RwLock::new(Arc::new(registry)),
            version: AtomicU64::new(1),
            reloading: Mutex::new(stamps),
            listeners: Mutex::default(),
        }))
    }

    /// The version in force.
    #[must_use]
    pub fn current(&self) -> Arc<Registry> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Its number, counted from 1.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Calls `listener` after every reload, on the thread that reloaded.
    pub fn on_reload(&self, listener: impl Fn(&Reload) + Send + Sync + 'static) {
        lock(&self.listeners).push(Box::new(listener));
    }

    /// Reads the files again and puts the new version in force.
    ///
    /// # Errors
    /// A report of everything that is wrong; the old version stays in force.
    pub fn reload(&self) -> Reload {
        self.reload_locked(&mut lock(&self.reloading))
    }

    /// Reloads if a file looks different from the last time. `None` if none does.
    pub fn reload_if_changed(&self) -> Option<Reload> {
        let mut known = lock(&self.reloading);
        (*known != stamps(&self.sources)).then(|| self.reload_locked(&mut known))
    }

    fn reload_locked(&self, known: &mut Vec<Stamp>) -> Reload {
        // Taken before reading: a change while reading differs from it and is seen the next time.
        *known = stamps(&self.sources);
        let outcome = Registry::load(&self.sources).map(|registry| {
            let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
            let mut changes = Changes::between(&current, &registry);
            *current = Arc::new(registry);
            changes.version = self.version.fetch_add(1, Ordering::AcqRel) + 1;
            changes
        });
        match &outcome {
            Ok(changes) => {
                let (version, count) = (changes.version, self.current().models().len());
                tracing::info!(version, models = count, "registry reloaded");
            }
            Err(report) => {
                tracing::warn!(errors = report.errors, report = %report, "registry is broken, the old version stays");
            }
        }
        lock(&self.listeners).iter().for_each(|listener| listener(&outcome));
        outcome
    }

    /// Watches the files: a thread looks at them every `interval` until the watch is dropped. Looking is one `stat`
    /// per file; it works on every file system, network ones included.
    #[must_use]
    pub fn watch(self: &Arc<Self>, interval: Duration) -> Watch {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let (registry, signal) = (Arc::clone(self), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name("orion-registry".to_owned()).spawn(move || {
            let (stopped, wake) = &*signal;
            loop {
                let waited = wake.wait_timeout_while(lock(stopped), interval, |stopped| !*stopped);
                if *waited.unwrap_or_else(PoisonError::into_inner).0 {
                    return;
                }
                let _reported = registry.reload_if_changed();
            }
        });
        if let Err(error) = &thread {
            tracing::error!(%error, "the registry is not watched: no thread could be started");
        }
        Watch { stop, thread: thread.ok() }
    }
}

impl std::fmt::Debug for LiveRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveRegistry")
            .field("sources", &self.sources)
            .field("version", &self.version())
            .finish()
    }
}

fn stamps(sources: &Sources) -> Vec<Stamp> {
    sources.paths().map(|path| Stamp::take(path.to_owned())).collect()
}

impl Catalog for LiveRegistry {
    fn get(&self, id: &ModelId) -> Option<Arc<ModelSpec>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.get(id)
    }

    fn all(&self) -> Vec<Arc<ModelSpec>> {
        self.current().all()
    }
}

/// Watches until dropped.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        *lock(&self.stop.0) = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            // A listener that panicked has been reported by the panic hook.
            let _ended = thread.join();
        }
    }
}
