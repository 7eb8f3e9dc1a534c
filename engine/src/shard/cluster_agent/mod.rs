//! The shard as a member of the cluster: it reports its state, takes the view of the cluster, and hosts the
//! manager while it leads the system range.
//!
//! Every [`REPORT_INTERVAL`], and soon after a change of bounds or members, a shard sends the manager a report
//! of what has changed in what it leads and holds ([`report`]). The response has the changes of the view, and
//! the replicas of the shard that are no longer members: the shard removes them. A replica that was cut off while
//! its range moved learns of that in no other way, because the new members send it nothing. The same can happen to
//! the replica of the manager, which reports to itself. So a manager that reaches no majority first has another
//! node pass its report on.
//!
//! The shard that leads the system range makes the [`Manager`] of its term from the rows of that range. Whatever
//! must outlive the manager is written there before anything relies on it. Nothing here is on the data path: without
//! a manager, shards go on serving. Lives on the shard's thread.

mod ask;
mod bounds_requests;
pub(in crate::shard) mod load;
pub(in crate::shard) mod report;
mod system_places;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;

use crate::cluster::manager::Manager;
use crate::cluster::message::{self, Report};
use crate::cluster::record::Row;
use crate::cluster::{ClusterRequest, ClusterResponse, HighestIds, NodeRecord, View, ViewNews};
use crate::env::{AsyncRuntime, Clock, Env};
use crate::error::{Error, Fatal, Fate, OrderError};
use crate::shard::manager_orders::given_orders::{GivenOrders, Told};
use crate::shard::manager_orders::merge_orders::BoundsOrders;
use crate::shard::manager_orders::orders::{self, ORDER_TIMEOUT};
use crate::shard::split_merge::changes::BoundsChanges;
use crate::shard::{IsAt, RangeHandle, Shard, ShardInner};
use crate::types::{Location, ShardId};
use load::LoadMeter;
use report::Reporting;

/// How often a shard reports, and the manager plans.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);
/// The least time between two reports, also if one is due at once.
const REPORT_GAP: Duration = Duration::from_millis(50);
/// So many reports after a start come without a longer pause, as long as the shard has no view: whoever
/// asks a node that has just started finds the cluster.
const EARLY_REPORTS: u32 = 40;
/// How long a caller's request looks for the manager.
const MANAGE_TIMEOUT: Duration = Duration::from_secs(4);
/// Pause before it looks again.
/// By time: an election among other shards is no event here.
const MANAGE_RETRY_INTERVAL: Duration = Duration::from_millis(50);
/// After this many reports in a row whose response says that the node was not reached at its
/// address, the shard logs an error.
const UNMET_REPORTS: u32 = 10;

/// Called with each new view.
type OnView = Box<dyn Fn(&View)>;

/// What a shard knows of the cluster.
pub(super) struct ClusterAgent {
    /// The record of its node.
    pub node: NodeRecord,
    /// The highest ids that the node knew of at the start, and those of the views since.
    pub seen: Cell<HighestIds>,
    /// The last view from the manager.
    pub(super) view: RefCell<Rc<View>>,
    pub(super) reporting: Reporting,
    /// Where the manager was last found.
    pub(super) leader: Cell<Option<Location>>,
    /// Shards that may have replicas of the system range.
    pub(super) system: RefCell<Vec<Location>>,
    /// The manager, while this shard leads the system range.
    pub manager: RefCell<Option<Manager>>,
    /// Called with each new view.
    listeners: RefCell<Vec<OnView>>,
    pub(super) is_at: IsAt,
    /// The changes of bounds that the manager here has under way.
    pub(super) bounds_orders: BoundsOrders,
    /// The changes of bounds that were made here.
    pub(super) bounds_changes: BoundsChanges,
    /// Why the last merges of ranges that are led here failed.
    pub(super) failed_merges: Told,
    /// The orders that the manager here has given.
    pub(super) given_orders: GivenOrders,
    pub(super) load: LoadMeter,
}

impl ClusterAgent {
    /// The knowledge of a shard that starts; `system` are shards that may have the system range.
    pub fn new(
        node: NodeRecord,
        system: Vec<Location>,
        mut seen: HighestIds,
        is_at: IsAt,
    ) -> ClusterAgent {
        seen.node = seen.node.max(node.id);
        ClusterAgent {
            seen: Cell::new(seen),
            node,
            view: RefCell::default(),
            reporting: Reporting::default(),
            leader: Cell::new(None),
            system: RefCell::new(system),
            manager: RefCell::new(None),
            listeners: RefCell::default(),
            is_at,
            bounds_orders: BoundsOrders::default(),
            bounds_changes: BoundsChanges::new(),
            failed_merges: Told::default(),
            given_orders: GivenOrders::default(),
            load: LoadMeter::default(),
        }
    }

    /// The last view from the manager.
    pub fn view(&self) -> Rc<View> {
        self.view.borrow().clone()
    }
}

/// Starts to send reports.
pub(super) fn start<E: Env>(inner: &Rc<ShardInner<E>>, stop: Rc<Cell<bool>>) {
    let shard = Rc::downgrade(inner);
    let due = inner.agent.reporting.due.clone();
    drop(E::Runtime::spawn(async move {
        let mut early = 0..EARLY_REPORTS;
        while !stop.get() {
            let Some(inner) = shard.upgrade() else { return };
            due.subtract(due.get());
            inner.report().await;
            if inner.manages() && !inner.closing.get() {
                inner.administer().await;
            }
            let is_early = inner.agent.view().version == 0 && early.next().is_some();
            drop(inner);
            E::Runtime::sleep(REPORT_GAP).await;
            if is_early {
                continue;
            }
            let next = due.until(|reasons| reasons > 0);
            drop(E::Runtime::timeout(REPORT_INTERVAL - REPORT_GAP, next).await);
        }
    }));
}

impl<E: Env> Shard<E> {
    /// The last view of the cluster from the manager.
    pub fn view(&self) -> Rc<View> {
        self.inner.agent.view()
    }

    /// The shards with replicas of the system range, as far as known, and where the manager was
    /// last found.
    pub fn system(&self) -> Vec<Location> {
        let mut known = self.inner.known_system();
        known.extend(self.inner.agent.leader.get());
        known.sort_unstable();
        known.dedup();
        known
    }

    /// Has `told` called with each new view, after those that were registered before.
    pub fn on_view(&self, listener: impl Fn(&View) + 'static) {
        self.inner
            .agent
            .listeners
            .borrow_mut()
            .push(Box::new(listener));
    }

    /// Sends a request to the manager, wherever it is.
    ///
    /// # Errors
    /// No shard that leads the system range was found.
    pub async fn manage(&self, request: ClusterRequest) -> Result<ClusterResponse, Error> {
        let until = E::now() + MANAGE_TIMEOUT;
        loop {
            if let Some(response) = self.inner.ask_manager(&request).await {
                return Ok(response);
            }
            if E::now() > until {
                return Err(Error::NotLeader(None));
            }
            E::Runtime::sleep(MANAGE_RETRY_INTERVAL).await;
        }
    }
}

impl<E: Env> ShardInner<E> {
    /// Has the shard report within [`REPORT_GAP`], though the next report is not due.
    pub(super) fn report_soon(&self) {
        self.agent.reporting.due.add(1);
    }

    /// Sends one report, and a second one if the manager wants a whole one; acts on the responses.
    async fn report(self: &Rc<Self>) {
        if self.send_report().await {
            self.send_report().await;
        }
    }

    /// Sends one report, and acts on the response. Gives whether the manager wants a whole one.
    async fn send_report(self: &Rc<Self>) -> bool {
        let mut report = report::next(self);
        let mut number = report.number;
        let mut response = None;
        if self.may_be_deposed() {
            let other = self.any_other_node().into_iter().collect();
            response = self.have_passed_on(report.clone(), other).await;
        }
        if response.is_none() {
            response = self.ask_manager(&ClusterRequest::Report(report)).await;
        }
        if response.is_none() {
            report = report::next(self);
            number = report.number;
            response = self.have_passed_on(report, self.known_system()).await;
        }
        if response == Some(ClusterResponse::Removed) {
            self.store.fail(Fatal::Removed(self.location.node));
        }
        let Some(ClusterResponse::Synced {
            view,
            remove,
            superseded,
            unmet,
            wants_whole,
        }) = response
        else {
            return false;
        };
        let Reporting {
            reporter,
            was_accepted,
            ..
        } = &self.agent.reporting;
        reporter.borrow_mut().answered(number, wants_whole);
        self.take_unmet(unmet);
        if let Some(seen) = superseded {
            self.end_superseded(seen);
            return false;
        }
        was_accepted.set(true);
        if let Some(view) = view {
            self.take_view(view);
        }
        for (range, replica) in remove {
            self.take(ClusterRequest::Remove { range, replica }).await;
        }
        wants_whole
    }

    /// Takes from the manager whether this node was reached at its address.
    fn take_unmet(&self, is_unmet: bool) {
        let ClusterAgent {
            node, reporting, ..
        } = &self.agent;
        let unmet = &reporting.unmet;
        let times = if is_unmet { unmet.get() + 1 } else { 0 };
        unmet.set(times);
        // One shard is enough to log it for the node.
        if times == UNMET_REPORTS && self.location.shard == ShardId(0) {
            tracing::error!(
                event = "node_unreachable",
                address = node.address,
                "the cluster does not reach this node at the address that it advertises: it is given \
                 nothing to do until that works; check --advertise, and that the other nodes can connect"
            );
        }
    }

    /// Lets one of these shards, if it is on another node, forward a report. They know the manager's node if it
    /// has moved; and they reach it even if this process runs on a copy of that node's folder and so has the same
    /// node id.
    async fn have_passed_on(
        self: &Rc<Self>,
        report: Report,
        mut others: Vec<Location>,
    ) -> Option<ClusterResponse> {
        others.retain(|at| at.node != self.location.node);
        let pass_on = ClusterRequest::PassOn(report);
        for at in others {
            let response = self.ask(at, &pass_on, ORDER_TIMEOUT);
            if let Some(response @ (ClusterResponse::Synced { .. } | ClusterResponse::Removed)) =
                response.await
            {
                return Some(response);
            }
        }
        None
    }

    fn take_view(&self, news: ViewNews) {
        let mut seen = self.agent.seen.get();
        for node in &news.view.nodes {
            seen.node = seen.node.max(node.record.id);
        }
        for range in &news.view.ranges {
            seen.see(&range.descriptor);
        }
        self.agent.seen.set(seen);
        let mut view = View::clone(&self.agent.view.borrow());
        // If it is not for this view, the next report brings what is.
        if !view.take(news) {
            return;
        }
        if !view.system.is_empty() {
            self.agent.system.borrow_mut().clone_from(&view.system);
        }
        self.agent.leader.set(Some(view.leader));
        self.tell(view);
    }

    /// Sets the view and passes it on.
    pub(super) fn tell(&self, view: View) {
        let view = Rc::new(view);
        self.agent.view.replace(view.clone());
        for listener in &*self.agent.listeners.borrow() {
            listener(&view);
        }
    }

    /// Takes a message to the cluster's manager or from it; gives the bytes of the response.
    pub(super) async fn take_message(self: &Rc<Self>, bytes: &[u8]) -> Vec<u8> {
        match message::decode_request(bytes) {
            Some(request) => message::encode_response(&self.take(request).await),
            None => Vec::new(),
        }
    }

    pub(super) async fn take(self: &Rc<Self>, request: ClusterRequest) -> ClusterResponse {
        if self.closing.get() {
            let why = format!("shard {} stops", self.location);
            return ClusterResponse::Refused(OrderError::busy(why));
        }
        let done = match request {
            ClusterRequest::Create {
                descriptor,
                replica,
            } => self.create_replica(descriptor, replica).await,
            ClusterRequest::Remove { range, replica } => self.remove_replica(range, replica).await,
            ClusterRequest::Change {
                range,
                voters,
                learners,
            } => return self.change_members(range, voters, learners),
            ClusterRequest::TransferLeadership { range, to } => {
                self.transfer_range(range, to).await
            }
            ClusterRequest::MayLead { range, replica } => return self.may_lead_now(range, replica),
            ClusterRequest::IsWell { range, replica } => return self.is_well(range, replica),
            ClusterRequest::Digest {
                range,
                replica,
                number,
            } => return self.digest_response(range, replica, number),
            ClusterRequest::Halt { range, replica } => return self.halt_replica(range, replica),
            ClusterRequest::PassOn(report) => {
                let response = self.ask_manager(&ClusterRequest::Report(report)).await;
                return response.unwrap_or_else(|| self.not_here());
            }
            request => self.take_bounds_request(request).await,
        };
        match done {
            Ok(response) => response,
            // While the shard closes, its groups stop: their errors do not count.
            Err(fatal) if self.closing.get() => ClusterResponse::Refused(fatal.into()),
            Err(fatal) => {
                let why = OrderError::Unknown(fatal.to_string());
                self.store.fail(fatal);
                ClusterResponse::Refused(why)
            }
        }
    }

    pub(super) fn system_replica(&self) -> Option<RangeHandle<E>> {
        self.ranges.system()
    }

    pub(super) fn not_here(&self) -> ClusterResponse {
        let here = self.system_replica();
        let leader = here.and_then(|running| running.replica.route().leader);
        ClusterResponse::NotHere {
            leader: leader.or(self.agent.leader.get()),
            system: self.known_system(),
        }
    }

    /// Whether this shard leads the system range. If so, it has the manager of its term.
    pub(super) fn manages(&self) -> bool {
        let leading = self.system_replica().and_then(|running| {
            let leading = running.replica.leading()?;
            Some((running, leading.term))
        });
        let Some((running, term)) = leading else {
            self.agent.manager.borrow_mut().take();
            return false;
        };
        let mut manager = self.agent.manager.borrow_mut();
        if manager.as_ref().is_none_or(|manager| manager.term != term) {
            match report::system_rows(&running.replica) {
                Ok(rows) => {
                    let now = E::now();
                    let mut new = running.replica.with_state(|state| {
                        let placed = state.descriptor.locations().map(|at| at.node);
                        Manager::new(term, self.location, &rows, placed, now)
                    });
                    let wall_ms = self.around.clock.wall_ms();
                    new.planning.decisions.set_clock(now, wall_ms);
                    *manager = Some(new);
                    tracing::info!(event = "manager_elected", "this shard manages the cluster");
                }
                Err(error) => {
                    self.unreadable(&running.replica, error);
                    return false;
                }
            }
        }
        true
    }

    /// Calls `look` with the manager; it may have moved to another shard since the caller checked.
    pub(super) fn with_manager(
        &self,
        look: impl FnOnce(&mut Manager) -> ClusterResponse,
    ) -> ClusterResponse {
        let response = self.agent.manager.borrow_mut().as_mut().map(look);
        response.unwrap_or_else(|| self.not_here())
    }

    /// What the manager decides, if it is here; otherwise the answer that says so, or that refuses.
    pub(super) fn ask_own_manager<T>(
        &self,
        decide: impl FnOnce(&mut Manager) -> Result<T, OrderError>,
    ) -> Result<T, Box<ClusterResponse>> {
        match self.of_manager(decide) {
            Some(decided) => decided.map_err(|why| Box::new(ClusterResponse::Refused(why))),
            None => Err(Box::new(self.not_here())),
        }
    }

    /// Makes rows durable in the system range; gives whether they are.
    pub(super) async fn write_down(&self, rows: &[Row]) -> Result<(), Fate> {
        let Some(running) = self.system_replica() else {
            return if rows.is_empty() {
                Ok(())
            } else {
                Err(Fate::NotApplied)
            };
        };
        let written = report::write_rows(&running.replica, rows).await;
        if let Err(error) = &written {
            tracing::warn!(%error, "a record of the cluster was not written down");
        }
        written.map_err(|error| error.fate())
    }

    /// The manager's periodic work: it writes what is new, and orders the next steps.
    async fn administer(self: &Rc<Self>) {
        let now = E::now();
        let rows = {
            let mut manager = self.agent.manager.borrow_mut();
            manager.as_mut().map(|manager| manager.unsaved(now))
        };
        let rows = rows.unwrap_or_default();
        if self.write_down(&rows).await.is_err() {
            return;
        }
        let now = E::now();
        let mut orders = Vec::new();
        {
            let mut manager = self.agent.manager.borrow_mut();
            let Some(manager) = manager.as_mut() else {
                return;
            };
            manager.saved(&rows);
            manager.refresh(now);
            manager.observe(now);
            for planned in manager.plan(now) {
                let found = orders::ask_of(manager, planned.step, now);
                if let Some((_, request)) = &found {
                    manager.order(request, now);
                    manager.note(request, planned.why, now);
                }
                orders.extend(found);
            }
        }
        let news = orders
            .iter()
            // Ids of new replicas must be durable before a shard gets them.
            .any(|(_, request)| matches!(request, ClusterRequest::Change { .. }));
        if news && !self.save_ids().await {
            if let Some(manager) = self.agent.manager.borrow_mut().as_mut() {
                orders
                    .iter()
                    .filter_map(|(_, request)| request.range())
                    .for_each(|range| manager.not_followed(range, orders::NO_IDS, now));
            }
            return;
        }
        let given = orders.into_iter().map(|(at, request)| async move {
            let Some(range) = request.range() else { return };
            self.give_order(at, range, &request).await;
        });
        join_all(given).await;
        self.begin_splits();
        self.merge_cold();
    }

    /// Makes sure that ids given to new ranges and replicas are never given again.
    pub(super) async fn save_ids(&self) -> bool {
        let rows = self.agent.manager.borrow().as_ref().map(Manager::next_rows);
        match rows {
            Some(rows) => self.write_down(&rows).await.is_ok(),
            None => false,
        }
    }
}
