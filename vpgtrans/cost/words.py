"""An estimate in one paragraph that a manager could read."""

from vpgtrans.cost.results import Cost, Estimate


def paragraph(one: Estimate) -> str:
    """Return the estimate in words: what it costs, how sure that is, against scratch, and whether it fits."""
    total, scratch = one.total, one.scratch
    days = total.gpu_hours / one.gpus / 24
    clock = f"{days:.1f} days" if days >= 2 else f"{total.gpu_hours / one.gpus:.1f} hours"
    where = f"{one.gpus} x {one.gpu.title}" if one.gpus > 1 else f"one {one.gpu.title}"
    cheaper = scratch.gpu_hours / total.gpu_hours if total.gpu_hours else 0.0
    text = (
        f"Porting the vision side to {one.system.name} takes about {_hours(total)} on {one.gpu.title}"
        f"{_money(total)}, which is {clock} on {where}. {_against(one)} takes "
        f"about {_hours(scratch)}{_money(scratch)}, {cheaper:.1f} times as much; "
        f"that ratio rests on: {one.speedup.source}."
    )
    if one.fits:
        return f"{text} It needs {total.peak_memory_gb:.1f} GB of the GPU's {one.gpu.memory_gb:g} GB."
    return f"{text} As it stands it does not fit this GPU; the notes say what to turn on."


def _against(one: Estimate) -> str:
    same = one.scratch.name == "from scratch"
    return "Training the same model from scratch" if same else f"The published run {one.scratch.name}"


def _hours(cost: Cost) -> str:
    if cost.gpu_hours_low == cost.gpu_hours_high:
        return f"{amount(cost.gpu_hours)} GPU-hours"
    band = f"between {amount(cost.gpu_hours_low)} and {amount(cost.gpu_hours_high)}"
    return f"{amount(cost.gpu_hours)} GPU-hours ({band})"


def _money(cost: Cost) -> str:
    return "" if cost.usd is None else f", {money(cost.usd)}"


def amount(value: float) -> str:
    """Write a number with three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def money(usd: float | None) -> str:
    """Write US dollars."""
    if usd is None:
        return "-"
    return f"USD {usd:,.0f}" if usd >= 100 else f"USD {usd:.2f}"
