"""Sample modifiers of `dataset_convert`: frames of the training folds that are left out or written several times.

Source: TAO 5.0, `cv/detectnet_v2/dataio/{sample_modifier,build_sample_modifier}.py`. For the target class names that
`minimum_target_class_imbalance` holds, TAO looks up bytes among texts; here the value given for a class counts.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from components.detectnet_v2 import spec_pb2
from components.step import UserError

_BLOCK = "sample_modifier_config"
_CONFIG = spec_pb2.DatasetExportConfig.SampleModifierConfig


@dataclass(slots=True)
class Modified:
    """What the modifiers did.

    Attributes:
        filtered: Frames left out because they hold objects of one unwanted class only.
        duplicates: Copies added of frames in which a rare class outweighs a dominant one.
        beyond_limit: Frames and copies left out because the fold was full (`max_training_samples`).
    """

    filtered: int = 0
    duplicates: int = 0
    beyond_limit: int = 0


@dataclass(slots=True)
class SampleModifier:
    """Decides how often a frame of a training fold is written.

    Attributes:
        mapping: Target class by source class, lower-cased.
        filtered_classes: A frame whose objects are all of one of these is left out.
        dominant_classes: The classes that others are compared with; none for no duplicates.
        imbalance: By target class, how many objects for each one of a dominant class make a frame rare; 1 if unnamed.
        duplicates: Copies of a rare frame.
        fold_limit: Most frames of a training fold; 0 for no limit.
        modified: What has been done so far.
    """

    mapping: Mapping[str, str]
    filtered_classes: frozenset[str]
    dominant_classes: tuple[str, ...]
    imbalance: Mapping[str, float]
    duplicates: int
    fold_limit: int
    modified: Modified = field(default_factory=Modified)
    _written: Counter[int] = field(default_factory=Counter)

    def copies(self, class_names: list[str], fold: int) -> int:
        """Returns how often the next frame of a training fold is written.

        Args:
            class_names: Source classes of its objects.
            fold: The fold, whose frames are asked for in the order in which they are written.
        """
        targets = Counter(self.mapping[name] for name in class_names if name in self.mapping)
        if len(targets) == 1 and self.filtered_classes & targets.keys():
            self.modified.filtered += 1
            return 0
        wanted = 1 + (self.duplicates if self._is_rare(targets) else 0)
        room = self.fold_limit - self._written[fold] if self.fold_limit else wanted
        written = min(wanted, room)
        self._written[fold] += written
        self.modified.duplicates += max(written - 1, 0)
        self.modified.beyond_limit += wanted - written
        return written

    def _is_rare(self, targets: Counter[str]) -> bool:
        return any(
            targets[rare] > targets[dominant] * self.imbalance.get(rare, 1.0)
            for rare in targets.keys() - set(self.dominant_classes)
            for dominant in self.dominant_classes
        )


def build_modifier(config: _CONFIG, folds: int, validation_fold: int | None) -> SampleModifier | None:
    """Returns the modifier that a spec describes; None if it leaves all samples as they are.

    Args:
        config: The spec's `sample_modifier_config`.
        folds: Number of folds that hold frames.
        validation_fold: The fold that is left alone (-f).

    Raises:
        UserError: A class is no target of the mapping, or it is not clear which folds are for training.
    """
    duplicates = config.num_duplicates if config.dominant_target_classes else 0
    if not (config.filter_samples_containing_only or duplicates or config.max_training_samples):
        return None
    targets = sorted(set(config.source_to_target_class_mapping.values()))
    for name in ("filter_samples_containing_only", "dominant_target_classes"):
        unknown = [value for value in getattr(config, name) if value not in targets]
        if unknown:
            raise UserError(
                f"{_BLOCK}.{name} names {unknown[0]}, which source_to_target_class_mapping maps nothing to; "
                f"its target classes are: {', '.join(targets) or 'none'}"
            )
    if validation_fold is None and folds > 1:
        raise UserError(f"{_BLOCK} alters the training folds; say with -f which of the {folds} folds is for validation")
    training = folds - (validation_fold is not None and validation_fold < folds)
    if not training:
        raise UserError(
            f"-f {validation_fold}: there is no other fold, so that {_BLOCK} has none to alter; leave out -f"
        )
    limit = config.max_training_samples
    if 0 < limit < training:
        raise UserError(f"{_BLOCK}.max_training_samples is {limit}, fewer than the {training} training folds")
    return SampleModifier(
        {source.lower(): target for source, target in config.source_to_target_class_mapping.items()},
        frozenset(config.filter_samples_containing_only),
        tuple(config.dominant_target_classes),
        dict(config.minimum_target_class_imbalance),
        duplicates,
        limit // training,
    )
