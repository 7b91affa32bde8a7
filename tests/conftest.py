"""What several test folders share: a tiny model with random weights, and the rollout engines that serve it."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from workers.config import ClusterConfig, EngineKind, ModelConfig, RolloutConfig
from workers.rollout_worker import RolloutEngine, RolloutWorker

# Several test processes, and all that they start, share the cores: whoever waits must not keep one busy.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# A script that starts the tests in the background has them ignore Ctrl-C, which some send to themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)

BLANK = Path(__file__).parents[1] / "examples" / "nano" / "blank"
CLUSTER = ClusterConfig()
ROLLOUT = RolloutConfig(kv_cache_gib=0.0625, max_running=32)


WHOLE_RUNS = ("test_learns", "test_learns_nothing", "test_resume", "test_command_line")
"""Files whose tests take a minute each."""
INDEPENDENT = WHOLE_RUNS[1:]
"""Those of them whose tests share no run."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Two test processes take whole files, whose tests share what they started, and independent runs one by one."""

    class WholeFilesOrSingleRuns(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return nodeid if Path(file).stem in INDEPENDENT else file

    return WholeFilesOrSingleRuns(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: both processes then end at about the same time."""
    items.sort(key=lambda item: (*WHOLE_RUNS, item.path.stem).index(item.path.stem))


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A rollout worker, the engine in its thread, and the folder of the model that it serves as version 0."""

    worker: RolloutWorker
    engine: RolloutEngine
    folder: Path


@pytest.fixture(scope="session")
def tied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nano architecture, its head tied to the embedding, with random weights and peaky distributions."""
    return _peaky_model(tmp_path_factory.mktemp("tied"), tied=True)


@pytest.fixture(scope="session")
def untied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _peaky_model(tmp_path_factory.mktemp("untied"), tied=False)


@pytest.fixture(scope="session")
def judge_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The nano architecture with random weights, and room for what a judge is asked."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("models") / "nano-judge"
    shutil.copytree(BLANK, folder)
    config = AutoConfig.from_pretrained(BLANK, max_position_embeddings=4096)
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vllm_tied(tied_model: Path) -> Iterator[Served]:
    yield from _serve(EngineKind.VLLM, tied_model)


@pytest.fixture(scope="session")
def vllm_untied(untied_model: Path) -> Iterator[Served]:
    yield from _serve(EngineKind.VLLM, untied_model)


@pytest.fixture(scope="session")
def hf_tied(tied_model: Path) -> Iterator[Served]:
    yield from _serve(EngineKind.HF, tied_model)


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """A Ray cluster that outlives the runs on it, as a real one does: its address."""
    import ray
    from ray.cluster_utils import Cluster

    # A local Ray asks for a token, and from then on its whole process does: the cluster must be one that asks, too.
    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR")
    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, "object_store_memory": 1 << 28})
    yield cluster.address
    cluster.shutdown()


def _peaky_model(folder: Path, *, tied: bool) -> Path:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(BLANK, folder, dirs_exist_ok=True)
    config = AutoConfig.from_pretrained(BLANK)
    config.initializer_range = 0.05
    config.tie_word_embeddings = tied
    torch.manual_seed(20240203)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        # Larger weights everywhere would be peaky too, but then float32's own rounding moves log-probs by 5e-5.
        model.get_parameter("model.norm.weight").mul_(4.0)
    model.save_pretrained(folder)
    return folder


def _serve(kind: EngineKind, folder: Path) -> Iterator[Served]:
    import torch

    from workers.rollout_actor import engine_class

    torch.set_num_threads(1)  # two threads of so small a model only wait for each other
    engines: list[RolloutEngine] = []

    def make_engine() -> RolloutEngine:
        engines.append(engine_class(kind)(ModelConfig(path=str(folder)), ROLLOUT, CLUSTER, seed=0))
        return engines[0]

    worker = RolloutWorker(make_engine, max_running=ROLLOUT.max_running)
    yield Served(worker=worker, engine=engines[0], folder=folder)
    worker.close()
