//! Several ranks on devices: as threads of this process, on one emulated GPU, which sums over ranks under NCCL's name. The real one refuses
//! two ranks on one device; there the first of these shows that they then go through main memory, and the others have nothing to show.

use std::ffi::{CString, c_int, c_void};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use std::{env, thread};

use lorikeet_trainer::config::Device;
use lorikeet_trainer::event::{Event, Outcome};
use lorikeet_trainer::ops::cuda::adamw::Clip;
use lorikeet_trainer::ops::cuda::{TRAFFIC, nccl};
use lorikeet_trainer::{Config, FailureClass, Stop, TrainError, Wish, checkpoint, follow, lead};

use super::place::Place;
use super::told::{Told, run, run_on};
use super::{GRADIENTS, RUN, on};

#[test]
fn several_ranks_take_the_steps_of_one_and_sum_where_gradients_lie() {
    let place = Place::new(14);
    let config = |name: &str| on(&place, Device::Gpu(0), name);
    let alone = run(&config("alone")).expect("trains");
    for ranks in [2, 3] {
        let [told, again] = ["", " again"].map(|again| all(ranks, &config(&format!("{ranks}{again}"))));
        assert_eq!(told.checkpoints, alone.checkpoints);
        for (one, other) in told.steps.iter().zip(&alone.steps) {
            assert!((one.loss - other.loss).abs() < RUN * other.loss, "{one:?} and {other:?}");
            assert!(
                (one.grad_norm - other.grad_norm).abs() < 2.0 * GRADIENTS * other.grad_norm,
                "{one:?} and {other:?}"
            );
            assert_eq!((one.step, one.tokens, one.lr), (other.step, other.tokens, other.lr));
        }
        assert_eq!(told.adapter_hash(), again.adapter_hash(), "as many ranks make the same bits");
        let lines: Vec<&String> = told.logs.iter().filter(|line| line.contains("through main memory")).collect();
        match nccl::there() {
            Ok(()) => assert_eq!(lines.len(), usize::from(Emulator::open().is_none()), "{lines:?}"),
            Err(_) => assert!(lines.len() == 1 && lines[0].starts_with("NCCL is missing"), "{lines:?}"),
        }
    }
}

#[test]
fn what_goes_over_the_bus_does_not_grow_with_what_ranks_sum() {
    let Some(_emulator) = Emulator::open() else { return };
    let place = Place::new(14);
    let of_rank = |rank: usize| {
        let mut config = on(&place, Device::Gpu(0), &format!("rank {rank}"));
        config.settings.lora.rank = rank;
        let mut counts = Vec::new();
        let told = lead_with(2, &config, &Stop::new(), &[], &mut |event| {
            if let Event::Step(_) = event {
                counts.push([TRAFFIC.there(), TRAFFIC.back()]);
            }
        });
        let adapter = 4 * told.expect("trains").plan().trainable_parameters;
        // what is due after the third, fourth and eighth reads the adapter
        let steps = [1, 5, 6].map(|step| [0, 1].map(|way| counts[step][way] - counts[step - 1][way]));
        println!("{:<28} {adapter} bytes of adapter; there and back in a step: {steps:?}", "two ranks");
        for [_, back] in steps {
            // loss and norm of either; the other's may still be on its way
            assert!(back <= 3 * size_of::<Clip>() as u64, "{steps:?}");
        }
        steps.map(|[there, _]| there)
    };
    assert_eq!(of_rank(4), of_rank(16), "what goes there is the batch, whatever is trained");
}

#[test]
fn a_rank_that_dies_inside_a_sum_is_lost_and_no_step_with_it() {
    let Some(emulator) = Emulator::open() else { return };
    let place = Place::new(14);
    let whole = all(3, &on(&place, Device::Gpu(0), "whole"));
    let lost = |name: &str, and_then: &(dyn Fn() + Sync)| {
        let config = on(&place, Device::Gpu(0), name);
        let dies = [Stop::new(), Stop::new()];
        let die = || {
            and_then();
            dies[1].ask(Wish::Discard);
        };
        let error = thread::scope(|scope| {
            scope.spawn(|| emulator.when_inside(3, die));
            lead_with(3, &config, &Stop::new(), &dies, &mut |event| hold_after(&emulator, event, 3))
        });
        let error = error.expect_err("its part is missing");
        assert!(matches!(error, TrainError::RankLost { rank: 2, .. }), "{error}");
        config
    };
    goes_on(&emulator, 3, &lost("lost", &|| ()), 3, &whole);
    // with the leader's device, which was reading the memory of the one that died, all that is not on disk is gone
    let config = lost("lost with the device", &|| _ = emulator.ask("fault", 0, 0));
    goes_on(&emulator, 3, &config, 0, &whole);
}

#[test]
fn an_error_inside_a_sum_is_told_in_its_own_words_unless_a_rank_is_gone() {
    let Some(emulator) = Emulator::open() else { return };
    let place = Place::new(14);
    let error_after = |name: &str, act: &(dyn Fn(&Stop) + Sync)| {
        let config = on(&place, Device::Gpu(0), name);
        let dies = [Stop::new(), Stop::new()];
        let told = thread::scope(|scope| {
            scope.spawn(|| emulator.when_inside(3, || act(&dies[1])));
            lead_with(3, &config, &Stop::new(), &dies, &mut |event| hold_after(&emulator, event, 2))
        });
        emulator.heal();
        told.expect_err("no sum is made")
    };
    let break_off = || _ = emulator.ask("close", 1, 0);
    let error = error_after("broken", &|_| break_off());
    assert!(matches!(&error, TrainError::Rank { rank: 1, class: FailureClass::Device, .. }), "{error}");
    assert!(error.to_string().contains("sum over ranks: NCCL says"), "{error}");
    let error = error_after("broken by a death", &|dies| {
        break_off();
        // not at once: the error is seen before the end
        thread::sleep(Duration::from_millis(200));
        dies.ask(Wish::Discard);
    });
    assert!(matches!(error, TrainError::RankLost { rank: 2, .. }), "{error}");
}

#[test]
fn ranks_told_to_stop_inside_a_sum_save_what_was_before_it() {
    let Some(emulator) = Emulator::open() else { return };
    let place = Place::new(14);
    let whole = all(2, &on(&place, Device::Gpu(0), "whole"));
    let config = on(&place, Device::Gpu(0), "stopped");
    let stop = Stop::new();
    let told = thread::scope(|scope| {
        scope.spawn(|| emulator.when_inside(2, || stop.ask(Wish::SaveAndStop)));
        lead_with(2, &config, &stop, &[], &mut |event| hold_after(&emulator, event, 3))
    });
    let stopped = Outcome::Stopped { step: 3, checkpoint: Some(checkpoint::name(3)) };
    assert_eq!(told.expect("stops").outcome, stopped);
    goes_on(&emulator, 2, &config, 3, &whole);
}

#[test]
fn memory_that_one_rank_is_refused_makes_all_take_the_step_again() {
    let Some(emulator) = Emulator::open() else { return };
    let place = Place::new(14);
    let whole = all(2, &on(&place, Device::Gpu(0), "whole"));
    for refused in [0, 1] {
        let config = on(&place, Device::Gpu(0), &format!("refused {refused}"));
        let told = lead_with(2, &config, &Stop::new(), &[], &mut |event| {
            if matches!(event, Event::Step(step) if step.step == 3) {
                // whatever it is, it is taken in the next pass: an update takes none
                emulator.ask("refuse", refused, 2 << 10);
            }
        })
        .expect("trains");
        assert_eq!(emulator.ask("refuse", -1, 0), -1, "it was refused");
        assert!(told.logs.iter().any(|line| line.contains("were refused")), "{:?}", told.logs);
        assert_eq!(told.steps.len(), whole.steps.len());
        for (one, other) in told.steps.iter().zip(&whole.steps) {
            assert!((one.loss - other.loss).abs() < RUN * other.loss, "{one:?} and {other:?}");
        }
    }
}

#[test]
fn one_rank_on_which_nccl_does_not_open_sends_all_through_main_memory() {
    let Some(emulator) = Emulator::open() else { return };
    let place = Place::new(14);
    let whole = all(3, &on(&place, Device::Gpu(0), "whole"));
    for closed in [0, 1, 2] {
        emulator.ask("close", closed, 0);
        let told = all(3, &on(&place, Device::Gpu(0), &format!("closed {closed}")));
        let lines: Vec<&String> = told.logs.iter().filter(|line| line.contains("through main memory")).collect();
        assert!(lines.len() == 1 && lines[0].starts_with(&format!("rank {closed}: ")), "{lines:?}");
        assert_eq!(told.adapter_hash(), whole.adapter_hash(), "either sums in the order of ranks");
    }
}

fn all(ranks: usize, config: &Config) -> Told {
    run_on(ranks, config, u64::MAX, Wish::Run).expect("trains")
}

/// What a leader tells, and whoever looks at it sees; followers that have a switch of their own may be told to leave.
fn lead_with(
    ranks: usize,
    config: &Config,
    stop: &Stop,
    stops: &[Stop],
    see: &mut (dyn FnMut(&Event) + Send),
) -> Result<Told, TrainError> {
    static NEVER: Stop = Stop::new();
    thread::scope(|scope| {
        let (wires, followers): (Vec<_>, Vec<_>) = (1..ranks)
            .map(|rank| {
                let (leader, follower) = UnixStream::pair().expect("a pair");
                let stop = stops.get(rank - 1).unwrap_or(&NEVER);
                (leader, scope.spawn(move || follow(config, follower, stop)))
            })
            .unzip();
        let mut told = Told::default();
        let outcome = lead(config, wires, stop, &mut |event| {
            see(&event);
            told.take(event);
            Ok(())
        });
        for follower in followers {
            let followed = follower.join().expect("no panic");
            // whoever cannot go on has told its leader; all others leave in order
            assert!(followed.is_ok() || matches!(outcome, Err(TrainError::Rank { .. })), "{followed:?}");
        }
        Ok(Told { outcome: outcome?, ..told })
    })
}

/// From the step behind that one on, sums do not become over.
fn hold_after(emulator: &Emulator, event: &Event, step: u64) {
    if matches!(event, Event::Step(told) if told.step == step) {
        emulator.ask("hold", 1, 0);
    }
}

/// With all well again the run goes on from that step, to the same end.
fn goes_on(emulator: &Emulator, ranks: usize, config: &Config, step: u64, whole: &Told) {
    emulator.heal();
    let rest = all(ranks, config);
    assert_eq!(rest.plan().from_step, step);
    assert_eq!(rest.adapter_hash(), whole.adapter_hash());
}

/// What the emulated GPU lets tests do, under `emulator_…` in its last lines.
struct Emulator(*mut c_void);

// SAFETY: its functions may be called from any thread.
unsafe impl Sync for Emulator {}

impl Emulator {
    /// None where the GPU is a real one.
    fn open() -> Option<Emulator> {
        let path = CString::new(format!("{}/libcuda.so.1", env::var("CUDA_LIB_DIR").ok()?)).expect("a path");
        // SAFETY: the library is open already, or it is none that anything here opens.
        let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        let is_emulated = !library.is_null() && find(library, "hold").is_some();
        is_emulated.then_some(Emulator(library))
    }

    fn ask(&self, name: &str, number: c_int, bytes: usize) -> c_int {
        find(self.0, name).expect("the emulator has it")(number, bytes)
    }

    /// Nothing is wrong any more.
    fn heal(&self) {
        for (name, number) in [("hold", 0), ("close", -1), ("refuse", -1), ("fault", -1)] {
            self.ask(name, number, 0);
        }
    }

    /// Does it once so many ranks are inside a sum that is held up.
    fn when_inside(&self, ranks: c_int, act: impl FnOnce()) {
        let since = Instant::now();
        while self.ask("inside", 0, 0) < ranks {
            assert!(since.elapsed() < Duration::from_secs(120), "no {ranks} ranks come into a sum");
            thread::sleep(Duration::from_millis(1));
        }
        act();
    }
}

fn find(library: *mut c_void, name: &str) -> Option<extern "C" fn(c_int, usize) -> c_int> {
    let name = CString::new(format!("emulator_{name}")).expect("a name");
    // SAFETY: the handle is open and never closed; all functions of these names have this signature, and null is none.
    unsafe { std::mem::transmute(libc::dlsym(library, name.as_ptr())) }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        self.heal();
    }
}
