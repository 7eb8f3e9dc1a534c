//! The settings of this node as they are now: those that it was started with, and what a reload has changed
//! since.
//!
//! A reload ([`Settings::reload`]) reads the file again and checks all settings. If one breaks a rule,
//! nothing changes. Otherwise the settings that can change while the node runs take effect all at once. The
//! others take effect at the next start. [`Key::counts`] is the table of which is which. Settings are not
//! parsed here but in [`crate::config`]. The settings of the cluster are something else: the cluster's
//! manager keeps them.
//!
//! All threads share the settings. A reload runs on its own thread ([`Settings::reload_apart`]), since
//! reading a file or looking up a name may take long. Shards read single words and take no lock on the data
//! path.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rangedb_protocol::admin::{
    NodeConfig, NodeSetting, Reloaded, SettingDifference, SettingRefused,
};
use tokio::sync::oneshot;

use crate::config::raw::{BadConfig, Counts, Key, RawConfig};
use crate::config::{BadSetting, Config, Http, Tls};
use crate::logging;

/// Collects the settings anew from the file, the environment and the flags.
pub type Read = Box<dyn Fn() -> Result<RawConfig, BadConfig> + Send + Sync>;

/// The settings in force.
pub struct Settings {
    read: Read,
    in_force: Mutex<InForce>,
    /// Held while the settings are reloaded: one reload follows the other.
    reloading: Mutex<()>,
    /// A request that takes as long is logged, in nanoseconds; the largest number stands for none.
    slow_request_ns: AtomicU64,
    http: Mutex<Arc<Http>>,
    tls: Mutex<Option<Arc<Tls>>>,
}

#[derive(Clone)]
struct InForce {
    raw: RawConfig,
    config: Config,
    /// The number of the node, once it has one.
    node: u64,
}

impl Settings {
    /// The settings that the node is started with, as text and checked. `read` collects them anew.
    pub fn new(raw: RawConfig, config: Config, read: Read) -> Arc<Settings> {
        Arc::new(Settings {
            read,
            reloading: Mutex::default(),
            slow_request_ns: AtomicU64::new(slow_request_ns(&config)),
            http: Mutex::new(Arc::new(config.http.clone())),
            tls: Mutex::new(config.listen.tls.clone()),
            in_force: Mutex::new(InForce {
                raw,
                config,
                node: 0,
            }),
        })
    }

    /// Takes what the folder says: the node's number, and its number of shards.
    pub fn know_folder(&self, node: u64, config: &Config) {
        let mut in_force = locked(&self.in_force);
        in_force.node = node;
        in_force.config = config.clone();
    }

    /// Whether a request that took as long is logged.
    #[inline]
    pub fn is_slow(&self, took: Duration) -> bool {
        took.as_nanos() >= u128::from(self.slow_request_ns.load(Ordering::Relaxed))
    }

    /// For whom the HTTP pages are served.
    pub fn http(&self) -> Arc<Http> {
        locked(&self.http).clone()
    }

    /// For encrypted connections of clients; `None` if there are none. Shards ask once for each new
    /// connection.
    pub fn tls(&self) -> Option<Arc<Tls>> {
        locked(&self.tls).clone()
    }

    /// The settings that differ from their defaults, for the log.
    pub fn changes(&self) -> String {
        locked(&self.in_force).raw.changes()
    }

    /// All settings with their values in force, for people and tools.
    pub fn shown(&self) -> NodeConfig {
        let in_force = locked(&self.in_force).clone();
        let setting = |key: &Key| {
            let mut setting = NodeSetting::default();
            setting.name = key.name().to_owned();
            setting.in_force = in_force.config.shown(&in_force.raw, *key);
            setting.source = in_force.raw.source(*key).to_string();
            setting.counts_from = key.counts().name().to_owned();
            setting
        };
        NodeConfig {
            node: in_force.node,
            node_settings: Key::ALL.iter().map(setting).collect(),
        }
    }

    /// Reloads on a thread of its own. The receiver gets nothing if there is no such thread.
    pub fn reload_apart(self: &Arc<Self>) -> oneshot::Receiver<Reloaded> {
        let (tell, told) = oneshot::channel();
        let settings = self.clone();
        let thread = std::thread::Builder::new().name("reload".to_owned());
        let begun = thread.spawn(move || {
            // Whoever asked may have gone.
            let _ = tell.send(settings.reload());
        });
        if let Err(error) = begun {
            tracing::error!(event = "reload_refused", %error, "the settings were not read again: there is no thread for it");
        }
        told
    }

    /// Reads and checks all settings, then takes over those that can change while the node runs.
    pub fn reload(&self) -> Reloaded {
        let _alone = locked(&self.reloading);
        let before = locked(&self.in_force).clone();
        let mut answer = Reloaded::default();
        answer.node = before.node;
        match self.next(&before, &mut answer) {
            Ok(next) => {
                self.take_over(next);
                for SettingDifference {
                    name,
                    before,
                    after,
                    ..
                } in &answer.applied
                {
                    tracing::info!(
                        event = "setting_changed",
                        "the setting {name} of this node was {before:?} and is {after:?} now"
                    );
                }
                let names = |of: &[SettingDifference]| {
                    let names = of.iter().map(|setting| setting.name.as_str());
                    names.collect::<Vec<_>>().join(", ")
                };
                tracing::info!(
                    event = "reloaded",
                    applied = names(&answer.applied),
                    needs_restart = names(&answer.needs_restart),
                    "the settings were read again"
                );
            }
            Err(refused) => {
                for SettingRefused { line, reason, .. } in &refused {
                    tracing::error!(
                        event = "reload_refused",
                        line,
                        reason,
                        "the settings were read again and are not valid: nothing was changed"
                    );
                }
                answer = Reloaded::default();
                answer.node = before.node;
                answer.refused = refused;
            }
        }
        answer
    }

    /// The settings that will be in force; notes in the answer what becomes of each.
    fn next(
        &self,
        before: &InForce,
        answer: &mut Reloaded,
    ) -> Result<InForce, Vec<SettingRefused>> {
        let new = (self.read)().map_err(refused)?;
        let checked = Config::validate_all(&new).map_err(refused)?;
        let Config {
            shards,
            leaving_shards: leaving,
            ..
        } = before.config;
        let too_small = |rule| refused(new.bad(Key::Memory, rule).into());
        let next_shards = match checked.shards_given {
            true => checked.shards,
            false => shards - leaving,
        };
        let checked = checked.with_shards(next_shards, 0).map_err(too_small)?;
        let mut raw = before.raw.clone();
        for key in Key::ALL {
            let mut same = before.raw.text(*key) == new.text(*key);
            if same || key.counts() == Counts::Reload {
                raw.copy(*key, &new);
            }
            let mut difference = SettingDifference::default();
            difference.name = key.name().to_owned();
            difference.before = before.config.shown(&before.raw, *key);
            difference.after = checked.shown(&new, *key);
            // The name of a file may be the same, and its certificate another.
            if matches!(key, Key::TlsCert | Key::TlsCa) {
                same &= difference.before == difference.after;
            }
            match key.counts() {
                _ if same => answer.unchanged.push(difference.name),
                Counts::Reload => answer.applied.push(difference),
                Counts::Start => answer.needs_restart.push(difference),
            }
        }
        let config = Config::validate(&raw).map_err(|bad| refused(bad.into()))?;
        let config = config.with_shards(shards, leaving).map_err(too_small)?;
        Ok(InForce {
            raw,
            config,
            node: before.node,
        })
    }

    /// Puts settings in force that were checked: nothing here can fail.
    fn take_over(&self, next: InForce) {
        let config = &next.config;
        logging::set_format(config.logs.format);
        logging::set_level(&config.logs.level);
        let slow_request = slow_request_ns(config);
        self.slow_request_ns.store(slow_request, Ordering::Relaxed);
        *locked(&self.http) = Arc::new(config.http.clone());
        *locked(&self.tls) = config.listen.tls.clone();
        *locked(&self.in_force) = next;
    }

    /// Settings for tests, with this data folder and defaults, that a reload does not change.
    #[cfg(test)]
    pub fn of_test() -> Arc<Settings> {
        let mut raw = RawConfig::new();
        raw.add_flag(Key::DataDir, Some(&"data".to_owned()));
        let config = Config::validate(&raw).expect("the defaults are valid");
        let same = raw.clone();
        Settings::new(raw, config, Box::new(move || Ok(same.clone())))
    }
}

/// Refuses a file that cannot be read twice, such as a pipe: the reload would wait for its writer.
///
/// # Errors
/// It is no regular file, or is not there.
pub fn check_file(path: &Path) -> Result<(), BadConfig> {
    let bad = |message: String| BadConfig::File {
        file: path.display().to_string(),
        line: None,
        message,
    };
    let found = std::fs::metadata(path).map_err(|error| bad(error.to_string()))?;
    match found.is_file() {
        true => Ok(()),
        false => Err(bad("it is no regular file".to_owned())),
    }
}

fn slow_request_ns(config: &Config) -> u64 {
    match config.logs.slow_request {
        Duration::ZERO => u64::MAX,
        time => u64::try_from(time.as_nanos()).unwrap_or(u64::MAX),
    }
}

fn refused(bad: BadConfig) -> Vec<SettingRefused> {
    bad.each().iter().map(one_refused).collect()
}

fn one_refused(bad: &BadConfig) -> SettingRefused {
    let mut refused = SettingRefused::default();
    refused.reason = bad.to_string();
    let line = match bad {
        BadConfig::File { line, .. } => *line,
        BadConfig::BadSetting(BadSetting { key, line, .. }) => {
            refused.name = Some((*key).to_owned());
            *line
        }
        BadConfig::Variable(_) | BadConfig::Several(_) => None,
    };
    refused.line = line.map(|line| line as u64);
    refused
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
