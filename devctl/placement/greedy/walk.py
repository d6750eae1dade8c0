"""auto, balanced, balanced_low_0 and sequential: what transformers would do.

A transcription of ``transformers/integrations/accelerate.py`` 5.18 to 5.24 (``get_balanced_memory`` and
``infer_auto_device_map``), from modules to plain data. Where that code raises, or loses a tensor, this one places every
tensor and says so in a note; everywhere else the answers are the same, key by key.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from devctl.devices import Device, DeviceType
from devctl.models.tree import Module, ModuleTree, Tensor, is_atomic, is_under, tensors
from devctl.placement.budget import NUMBERED, Budgets, is_accelerator, less_for_one
from devctl.placement.counted import Counted
from devctl.placement.device_map import FrozenMap
from devctl.placement.greedy.decisions import Decision, Share, Step, Trail
from devctl.placement.strategy import FoundMap, Strategy, collapse, in_order

_Entry = Module | Tensor
_DISK = Device.disk()


def greedy_map(counted: Counted, budgets: Budgets, strategy: Strategy) -> FoundMap:
    """The device map that transformers computes for ``device_map=strategy``, with every decision for `explain`."""
    tree = counted.tree
    limits = dict(budgets.devices)
    notes: list[str] = []
    share = None
    if strategy is not Strategy.SEQUENTIAL:
        low_zero = strategy is Strategy.BALANCED_LOW_0
        limits, share = _balance(counted, limits, given=budgets.given, low_zero=low_zero, notes=notes)
    if tree.budget_share != 1:
        limits = {device: int(limit * tree.budget_share) for device, limit in limits.items()}
    walkthrough = _Walkthrough(tree, counted.size, counted.moved, limits, notes)
    assigned = walkthrough.run()
    if tree.unplaced is None:
        assigned = _with_lost_buffers(assigned, walkthrough.lost_buffers, notes)
    trail = Trail(
        share=share,
        limits=tuple(limits.items()),
        main=walkthrough.main,
        decisions=tuple(walkthrough.decisions),
    )
    return FoundMap(device_map=in_order(tree, assigned), notes=tuple(notes), trail=trail)


def _balance(
    counted: Counted,
    limits: dict[Device, int],
    *,
    given: bool,
    low_zero: bool,
    notes: list[str],
) -> tuple[dict[Device, int], Share | None]:
    """Lower every GPU's limit but the last one's to an even share, so that the last is not left empty."""
    limits = dict(limits)
    count = sum(1 for device, limit in limits.items() if is_accelerator(device) and limit > 0)
    if count == 0:
        return limits, None
    numbered = [device for device in limits if device.type in NUMBERED]
    if count == 1:
        low_zero = False
        if not given:
            limits = less_for_one(limits)

    tree = counted.tree
    if tree.no_split and not tree.index.unsplit:
        notes.append(
            f"{tree.class_name} names {', '.join(sorted(tree.no_split))} as blocks but has none: transformers raises "
            "ValueError here"
        )
    total, parts = counted.size[""], count - 1 if low_zero else count
    share = Share(
        nbytes=total // parts + int(1.25 * counted.largest), total=total, parts=parts, largest=counted.largest
    )

    filled = [device for device in numbered if limits[device] > 0]
    zero = next((device for device in numbered if device.id == 0), filled[0] if filled else None)
    for device in filled[:-1]:
        if not (low_zero and device == zero):
            limits[device] = min(limits[device], share.nbytes)
    if low_zero and zero is not None:
        others = [device for device in numbered if device != zero][: count - 1]
        if [device.id for device in (zero, *others)] != list(range(count)):
            others = [device for device in filled if device != zero]
            notes.append(
                f"the GPUs {', '.join(str(device) for device in numbered)} do not count up from 0: transformers raises "
                f"KeyError here; devctl keeps {zero} low"
            )
        limits[zero] = min(limits[zero], max(0, total - sum(limits[device] for device in others)))
    return limits, share if count > 1 else None


@dataclass
class _Walkthrough:
    """One pass over the model, filling device after device and never going back."""

    tree: ModuleTree
    size: Mapping[str, int]
    moved: Mapping[str, int]
    limits: dict[Device, int]
    notes: list[str]
    lost_buffers: list[Tensor] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    layers: dict[str, tuple[int, Sequence[str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.devices = [*self.limits, *(() if _DISK in self.limits else (_DISK,))]
        self.accelerators = {device: None for device in self.devices if is_accelerator(device)}
        self.runs = {d for d in self.accelerators if self.limits[d] > 0} or {Device.cpu()}
        self.main = self._main_devices()
        self.tie_groups = _tie_groups(self.tree)
        self.tied = "\n".join(f"{name}." for group in self.tie_groups for name in group)
        root = self.tree.root
        self.waiting: list[_Entry] = [*root.parameters, *root.children, *root.buffers]
        self.waiting.reverse()  # the next is the last
        self.assigned: dict[str, Device] = {}
        self.used = dict.fromkeys(self.devices, 0)
        self.current = 0
        # bytes and names of the largest layers to come: what the main devices must have room to run
        self.largest, self.largest_names = 0, dict.fromkeys(("",))
        self._update_largest(tensors_too=True)

    def _main_devices(self) -> tuple[Device, ...]:
        """The devices that keep room for the largest layer that may be offloaded."""
        for device in self.accelerators:
            if device.type == DeviceType.MPS:
                return (device,)
        return (*list(self.accelerators)[:1], Device.cpu())

    def run(self) -> dict[str, Device]:
        while self.waiting:
            self._treat(self.waiting.pop())
        return collapse(self.assigned) if self.tree.unplaced is None else self.assigned

    def _treat(self, entry: _Entry) -> None:
        if self._is_atomic(entry):
            self.largest_names.pop(entry.name, None)
        else:
            self.largest_names = {n: None for n in self.largest_names if not is_under(n, entry.name)}
        if not self.largest_names:
            self._update_largest()
        partners = self._partners(entry)
        owners, anchor = self._owners(entry, partners)
        device = self.devices[self.current]

        if anchor is not None and anchor != device:
            if self._is_atomic(entry):
                size = self._size(entry, anchor)
                if self._room(anchor) is None or self.used[anchor] + size <= self.limits[anchor]:
                    self._decide(Step.JOINED, entry, anchor, size, partners)
                    self._assign(entry, (), anchor)
                    return
            else:
                self._decide(Step.SPLIT_TO_JOIN, entry, anchor, self._size(entry, anchor), partners)
                self._split(entry)
                return

        size = self._size(entry, device)
        with_owners = size + sum(self._size(owner, device) for owner in owners)
        room = self._room(device)
        if room is None or self.used[device] + with_owners <= room:
            self._decide(Step.PLACED, entry, device, with_owners, [owner.name for owner in owners])
            self._assign(entry, owners, device)
            return
        if partners and self.used[device] + size <= room and self._split_owner(entry, owners):
            return
        if not self._is_atomic(entry):
            self._decide(Step.SPLIT, entry, device, with_owners)
            self._split(entry)
            return
        if self._escape(entry, with_owners):
            self._decide(Step.LEFT_OUT, entry, device, with_owners)
            return
        self._decide(Step.NEXT, entry, device, with_owners)
        self.current += 1
        self.waiting.append(entry)

    def _size(self, entry: _Entry, device: Device) -> int:
        """Bytes of ``entry`` on ``device``: what it needs beside its weights is on the devices that run it."""
        return (self.size if device in self.runs else self.moved)[entry.name]

    def _room(self, device: Device) -> int | None:
        """Bytes that ``device`` may hold now; None for the disk, which holds all."""
        if device.type == DeviceType.DISK:
            return None
        return self.limits[device] - (self.largest if device in self.main else 0)

    def _partners(self, entry: _Entry) -> list[str]:
        """Tensors outside ``entry`` that are tied to one inside it.

        "Inside" is a substring, not a prefix, as upstream has it.
        """
        inside = entry.name + "."
        found: list[str] = []
        if inside not in self.tied:
            return found
        for group in self.tie_groups:
            outside = [name for name in group if inside not in name + "."]
            if 0 < len(outside) < len(group):
                found += outside
        return found

    def _owners(self, entry: _Entry, partners: Iterable[str]) -> tuple[list[_Entry], Device | None]:
        """The entries still to be placed that hold ``partners``, and the device of a partner that is placed already."""
        owners: list[_Entry] = []
        anchor: Device | None = None
        for partner in partners:
            owner = next((e for e in reversed(self.waiting) if is_under(partner, e.name)), None)
            if owner is None:
                anchor = anchor or next((d for name, d in self.assigned.items() if is_under(partner, name)), None)
            elif owner not in owners:
                owners.append(owner)
            if owner is None or owner.name == partner:
                self._note(
                    f"{entry.name} is tied to {partner}, which was placed or split off before it: transformers raises "
                    "IndexError here; devctl keeps them together where there is room"
                )
        return owners, anchor

    def _assign(self, entry: _Entry, owners: Iterable[_Entry], device: Device) -> None:
        for each in (entry, *owners):
            self.used[device] += self._size(each, device)
            self.assigned[each.name] = device
        for owner in owners:
            self.waiting.remove(owner)

    def _split_owner(self, entry: _Entry, owners: Iterable[_Entry]) -> bool:
        """Replace the first owner that can be split by its parts, and treat ``entry`` again."""
        for owner in owners:
            if self._is_atomic(owner):
                continue
            assert isinstance(owner, Module)
            device = self.devices[self.current]
            self._decide(Step.SPLIT_TO_BRING, owner, device, self._size(owner, device), [entry.name])
            at = self.waiting.index(owner)
            self.waiting[at : at + 1] = self._parts(owner)[::-1]
            self.waiting.append(entry)
            self._update_largest()
            return True
        return False

    def _split(self, entry: _Entry) -> None:
        assert isinstance(entry, Module)
        self.waiting += self._parts(entry)[::-1]
        self._update_largest()

    def _parts(self, module: Module) -> list[_Entry]:
        self.lost_buffers += module.buffers  # upstream forgets them here
        return [*module.parameters, *module.children]

    def _is_atomic(self, entry: _Entry) -> bool:
        return is_atomic(entry, self.tree.no_split)

    def _escape(self, entry: _Entry, size: int) -> bool:
        """Leave a block's ``_no_placement_params`` out of the map, when the next GPU can't hold the block either."""
        if not self.tree.unplaced or isinstance(entry, Tensor) or entry.class_name not in self.tree.no_split:
            return False
        unplaced = {f"{entry.name}.{name}" for name in self.tree.unplaced}
        below = list(tensors(entry))
        following = self.devices[self.current + 1]
        if (
            unplaced.isdisjoint(t.name for t in below)
            or following not in self.accelerators
            or self.used[following] + size <= self.limits[following]
        ):
            return False
        below.sort(key=lambda t: t.kind, reverse=True)  # parameters, then buffers
        self.waiting += [t for t in below if t.name not in unplaced][::-1]
        return True

    def _update_largest(self, *, tensors_too: bool = False) -> None:
        """Look for the largest layers (a leaf or a no-split block) among what waits, and below."""
        largest, found = 0, []
        for entry in reversed(self.waiting):
            if tensors_too or isinstance(entry, Module):
                nbytes, names = self._largest_in(entry)
                if nbytes > largest:
                    largest, found = nbytes, [names]
                elif nbytes == largest:
                    found.append(names)
        self.largest, self.largest_names = largest, dict.fromkeys(chain.from_iterable(found))

    def _largest_in(self, entry: _Entry) -> tuple[int, Sequence[str]]:
        """The most bytes in one layer of ``entry``, and the names of all layers that have them."""
        if self._is_atomic(entry):
            return self.size[entry.name], (entry.name,)
        assert isinstance(entry, Module)
        if (known := self.layers.get(entry.name)) is not None:
            return known
        largest, found = 0, list[str]()
        for child in entry.children:
            nbytes, names = self._largest_in(child)
            if nbytes > largest:
                largest, found = nbytes, [*names]
            elif nbytes == largest:
                found += names
        self.layers[entry.name] = largest, found
        return largest, found

    def _decide(self, step: Step, entry: _Entry, device: Device, needs: int, tied: Iterable[str] = ()) -> None:
        kept = self.largest if device in self.main else 0
        decision = Decision(
            step=step,
            name=entry.name,
            device=device,
            needs=needs,
            used=self.used[device],
            limit=None if device.type == DeviceType.DISK else self.limits[device],
            kept=kept,
            kept_for=next(iter(self.largest_names)) if kept and self.largest_names else None,
            tied=tuple(tied),
        )
        self.decisions.append(decision)

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _tie_groups(tree: ModuleTree) -> list[list[str]]:
    """Names of tensors that are one, sorted; upstream's order of groups is that of a set, ours that of the model."""
    groups: dict[str, list[str]] = {}
    for target, source in tree.ties:
        groups.setdefault(source, [source]).append(target)
    return [sorted(group) for group in groups.values()]


def _with_lost_buffers(assigned: dict[str, Device], lost: Sequence[Tensor], notes: list[str]) -> dict[str, Device]:
    """Add the buffers that upstream drops when it splits a module, unless a collapsed prefix covers them."""
    covering = FrozenMap.of(assigned)
    missing = {b.name: b for b in lost if covering.device_of(b.name) is None}
    if not missing:
        return assigned
    notes.append(
        f"transformers loses {', '.join(missing)} when it splits the module around it, and then refuses its own map; "
        "devctl puts it beside its module"
    )
    completed = dict(assigned)
    for name in missing:
        module = name.rpartition(".")[0]
        completed[name] = next(device for key, device in assigned.items() if is_under(key, module))
    return collapse(completed)
