"""What vLLM and SGLang have in common: as many workers on every host, one line for each, stages of whole layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from devctl.export.known import unknown
from devctl.export.records import Command, Exportable, visible_devices

_DTYPES = frozenset({"float16", "bfloat16", "float32"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """An engine that serves from stages.

    Attributes:
        name: as people write it.
        key: as ``--to`` has it.
        partition: the variable that it takes the layers of each stage from.
        kv_dtypes: its words for what keys and values are kept in, by torch's names; None where nothing is to be said.
        offloading: how it offloads, of several GPUs.
        devices: which devices it takes.
    """

    name: str
    key: str
    partition: str
    kv_dtypes: Mapping[str | None, str | None]
    offloading: str
    devices: str

    def reasons(self, plan: Exportable) -> tuple[str, ...]:
        """Why it can't run ``plan``, a line each."""
        stages = plan.stages
        found = []
        if plan.class_name is not None and (why := unknown(self.key, plan.class_name)):
            found.append(why)
        if plan.on_cpu is not None and len(stages.stages) > 1:
            found.append(f"{self.name} offloads {self.offloading}: a plan of several GPUs can't say it")
        elif plan.on_cpu is not None and not plan.cpu_bytes:
            found.append(
                f"{self.name} is told how many bytes stay on the CPU, which a map does not say: give the plan document"
            )
        if plan.quantisation is None and plan.dtype not in (None, *_DTYPES):
            found.append(f"{self.name} has no --dtype {plan.dtype}")
        if plan.kv_dtype not in self.kv_dtypes:
            found.append(f"{self.name} has no --kv-cache-dtype for {plan.kv_dtype}")
        if any(not device.startswith("cuda:") for stage in stages.stages for device in stage.devices):
            found.append(self.devices)
        ranks = {host: len(stages.devices_on(host)) for host in stages.hosts}
        if len(set(ranks.values())) > 1:
            told = ", ".join(f"{host} {count}" for host, count in ranks.items())
            found.append(f"{self.name} starts as many workers on every host, and the plan has unequal ones: {told}")
        return tuple(found)

    def about_model(self, plan: Exportable) -> list[str]:
        """Options that say which weights are served."""
        words = [] if plan.revision is None else ["--revision", plan.revision]
        packed = plan.quantisation is not None and not (plan.serving and plan.serving.quantised_while_loading)
        return words if packed or plan.dtype is None else [*words, "--dtype", plan.dtype]

    def about_cache(self, plan: Exportable) -> list[str]:
        """The option that says what keys and values are kept in."""
        kept_in = self.kv_dtypes[plan.kv_dtype]
        return [] if kept_in is None else ["--kv-cache-dtype", kept_in]

    def commands(
        self, plan: Exportable, words: Sequence[str], joined: Callable[[int], Sequence[str]]
    ) -> tuple[Command, ...]:
        """The line of each host.

        Args:
            words: what is the same on all.
            joined: what a host of several is told besides, by its number.
        """
        stages, hosts = plan.stages, plan.stages.hosts
        several = len(hosts) > 1
        found = []
        for number, host in enumerate(hosts):
            environment = visible_devices(stages.devices_on(host))
            if len(stages.stages) > 1:
                environment[self.partition] = ",".join(map(str, plan.counts))
            own = (*words, *(joined(number) if several else ()))
            found.append(Command(host=host if several else "", environment=environment, words=own))
        return tuple(found)

    def notes(self, plan: Exportable) -> list[str]:
        """What a reader should know whatever the workload is."""
        found = []
        if plan.cpu_bytes:
            found.append(
                f"{self.name} chooses which weights it leaves in the CPU's memory: as many bytes, not the plan's "
                "modules"
            )
        if len(plan.stages.hosts) > 1:
            found.append(f"the name {plan.stages.hosts[0]} has to lead there from every host; start the lines together")
        return found
