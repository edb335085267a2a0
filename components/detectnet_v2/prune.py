"""`detectnet_v2 prune`."""

from dataclasses import replace
from pathlib import Path

from components.detectnet_v2.network import grid_net
from components.step import UserError
from components.vision.checkpoint import KERAS_SUFFIX, SUFFIX, load_network, save_network
from components.vision.network import count_parameters
from components.vision.pruning import PruneSettings, prune, threshold_for_ratio
from components.vision.status import StatusLog

# TAO 4 and earlier write encrypted models: scripts made for them name the output so.
_ENCRYPTED_SUFFIX = ".tlt"


def prune_model(
    model: Path, output: Path, settings: PruneSettings, target_ratio: float | None, results: Path | None
) -> float:
    """Writes a pruned copy of a model; returns the share of parameters that is left.

    Args:
        model: The trained model.
        output: The pruned model. `.hdf5` is written in TAO's layout, `.safetensors` in ours; any other name gets our
            suffix (instead of `.tlt`, TAO's encrypted format).
        settings: How to prune.
        target_ratio: Share of parameters to keep at most; replaces the settings' threshold. TAO has no such option.
        results: Where `status.json` is written; beside the output when None.

    Raises:
        UserError: The output exists, or the ratio cannot be reached.
    """
    output = _completed(output)
    if output.exists():
        raise UserError(f"{output}: exists already; name another output file")
    status = StatusLog(results or output.parent)
    status.write("STARTED", "Starting pruning")
    network = grid_net(load_network(model), model)
    if target_ratio is not None:
        settings = replace(settings, threshold=threshold_for_ratio(network, settings, target_ratio))
        print(f"Threshold for a ratio of at most {target_ratio}: {settings.threshold}")
    pruned = prune(network, settings)
    save_network(output, pruned)
    ratio = count_parameters(pruned) / count_parameters(network)
    print(f"Pruning ratio (pruned model / original model): {ratio}")
    for name, before in network.config.backbone.channels.items():
        after = pruned.config.backbone.channels[name]
        if after != before:
            print(f"  {name}: {before} -> {after} channels")
    print(f"Pruned model: {output}")
    kpi = {
        "pruning_ratio": ratio,
        "size": output.stat().st_size / 2**20,
        "param_count": count_parameters(pruned) / 1e6,
    }
    status.write("SUCCESS", "Pruning finished successfully", kpi=kpi)
    return ratio


def _completed(output: Path) -> Path:
    if output.suffix in (SUFFIX, KERAS_SUFFIX):
        return output
    stem = output.with_suffix("") if output.suffix == _ENCRYPTED_SUFFIX else output
    return stem.with_name(stem.name + SUFFIX)
