//! One pass of the scheduler against a plain walk through the queue, by the letter of `docs/scheduling.md`; and passes after one
//! another in a cluster whose jobs last as long as they say, or less.
//!
//! The walk follows the pass where it may choose (which node, which devices) and judges it where it may not: who goes first, what a limit or a
//! reservation forbids, what fits, who has to leave.

use super::{world::*, *};
use fair::{Account, Load};
use ledger::{Ledger, Memory, Share};
use schedule::{Candidate, Holder, Lookup, NodeView, Placement, Schedule, Standing, schedule};

const GIB: u64 = 1 << 30;
/// Of every device.
const MEMORY: u64 = 80;
const USERS: u128 = 3;
const NOW: Duration = Duration::from_secs(1_000);

/// A job that waits.
#[derive(Debug, Clone)]
struct Wish {
    owner: u128,
    priority: u8,
    gpus: u8,
    gib: u64,
    alone: bool,
    lasts: Duration,
}

/// One that has devices.
#[derive(Debug, Clone)]
struct Held {
    node: usize,
    first: usize,
    wide: bool,
    priority: u8,
    gib: u64,
    alone: bool,
    seen: bool,
    /// How much of its memory is in use already, where its node has not been looked at since: so many quarters.
    quarters: u64,
    ends: Duration,
}

impl Held {
    fn in_use(&self) -> u64 {
        if self.seen { self.gib } else { self.gib * self.quarters / 4 }
    }
}

fn wish() -> impl Strategy<Value = Wish> {
    (0..USERS, 0_u8..3, 1_u8..=3, 1..=MEMORY, any::<bool>(), 1_u64..4_000).prop_map(
        |(owner, level, gpus, gib, alone, lasts)| Wish {
            owner,
            priority: level * 30,
            gpus,
            gib,
            alone,
            lasts: Duration::from_secs(lasts),
        },
    )
}

fn held() -> impl Strategy<Value = Held> {
    let place = (0_usize..3, 0_usize..3, any::<bool>());
    let memory = (1..=MEMORY, any::<bool>(), 0..=4_u64);
    (place, 0_u8..3, memory, any::<bool>(), 1_000_u64..5_000).prop_map(
        |((node, first, wide), level, (gib, seen, quarters), alone, ends)| {
            let ends = Duration::from_secs(ends);
            Held { node, first, wide, priority: level * 30, gib, alone, seen, quarters, ends }
        },
    )
}

fn rules() -> impl Strategy<Value = Rules> {
    let limit = |most| proptest::option::weighted(0.3, 0..=most);
    (limit(3_u32), limit(4), proptest::option::of(1_u8..=60)).prop_map(|(jobs, devices, margin)| Rules {
        jobs_per_user: jobs,
        devices_per_user: devices,
        preemption_margin: margin,
        weights: BTreeMap::new(),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn a_pass_does_what_a_plain_walk_through_the_queue_does(
        sizes in proptest::collection::vec(1_usize..=3, 1..=3),
        foreign in proptest::collection::vec(0..=40_u64, 9),
        held in proptest::collection::vec(held(), 0..8),
        wishes in proptest::collection::vec(wish(), 1..14),
        accounts in proptest::collection::vec((0_u64..5_000_000, 0_u32..=2, 1_u32..=8), USERS as usize),
        rules in rules(),
    ) {
        let mut stage = Stage::new(&sizes, &foreign);
        held.into_iter().for_each(|held| stage.hold(held));
        for (n, (used, devices, quarters)) in accounts.into_iter().enumerate() {
            let mut load = Load::default();
            (0..devices).for_each(|_| load.add(1));
            stage.accounts.insert(owner(n as u128), Account { load, used, weight: f64::from(quarters) / 4.0 });
        }
        let done = stage.pass(&wishes, &rules);
        let mut walk = Walk { loads: stage.loads(), head: None, stage };
        for n in walk.stage.in_order(&wishes, &done) {
            walk.judge(n, &wishes[n], &done, &rules)?;
        }
        walk.judge_victims(&wishes, &done, &rules)?;
    }

    #[test]
    fn whoever_leaves_for_a_job_leaves_room_that_it_then_takes(
        sizes in proptest::collection::vec(1_usize..=3, 1..=3),
        foreign in proptest::collection::vec(0..=70_u64, 9),
        held in proptest::collection::vec(held(), 1..8),
        wish in wish(),
    ) {
        let urgent = Wish { priority: 100, ..wish };
        let rules = Rules { preemption_margin: Some(1), ..Rules::default() };
        let stage = |gone: &[AttemptId]| {
            let mut stage = Stage::new(&sizes, &foreign);
            held.iter().for_each(|held| stage.hold(held.clone()));
            gone.iter().for_each(|attempt| stage.leave(*attempt));
            stage
        };
        let victims = stage(&[]).pass(std::slice::from_ref(&urgent), &rules).victims;
        let again = stage(&victims).pass(std::slice::from_ref(&urgent), &rules);
        prop_assert!(victims.is_empty() || again.placements.len() == 1, "{victims:?} left for nothing: {again:?}");
    }

    #[test]
    fn who_was_promised_devices_does_not_get_them_later_for_who_went_before_it(
        sizes in proptest::collection::vec(1_usize..=3, 1..=2),
        jobs in proptest::collection::vec((1_u8..=3, 1_u64..=60, 1_u64..=100, 0_u64..=90, any::<bool>()), 1..16),
    ) {
        let jobs = { let mut jobs = jobs; jobs.sort_by_key(|job| job.3); jobs };
        let widest = sizes.iter().copied().max().unwrap() as u8;
        let wishes: Vec<_> = jobs.iter().map(|(gpus, minutes, _, _, alone)| Wish {
            owner: 0, priority: 50, gpus: (*gpus).min(widest), gib: 30, alone: *alone, lasts: Duration::from_secs(minutes * 60),
        }).collect();
        let arrives = |n: usize| NOW + Duration::from_secs(jobs[n].3 * 60);
        let takes = |n: usize| wishes[n].lasts * u32::try_from(jobs[n].2).unwrap() / 100;
        let (mut started, mut promised) = (BTreeMap::new(), BTreeMap::new());
        let mut running: Vec<(Duration, Held, usize)> = Vec::new();
        let mut now = NOW;
        while started.len() < wishes.len() {
            running.retain(|(ends, _, _)| *ends > now);
            let waits: Vec<_> = (0..wishes.len()).filter(|n| arrives(*n) <= now && !started.contains_key(n)).collect();
            let stage = || {
                let mut stage = Stage { now, ..Stage::new(&sizes, &[0; 9]) };
                running.iter().for_each(|(_, held, _)| stage.hold(held.clone()));
                stage
            };
            // What the first that waits would get if nobody came behind it.
            for through in 1..=waits.len() {
                let head = waits[through - 1];
                if let Some(why) = stage().ask(&wishes, &waits[..through], &Rules::default(), Some(head)).why {
                    let at = why.expected.expect("it fits on some node");
                    promised.entry(head).or_insert(Duration::from_millis(at.0));
                    break;
                }
            }
            let done = stage().ask(&wishes, &waits, &Rules::default(), None);
            for placement in done.placements {
                let n = number(placement.job);
                prop_assert!(promised.get(&n).is_none_or(|at| now <= *at), "{n} was to start at {:?}, and starts at {now:?}", promised[&n]);
                started.insert(n, now);
                let node = (placement.node.0.as_u128() - 50) as usize;
                for device in placement.devices {
                    let first = device.0.strip_prefix("GPU-").unwrap().parse().unwrap();
                    let Wish { priority, gib, alone, lasts, .. } = wishes[n];
                    let ends = now + lasts;
                    let held = Held { node, first, wide: false, priority, gib, alone, seen: false, quarters: 0, ends };
                    running.push((now + takes(n), held, n));
                }
            }
            let later = running.iter().map(|(ends, _, _)| *ends).chain((0..wishes.len()).map(arrives)).filter(|at| *at > now);
            let Some(next) = later.min() else { break };
            now = next;
        }
        prop_assert_eq!(started.len(), wishes.len(), "some never start");
    }
}

#[test]
fn a_start_is_not_guessed_over_a_line_that_is_too_long_to_look_along() {
    let lasts = Duration::from_secs(60);
    let wish = Wish { owner: 0, priority: 50, gpus: 3, gib: 1, alone: true, lasts };
    let mut wishes = vec![wish; 3_500];
    let starts = |wishes: &[Wish], about: usize| {
        let mut stage = Stage::new(&[2, 1], &[0; 6]);
        for (node, wide) in [(0, true), (1, false)] {
            let (first, priority, gib, ends) = (0, 50, 1, NOW + lasts);
            stage.hold(Held { node, first, wide, priority, gib, alone: true, seen: false, quarters: 0, ends });
        }
        let waits: Vec<_> = (0..wishes.len()).collect();
        stage.ask(wishes, &waits, &Rules::default(), Some(about)).why.unwrap().expected
    };
    // All of them are too wide for these nodes; the one that is asked about is not.
    (wishes[3_000].gpus, wishes[3_499].gpus) = (1, 1);
    let soon = UnixMillis((NOW + lasts).as_millis() as u64);
    assert_eq!((starts(&wishes, 3_000), starts(&wishes, 3_499)), (Some(soon), None));
}

fn owner(n: u128) -> UserId {
    UserId(uuid(n))
}

fn job_id(n: usize) -> JobId {
    JobId(uuid(1_000 + n as u128))
}

fn number(job: JobId) -> usize {
    (job.0.as_u128() - 1_000) as usize
}

/// Devices and who is on them.
struct Stage {
    now: Duration,
    nodes: Vec<(Vec<Device>, Ledger)>,
    holders: BTreeMap<AttemptId, Holder>,
    accounts: BTreeMap<UserId, Account>,
    /// As the walk sees them.
    slots: Vec<Vec<Slot>>,
}

#[derive(Debug, Clone)]
struct Slot {
    live_free: u64,
    planned: u64,
    unseen: u64,
    alone: bool,
    /// With what each has planned and what of that is in use.
    holders: BTreeMap<AttemptId, (u64, u64)>,
    /// Jobs of this pass.
    fresh: usize,
    ends: Duration,
    reserved: Option<Duration>,
}

impl Slot {
    fn free(&self) -> u64 {
        self.live_free.saturating_sub(self.unseen).min(MEMORY.saturating_sub(self.planned))
    }

    fn is_idle(&self) -> bool {
        self.holders.is_empty() && self.fresh == 0
    }

    /// Whether this job may fit on it once everybody of ours has left, each with its plan and a GiB beyond.
    fn would_do(&self, wish: &Wish) -> bool {
        let held: u64 = self.holders.values().map(|(planned, _)| planned + 1).sum();
        wish.gib <= (self.live_free + held).min(MEMORY)
    }

    /// Whether it surely will: only what has been seen there is known to be ours.
    fn will_do(&self, wish: &Wish) -> bool {
        wish.gib <= self.live_free + self.planned - self.unseen
    }
}

struct Books<'a> {
    stage: &'a Stage,
    wishes: &'a [Wish],
    resources: &'a [Resources],
}

impl Lookup for Books<'_> {
    fn candidate(&self, job: JobId) -> Option<Candidate<'_>> {
        let wish = self.wishes.get(number(job))?;
        Some(Candidate {
            job,
            owner: owner(wish.owner),
            priority: wish.priority,
            resources: &self.resources[number(job)],
            cpu_bytes: 0,
            cuda_bytes: wish.gib * GIB,
            cpu_only: None,
            gpu_only: false,
            files: vec![],
            avoid: BTreeSet::new(),
            lasts: wish.lasts,
            sweep: None,
        })
    }

    fn holder(&self, attempt: AttemptId) -> Option<Holder> {
        self.stage.holders.get(&attempt).copied()
    }

    fn user(&self, user: UserId) -> Account {
        let nobody = Account { load: Load::default(), used: 0, weight: 1.0 };
        self.stage.accounts.get(&user).copied().unwrap_or(nobody)
    }

    fn placed_of(&self, _: SweepId) -> u32 {
        0
    }
}

impl Stage {
    fn new(sizes: &[usize], foreign: &[u64]) -> Self {
        let free = |node: usize, device: usize| MEMORY - foreign[node * 3 + device];
        let devices = |node: usize, size: usize| {
            let of = |device| Device { free_bytes: free(node, device) * GIB, ..gpu(device) };
            (0..size).map(of).collect::<Vec<_>>()
        };
        let slot = |node: usize, device: usize| Slot {
            live_free: free(node, device),
            planned: 0,
            unseen: 0,
            alone: false,
            holders: BTreeMap::new(),
            fresh: 0,
            ends: Duration::ZERO,
            reserved: None,
        };
        Self {
            now: NOW,
            nodes: sizes.iter().enumerate().map(|(n, size)| (devices(n, *size), Ledger::default())).collect(),
            holders: BTreeMap::new(),
            accounts: BTreeMap::new(),
            slots: sizes.iter().enumerate().map(|(n, size)| (0..*size).map(|d| slot(n, d)).collect()).collect(),
        }
    }

    /// Where there is room for it; else it is left out.
    fn hold(&mut self, held: Held) {
        let node = held.node % self.nodes.len();
        let size = self.slots[node].len();
        let devices: BTreeSet<_> = (0..=usize::from(held.wide)).map(|more| (held.first + more) % size).collect();
        let (gib, in_use) = (held.gib, held.in_use());
        let fits = |slot: &Slot| slot.planned + gib <= MEMORY && in_use <= slot.live_free;
        let room = |slot: &Slot| !slot.alone && (!held.alone || slot.holders.is_empty()) && fits(slot);
        if !devices.iter().all(|device| room(&self.slots[node][*device])) {
            return;
        }
        let token = AttemptToken { generation: 1, number: 1 };
        let attempt = AttemptId { job: JobId(uuid(5_000 + self.holders.len() as u128)), token };
        let memory = if held.seen { Memory::Seen } else { Memory::Planned };
        let share = Share { attempt, planned_bytes: held.gib * GIB, exclusive: held.alone, memory };
        let ids: Vec<_> = devices.iter().map(|device| gpu(*device).id).collect();
        self.nodes[node].1.take(&ids, share);
        for device in devices {
            let slot = &mut self.slots[node][device];
            slot.planned += held.gib;
            slot.unseen += if held.seen { 0 } else { held.gib };
            slot.alone |= held.alone;
            slot.ends = slot.ends.max(held.ends);
            slot.holders.insert(attempt, (gib, in_use));
            slot.live_free -= in_use;
            self.nodes[node].0[device].free_bytes -= in_use * GIB;
        }
        let holder = Holder { priority: held.priority, ends: held.ends, at_stake: Duration::ZERO, leaving: false };
        self.holders.insert(attempt, holder);
    }

    /// One that holds devices leaves them, and their node has said so.
    fn leave(&mut self, attempt: AttemptId) {
        for (node, slots) in self.slots.iter_mut().enumerate() {
            for (device, slot) in slots.iter_mut().enumerate() {
                let Some((_, in_use)) = slot.holders.remove(&attempt) else { continue };
                let (devices, ledger) = &mut self.nodes[node];
                ledger.release(&[gpu(device).id], attempt);
                ledger.looked();
                devices[device].free_bytes += in_use * GIB;
            }
        }
    }

    fn pass(&self, wishes: &[Wish], rules: &Rules) -> Schedule {
        self.ask(wishes, &(0..wishes.len()).collect::<Vec<_>>(), rules, None)
    }

    fn ask(&self, wishes: &[Wish], waits: &[usize], rules: &Rules, about: Option<usize>) -> Schedule {
        let needs = |wish: &Wish| Resources { gpus: wish.gpus, exclusive: wish.alone, ..spec().resources };
        let resources: Vec<_> = wishes.iter().map(needs).collect();
        let mut queue = Queue::default();
        for n in waits {
            let Wish { priority, owner: user, .. } = wishes[*n];
            queue.insert(job_id(*n), Standing { priority, owner: owner(user), since: UnixMillis(*n as u64) });
        }
        let (labels, cached) = (BTreeMap::new(), BTreeSet::new());
        let views = self.nodes.iter().enumerate().map(|(n, (devices, ledger))| NodeView {
            id: NodeId(uuid(50 + n as u128)),
            name: "n",
            closed: None,
            labels: &labels,
            devices,
            devices_age: Duration::ZERO,
            is_known: true,
            ledger,
            cached: &cached,
        });
        let wall = UnixMillis(self.now.as_millis() as u64);
        let books = Books { stage: self, wishes, resources: &resources };
        schedule(&queue, &views.collect::<Vec<_>>(), &books, rules, (self.now, wall), about.map(job_id))
    }

    fn loads(&self) -> BTreeMap<UserId, (u32, u32)> {
        self.accounts.iter().map(|(user, account)| (*user, (account.load.jobs, account.load.devices))).collect()
    }

    /// Everybody, the highest priority first, of equals whoever has least for their weight with what was given to them, of theirs the oldest.
    fn in_order(&self, wishes: &[Wish], done: &Schedule) -> Vec<usize> {
        let (mut order, mut charged) = (Vec::new(), BTreeMap::<UserId, u64>::new());
        let mut left: BTreeSet<usize> = (0..wishes.len()).collect();
        while !left.is_empty() {
            let key = |n: &usize| {
                let user = owner(wishes[*n].owner);
                let account = self.accounts[&user];
                let used = account.used + charged.get(&user).copied().unwrap_or(0);
                (std::cmp::Reverse(wishes[*n].priority), (used as f64 / account.weight) as u64, user, *n)
            };
            let next = *left.iter().min_by_key(|n| key(n)).unwrap();
            left.remove(&next);
            order.push(next);
            if done.placements.iter().any(|placement| number(placement.job) == next) {
                let wish = &wishes[next];
                let time = wish.lasts.as_millis() as u64 * u64::from(wish.gpus);
                *charged.entry(owner(wish.owner)).or_default() += time;
            }
        }
        order
    }
}

struct Walk {
    stage: Stage,
    /// Of each user, jobs and devices.
    loads: BTreeMap<UserId, (u32, u32)>,
    /// The first that waits for devices, with what this pass had given away until then.
    head: Option<(usize, Vec<Vec<Slot>>)>,
}

impl Walk {
    fn judge(&mut self, n: usize, wish: &Wish, done: &Schedule, rules: &Rules) -> Result<(), TestCaseError> {
        let placed = done.placements.iter().find(|placement| number(placement.job) == n);
        let (jobs, devices) = self.loads[&owner(wish.owner)];
        let limited = rules.jobs_per_user.is_some_and(|most| jobs >= most)
            || rules.devices_per_user.is_some_and(|most| devices + u32::from(wish.gpus) > most);
        let fits = |node: usize| self.fitting(node, wish).len() >= usize::from(wish.gpus);
        let could = !limited && (0..self.stage.slots.len()).any(fits);
        // Which devices are kept for one that others leave for, only the pass knows.
        if self.head.is_none() || rules.preemption_margin.is_none() {
            prop_assert_eq!(placed.is_some(), could, "job {} of {:?}", n, wish);
        }
        match placed {
            Some(placement) => self.take(wish, placement)?,
            None if !limited && self.head.is_none() => self.reserve(n, wish, rules),
            None => {}
        }
        Ok(())
    }

    /// The devices of a node that this job may have now.
    fn fitting(&self, node: usize, wish: &Wish) -> Vec<usize> {
        let ends = self.stage.now + wish.lasts;
        let may = |slot: &Slot| {
            !slot.alone
                && (!wish.alone || slot.is_idle())
                && slot.free() >= wish.gib
                && slot.reserved.is_none_or(|from| ends <= from)
        };
        let slots = self.stage.slots[node].iter().enumerate();
        slots.filter(|(_, slot)| may(slot)).map(|(device, _)| device).collect()
    }

    fn take(&mut self, wish: &Wish, placement: &Placement) -> Result<(), TestCaseError> {
        let node = (placement.node.0.as_u128() - 50) as usize;
        let fitting = self.fitting(node, wish);
        prop_assert_eq!(placement.devices.len(), usize::from(wish.gpus));
        prop_assert_eq!(placement.planned_bytes, wish.gib * GIB);
        for device in &placement.devices {
            let device: usize = device.0.strip_prefix("GPU-").unwrap().parse().unwrap();
            prop_assert!(fitting.contains(&device), "device {} of node {} for {:?}", device, node, wish);
            let slot = &mut self.stage.slots[node][device];
            slot.planned += wish.gib;
            slot.unseen += wish.gib;
            slot.alone |= wish.alone;
            slot.fresh += 1;
            slot.ends = slot.ends.max(self.stage.now + wish.lasts);
        }
        let load = self.loads.get_mut(&owner(wish.owner)).unwrap();
        *load = (load.0 + 1, load.1 + u32::from(wish.gpus));
        Ok(())
    }

    /// Where its devices are free soonest, the first of equals.
    fn reserve(&mut self, n: usize, wish: &Wish, rules: &Rules) {
        let (now, wanted) = (self.stage.now, usize::from(wish.gpus));
        let room = |(node, slots): (usize, &Vec<Slot>)| {
            let will_do = slots.iter().enumerate().filter(|(_, slot)| slot.would_do(wish));
            let mut free: Vec<_> = will_do.map(|(device, slot)| (slot.ends.max(now), device)).collect();
            free.sort();
            free.truncate(wanted);
            (free.len() == wanted).then(|| (free[wanted - 1].0, node, free))
        };
        let Some((from, node, free)) = self.stage.slots.iter().enumerate().filter_map(room).min() else { return };
        self.head = Some((n, self.stage.slots.clone()));
        if rules.preemption_margin.is_none() {
            free.into_iter().for_each(|(_, device)| self.stage.slots[node][device].reserved = Some(from));
        }
    }

    /// Only for the first that waits, only those of a priority so much lower, on one node, enough and none too many.
    fn judge_victims(&self, wishes: &[Wish], done: &Schedule, rules: &Rules) -> Result<(), TestCaseError> {
        let victims: BTreeSet<_> = done.victims.iter().copied().collect();
        let head = self.head.as_ref().zip(rules.preemption_margin);
        let Some(((head, slots), margin)) = head else {
            prop_assert!(victims.is_empty());
            return Ok(());
        };
        let wish = &wishes[*head];
        let may_go = |id: &AttemptId| self.stage.holders[id].priority.saturating_add(margin) <= wish.priority;
        prop_assert!(victims.iter().all(may_go), "{victims:?} for {wish:?}");
        let free = |slots: &[Slot], gone: &dyn Fn(&AttemptId) -> bool| {
            let empty = |slot: &&Slot| slot.fresh == 0 && slot.will_do(wish) && slot.holders.keys().all(gone);
            slots.iter().filter(empty).count() >= usize::from(wish.gpus)
        };
        let possible = slots.iter().any(|slots| free(slots, &may_go));
        prop_assert_eq!(!victims.is_empty(), possible, "{:?}", wish);
        let enough = |gone: &BTreeSet<AttemptId>| slots.iter().any(|slots| free(slots, &|id| gone.contains(id)));
        for spared in &victims {
            let fewer = victims.iter().copied().filter(|id| id != spared).collect();
            prop_assert!(!enough(&fewer), "{spared} leaves for nothing");
        }
        prop_assert!(victims.is_empty() || enough(&victims));
        Ok(())
    }
}
