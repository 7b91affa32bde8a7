"""The judge's death is told, with its server's last words, whether or not responses that it left unjudged stop the run;
its key reaches those who ask it, and no log."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from hosted import hosting_for

from workers.group import Hosting, WorkerGroup
from workers.judge_endpoint import JudgeEndpoint
from workers.judge_group import JudgeServerGroup
from workers.placement import Place
from workers.stopped import RunStopped, WorkerDied

SECRET = "a-key-that-no-log-may-hold"
PLACES = tuple(Place(role=role, index=0, cpus=1.0, gpus=0.0) for role in ("judge", "reward"))


def stand_in() -> type:
    """A class of this function's own travels to the workers whole: they cannot import this file."""
    from workers.judge_server import JudgeDied

    class Server:
        def __init__(self) -> None:
            self._ended = False

        def endpoint(self) -> JudgeEndpoint:
            return JudgeEndpoint(url="http://127.0.0.1:1/v1", model="judge", key=SECRET)

        def check(self) -> None:
            if self._ended:
                raise JudgeDied("the judge my/judge cannot be asked any more")

        def end(self) -> None:
            print("out of memory, said the server", flush=True)
            self._ended = True

        def exit(self) -> None:
            os._exit(7)

    return Server


class StandIns(JudgeServerGroup):
    def end(self) -> None:
        self.wait([actor.end.remote() for actor in self._actors], verb="end")

    def kill(self) -> None:
        for actor in self._actors:
            actor.exit.remote()


class Asking(WorkerGroup):
    def call(self, name: str) -> object:
        return self.wait([getattr(actor, name).remote() for actor in self._actors], verb="look")


@pytest.fixture(scope="module")
def hosting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosting]:
    with hosting_for(PLACES, tmp_path_factory.mktemp("logs"), call_timeout_s=30.0) as hosting:
        yield hosting


@pytest.fixture(scope="module")
def judges(hosting: Hosting) -> StandIns:
    """One, which dies in the order of the tests: first its server, then itself."""
    return StandIns(stand_in(), hosting, role="judge", arguments=[()])


def test_a_run_without_a_judge_needs_none(hosting: Hosting) -> None:
    none = tuple(place for place in PLACES if place.role != "judge")
    alone = Hosting(
        placement=hosting.placement, places=none, environment={}, roster=hosting.roster, call_timeout_s=30.0
    )
    with JudgeServerGroup(stand_in(), alone, role="judge", arguments=[]).needed():
        pass


def test_while_it_lives_nothing_is_told(judges: StandIns) -> None:
    with judges.needed():
        pass
    with pytest.raises(RunStopped) as caught, judges.needed():
        raise RunStopped("nothing to learn from")
    assert str(caught.value) == "nothing to learn from" and not hasattr(caught.value, "__notes__")
    assert judges.endpoint().key == SECRET


def test_a_server_that_died_is_a_note_to_what_it_caused_and_else_stops_the_run_itself(judges: StandIns) -> None:
    with pytest.raises(RunStopped) as caught, judges.needed():
        judges.end()
        raise RunStopped("40 responses could not be judged (40 x unavailable)")
    told = "\n".join([str(caught.value), *caught.value.__notes__])
    assert told.startswith("40 responses could not be judged (40 x unavailable)")
    assert "the judge my/judge cannot be asked any more" in told
    assert "raised by judge 0 while it was to answer the rewards" in told
    assert "out of memory, said the server" in told
    with pytest.raises(RunStopped, match="the judge my/judge cannot be asked any more") as caught, judges.needed():
        pass
    assert "out of memory, said the server" in caught.value.__notes__[0]


def test_a_worker_that_died_with_its_server_is_told_too(judges: StandIns) -> None:
    with pytest.raises(RunStopped) as caught, judges.needed():
        judges.kill()
        raise RunStopped("40 responses could not be judged")
    assert "judge 0 died while it was to answer the rewards" in "\n".join(caught.value.__notes__)


def test_a_death_that_was_told_is_not_told_again(judges: StandIns) -> None:
    with pytest.raises(WorkerDied) as caught, judges.needed():
        raise WorkerDied("judge 0 died while the run waited for the reward group to score a group")
    assert not hasattr(caught.value, "__notes__"), "the judge is dead, and whoever asks it hears so"


def test_a_secret_is_in_the_worker_s_environment_and_in_no_log_of_ray_s(hosting: Hosting) -> None:
    def looking() -> type:
        class Looks:
            def seen(self) -> str | None:
                return os.environ.get("MY_KEY")

        return Looks

    asking = Asking(looking(), hosting, role="reward", arguments=[()], secrets={"MY_KEY": SECRET})
    assert asking.call("seen") == [SECRET]
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    logs = [path for path in session.rglob("*") if path.is_file()]
    assert any(path.name.startswith("raylet") for path in logs)
    holding = [path for path in logs if SECRET.encode() in path.read_bytes()]
    assert holding == []
