"""Trials on the nodes of a Ray cluster: an actor for each slot, which is a `NodeSlot`. The only door to Ray.

An actor asks its node for the CPU threads of a training and for a GPU, or a share of one. One that waits for a node
with room is no free slot; a node that joins makes it one. An actor that is lost, alone or with its node, is never heard
of again: its job is reported as lost, and another actor asks for a place. The coordinator has one call outstanding to
each actor, and an actor does what it is called to one after the other.
"""

import contextlib
import logging
import math
import signal
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnschedulableError, RayError, RayTaskError

from cityopt.config import StudyConfig
from cityopt.errors import ClusterError, ConfigError
from cityopt.search.executors.base import NEVER_BEGAN, Answer, Event, Executor, Job, JobEnded, Noticed, WorkerReady
from cityopt.search.executors.local import kill_survivor
from cityopt.search.executors.mirror import Inbox, Outbox
from cityopt.search.executors.node import NodeFacts, NodeSlot, Report, SlotPlan
from cityopt.search.executors.silence import HangRule
from cityopt.search.executors.slots import check_numbers
from cityopt.search.executors.versions import describe_versions, list_mismatches
from cityopt.tracking.run_folder import begin_attempt

_ANSWER_S = 10.0
"""How long an address may take to answer."""
_BUSY_S, _IDLE_S = 1.0, 0.2
"""How long an actor waits for news of a job, and without one: a job that is submitted waits for that."""
_ROOM_S = 15.0
"""Seconds without any slot after which that is worth a word."""
_CLOSING_S = 5.0
_MAX_EARLY_DEATHS = 3
_HINT = (
    "Start one with `ray start --head`, let others join with `ray start --address HOST:PORT`, and sweep on a node; "
    "with RAY_AUTH_MODE=token on all of them, or on none."
)


class RayCluster:
    """A connection to a cluster, and how much of its nodes a slot asks for."""

    def __init__(self, address: str, *, device: str, workers: int | None, per_device: int | None) -> None:
        """Connect. Without `workers` there are as many slots as the nodes have room for.

        Raises ConfigError: impossible numbers, or a device that names one machine's. Raises ClusterError: nothing
        answers, this machine is no node of the cluster, or Ray is of another version there.
        """
        check_numbers(workers=workers, per_device=per_device)
        if device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"`--device` must be auto, cpu or cuda with --executor ray, but got {device!r}.")
        connect(address)
        has_gpus = ray.cluster_resources().get("GPU", 0) > 0
        self._device = "cuda" if device == "cuda" or (device == "auto" and has_gpus) else "cpu"
        self._workers, self._per_device = workers, per_device or 1
        if per_device and self._device == "cpu":
            raise ConfigError(
                f"`--workers-per-device {per_device}` shares out GPUs, but the trainings are to run on CPUs, of which "
                "each takes as many as `threads` says. Leave it out, and give --workers or --set threads=N."
            )

    @property
    def cores(self) -> int:
        """CPU cores of each training where the study does not say: its share of the node that has fewest for it."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        if self._device == "cuda":
            shares = [node["CPU"] / (node["GPU"] * self._per_device) for node in nodes if node.get("GPU")]
        else:
            shares = [node["CPU"] / math.ceil((self._workers or 1) / len(nodes)) for node in nodes]
        return max(1, int(min(shares, default=1)))

    def open_executor(self, store: Path, config: StudyConfig, *, threads: int) -> "RayExecutor":
        """Return the executor of a study on this cluster; the connection ends with it."""
        plan = SlotPlan(
            study=config.name,
            store=store,
            probe=f".seen-by-{uuid.uuid4().hex}",
            host=socket.gethostname(),
            device=self._device,
            threads=threads,
            hang_rule=HangRule(config.search.hang_limit_s, config.search.hang_factor),
        )
        num_gpus = 1 / self._per_device if self._device == "cuda" else 0
        return RayExecutor(
            plan, num_gpus=num_gpus, most=self._workers or config.search.trials, at_once=self._workers or 1
        )


class RayExecutor(Executor):
    """Runs jobs in at most `most` actors; `at_once` is how many may wait for room, which an autoscaler hears of."""

    def __init__(self, plan: SlotPlan, *, num_gpus: float, most: int, at_once: int) -> None:
        self._plan, self._num_gpus, self._most, self._at_once = plan, num_gpus, most, at_once
        self._slots: list[_Slot] = []
        self._versions = describe_versions()
        self._refused: dict[str, str] = {}
        self._early_deaths = 0
        self._without_slot_since = time.monotonic()
        self._has_told_of_room = False

    def start(self) -> None:
        """Ask for the first actors."""
        (self._plan.store / self._plan.probe).touch()
        self._ask_for_slots()

    @property
    def num_free(self) -> int:
        """Number of actors that have a place and no job; their workers may still warm up."""
        return sum(slot.is_free for slot in self._slots)

    def submit(self, job: Job) -> None:
        """Send a job to a free actor, with the files that the run has, if its node does not see them."""
        slot = next(slot for slot in self._slots if slot.is_free)
        begin_attempt(job.folder, job.token)
        slot.job, slot.inbox = job, Inbox(job.folder)
        if slot.facts is not None and not slot.facts.sees_store:
            outbox = Outbox(job.folder, artifacts=False)
            outbox.look()
            while pieces := outbox.take():
                slot.send("receive", job.token, pieces)
        slot.send("submit", job)

    def poll(self, timeout_s: float) -> list[Event]:
        """Return the events of all actors; one that is lost is replaced, and its job reported as lost.

        Raises ClusterError: no node can train, or something failed on a node beside a training.
        """
        self._ask_for_slots()
        calls = {slot.ask(): slot for slot in self._slots if not slot.is_refused}
        ready = ray.wait(list(calls), num_returns=1, timeout=timeout_s)[0]
        if ready:
            ready = ray.wait(list(calls), num_returns=len(calls), timeout=0)[0]
        events = [event for call in ready for event in self._take(calls[call])]
        return events + self._tell_of_room()

    def answer(self, run_id: str, answer: Answer) -> None:
        """Answer the epoch that a run reported."""
        for slot in self._slots:
            if slot.job is not None and slot.job.run_id == run_id:
                slot.send("answer", run_id, answer)

    def abandon(self, run_id: str) -> None:
        """End a run in its actor, which is free from then on."""
        for slot in self._slots:
            if slot.job is not None and slot.job.run_id == run_id:
                slot.send("abandon", run_id)
                slot.job = slot.inbox = None

    def end_survivor(self, folder: Path) -> None:
        """Kill the process that the folder's attempt names here; Ray ends those that it started elsewhere."""
        kill_survivor(folder)

    def close(self) -> None:
        """End all actors with their workers, and the connection."""
        if not ray.is_initialized():
            return
        closing = [slot.actor.close.remote() for slot in self._slots if slot.facts is not None]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=_CLOSING_S)
        for slot in self._slots:
            slot.kill()
        self._slots = []
        (self._plan.store / self._plan.probe).unlink(missing_ok=True)
        ray.shutdown()

    def _ask_for_slots(self) -> None:
        wanted = [slot for slot in self._slots if not slot.is_refused]
        num_waiting = sum(slot.facts is None for slot in wanted)
        for _ in range(min(self._at_once - num_waiting, self._most - len(wanted))):
            self._slots.append(_Slot(self._plan, self._num_gpus))

    def _take(self, slot: "_Slot") -> list[Event]:
        try:
            found = slot.fetch()
        except (RayTaskError, ActorUnschedulableError) as error:
            host = "a node" if slot.facts is None else slot.facts.host
            raise ClusterError(f"{host} cannot run trials: {getattr(error, 'cause', None) or error}") from error
        except RayError as error:  # of the actor, or of what it has sent
            return self._lose(slot, error)
        if isinstance(found, NodeFacts):
            return self._admit(slot, found)
        if slot.job is not None and found.token == slot.job.token and slot.inbox is not None:
            slot.inbox.put(found.pieces)
        return [slot.note(event) for event in found.events if slot.concerns(event, found.token)]

    def _admit(self, slot: "_Slot", facts: NodeFacts) -> list[Event]:
        """Let an actor that has its place begin, unless its node would train other scores."""
        self._early_deaths = 0
        if mismatches := list_mismatches(facts.versions, self._versions):
            return self._refuse(slot, facts.host, ", ".join(mismatches))
        self._refused.pop(facts.host, None)  # it left, and came back with other versions
        slot.facts = facts
        slot.send("start")
        return []

    def _refuse(self, slot: "_Slot", host: str, mismatch: str) -> list[Event]:
        """Let an actor do nothing in its place, so that no other gets it. Raises ClusterError: there is no other."""
        slot.is_refused = True
        is_known, self._refused[host] = host in self._refused, mismatch
        if not self._list_hosts() - self._refused.keys():
            found = "; ".join(f"{name} has {what}" for name, what in self._refused.items())
            raise ClusterError(f"nodes must have the versions of the coordinator, but {found}. Install the same there.")
        return [] if is_known else [Noticed(f"Warning: {host} gets no trials: it has {mismatch}.")]

    def _list_hosts(self) -> set[str]:
        """Return the hosts that are large enough for a training, whatever they are at."""
        wanted = {"CPU": self._plan.threads, "GPU": self._num_gpus}
        return {
            node["NodeManagerHostname"]
            for node in ray.nodes()
            if node["Alive"] and all(node["Resources"].get(kind, 0) >= number for kind, number in wanted.items())
        }

    def _lose(self, slot: "_Slot", error: RayError) -> list[Event]:
        slot.kill()
        self._slots.remove(slot)
        if slot.facts is None:
            self._early_deaths += 1
            if getattr(error, "actor_init_failed", False) or self._early_deaths >= _MAX_EARLY_DEATHS + self._at_once:
                raise ClusterError(f"slots end before they are ready on the nodes of the cluster: {error}")
            return []
        what = f"{slot.facts.host} is lost, or the process that had a slot there"
        if slot.job is None:
            return [Noticed(f"Warning: {what}.")]
        reason = "crash" if slot.is_warm else NEVER_BEGAN
        return [JobEnded(slot.job.run_id, "lost", reason=reason, message=what)]

    def _tell_of_room(self) -> list[Event]:
        """Say once that no node has room for a slot, when that has been so for a while."""
        now = time.monotonic()
        if any(slot.facts is not None for slot in self._slots):
            self._without_slot_since, self._has_told_of_room = now, False
        if self._has_told_of_room or now - self._without_slot_since < _ROOM_S:
            return []
        self._has_told_of_room = True
        kinds = {"CPU": self._plan.threads, "GPU": self._num_gpus}
        has = ray.cluster_resources()
        texts = (f"{number:g} {kind}s (the cluster has {has.get(kind, 0):g})" for kind, number in kinds.items())
        return [Noticed(f"Waiting for a node with room for a training: {' and '.join(texts)}.")]


class _Slot:
    """An actor as the coordinator sees it."""

    def __init__(self, plan: SlotPlan, num_gpus: float) -> None:
        options = {"num_cpus": plan.threads, "num_gpus": num_gpus, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
        self.actor: Any = ray.remote(NodeSlot).options(**options).remote(plan)
        self.facts: NodeFacts | None = None
        """None until it has a place."""
        self.job: Job | None = None
        self.inbox: Inbox | None = None
        self.is_refused = self.is_warm = False
        self._call: Any = self.actor.describe.remote()
        self._sent: list[Any] = []
        self._checked: list[Any] = []

    @property
    def is_free(self) -> bool:
        return self.facts is not None and self.job is None

    def send(self, method: str, *arguments: object) -> None:
        """Call a method whose result nobody waits for; a failure comes out with the next report."""
        self._sent.append(getattr(self.actor, method).remote(*arguments))

    def ask(self) -> Any:
        """Return the outstanding call."""
        if self._call is None:
            self._call = self.actor.next_report.remote(_IDLE_S if self.job is None else _BUSY_S)
            self._checked, self._sent = self._sent, []
        return self._call

    def fetch(self) -> NodeFacts | Report:
        """Return the result of the call, which must be there. Raises RayError."""
        call, self._call = self._call, None
        found: NodeFacts | Report = ray.get(call)
        ray.get(self._checked)
        return found

    def concerns(self, event: Event, token: str) -> bool:
        """Say whether an event of the attempt with this token is the slot's own, or of its job.

        The attempt may have been abandoned since, and another at the same run begun.
        """
        return not hasattr(event, "run_id") or (self.job is not None and token == self.job.token)

    def note(self, event: Event) -> Event:
        """Take note of an event, and return it as the coordinator is to hear of it."""
        if isinstance(event, WorkerReady):
            self.is_warm = True
        if isinstance(event, JobEnded) and self.job is not None:
            if path := event.result.get("checkpoint"):
                event.result["checkpoint"] = str(self.job.folder / Path(path).name)
            self.job = self.inbox = None
        return event

    def kill(self) -> None:
        """End the actor, whether it has a place or not."""
        with contextlib.suppress(RayError):
            ray.kill(self.actor)


def connect(address: str) -> None:
    """Connect this process to a cluster. Raises ConfigError: no address. Raises ClusterError: it does not work."""
    _check_answer(address)
    handler = signal.getsignal(signal.SIGTERM)
    ray.shutdown()
    try:
        ray.init(
            address=address,
            namespace="cityopt",
            configure_logging=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise ClusterError(f"the Ray cluster at {address} cannot be used: {str(error).rstrip('.')}. {_HINT}") from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray puts one of its own there
    # The last words of a node's own processes would be printed into the table: a lost node is told of here.
    ray._private.worker._worker_logs_enabled = False


def _check_answer(address: str) -> None:
    """Find out in seconds what Ray needs minutes for: that nobody listens at an address."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in address:
        raise ConfigError(f"`--address` must be auto or the HOST:PORT of a Ray cluster's head, but got {address!r}.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"no Ray cluster answers at {address}: {error}. {_HINT}") from error
