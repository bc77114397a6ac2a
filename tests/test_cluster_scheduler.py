"""Whatever happens to workers, each unit is answered once, nothing hangs, and nobody idles without need."""

import itertools
import math

import numpy as np
import pytest

from esalign.engines.cluster.pace import Pace
from esalign.engines.cluster.scheduler import KILLS, Scheduler
from esalign.engines.cluster.units import BLOCK, MOST, Unit, cut
from esalign.engines.cluster.workers import Unfit, WorkerLost, WrongAnswer
from esalign.errors import BackendError
from esalign.testing.workers import SimulatedWorkers

NEVER = math.inf


def scheduler_of(workers, count=4, **options):
    warnings = []
    scheduler = Scheduler(workers, count, warn=warnings.append, **options)
    scheduler.said = warnings
    return scheduler


def finish(scheduler, units):
    """Run units, and return the keys that were accepted, in their order."""
    accepted = []

    def accept(unit, answer):
        if answer != ("done", unit.key):
            raise WrongAnswer(repr(answer))
        accepted.append(unit.key)
        return unit.size

    scheduler.run(units, accept)
    return accepted


def steady(_worker, unit, _time):
    return unit.size / 10, ("done", unit.key)


def test_units_tile_the_table_and_shrink():
    for candidates, prompts, workers, by_prompt in itertools.product((1, 7, 24), (1, 10, 333), (1, 3, 128), (0, 1)):
        units = cut(candidates, prompts, workers=workers, fewest=8, by_prompt=bool(by_prompt))
        seen = np.zeros((candidates, prompts), dtype=int)
        for unit in units:
            assert unit.size <= MOST
            seen[unit.candidates.start : unit.candidates.stop, unit.prompts.start : unit.prompts.stop] += 1
        assert (seen == 1).all()
    assert [unit.key for unit in units] == [(0, number) for number in range(len(units))]
    assert cut(3, 0, workers=2, fewest=8) == []


def test_units_by_prompt_hold_all_candidates():
    assert {unit.candidates for unit in cut(24, 333, workers=8, fewest=8, by_prompt=True)} == {range(24)}


def test_steady_workers_share_the_work_evenly():
    workers = SimulatedWorkers(steady)
    scheduler, units = scheduler_of(workers), cut(24, 100, workers=4, fewest=8)
    assert sorted(finish(scheduler, units)) == [unit.key for unit in units]
    least = 24 * 100 / 10 / 4
    assert least <= workers.clock() <= 1.05 * least
    assert scheduler.measure()["redone"] == scheduler.measure()["doubled"] == 0


def test_deaths_lose_no_unit_and_repeat_none():
    rng = np.random.default_rng(0)

    def mortal(worker, unit, time):
        seconds, answer = steady(worker, unit, time)
        return (seconds / 2, WorkerLost("killed")) if rng.random() < 0.05 else (seconds, answer)

    scheduler = scheduler_of(SimulatedWorkers(mortal))
    for call in range(20):
        units = cut(12, 60, workers=4, fewest=8, call=call)
        assert sorted(finish(scheduler, units)) == [unit.key for unit in units]
    assert scheduler.tally.lost > 10
    assert scheduler.tally.redone == scheduler.tally.lost


def test_a_straggler_does_not_hold_up_the_others():
    """One of eight workers is ten times slower: at first its unit is doubled, later it is given small ones."""

    def uneven(worker, unit, time):
        seconds, answer = steady(worker, unit, time)
        return seconds * (10 if worker == 3 else 1), answer

    workers = SimulatedWorkers(uneven)
    scheduler, took = scheduler_of(workers, 8), []
    for call in range(6):
        began = workers.clock()
        finish(scheduler, cut(24, 100, workers=8, fewest=8, call=call))
        took.append(workers.clock() - began)
    assert scheduler.tally.doubled
    assert scheduler.tally.late
    ideal = 24 * 100 / 10 / 7.1
    assert took[0] < 1.5 * ideal
    assert max(took[2:]) < 1.15 * ideal


def test_a_worker_that_sleeps_for_ever_is_replaced():
    asleep = {"left": 1}

    def sleepy(worker, unit, time):
        if worker == 0 and asleep["left"]:
            asleep["left"] -= 1
            return NEVER, None
        return steady(worker, unit, time)

    alone = scheduler_of(SimulatedWorkers(sleepy), 1, limit=100.0)
    units = cut(4, 10, workers=1, fewest=8)
    assert sorted(finish(alone, units)) == [unit.key for unit in units]
    assert alone.tally.hung == 1
    assert "no answer within 100 s" in alone.said[0]

    asleep["left"] = 1
    workers = SimulatedWorkers(sleepy)
    company = scheduler_of(workers, 3, limit=10_000.0)
    finish(company, cut(4, 10, workers=3, fewest=8))
    assert workers.clock() < 20  # another worker did its unit, long before the limit
    assert company.tally.doubled == 1


def test_a_worker_that_sleeps_since_an_earlier_call_is_replaced():
    """Its unit was another's long ago, and the call that could name its prompts is over."""

    def sleepy(worker, unit, time):
        return (NEVER, None) if worker == 0 and time < 1 else steady(worker, unit, time)

    scheduler = scheduler_of(SimulatedWorkers(sleepy), 3, limit=60.0)
    finish(scheduler, cut(4, 10, workers=3, fewest=8))
    asleep = scheduler.members[0].unit

    def name(unit):
        assert unit.key != asleep.key
        return "a unit"

    accepted, units = [], cut(24, 100, workers=3, fewest=8, call=1)
    scheduler.run(units, lambda unit, _: accepted.append(unit.key) or unit.size, name)
    assert sorted(accepted) == [unit.key for unit in units]
    assert scheduler.tally.hung == 1
    assert "worker 0 is made anew: work that another has done since: no answer within 60 s" in scheduler.said[0]


def test_a_worker_that_hangs_while_it_starts_is_made_anew_while_the_others_work():
    starts = []

    def begin(worker, _time):
        starts.append(worker)
        return (NEVER if worker == 2 and starts.count(2) == 1 else 0.0), None

    scheduler = scheduler_of(SimulatedWorkers(steady, begin), 3, limit=60.0)
    finish(scheduler, cut(24, 100, workers=3, fewest=8))
    assert starts.count(2) == 2
    assert scheduler.ready == [0, 1, 2]
    assert scheduler.said == ["worker 2 did not start within 60 s (cluster.limit), so it is made anew"]


def test_garbage_is_not_accepted_and_its_worker_is_made_anew():
    def lying(worker, unit, time):
        seconds, answer = steady(worker, unit, time)
        return seconds, "garbage" if worker == 1 and time < 5 else answer

    scheduler = scheduler_of(SimulatedWorkers(lying))
    units = cut(12, 60, workers=4, fewest=8)
    assert sorted(finish(scheduler, units)) == [unit.key for unit in units]
    assert scheduler.tally.wrong == 1
    assert scheduler.said == ["worker 1 is made anew: it gave what is no answer: 'garbage'"]


@pytest.mark.parametrize("answer", [WorkerLost("its engine failed"), "garbage"])
def test_a_worker_that_fails_at_all_it_is_given_does_not_end_the_run(answer):
    """The others are slow, so it is back before they have done anything."""

    def broken(worker, unit, time):
        return (0.1, answer) if worker == 1 else (20.0 * unit.size, steady(worker, unit, time)[1])

    scheduler = scheduler_of(
        SimulatedWorkers(broken, lambda _worker, time: (15.0 if time else 0.0, None)), 3, limit=1e6
    )
    units = cut(12, 60, workers=3, fewest=8)
    assert sorted(finish(scheduler, units)) == [unit.key for unit in units]
    assert len(scheduler.said) >= KILLS
    assert all(text.startswith("worker 1 is made anew: it") for text in scheduler.said)


def test_a_unit_that_kills_three_engines_ends_the_run_with_its_name():
    deaths = []

    def deadly(worker, unit, time):
        if 17 in unit.prompts and 2 in unit.candidates:
            deaths.append(worker)
            return 1.0, WorkerLost("out of memory")
        return steady(worker, unit, time)

    scheduler = scheduler_of(SimulatedWorkers(deadly))
    with pytest.raises(BackendError, match=r"prompts 1\d to \d+ of candidate 2 cost 3 engines.*out of memory"):
        finish(scheduler, cut(4, 40, workers=4, fewest=8))
    assert len(deaths) == KILLS
    units = cut(2, 10, workers=4, fewest=8, call=1)
    assert sorted(finish(scheduler, units)) == [unit.key for unit in units]  # and the others go on


def test_an_engines_refusal_is_the_callers_and_the_workers_live_on():
    def strict(worker, unit, time):
        return (0.1, BackendError("too long")) if 3 in unit.prompts else steady(worker, unit, time)

    scheduler = scheduler_of(SimulatedWorkers(strict))
    with pytest.raises(BackendError, match="too long"):
        finish(scheduler, cut(2, 10, workers=4, fewest=8))
    assert len(finish(scheduler, cut(2, 3, workers=4, fewest=1, call=1))) == len(cut(2, 3, workers=4, fewest=1))
    assert len(scheduler.ready) == 4
    assert scheduler.tally.lost == 0


def test_a_worker_that_is_refused_before_the_first_is_admitted_is_told_of():
    workers = SimulatedWorkers(steady, lambda worker, _time: (1.0, Unfit("another model") if worker == 0 else None))
    scheduler = scheduler_of(workers, 2)
    scheduler.assemble()
    assert scheduler.ready == [1]
    assert scheduler.said == ["worker 0 is given up after 1 tries: another model"]


def test_a_worker_that_dies_at_start_is_tried_again_and_given_up():
    starts = []

    def begin(worker, _time):
        starts.append(worker)
        return 1.0, WorkerLost("no such library") if worker == 2 else None

    scheduler = scheduler_of(SimulatedWorkers(steady, begin))
    for call in range(4):
        finish(scheduler, cut(24, 100, workers=4, fewest=8, call=call))
    assert starts.count(2) == 3
    assert scheduler.members[2].state == "gone"
    assert any("worker 2 is given up" in text and "no such library" in text for text in scheduler.said)


def test_what_no_worker_can_be_made_for_is_told_at_once():
    starts = []

    def begin(worker, _time):
        starts.append(worker)
        return 1.0, BackendError("no such model")

    scheduler = scheduler_of(SimulatedWorkers(steady, begin), 2)
    with pytest.raises(BackendError, match="no such model"):
        scheduler.assemble()
    assert len(starts) == 2


def test_too_few_workers_are_waited_for_told_of_and_given_up():
    def begin(worker, _time):
        return (1.0 if worker < 2 else NEVER), None

    workers = SimulatedWorkers(steady, begin)
    scheduler = scheduler_of(workers, 4, least=3, patience=120.0)
    with pytest.raises(BackendError, match=r"2 of at least 3 workers are ready; workers need.*gave up after 12"):
        scheduler.assemble()
    assert "waiting for workers: 2 of at least 3" in scheduler.said[0]
    assert len(scheduler.said) == 2


def test_workers_join_and_leave_between_calls():
    late = {3: 5.0}
    done_by = []

    def answer(worker, unit, time):
        done_by.append(worker)
        return steady(worker, unit, time)

    workers = SimulatedWorkers(answer, lambda worker, _time: (late.get(worker, 0.0), None))
    scheduler = scheduler_of(workers, 4)
    finish(scheduler, cut(24, 10, workers=4, fewest=4))
    assert 3 in done_by  # it came while the others worked
    scheduler.resize(6)
    done_by.clear()
    finish(scheduler, cut(24, 100, workers=6, fewest=8, call=1))
    assert set(done_by) == set(range(6))
    scheduler.resize(2)
    done_by.clear()
    finish(scheduler, cut(24, 10, workers=2, fewest=8, call=2))
    assert set(done_by) == {0, 1}
    scheduler.close()
    assert scheduler.ready == []


def test_below_the_least_number_no_new_unit_is_given_out_until_workers_are_back():
    times = []

    def answer(worker, unit, time):
        times.append(time)
        return (1.0, WorkerLost("preempted")) if worker and time < 1 else steady(worker, unit, time)

    def begin(worker, time):
        return (30.0 if worker and time > 0.5 else 0.0), None  # a lost machine comes back after half a minute

    scheduler = scheduler_of(SimulatedWorkers(answer, begin), 3, least=2)
    units = cut(24, 10, workers=3, fewest=4)
    assert sorted(finish(scheduler, units)) == [unit.key for unit in units]
    assert not [time for time in times if 1 < time < 30]


def test_a_unit_that_only_encodes_tells_nothing_of_completions():
    pace = Pace()
    pace.note(0, 9.0)
    assert pace.usual(4) is None
    pace.note(4, 2.0)
    assert pace.usual(8) == 2.0
    assert pace.usual(0) is None


def test_a_worker_stays_with_the_prompts_that_it_was_sent():
    """Of 40 blocks of prompts, each of 64 workers needs a few."""
    sent = {}

    def answer(worker, unit, _time):
        sent.setdefault(worker, set()).update(unit.blocks)
        return 1.0 + unit.size / 100 + worker / 1000, ("done", unit.key)

    units = cut(50, 10_000, workers=64, fewest=256)
    finish(scheduler_of(SimulatedWorkers(answer), 64), units)
    assert max(len(unit.blocks) for unit in units) == MOST // BLOCK
    assert np.mean([len(blocks) for blocks in sent.values()]) <= 8


def test_a_unit_that_only_encodes_is_done_too():
    assert finish(scheduler_of(SimulatedWorkers(steady)), [Unit((0, 0), range(0), range(0))]) == [(0, 0)]
