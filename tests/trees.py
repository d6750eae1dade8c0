"""Trees that a reader can add up in the head, and random ones."""

from hypothesis import strategies as st

from devctl.models.tree import Module, ModuleTree, Tensor, TensorKind


def tensor(name, nbytes, kind=TensorKind.PARAMETER, same_as=None):
    return Tensor(name=name, kind=kind, nbytes=nbytes, shape=(nbytes,), dtype="int8", same_as=same_as)


def module(name, spec, class_name=None):
    """A module from {part: bytes | {…}}; a part called ``_x`` is the buffer x, one called ``x:C`` is of class C."""
    prefix = f"{name}." if name else ""
    parameters, buffers, children = [], [], []
    for part, value in spec.items():
        if isinstance(value, dict):
            child, _, child_class = part.partition(":")
            children.append(module(prefix + child, value, child_class or "Part"))
        elif part.startswith("_"):
            buffers.append(tensor(prefix + part[1:], value, TensorKind.BUFFER))
        else:
            parameters.append(tensor(prefix + part, value))
    return Module(
        name=name,
        class_name=class_name or "Model",
        parameters=tuple(parameters),
        buffers=tuple(buffers),
        children=tuple(children),
    )


def tree(spec, *, no_split=(), ties=(), unplaced=None, **more):
    return ModuleTree(
        root=module("", spec),
        class_name="Model",
        dtype="int8",
        ties=tuple(ties),
        no_split=frozenset(no_split),
        unplaced=None if unplaced is None else frozenset(unplaced),
        **more,
    )


def layers(*nbytes, embed=0, head=0, head_is_tied=False):
    """embed, then blocks that must not be split, each of two halves, then head."""
    blocks = {f"{i}:Block": {"a": {"w": n // 2}, "b": {"w": n - n // 2}} for i, n in enumerate(nbytes)}
    return tree(
        {"embed": {"w": embed}, "layers": blocks, "head": {"w": head}},
        no_split=["Block"],
        ties=[("head.w", "embed.w")] if head_is_tied else [],
    )


_BYTES = st.integers(0, 40)
_NAMES = st.sampled_from(["a", "b", "c", "w", "x", "10", "1"])
_SPECS = st.recursive(
    st.dictionaries(st.one_of(_NAMES, _NAMES.map("_{}".format)), _BYTES, max_size=3),
    lambda inner: st.dictionaries(
        st.one_of(_NAMES, _NAMES.map("{}:Block".format), _NAMES.map("_{}".format)), st.one_of(inner, _BYTES), max_size=4
    ),
    max_leaves=12,
)


def _plausible(spec):
    """Each name once in a module, whatever its mark."""
    names = [name.strip("_").partition(":")[0] for name in spec]
    return len(set(names)) == len(names) and all(_plausible(v) for v in spec.values() if isinstance(v, dict))


@st.composite
def random_trees(draw):
    """Trees with blocks, buffers, ties across modules, and tensors that are registered twice."""
    spec = draw(_SPECS.filter(_plausible))
    names = list(_parameter_names("", spec))
    ties = []
    if len(names) > 1 and draw(st.booleans()):
        source, *targets = draw(st.lists(st.sampled_from(names), min_size=2, max_size=3, unique=True))
        ties = [(target, source) for target in targets]
    return tree(spec, no_split=["Block"], ties=ties)


def _parameter_names(prefix, spec):
    for part, value in spec.items():
        name = prefix + part.strip("_").partition(":")[0]
        if isinstance(value, dict):
            yield from _parameter_names(name + ".", value)
        elif not part.startswith("_"):
            yield name
