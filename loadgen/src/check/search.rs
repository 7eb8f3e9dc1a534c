//! Decides whether the history of one key is linearizable. Pure.
//!
//! The method is that of Wing and Gong with remembered configurations, in the order that Lowe calls
//! just in time ("Testing for linearizability", 2017). It walks over the events in time order and
//! keeps every *configuration* that explains the events so far: a state of the register, and the
//! set of operations under way that have already taken effect. When an operation returns, each
//! configuration is driven forward until that operation has taken effect; those for which that is
//! impossible are dropped. If no configuration is left, the history is not linearizable.
//!
//! Three rules keep the set small:
//! - a read under way that fits the present state takes effect at once: it changes nothing;
//! - a write of unknown fate takes effect only right before an operation that needs it: since it
//!   may come at any time later, doing it sooner gains nothing;
//! - of two configurations that differ only in that one has used up more writes of unknown fate,
//!   the other explains everything that the first can.
//!
//! An operation that has returned leaves every set. So memory depends on how many operations are
//! under way at once (and how many have an unknown fate), not on the length of the history.

use std::collections::{BTreeMap, HashSet};

use super::history::{Action, RegisterState};

/// The id of an operation within one search.
pub type OpId = u32;

/// Most configurations in one step of a check; beyond it the key's history stays undecided.
pub const CONFIGURATIONS_MAX: usize = 50_000;

/// An explanation of the events so far.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Configuration {
    /// The state of the key.
    pub state: RegisterState,
    /// Operations that have taken effect but not returned, or are of unknown fate; sorted.
    taken: Vec<OpId>,
}

impl Configuration {
    /// The start of a history: the key has the state `state`, and nothing is under way.
    pub fn new(state: RegisterState) -> Configuration {
        Configuration {
            state,
            taken: Vec::new(),
        }
    }

    /// Whether this operation has taken effect.
    pub fn has_taken(&self, id: OpId) -> bool {
        self.taken.binary_search(&id).is_ok()
    }

    fn take(&self, id: OpId, state: RegisterState) -> Configuration {
        let mut taken = self.taken.clone();
        if let Err(place) = taken.binary_search(&id) {
            taken.insert(place, id);
        }
        Configuration { state, taken }
    }

    fn forget(&mut self, id: OpId) {
        if let Ok(place) = self.taken.binary_search(&id) {
            self.taken.remove(place);
        }
    }
}

/// Why the search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// No order of the operations explains the answers.
    NotLinearizable,
    /// There are too many explanations at once.
    Undecided,
}

/// The search over the history of one key; it takes events in time order.
#[derive(Clone, Debug)]
pub struct Search {
    configurations: Vec<Configuration>,
    /// Operations that will return, by id.
    known: BTreeMap<OpId, Action>,
    /// Operations of unknown fate, by id.
    unknown: BTreeMap<OpId, Action>,
    configurations_max: usize,
}

impl Search {
    /// Starts with all possible configurations. Gives up if one step has more than
    /// `configurations_max` to look at.
    pub fn new(configurations: Vec<Configuration>, configurations_max: usize) -> Search {
        let (known, unknown) = (BTreeMap::new(), BTreeMap::new());
        Search {
            configurations,
            known,
            unknown,
            configurations_max,
        }
    }

    /// The configurations that explain the events so far.
    pub fn configurations(&self) -> &[Configuration] {
        &self.configurations
    }

    /// Whether no operation that will return is under way.
    pub fn is_quiescent(&self) -> bool {
        self.known.is_empty()
    }

    /// Operations of unknown fate that some configuration has not used.
    pub fn unknown(&self) -> impl Iterator<Item = OpId> + '_ {
        self.unknown.keys().copied()
    }

    /// An operation was sent that will return.
    pub fn invoke(&mut self, id: OpId, action: Action) {
        self.known.insert(id, action);
    }

    /// An operation was sent whose fate stays unknown.
    pub fn invoke_unknown(&mut self, id: OpId, action: Action) {
        self.unknown.insert(id, action.forget_answer());
    }

    /// An operation returned: keeps the configurations in which it has taken effect.
    pub fn complete(&mut self, id: OpId) -> Result<(), Stop> {
        let mut done: HashSet<Configuration> = HashSet::new();
        let mut seen: HashSet<Configuration> = HashSet::new();
        let mut work: Vec<Configuration> = self.configurations.clone();
        while let Some(configuration) = work.pop() {
            let configuration = self.take_fitting_reads(configuration);
            if !seen.insert(configuration.clone()) {
                continue;
            }
            if seen.len() + work.len() > self.configurations_max {
                return Err(Stop::Undecided);
            }
            if configuration.has_taken(id) {
                done.insert(configuration);
                continue;
            }
            for (&next, &action) in &self.known {
                if !configuration.has_taken(next) {
                    let mut enabling = Vec::new();
                    self.take(&configuration, (next, action), &mut enabling, &mut work);
                }
            }
        }
        self.known.remove(&id);
        let mut kept: Vec<Configuration> = done.into_iter().collect();
        for configuration in &mut kept {
            configuration.forget(id);
        }
        self.configurations = self.without_dominated(kept);
        self.drop_used_unknown();
        if self.configurations.is_empty() {
            Err(Stop::NotLinearizable)
        } else {
            Ok(())
        }
    }

    /// Lets all reads under way that fit the state take effect.
    fn take_fitting_reads(&self, mut configuration: Configuration) -> Configuration {
        for (&id, action) in &self.known {
            let state = configuration.state;
            if action.is_read() && action.apply(state).is_some() && !configuration.has_taken(id) {
                configuration = configuration.take(id, state);
            }
        }
        configuration
    }

    /// Lets an operation take effect: at once if it fits the state, otherwise after writes of
    /// unknown fate that make it fit. `enabling` has the writes that already wait for another such
    /// write.
    fn take(
        &self,
        from: &Configuration,
        (id, action): (OpId, Action),
        enabling: &mut Vec<OpId>,
        out: &mut Vec<Configuration>,
    ) {
        if let Some(state) = action.apply(from.state) {
            out.push(from.take(id, state));
            return;
        }
        let mut has_tried_delete = false;
        for (&other, &write) in &self.unknown {
            let helps = action.apply(write.written()).is_some();
            if !helps || from.has_taken(other) || enabling.contains(&other) {
                continue;
            }
            // All deletes are alike: it is enough to try one.
            let is_delete = matches!(write, Action::Delete { .. });
            if is_delete && has_tried_delete {
                continue;
            }
            has_tried_delete |= is_delete;
            enabling.push(other);
            let mut enabled = Vec::new();
            self.take(from, (other, write), enabling, &mut enabled);
            enabling.pop();
            for configuration in enabled {
                if let Some(state) = action.apply(configuration.state) {
                    out.push(configuration.take(id, state));
                }
            }
        }
    }

    /// Drops configurations for which another one does the same with fewer writes of unknown fate.
    fn without_dominated(&self, configurations: Vec<Configuration>) -> Vec<Configuration> {
        type Used = Vec<OpId>;
        let mut groups: BTreeMap<(RegisterState, Vec<OpId>), Vec<Used>> = BTreeMap::new();
        for configuration in configurations {
            let (used, known): (Vec<OpId>, Vec<OpId>) = configuration
                .taken
                .into_iter()
                .partition(|id| self.unknown.contains_key(id));
            let group = groups.entry((configuration.state, known)).or_default();
            if group.iter().any(|smaller| is_subset(smaller, &used)) {
                continue;
            }
            group.retain(|larger| !is_subset(&used, larger));
            group.push(used);
        }
        let mut kept = Vec::new();
        for ((state, known), group) in groups {
            for used in group {
                let mut taken: Vec<OpId> = known.iter().copied().chain(used).collect();
                taken.sort_unstable();
                kept.push(Configuration { state, taken });
            }
        }
        kept
    }

    /// Forgets writes of unknown fate that have taken effect in every configuration.
    fn drop_used_unknown(&mut self) {
        let Some(first) = self.configurations.first() else {
            return;
        };
        let used: Vec<OpId> = (first.taken.iter().copied())
            .filter(|id| self.unknown.contains_key(id))
            .filter(|&id| self.configurations.iter().all(|other| other.has_taken(id)))
            .collect();
        for id in used {
            self.unknown.remove(&id);
            for configuration in &mut self.configurations {
                configuration.forget(id);
            }
        }
    }
}

/// Whether every element of the sorted `small` is in the sorted `large`.
fn is_subset(small: &[OpId], large: &[OpId]) -> bool {
    small.iter().all(|id| large.binary_search(id).is_ok())
}
